"""`tpbench profile`: what one model and method cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tpbench.cli.outcome import DONE
from tpbench.errors import UsageError

HELP = "MACs and latency of one model and method, layer by layer, untrained"
EXAMPLE = "tpbench profile --model deit_small_patch16_224 --method wkmedoids --schedule 0.7@3,6,9"

MOST_IMAGES = 1_000_000_000  # no memory holds more in one batch


def add_flags(verb: argparse.ArgumentParser) -> None:
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


def act(arguments: argparse.Namespace) -> int:
    sizes = _batch_sizes(arguments.batch_sizes)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1 is needed")

    from tpbench.measure import profile
    from tpbench.measure.modes import Mode

    result = profile.profile(
        name=arguments.model,
        method=arguments.method,
        schedule=arguments.schedule,
        batch_sizes=sizes,
        repeats=arguments.repeats,
        site=arguments.site,
        dtype=arguments.dtype,
        device=arguments.device,
        mode=Mode(compiled=arguments.compile, cuda_graph=arguments.cuda_graph),
        trace=arguments.trace,
    )
    if arguments.json:
        print(json.dumps(result, indent=1))
        return DONE
    from rich.console import Console

    from tpbench.report import profiled

    profiled.show(result, Console())
    return DONE


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--batch-sizes {text!r}: expected whole numbers separated by commas, as in 1,32") from None
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch-sizes {text!r}: at least one image is needed")
    if max(sizes) > MOST_IMAGES:
        raise UsageError(f"--batch-sizes {text!r}: at most {MOST_IMAGES} images are possible")
    return sizes
