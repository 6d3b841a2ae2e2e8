"""The tiny recipe with less of everything, for tests that run it many times.

python -m tpbench run --recipe tests/short_recipe.py
"""

from dataclasses import replace
from pathlib import Path

from tpbench.recipe import Recipe, load


def recipe() -> Recipe:
    tiny = load(str(Path(__file__).with_name("tiny_recipe.py")))
    return replace(
        tiny,
        name="short",
        base=replace(tiny.base, epochs=2),
        finetune=replace(tiny.finetune, epochs=1),
        measure=replace(tiny.measure, batch_sizes=(4,)),
    )
