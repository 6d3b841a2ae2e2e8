"""What can be said on the command line, verb by verb. What is done with it is in `tpbench.cli`."""

from __future__ import annotations

from argparse import ArgumentParser as Verb
from pathlib import Path


def run(verb: Verb) -> None:
    verb.add_argument(
        "--recipe",
        default="digits",
        help="digits (default), smoke, ablations, cifar10-cpu, cifar10, another packaged name, or a .py file",
    )
    verb.add_argument(
        "--methods",
        help="all, or names separated by commas, with settings where wanted: topk,wkmedoids(init=grid,site=end);"
        " default: the recipe's, usually all; see `tpbench list`",
    )
    verb.add_argument(
        "--schedules",
        help='budgets, e.g. "0.7@3,6,9;0.5@3,6,9", "137,96,67@3,6,9", "macs=0.6@3,6,9"; default: the recipe\'s',
    )
    verb.add_argument(
        "--budget",
        metavar="SHARES",
        help="equal cost: every method at these shares of the unreduced model's MACs, e.g. 0.5 or 0.7,0.5",
    )
    verb.add_argument(
        "--budget-latency",
        metavar="SHARES",
        help="every method at these shares of the unreduced model's latency on this machine, found by the clock",
    )
    verb.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="timm's pretrained weights from the hub, or those in FILE, and no training: every method off the shelf",
    )
    verb.add_argument("--seeds", type=int, help="how many seeds, each with its own base; default: the recipe's")
    _where(verb)
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="where the recipe's data set lies; default: the recipe's"
    )
    verb.add_argument("--plan", action="store_true", help="print the cells and the estimated hours, and run nothing")
    verb.add_argument(
        "--time-limit",
        metavar="9m",
        help="stop between two steps after so long (s, m or h), everything saved; the same command continues",
    )
    verb.add_argument(
        "--fresh",
        action="store_true",
        help="discard this machine's records and checkpoints in the folder and start again",
    )


def profile(verb: Verb) -> None:
    verb.add_argument("--model", required=True, help="a timm model name")
    verb.add_argument("--method", required=True, help="a method's name; see `tpbench list`")
    verb.add_argument("--schedule", default="none", help="a budget, e.g. 0.7@3,6,9 (blocks count from 0)")
    verb.add_argument("--batch-sizes", default="1,32", help="images per forward pass, e.g. 1,32 (default)")
    verb.add_argument("--repeats", type=int, default=20, help="samples per batch size (default 20)")
    verb.add_argument(
        "--site", default="mid", choices=("mid", "end"), help="where in the blocks to reduce (default mid)"
    )
    verb.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    verb.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    verb.add_argument(
        "--compile", action="store_true", help="torch.compile both models; the fastest unreduced one is the reference"
    )
    verb.add_argument(
        "--cuda-graph", action="store_true", help="record both models as CUDA graphs and replay them (small batches)"
    )
    verb.add_argument(
        "--trace", type=Path, metavar="DIR", help="write a trace for TensorBoard's PyTorch Profiler plug-in"
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def search(verb: Verb) -> None:
    verb.add_argument("--recipe", default="digits", help="digits (default), another packaged name, or a .py file")
    verb.add_argument("--method", required=True, help="whose search: topk (PoWER-BERT's soft-extract) or diffrate")
    verb.add_argument("--seed", type=int, default=0, help="whose base, trained if it is not there (default 0)")
    _where(verb)


def report(verb: Verb) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a results folder")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )


def export(verb: Verb) -> None:
    verb.add_argument("--methods", default="all", help="all (default), or names separated by commas")
    verb.add_argument("--model", default="test_vit", help="a timm model name (default test_vit, a small one)")
    verb.add_argument("--schedule", default="0.7@1,3", help="a budget (default 0.7@1,3)")
    verb.add_argument("--out", type=Path, default=Path("results/export"), help="folder (default results/export)")


def claims(verb: Verb) -> None:
    verb.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="results folders (default: all under results)"
    )
    verb.add_argument("--out", type=Path, default=Path("results"), help="where the table goes (default: results)")


def listing(verb: Verb) -> None:
    verb.add_argument("--json", action="store_true", help="print a list of objects instead of a table")


def _where(verb: Verb) -> None:
    verb.add_argument("--out", type=Path, help="results folder (default: results/RECIPE)")
    verb.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    verb.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file with your own methods"
    )
