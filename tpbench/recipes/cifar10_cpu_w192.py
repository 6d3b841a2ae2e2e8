"""The cifar10-cpu recipe on a base 192 wide: a point of the width scaling that the Pareto hull needs.

    python -m tpbench run --recipe cifar10-cpu-w192 --time-limit 9h
    python -m tpbench claims results/cifar10-cpu results/cifar10-cpu-w192

Machine: 2 CPU cores; not run yet.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10_cpu


def recipe() -> Recipe:
    """The recipe that the module describes."""
    methods = ("none", "wkmedoids", "kmedoids", "topk")
    return cifar10_cpu.recipe("cifar10-cpu-w192", width=192, methods=methods, controls=())
