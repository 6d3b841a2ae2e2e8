"""A recipe of seconds for tests: 160 digits, 16 tokens, two blocks.

python -m tpbench run --recipe tests/tiny_recipe.py
"""

from tpbench.recipe import Data, Measure, Optim, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="tiny",
        model="vit_tiny_patch16_224",
        model_args={
            "img_size": 8,
            "patch_size": 2,
            "in_chans": 1,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 10,
        },
        data=Data("digits", image_size=8, channels=1, shift=1, train_limit=160, test_limit=60, validation=0.2),
        base=Optim(epochs=3, lr=2e-3, batch_size=16, warmup_epochs=1),
        finetune=Optim(epochs=2, lr=1e-3, batch_size=16),
        schedules=("0.5@0,1",),
        seeds=1,
        measure=Measure(batch_sizes=(1, 4), repeats=3, warmup=1),
    )
