"""A smoke study: the cifar10 recipe cut down to what two CPU cores do in minutes. Its accuracies mean little.

    python -m tpbench run --recipe cifar10-cpu --data DIR

4,000 of the 50,000 training images, a base of 64 x 6 trained for a few epochs. It shows that the way from images to
the table of claims is whole, and how the methods' costs compare; the study itself is the cifar10 recipe on a GPU.
"""

from dataclasses import replace

from tpbench.recipe import Measure, Optim, Recipe
from tpbench.recipes import cifar10


def recipe() -> Recipe:
    whole = cifar10.recipe("cifar10-cpu", width=64)
    return replace(
        whole,
        model_args={**whole.model_args, "depth": 6, "num_heads": 2, "mlp_ratio": 2},
        sincos=100.0,
        data=replace(whole.data, train_limit=4_000, test_limit=1_000, validation=0.05, shift=2),
        base=Optim(epochs=12, lr=2e-3, batch_size=64, warmup_epochs=1),
        finetune=Optim(epochs=1, lr=3e-4, batch_size=64),
        schedules=("0.5@1,2,3", "macs=0.5@1,2,3", "0.7@1,2,3"),
        methods=("none", "wkmedoids", "kmedoids", "wkmeans", "kmeans", "topk", "importance", "random", "strided_conv"),
        workers=2,
        measure=Measure(batch_sizes=(1, 32), repeats=15, warmup=3),
    )
