"""CIFAR-10 in patches of 2 pixels: 256 tokens, about as many as a 224-pixel image has in patches of 14 or 16.

    python -m tpbench run --recipe cifar10-p2 --time-limit 9m

Machine: one data-centre GPU; not measured yet. Estimated from an assumed 7,000 to 18,000 images/s: 2 to 5 minutes per
100 epochs of a base, half a minute to a minute and a half for a cell.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import cifar10


def recipe() -> Recipe:
    """The recipe that the module describes."""
    return cifar10.recipe("cifar10-p2", patch=2)
