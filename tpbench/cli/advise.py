"""`tpbench advise`: which method for one's own model on this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.cli import values
from tpbench.cli.exit_codes import DONE
from tpbench.cli.shared_flags import load_plugins
from tpbench.errors import UsageError

if TYPE_CHECKING:
    from tpbench.measure.advice import Advice

HELP = "time all methods on your model on this machine, and say which one to use at a latency"
EXAMPLE = "tpbench advise --model deit_small_patch16_224 --latency 0.7"

IMAGES = 500
TIME_LIMIT = "4m"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--model", required=True, help="a timm model name, or module:function that returns the model")
    verb.add_argument("--latency", required=True, help="share of the unreduced model's latency to reach, e.g. 0.7")
    verb.add_argument("--pretrained", nargs="?", const=True, metavar="FILE", help="weights from the hub, or in FILE")
    verb.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="images in one subfolder per class: methods are ranked by accuracy on them (without: by tokens kept)",
    )
    verb.add_argument("--images", type=int, default=IMAGES, help=f"evaluate on this many (default {IMAGES})")
    verb.add_argument("--methods", default="all", help="all (default), or names separated by commas")
    verb.add_argument("--blocks", metavar="3,6,9", help="blocks that reduce (default: at 1/4, 1/2 and 3/4)")
    verb.add_argument("--batch-sizes", default="1,8", help="images per pass (default 1,8); the largest ranks")
    verb.add_argument("--dtype", default="auto", help="float32, bfloat16 or both; methods are ranked in the first")
    verb.add_argument("--compile", action="store_true", help="also time the best method compiled (takes minutes)")
    verb.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    verb.add_argument("--time-limit", default=TIME_LIMIT, metavar="9m", help="about how long to time (default 4m)")
    verb.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with your methods")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    sizes = values.batch_sizes(arguments.batch_sizes)
    limit = values.seconds(arguments.time_limit)
    if arguments.images < 1:
        raise UsageError(f"--images {arguments.images}: at least 1 is needed")

    load_plugins(arguments)
    advice = make_advice(arguments, sizes, limit)
    if arguments.json:
        print(json.dumps(asdict(advice), indent=1))
        return DONE
    from rich.console import Console

    from tpbench.report import advised as report

    report.show(advice, Console())
    return DONE


def make_advice(arguments: argparse.Namespace, sizes: tuple[int, ...], limit: float) -> Advice:
    """Time the methods and return the advice; progress goes to standard error."""
    from tpbench import environment, registry, schedule
    from tpbench.cli.countdown import Countdown
    from tpbench.measure import advice, subject
    from tpbench.measure.modes import Mode

    where = environment.device(arguments.device)
    variants = tuple(variant for variant in registry.variants(arguments.methods) if not variant.card.unreduced)
    if not variants:
        raise UsageError(f"--methods {arguments.methods}: none of them reduces tokens")
    schedule.parse(f"latency={arguments.latency}@{arguments.blocks or 0}")  # refuse what cannot be read before any work
    own = subject.load(
        arguments.model, where, max(sizes), pretrained=arguments.pretrained or False, folder=arguments.data
    )
    request = advice.Request(
        schedule=schedule.parse(f"latency={arguments.latency}@{arguments.blocks or advice.blocks(own.model)}"),
        variants=variants,
        batch_sizes=sizes,
        dtypes=tuple(environment.dtype(name, where) for name in values.names("--dtype", arguments.dtype)),
        modes=tuple(Mode(compiled=arguments.compile).permitted()),
        seconds=limit,
    )
    part = None
    if arguments.data is not None:
        part = subject.labelled(own.model, arguments.data, limit=arguments.images, where=where)
    countdown = Countdown()
    try:
        return advice.advise(own, request, part=part, watch=countdown)
    finally:
        countdown.close()
