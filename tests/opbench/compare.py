"""Compare two records of `tox -e opbench`: python -m opbench.compare [BEFORE AFTER] [--threshold 0.1]

Without names, the record that this machine has just written to results/opbench is compared with the committed one.

Milliseconds that were measured at different times are not comparable. Each operation is therefore compared by its ratio
to another operation of the same turns, the first of `REFERENCES` that was timed there. An operation is slower if that
ratio grew by more than the threshold, and if the quartiles of its ratios before and after do not overlap. Operations
that only one record has are named and not judged. The exit code is 1 if something became slower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from opbench.report import groups, lean
from opbench.targets import Group, Groups
from tpbench.errors import UsageError

THRESHOLD = 0.1
FOLDER = Path("results/opbench")
# Operations whose speed does not depend on our code: timm's model, a matrix product, plain definitions.
REFERENCES = ("none", "matmul", "product", "looped kmedoids", "SDPA block", "topk, 5 iterations")


class Change(NamedTuple):
    """How an operation's ratio to its reference changed: 1.2 is 20 % slower."""

    place: str
    operation: str
    reference: str
    factor: float
    apart: bool  # whether the quartiles before and after do not overlap

    def slower(self, threshold: float) -> bool:
        """Whether the operation became slower by more than a share `threshold`."""
        return self.apart and self.factor > 1 + threshold


class Comparison(NamedTuple):
    """All changes between two records."""

    changes: list[Change]
    missing: list[str]  # operations of only one record


def read(path: Path) -> Groups:
    """The operations of a record by place. Raises UsageError if the file is not a record."""
    try:
        return parsed(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def parsed(text: str, name: object) -> Groups:
    """The operations of a record's text. Raises UsageError, with its name, if the text is not a record."""
    try:
        return groups(lean(json.loads(text)))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{name} is not a run of `tox -e opbench` ({type(error).__name__}: {error})") from error


def committed(folder: Path) -> tuple[Groups, Groups]:
    """The committed record of a folder and the one that replaced it. Raises UsageError unless there are both."""
    changed = ask_git(folder, "diff", "--name-only", "--relative", "HEAD", "--", "*.json").split()
    if len(changed) != 1:
        found = f"{len(changed)} records differ" if changed else "no record differs"
        raise UsageError(
            f"{found} from the committed ones in {folder}; `tox -e opbench` writes one on the machine of a committed"
            " record, and `compare BEFORE AFTER` compares any two"
        )
    before = ask_git(folder, "show", f"HEAD:./{changed[0]}")
    return parsed(before, f"the committed {changed[0]}"), read(folder / changed[0])


def ask_git(folder: Path, *words: str) -> str:
    """The output of a git command in a folder. Raises UsageError if git fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}") from error
    if done.returncode:
        raise UsageError(f"{folder} holds no committed record: {(done.stderr.strip() or 'git failed').splitlines()[0]}")
    return done.stdout


def compare(before: Groups, after: Groups) -> Comparison:
    """Every operation that both records timed beside the same reference."""
    changes = []
    missing = []
    for place in dict.fromkeys([*before, *after]):
        name = ", ".join(f"{key} {value}" for key, value in place)
        old = before.get(place, {})
        new = after.get(place, {})
        missing += [f"{name}: {operation}" for operation in sorted(old.keys() ^ new.keys())]
        changes += changed(name, old, new)
    return Comparison(changes, missing)


def changed(place: str, old: Group, new: Group) -> Iterator[Change]:
    """The operations of one place, beside the first reference that both records have there."""
    reference = next((name for name in REFERENCES if name in old and name in new), None)
    if reference is None:
        return
    for operation in old:
        if operation in new and operation not in (reference, "copy"):
            was = ratios(old, operation, reference)
            now = ratios(new, operation, reference)
            apart = quartiles(was)[1] < quartiles(now)[0] or quartiles(now)[1] < quartiles(was)[0]
            yield Change(place, operation, reference, factor=median(now) / median(was), apart=apart)


def ratios(group: Group, operation: str, reference: str) -> list[float]:
    """The ratio of an operation's seconds to the reference's, for each turn."""
    return [a / b for a, b in zip(group[operation]["seconds"], group[reference]["seconds"], strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile; of a single value, that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def findings(comparison: Comparison, threshold: float) -> list[str]:
    """The lines to print: what became slower, what became faster, and how many did neither."""
    slower = [change for change in comparison.changes if change.slower(threshold)]
    faster = [change for change in comparison.changes if change.apart and change.factor < 1 / (1 + threshold)]
    lines = []
    for word, found in (("slower", slower), ("faster", faster)):
        for change in sorted(found, key=lambda change: change.factor, reverse=word == "slower"):
            percent = f"{100 * (change.factor - 1):+.0f} %"
            lines.append(f"{word} {percent}: {change.operation} / {change.reference} ({change.place})")
    lines += [f"only in one record: {name}" for name in comparison.missing]
    same = len(comparison.changes) - len(slower) - len(faster)
    return [*lines, f"{len(slower)} slower, {len(faster)} faster, {same} within {100 * threshold:g} %"]


def main(words: Sequence[str]) -> int:
    """Print the findings; the exit code."""
    parser = argparse.ArgumentParser(prog="opbench compare", description="Compare two records of `tox -e opbench`.")
    parser.add_argument("records", type=Path, nargs="*", help="BEFORE AFTER (default: committed, and just written)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of committed records (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="the growth that fails (default: %(default)s)"
    )
    given = parser.parse_args(words)
    try:
        if not 0 <= given.threshold < float("inf"):
            raise UsageError(f"--threshold {given.threshold}: a share of at least 0 is needed, such as 0.1")
        if len(given.records) not in (0, 2):
            raise UsageError("name two records, BEFORE and AFTER, or none")
        before, after = map(read, given.records) if given.records else committed(given.folder)
        comparison = compare(before, after)
        if not comparison.changes:
            raise UsageError("the two records have no operation in common")
    except UsageError as error:
        print(f"tpbench: {error}", file=sys.stderr)
        return 2
    print("\n".join(findings(comparison, given.threshold)))
    return int(any(change.slower(given.threshold) for change in comparison.changes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
