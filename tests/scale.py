"""Time and memory of the harness itself over many records: `python tests/scale.py [100 1000 5000 20000]`.

Synthetic results folders, three seeds a row, each record a committed one of digits with other samples, so that each has
its real size. Every action runs in a process of its own. Processor seconds and peak memory count from the moment at
which everything is imported. Prints the table of docs/performance.md.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tpbench import environment, recipe, registry
from tpbench.bench.plan import Plan
from tpbench.record import Store, host_id, replace_bytes, row_name, seal
from tpbench.schedule import parse

ROOT = Path(__file__).parents[1]
SIZES = (100, 1_000, 5_000, 20_000)
SEEDS = 3
LIMIT_SECONDS = 600
ACTIONS = {
    "read, a file a cell": "read",
    "pack": "pack",
    "read, packed": "read",
    "resume with nothing to do": "resume",
    "report": "report",
    "claims": "claim",
    "list": "listing",
}


def plan_of(size: int, folder: Path) -> Plan:
    """A plan of at least so many cells: every method at as many schedules as it takes."""
    variants = tuple(registry.variants("all"))
    rows = -(-size // SEEDS)
    schedules = -(-(rows - 1) // (len(variants) - 1))
    texts = [f"{0.1 + 0.8 * number / schedules:.5f}@0,1,2" for number in range(schedules)]
    return Plan(
        recipe=recipe.load("digits"),
        out=folder,
        device="cpu",
        variants=variants,
        reducing_schedules=tuple(parse(text) for text in texts),
        seeds=SEEDS,
    )


def make(size: int, folder: Path) -> None:
    """Write a folder of the records of a plan, one file a cell."""
    plan = plan_of(size, folder)
    machine = environment.machine_of("cpu", host_id(folder / "work"))
    for cell, content in zip(plan.cells, contents(plan, machine)):
        path = folder / "records" / machine / f"{row_name(str(cell.variant), cell.schedule.text)}_seed{cell.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seal(json.dumps(content)) + b"\n")


def make_packed(size: int, folder: Path) -> None:
    """The same in one file, as a finished run leaves it; the records are sorted by row and seed."""
    plan = plan_of(size, folder)
    machine = environment.machine_of("cpu", host_id(folder / "work"))
    told = sorted(contents(plan, machine), key=lambda told: (row_name(told["method"], told["schedule"]), told["seed"]))
    replace_bytes(folder / "records" / f"{machine}.jsonl", b"".join(seal(json.dumps(one)) + b"\n" for one in told))


def contents(plan: Plan, machine: str) -> Iterator[dict]:
    """What the records of a plan say: a committed record's content with numbers of their own."""
    from dataclasses import asdict

    drawn = random.Random(0)
    template = asdict(next(record for record in Store.of(ROOT / "results" / "digits") if record.method == "wkmedoids"))
    for cell in plan.cells:
        latency = {
            batch: {name: [seconds * drawn.uniform(0.9, 1.1) for seconds in times] for name, times in both.items()}
            for batch, both in template["latency"].items()
        }
        yield template | {
            "recipe_digest": plan.recipe.digest,
            "machine": machine,
            "method": str(cell.variant),
            "schedule": cell.schedule.text,
            "seed": cell.seed,
            "unreduced": cell.variant.card.unreduced,
            "finetune": plan.recipe.tuned_lines(cell.variant.method),
            "metrics": template["metrics"] | {"fine_tuned_top1": drawn.uniform(0.5, 0.9)},
            "latency": latency,
        }


# ------------------------------------------------------------------------------------------ actions


def read(folder: Path, size: int) -> Callable[[], object]:  # noqa: ARG001
    return lambda: Store.of(folder)


def pack(folder: Path, size: int) -> Callable[[], object]:  # noqa: ARG001
    return lambda: [store.pack(machine) for store in [Store.of(folder)] for machine in store.machines]


def resume(folder: Path, size: int) -> Callable[[], object]:
    from tpbench.bench import results_folder

    plan = plan_of(size, folder)

    def act() -> None:
        assert len(results_folder.records_if_finished(plan)) == len(plan.cells), "a cell is missing"

    return act


def report(folder: Path, size: int) -> Callable[[], object]:  # noqa: ARG001
    import matplotlib.figure  # noqa: F401

    from tpbench.report import write

    return lambda: write.write(folder)


def claim(folder: Path, size: int) -> Callable[[], object]:  # noqa: ARG001
    from tpbench.claims import claims, page, study

    def act() -> None:
        studies = study.read_studies([folder])
        page.write(folder / "claims", studies, claims.readings(studies))

    return act


def listing(folder: Path, size: int) -> Callable[[], object]:  # noqa: ARG001
    return registry.catalogue


def measure(action: str, folder: Path, size: int) -> dict[str, float]:
    """Processor seconds and MiB of peak memory that an action takes after everything is imported."""
    from tpbench.record.schema import Record, _adapter

    _adapter(Record)  # pydantic's import
    act = globals()[action](folder, size)
    before = memory("VmRSS")
    start = time.process_time()
    act()
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": (memory("VmHWM") - before) / 1024}


def memory(name: str) -> int:
    """KiB that Linux says this process takes (VmRSS) or took at most (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0])


def measured(action: str, folder: Path, size: int) -> str:
    """The same in a process of its own, as a cell of the table."""
    words = [sys.executable, __file__, "--action", action, str(folder), str(size)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return f"over {LIMIT_SECONDS} s"
    found = json.loads(done.stdout.splitlines()[-1])
    return f"{found['seconds']:.2f} s, {found['mib']:.0f} MiB"


def table(sizes: list[int]) -> Iterator[str]:
    yield f"| records | {' | '.join(ACTIONS)} |"
    yield "| --: |" + " --: |" * len(ACTIONS)
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make(size, folder)
            cells = [measured(action, folder, size) for action in ACTIONS.values()]
            records = len(Store.of(folder))
        yield f"| {records:,} | {' | '.join(cells)} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--action"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        for line in table([int(size) for size in sys.argv[1:]] or list(SIZES)):
            print(line, flush=True)
