"""Real handwritten digits, small enough for any machine: the default.

    python -m tpbench run --methods all

Machine: 2 CPU cores, about 20 minutes for the 385 cells of five seeds and their timing. 1,797 real 8x8 images
(scikit-learn's load_digits), upsampled to 16x16: 64 tokens of 2x2 pixels. The seed decides which fifth of them is the
test set, so that five seeds test every image once. The optimiser is Muon: 20 epochs with it give better bases than 30
with AdamW, and on better bases the methods vary less from seed to seed. Expect the unreduced base at about 98 %, most
methods between 95 and 98 % at half of its multiply-adds and between 91 and 97 % at 0.3 of them, where they separate.
The row wkmedoids(finetune_seed=1) shows what no difference looks like. The row ats(live=True) shows ATS when its living
tokens, without the padding, cost the budget.
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
            "embed_dim": 32,
            "depth": 6,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 10,
        },
        sincos=100.0,
        data=Data("digits", image_size=16, channels=1, shift=2, validation=0.1, folds=5),
        base=Optim(epochs=20, lr=1e-2, optimizer="muon", warmup_epochs=1),
        finetune=Optim(epochs=3, batch_size=64, lr=6e-3, optimizer="muon", warmup_epochs=0.3),
        search={
            "topk": Search(Optim(epochs=5, lr=1e-2), backbone_lr_scale=0.05, knobs={"strength": 2e-3}),
            "diffrate": Search(Optim(epochs=3, lr=0.2), knobs={"target": 0.5}),
            "ltmp": Search(Optim(epochs=1, lr=5e-3, batch_size=64), knobs={"target": 0.5}),
        },
        schedules=("macs=0.5@0,1,2", "macs=0.3@0,1,2"),
        controls=("wkmedoids(finetune_seed=1)", "ats(live=True)"),
        expected_base=97.0,
        seeds=5,
        workers=2,
        measure=Measure(batch_sizes=(1, 32), repeats=0, warmup=0),
    )
