"""`tpbench show`: pictures of what methods keep, drop and merge."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.exit_codes import DONE
from tpbench.cli.shared_flags import add_where, load_plugins
from tpbench.errors import UsageError

HELP = "draw which patches of an image each method keeps, drops and merges, block by block"
EXAMPLE = "tpbench show --model deit_small_patch16_224 --pretrained --methods topk,tome,wkmedoids"

METHODS = "topk,topk_cls,evit,tome,wkmedoids"
MOST_IMAGES = 64


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--recipe", help="the trained base and the test images of a recipe (default: digits)")
    what.add_argument("--model", help="a timm model name, with photographs")
    verb.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="with --model: timm's weights from the hub, or those in FILE; without it the model is untrained",
    )
    verb.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="with --model: image files (default: the two photographs that come with scikit-learn)",
    )
    verb.add_argument("--count", type=int, default=2, help="with --recipe: how many test images (default 2)")
    verb.add_argument("--methods", default=METHODS, help=f"all, or names separated by commas (default {METHODS})")
    verb.add_argument("--schedule", help="a budget; default: 0.7@3,6,9 for a model, 0.7 at its own blocks for a recipe")
    verb.add_argument("--seed", type=int, default=0, help="of the base, and of methods that draw (default 0)")
    add_where(verb)


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    check(arguments)

    from tpbench import recipe as recipes
    from tpbench import registry, schedule

    load_plugins(arguments)
    variants = [variant for variant in registry.variants(arguments.methods) if not variant.card.unreduced]
    if not variants:
        raise UsageError(f"--methods {arguments.methods} reduces nothing; see `tpbench list`")
    recipe = None if arguments.model else recipes.load(arguments.recipe or "digits")
    where = "3,6,9" if recipe is None else recipe.schedules[0].partition("@")[2]
    budget = schedule.parse(arguments.schedule or f"0.7@{where}")
    out = arguments.out or Path("results") / ("show" if recipe is None else recipe.name)

    from tpbench import environment
    from tpbench.bench import show
    from tpbench.bench.plan import Plan
    from tpbench.bench.progress import Progress

    environment.prepare_process(1 if recipe is None else recipe.workers, arguments.device)
    if recipe is None:
        subject = show.model_subject(
            arguments.model, arguments.pretrained, files=arguments.images, device=arguments.device
        )
    else:
        plan = Plan(recipe=recipe, out=out, device=arguments.device, plugins=tuple(arguments.plugin))
        subject = show.recipe_subject(plan, arguments.seed, count=arguments.count, progress=Progress())
    return draw(
        subject,
        show.stages_by_method(subject, variants, schedule=budget, seed=arguments.seed),
        budget=budget.text,
        folder=out / "pictures",
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags that do not go together, and for an impossible number of images."""
    if arguments.model is None and (arguments.images or arguments.pretrained):
        raise UsageError("--images and --pretrained need --model; a recipe has images and a base of its own")
    if not 1 <= arguments.count <= MOST_IMAGES:
        raise UsageError(f"--count {arguments.count}: at least 1 image is needed, at most {MOST_IMAGES} are drawn")


def draw(subject, rows, budget: str, folder: Path) -> int:
    """Draw every image, write the overlap table and print their paths."""
    from tpbench.bench.show import check_any_shown
    from tpbench.report import overlap, pictures

    check_any_shown(rows)
    about = f"{subject.about}, schedule {budget}"
    for number, name in enumerate(subject.names):
        print(
            pictures.draw(
                subject.pixels[number], rows, image=number, about=f"{name}: {about}", path=folder / f"{name}.png"
            )
        )
    for name, row in rows.items():
        if isinstance(row, str):
            print(f"not shown: {name}: {row}")
    drawn = {name: row for name, row in rows.items() if not isinstance(row, str)}
    path = overlap.write(folder, drawn, about)
    print("\n".join(["", *overlap.tables({name: stages[-1] for name, stages in drawn.items()}), str(path)]))
    return DONE
