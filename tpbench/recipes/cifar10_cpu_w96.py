"""The cifar10-cpu recipe on a base 96 wide: a point of the width scaling that the Pareto hull needs.

    python -m tpbench run --recipe cifar10-cpu-w96 --time-limit 9h
    python -m tpbench claims results/cifar10-cpu results/cifar10-cpu-w96

Machine: 2 CPU cores; not run yet.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10_cpu


def recipe() -> Recipe:
    """The recipe that the module describes."""
    methods = ("none", "wkmedoids", "kmedoids", "topk")
    return cifar10_cpu.recipe("cifar10-cpu-w96", width=96, methods=methods, controls=())
