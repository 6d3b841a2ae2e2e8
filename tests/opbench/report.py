"""The tables of `tox -e opbench`, from pytest-benchmark's JSON: python -m opbench.report JSON DIR

DIR/MACHINE.json  the run: every case with its place, facts and raw samples, and the environment, unrounded
DIR/MACHINE.csv   a row per case: median seconds and the ratios below, unrounded
DIR/MACHINE.md    the targets, and tables by model, reducer and form of attention

A ratio is the median over the turns of a run; the samples of a turn are taken one after the other. The roofline's floor
is the longer of two times: that of the bytes, at the speed of a copy as large as the tokens, and that of the
multiply-adds, at the speed of a large matrix product. Both speeds are measured in the same turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from opbench.targets import TARGETS, Group, Groups, NotMeasured, promised, ratio
from tpbench.errors import UsageError
from tpbench.record import replace_text
from tpbench.report.layout import fixed, significant
from tpbench.report.markdown import table

PLACE = ("kind", "model", "tokens", "share", "k", "batch", "dtype")
CEILINGS = ("copy", "matmul")
REFERENCES = {
    "to_unreduced": "none",
    "to_topk": "topk",
    "to_block": "block",
    "to_sdpa": "SDPA",
    "to_looped": "looped kmedoids",
}
NOTE = "Ratios are medians over turns, the samples of a turn taken one after the other. Times: smaller is faster."
Run = Mapping[str, Any]


def write(source: Path, folder: Path) -> list[Path]:
    """Write a run and its tables into a folder, named after the machine; return the paths.

    source: pytest-benchmark's JSON, or a run that was written earlier. Raises UsageError if it is neither.
    """
    try:
        run = lean(json.loads(source.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{source} is not a run of `tox -e opbench` ({type(error).__name__}: {error})") from error
    name = run["machine_info"]["tpbench"]["machine"]
    texts = {
        f"{name}.json": json.dumps(run, indent=0) + "\n",
        f"{name}.csv": csv(groups(run)),
        f"{name}.md": markdown(run),
    }
    for file, text in texts.items():
        replace_text(folder / file, text)
    return [folder / file for file in texts]


def lean(run: Run) -> Run:
    """The parts of pytest-benchmark's JSON that the tables need."""
    cases = [{"extra_info": case["extra_info"]} for case in run["benchmarks"]]
    if not all("place" in case["extra_info"] for case in cases):
        raise KeyError("place")
    return {
        "datetime": run["datetime"],
        "machine_info": {"tpbench": run["machine_info"]["tpbench"]},
        "benchmarks": cases,
    }


def groups(run: Run) -> Groups:
    """The cases of a run by place, which is what cases that were timed in turns have in common, and by operation."""
    found: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for case in (entry["extra_info"] for entry in run["benchmarks"]):
        place = tuple(sorted((key, case[key]) for key in case["place"]))
        found.setdefault(place, {})[case["operation"]] = case
    return found


def csv(groups: Groups) -> str:
    """All cases as CSV."""
    frame = pd.DataFrame(rows(groups)).convert_dtypes()  # counts stay integers where some are missing
    return frame.to_csv(index=False, lineterminator="\n")


def rows(groups: Groups) -> Iterator[dict[str, Any]]:
    """One row of the CSV file for each case."""
    for group in groups.values():
        for operation, case in group.items():
            row = {key: case.get(key) for key in PLACE} | {"operation": operation}
            row |= {"samples": len(case["seconds"]), "median_seconds": median(case["seconds"])}
            row |= {"macs": case.get("macs"), "bytes": case.get("bytes"), "loss": case.get("loss")}
            row |= {name: ratio(group, operation, to) if to in group else None for name, to in REFERENCES.items()}
            yield row | {"to_roofline": to_roofline(group, operation)}


def to_roofline(group: Group, operation: str) -> float | None:
    """Seconds divided by the roofline's floor; None if there are no ceilings or nothing was counted."""
    case = group[operation]
    if "copy" not in group or "bytes" not in case or operation in CEILINGS:
        return None
    floors = (case["bytes"] * seconds_per(group, "copy", "bytes"), case["macs"] * seconds_per(group, "matmul", "macs"))
    return median(case["seconds"]) / max(floors)


def seconds_per(group: Group, ceiling: str, unit: str) -> float:
    """Seconds of a ceiling per byte or multiply-add."""
    return median(group[ceiling]["seconds"]) / group[ceiling][unit]


# ---------------------------------------------------------------- Markdown


def markdown(run: Run) -> str:
    """The page of a run: one section for each entry of SECTIONS."""
    about = run["machine_info"]["tpbench"]
    found = groups(run)
    packages = about["environment"]["packages"]
    ran = (
        f"{about['environment']['device']}, {run['datetime'][:10]}, commit {about['git'].get('commit', 'unknown')[:10]}"
    )
    changed = " (changed since)" if about["git"].get("changed") else ""
    versions = f"torch {packages['torch']}, timm {packages['timm']}"
    lines = [f"# Operations: {about['machine']}", "", f"{ran}{changed}; {versions}. One thread on a CPU.", "", NOTE, ""]
    for title, part in SECTIONS.items():
        body = list(part(found))
        lines += [f"## {title}", "", *body] if body else []
    return "\n".join(lines)


def number(value: float | None) -> str:
    """A number with three significant digits; "" for None."""
    return "" if value is None else significant(value, 3)


def targets(found: Groups) -> Iterator[str]:
    """The lines of the targets: bound, measured value, and whether it is met."""
    lines = []
    for target in TARGETS:
        asked = f"{target.sign} {target.bound:g}"
        try:
            value, remark = target.measure(found)
            cells = [fixed(value, 3), "yes" if target.met(value) else "**no**", remark]
        except NotMeasured:
            cells = ["not measured", "", ""]
        lines.append([target.where, target.what, asked, *cells])
    yield from table(["Where", "What", "Target", "Measured", "Met", "Remark"], lines)


def models(found: Groups) -> Iterator[str]:
    """One table for each model, batch and dtype."""
    heads = ["Method", "ms", "time, of unreduced", "speed-up", "promised by MACs", "share", "time, of top-K"]
    for place, group in of_kind(found, "model"):
        yield f"{place['model']}, batch {place['batch']}, {place['dtype']}"
        yield ""
        body = []
        for method, case in group.items():
            reached = ratio(group, "none", method)
            promise = promised(group, method)
            numbers = [1e3 * median(case["seconds"]), 1 / reached, reached, promise, reached / promise]
            body.append([method, *map(number, [*numbers, ratio(group, method, "topk")])])
        yield from table(heads, body)


def reducers(found: Groups) -> Iterator[str]:
    """One table for each number of tokens, batch and dtype, with the shares kept side by side."""
    settings: dict[tuple[Any, ...], dict[float, Group]] = {}
    for place, group in of_kind(found, "layer"):
        settings.setdefault((place["tokens"], place["batch"], place["dtype"]), {})[place["share"]] = group
    for (tokens, batch, dtype), by_share in settings.items():
        yield f"N = {tokens}, batch {batch}, {dtype}"
        yield ""
        heads = [f"K/N {share}: {name}" for share in by_share for name in ("K", "ms", *COLUMNS)]
        operations = dict.fromkeys(n for group in by_share.values() for n in group if n not in CEILINGS)
        yield from table(
            ["Reducer", *heads],
            [[name, *(t for g in by_share.values() for t in cells(g, name))] for name in operations],
        )


COLUMNS = ("to top-K", "to block", "to loop", "to roofline")


def cells(group: Group, operation: str) -> list[str]:
    """The cells of a reducer at one share of tokens kept."""
    if operation not in group:  # the method cannot keep so few
        return [""] * (2 + len(COLUMNS))
    case = group[operation]
    ratios = [ratio(group, operation, to) if to in group else None for to in ("topk", "block", "looped kmedoids")]
    values = [1e3 * median(case["seconds"]), *ratios, to_roofline(group, operation)]
    return [str(case.get("k", "")), *map(number, values)]


def attention(found: Groups) -> Iterator[str]:
    """One table of all forms of attention."""
    body = [
        [
            f"{place['tokens']}, {place['batch']}, {place['dtype']}",
            operation,
            number(1e3 * median(case["seconds"])),
            *(number(ratio(group, operation, to)) for to in ("SDPA", "block")),
            number(to_roofline(group, operation)),
        ]
        for place, group in of_kind(found, "attention")
        for operation, case in group.items()
        if operation not in CEILINGS
    ]
    if body:
        yield from table(["N, batch, dtype", "Attention", "ms", "to SDPA", "to block", "to roofline"], body)


def ceilings(found: Groups) -> Iterator[str]:
    """The ceilings in the turns of the attention operations: absolute rates, not ratios."""
    body = [
        [
            f"{place['tokens']}, {place['batch']}, {place['dtype']}",
            number(group["copy"]["bytes"] / 2**20),
            number(1e-9 / seconds_per(group, "copy", "bytes")),
            number(1e-9 / seconds_per(group, "matmul", "macs")),
        ]
        for place, group in of_kind(found, "attention")
    ]
    if body:
        yield from table(["N, batch, dtype", "copied, read and written, MiB", "GB/s", "matrix product, GMAC/s"], body)


def starts(found: Groups) -> Iterator[str]:
    """One table of the starts of K-Medoids, relative to top-K with five iterations."""
    for _, group in of_kind(found, "start"):
        reference = group["topk, 5 iterations"]["loss"]
        body = [
            [name, number(case["loss"] / reference), number(ratio(group, name, "topk, 5 iterations"))]
            for name, case in group.items()
        ]
        yield from table(["Start", "loss, of top-K with 5", "time, of top-K with 5"], body)


def others(found: Groups) -> Iterator[str]:
    """The small groups: every operation relative to the first of its group."""
    for kind in ("clustering", "native", "agglomerative", "blocks", "training"):
        for place, group in of_kind(found, kind):
            first = next(iter(group))
            yield ", ".join(f"{key} {value}" for key, value in place.items())
            yield ""
            yield from table(
                ["Operation", "ms", f"to {first}"],
                [[n, number(1e3 * median(c["seconds"])), number(ratio(group, n, first))] for n, c in group.items()],
            )


def of_kind(found: Groups, kind: str) -> Iterator[tuple[dict[str, Any], Group]]:
    """(place, group) of all groups of a kind."""
    return ((dict(items), group) for items, group in found.items() if dict(items)["kind"] == kind)


SECTIONS: dict[str, Callable[[Groups], Iterator[str]]] = {
    "Targets": targets,
    "Whole models": models,
    "Reducers": reducers,
    "Attention": attention,
    "Ceilings": ceilings,
    "Where K-Medoids starts, on tokens of a trained model": starts,
    "Clustering, blocks, training steps": others,
}


def main(words: Sequence[str]) -> int:
    """Write the tables and print their paths; the exit code."""
    try:
        if len(words) != 2:
            raise UsageError("two paths are needed: the run's JSON and the folder of the tables")
        for written in write(Path(words[0]), Path(words[1])):
            print(written)
    except UsageError as error:
        print(f"tpbench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
