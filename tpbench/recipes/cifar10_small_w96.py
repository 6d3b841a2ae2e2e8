"""The cifar10-small recipe on a base 96 wide: a point of the width scaling that the Pareto hull needs.

    python -m tpbench run --recipe cifar10-small-w96
    python -m tpbench claims results/cifar10-small results/cifar10-small-w96

Machine: one GPU, bfloat16.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10_small


def recipe() -> Recipe:
    """The recipe that the module describes."""
    return cifar10_small.of_width(96, expected_base=75.0)
