"""Real handwritten digits, small enough for any machine: the default.

    python -m tpbench run --methods all

Machine: 2 CPU cores, about 10 minutes. 1,797 real 8x8 images (scikit-learn's load_digits), upsampled to 16x16; 500 of
them test. Expect the unreduced base at 97 to 99 % and, at keep rate 0.3, most methods between 70 and 90 %: blocks 0, 1,
2 of 4 are where methods separate.
"""

from tpbench.recipe import Data, Measure, Optim, Recipe, Search


def recipe() -> Recipe:
    return Recipe(
        name="digits",
        model="vit_tiny_patch16_224",
        model_args={
            "img_size": 16,
            "patch_size": 2,
            "in_chans": 1,
            "embed_dim": 64,
            "depth": 4,
            "num_heads": 4,
            "mlp_ratio": 2,
            "num_classes": 10,
        },
        sincos=100.0,
        data=Data("digits", image_size=16, channels=1, shift=2),
        base=Optim(epochs=30, lr=2.5e-3, warmup_epochs=2),
        finetune=Optim(epochs=2, lr=5e-4),
        search={
            "topk": Search(Optim(epochs=5, lr=1e-2), backbone_lr_scale=0.05, knobs={"strength": 2e-3}),
            "diffrate": Search(Optim(epochs=3, lr=0.2), knobs={"target": 0.5}),
        },
        schedules=("macs=0.5@0,1,2", "0.7@0,1,2", "0.3@0,1,2"),  # equal cost first, then equal tokens
        seeds=2,
        workers=2,
        measure=Measure(batch_sizes=(1, 32), repeats=20, warmup=3),
    )
