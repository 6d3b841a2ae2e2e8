"""A smoke study: the cifar10 recipe cut down to what two CPU cores do in minutes. Its accuracies mean little.

    python -m tpbench run --recipe cifar10-cpu --data DIR

Machine: 2 CPU cores, about 6 minutes. 2,000 of the 50,000 training images, a base of 64 x 4 trained for ten epochs, one
epoch of fine-tuning. It shows that the way from images to the table of claims is whole; the study itself is the cifar10
recipe on a GPU. Expect the base below 40 %.
"""

from dataclasses import replace

from tpbench.recipe import Measure, Optim, Recipe
from tpbench.recipes import cifar10


def recipe(
    name: str = "cifar10-cpu", width: int = 64, methods: tuple[str, ...] = cifar10.EQUAL_COST + cifar10.SETTINGS
) -> Recipe:
    whole = cifar10.recipe(name, width, methods=methods)
    return replace(
        whole,
        model_args={**whole.model_args, "depth": 4, "num_heads": 2, "mlp_ratio": 2},
        sincos=100.0,
        data=replace(whole.data, train_limit=2_000, test_limit=1_000, validation=0.05, shift=2),
        base=Optim(epochs=10, lr=2e-3, batch_size=64, warmup_epochs=1),
        finetune=Optim(epochs=1, lr=3e-4, batch_size=64),
        schedules=("0.5@0,1,2", "macs=0.5@0,1,2"),
        expected_base=0.0,
        workers=2,
        measure=Measure(batch_sizes=(1, 32), repeats=10, warmup=2),
    )
