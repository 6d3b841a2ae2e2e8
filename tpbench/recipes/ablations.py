"""What each open choice of Token Pooling is worth: the digits recipe, one setting at a time changed.

    python -m tpbench run --recipe ablations

Machine: 2 CPU cores, 11 minutes beside other work. The rows are the digits recipe's weighted K-Medoids (after
attention, medoids, attention received with the diagonal, top-K start, 5 iterations, raw distances) with one departure
each; K is equal.
"""

from dataclasses import replace

from tpbench.recipe import Recipe
from tpbench.recipes import digits

DEPARTURES = (
    "site=end",
    "output=mean",
    "output=weighted_mean",
    "weights=others",
    "weights=class",
    "init=random",
    "init=grid",
    "init=farthest",
    "init=peaks",
    "iterations=0",
    "iterations=1",
    "iterations=2",
    "iterations=3",
    "iterations=10",
    "normalise=True",
)


def recipe() -> Recipe:
    """The recipe that the module describes."""
    rows = ("none", "wkmedoids", *(f"wkmedoids({departure})" for departure in DEPARTURES))
    full = digits.recipe()
    return replace(full, name="ablations", methods=rows, schedules=("0.5@0,1,2", "0.3@0,1,2"), seeds=3)
