"""The smoke study on a base half as wide, so that the Pareto hull over widths is drawn there too.

    python -m tpbench run --recipe cifar10-cpu-w32 --data DIR
    python -m tpbench claims results/cifar10-cpu results/cifar10-cpu-w32

Machine: 2 CPU cores, minutes. Its accuracies mean little.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10_cpu


def recipe() -> Recipe:
    return cifar10_cpu.recipe("cifar10-cpu-w32", width=32, methods=("none", "wkmedoids"))
