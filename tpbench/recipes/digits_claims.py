"""The digits recipe with the methods that the paper's claims compare, and seeds enough to decide some of them.

    python -m tpbench run --recipe digits-claims

Machine: 2 CPU cores, about 12 minutes. Expect the unreduced base at 97 to 98 %. At equal multiply-adds and at equal
tokens, which no load on the machine can change; `tpbench claims` reads it.
"""

from dataclasses import replace

from tpbench.recipe import Recipe
from tpbench.recipes import digits


def recipe() -> Recipe:
    return replace(
        digits.recipe(),
        name="digits-claims",
        methods=("none", "wkmedoids", "kmedoids", "wkmeans", "kmeans", "topk", "importance", "random", "strided_conv"),
        schedules=("macs=0.5@0,1,2", "0.5@0,1,2"),
        seeds=8,
    )
