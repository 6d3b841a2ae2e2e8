"""The cifar10-small recipe on a base 144 wide: a point of the width scaling that the Pareto hull needs.

    python -m tpbench run --recipe cifar10-small-w144
    python -m tpbench claims        # with results/cifar10-small there

Machine: one GPU, bfloat16; see cifar10-small. Expect the base at 80 % (79.9, 79.8 and 79.3 % for three seeds).
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10_small


def recipe() -> Recipe:
    """The recipe that the module describes."""
    return cifar10_small.of_width(144, expected_base=80.0)
