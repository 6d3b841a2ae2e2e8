"""The digits recipe cut down until it only shows that everything works.

    python -m tpbench run --recipe smoke --methods all

Machine: 2 CPU cores, about two minutes. The accuracies mean little: 320 images train and 100 test.
"""

from dataclasses import replace

from tpbench.recipe import Measure, Optim, Recipe
from tpbench.recipes import digits


def recipe() -> Recipe:
    """The recipe that the module describes."""
    full = digits.recipe()
    return replace(
        full,
        name="smoke",
        data=replace(full.data, train_limit=320, test_limit=100),
        base=Optim(epochs=30, lr=4e-3, warmup_epochs=3),
        finetune=Optim(epochs=1, lr=5e-4),
        schedules=("0.5@0,1,2",),
        controls=(),
        expected_base=0.0,
        seeds=1,
        measure=Measure(batch_sizes=(1, 32), repeats=10, warmup=2),
    )
