"""`tpbench profile`: what one model and method cost, or how fast many methods are, timed in turns."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.cli import values
from tpbench.cli.exit_codes import DONE, say
from tpbench.cli.shared_flags import load_plugins
from tpbench.errors import UsageError

if TYPE_CHECKING:
    from tpbench.measure.timings import Session

HELP = "measure MACs and latency of one method layer by layer, or time many methods in turns"
EXAMPLE = (
    "tpbench profile --model deit_small_patch16_224 --method wkmedoids --schedule 0.7@3,6,9, or many:"
    " --methods all --schedules macs=0.6@3,6,9 --batch-sizes 1,8 --dtype float32,bfloat16"
)

MOST_ROUNDS = 100_000  # a larger number is a typing error
ROUNDS = 50
REPEATS = 20
WARM_UP = 3  # forward passes before the samples
MANY_ONLY = ("schedules", "rounds", "time_limit", "data", "pretrained", "out", "fresh")
ONE_ONLY = ("schedule", "repeats", "trace")


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--model", required=True, help="a timm model name")
    verb.add_argument("--method", help="one method's name; see `tpbench list`")
    verb.add_argument("--schedule", help="its budget, e.g. 0.7@3,6,9 (blocks count from 0)")
    verb.add_argument("--methods", help="all, or names separated by commas: time many methods in turns")
    verb.add_argument("--schedules", help='their budgets, e.g. "0.7@3,6,9;macs=0.6@3,6,9;latency=0.7@3,6,9"')
    verb.add_argument("--batch-sizes", default="1,32", help="images per forward pass, e.g. 1,32 (default)")
    verb.add_argument("--repeats", type=int, help=f"samples per batch size of one method (default {REPEATS})")
    verb.add_argument("--rounds", type=int, help=f"samples of every row of many methods (default {ROUNDS})")
    verb.add_argument(
        "--time-limit",
        metavar="9m",
        help="with --methods: stop after this time (s, m or h); with --out the same command continues",
    )
    verb.add_argument(
        "--site", default="mid", choices=("mid", "end"), help="where in the blocks to reduce (default mid)"
    )
    verb.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16; for many methods also both")
    verb.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    verb.add_argument(
        "--compile", action="store_true", help="torch.compile both models; the fastest unreduced one is the reference"
    )
    verb.add_argument(
        "--cuda-graph", action="store_true", help="record both models as CUDA graphs and replay them (small batches)"
    )
    verb.add_argument(
        "--pretrained", nargs="?", const=True, metavar="FILE", help="with --methods: the hub's weights, or FILE"
    )
    verb.add_argument("--data", type=Path, metavar="DIR", help="with --methods: images (default: two photographs)")
    verb.add_argument("--out", type=Path, metavar="DIR", help="with --methods: keep the session in DIR/timing")
    verb.add_argument("--fresh", action="store_true", help="with --methods: discard the session of --out")
    verb.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with your methods")
    verb.add_argument(
        "--trace",
        type=Path,
        metavar="DIR",
        help="write a trace with a row per layer: open it in https://ui.perfetto.dev, or in TensorBoard",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    sizes = values.batch_sizes(arguments.batch_sizes)
    if (arguments.method is None) == (arguments.methods is None):
        raise UsageError("give --method NAME for one method or --methods NAMES for many; see `tpbench list`")
    many = arguments.methods is not None
    misplaced = ONE_ONLY if many else MANY_ONLY
    other = "--method" if many else "--methods"
    for flag in misplaced:
        if getattr(arguments, flag):
            raise UsageError(f"--{flag.replace('_', '-')} goes with {other}")

    load_plugins(arguments)
    return profile_many(arguments, sizes) if many else profile_one(arguments, sizes)


def kept_after_stop(arguments: argparse.Namespace) -> str:
    """What is left when a signal stops the verb: the finished rounds of a session with --out, otherwise nothing."""
    if arguments.methods is None or arguments.out is None:
        return "nothing is kept"
    return f"finished rounds are kept, the same command {'without --fresh ' if arguments.fresh else ''}continues"


def profile_one(arguments: argparse.Namespace, sizes: tuple[int, ...]) -> int:
    """Measure and print the layers, tokens, memory and latency of one method."""
    repeats = REPEATS if arguments.repeats is None else arguments.repeats
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: at least 1 is needed")

    from tpbench.measure import profile
    from tpbench.recipe import Measure

    how = Measure(
        batch_sizes=sizes,
        repeats=repeats,
        warmup=WARM_UP,
        compile=arguments.compile,
        cuda_graph=arguments.cuda_graph,
    )
    found = profile.profile(
        name=arguments.model,
        method=arguments.method,
        schedule=arguments.schedule or "none",
        how=how,
        site=arguments.site,
        dtype=arguments.dtype,
        device=arguments.device,
        trace=arguments.trace,
    )
    if arguments.json:
        print(json.dumps(asdict(found), indent=1))
        return DONE
    from rich.console import Console

    from tpbench.report import profiled

    profiled.show(found, Console())
    return DONE


def profile_many(arguments: argparse.Namespace, sizes: tuple[int, ...]) -> int:
    """Run and print a timing session over methods, schedules, batch sizes, dtypes and modes."""
    rounds = ROUNDS if arguments.rounds is None else arguments.rounds
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds {rounds}: at least 1 is needed, at most {MOST_ROUNDS} are possible")
    if arguments.fresh and arguments.out is None:
        raise UsageError("--fresh discards a session that --out holds; without --out there is none")
    limit = values.seconds(arguments.time_limit)
    with hold_folder(arguments.out):
        session = run_session(arguments, sizes=sizes, rounds=rounds, limit=limit)
    if session.rounds < rounds:
        say(cut_off(session, rounds, arguments.out), DONE)

    from tpbench.report import timed as report

    if arguments.json:
        print(json.dumps({"summary": report.summary(session), "session": asdict(session)}, indent=1))
        return DONE
    from rich.console import Console

    report.show(session, Console())
    return DONE


def hold_folder(out: Path | None) -> AbstractContextManager[None]:
    """Hold the results folder, if there is one, without waiting: sessions of other processes take too long."""
    from tpbench.bench.results_folder import locked

    return nullcontext() if out is None else locked(out, patience=0)


def cut_off(session: Session, rounds: int, out: Path | None) -> str:
    """What the time limit left undone."""
    on = "the same command continues" if out is not None else "with --out DIR the same command would continue"
    return f"time limit reached: {session.rounds} of {rounds} rounds are done; {on}"


def run_session(arguments: argparse.Namespace, sizes: tuple[int, ...], rounds: int, limit: float | None) -> Session:
    """Run the session that the flags ask for: solve shares of latency, time all rows; with --out, keep the session."""
    from tpbench import environment, registry
    from tpbench.cli.countdown import Countdown
    from tpbench.measure import grid_session, subject
    from tpbench.measure.entries import Grid
    from tpbench.measure.modes import Mode
    from tpbench.measure.session import Effort
    from tpbench.schedule import parse_all

    where = environment.device(arguments.device)
    grid = Grid(
        variants=tuple(registry.variants(arguments.methods)),
        schedules=parse_all(arguments.schedules or "none"),
        batch_sizes=sizes,
        dtypes=tuple(environment.dtype(name, where) for name in values.names("--dtype", arguments.dtype)),
        modes=tuple(Mode(arguments.compile, arguments.cuda_graph).permitted()),
    )
    grid_session.check(grid)
    own = subject.load(
        arguments.model,
        where,
        max(sizes),
        pretrained=arguments.pretrained or False,
        folder=arguments.data,
        site=arguments.site,
    )
    countdown = Countdown()
    try:
        return grid_session.time(
            own, grid, effort=Effort(rounds, limit), out=arguments.out, fresh=arguments.fresh, watch=countdown
        )
    finally:
        countdown.close()
