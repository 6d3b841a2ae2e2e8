"""The cifar10 recipe on a base 256 wide: a point of the width scaling that the Pareto hull needs.

    python -m tpbench run --recipe cifar10-w256 --time-limit 9m
    python -m tpbench claims results/cifar10 results/cifar10-w128 results/cifar10-w256

Machine: one data-centre GPU; not measured yet.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10


def recipe() -> Recipe:
    """The recipe that the module describes."""
    return cifar10.recipe("cifar10-w256", width=256, methods=("none", "wkmedoids", "kmedoids", "topk"))
