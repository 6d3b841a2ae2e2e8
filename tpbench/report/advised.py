"""The output of `tpbench advise`: the ranked methods, where the best one is faster, and two lines of Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpbench.report.timed import interval

if TYPE_CHECKING:
    from rich.console import Console

    from tpbench.measure.advice import Advice, Choice, Place

PIPE_WIDTH = 120  # characters at least, if the output is not a terminal
SHOWN = 8  # methods in the table; `--json` has all


def show(advice: Advice, console: Console) -> None:
    """Print an advice, rounded."""
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    _print(console, "", *head(advice), "")
    _table(console, ranking(advice))
    _print(console, "", *below(advice), "", f"Where {advice.choices[0].method} makes the model faster:")
    _table(console, places(advice))
    _print(console, "", "To use it:", *advice.code)


def _print(console: Console, *lines: str) -> None:
    console.print(*lines, sep="\n", highlight=False, markup=False, soft_wrap=True)


def _table(console: Console, rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table, highlight=False)


def head(advice: Advice) -> Iterator[str]:
    """Lines about the request, the machine and the noise of the measurement."""
    device = advice.environment["device"]
    yield f"{advice.model}, weights {advice.weights}, on {device}, {advice.facts['threads']} threads"
    yield (
        f"requested: {advice.latency:g} of the unreduced model's latency, a speed-up of {1 / advice.latency:.2f}, at"
        f" batch {advice.batch}, {advice.dtype}, eager; {advice.rounds} rounds in turns"
    )
    same = advice.same_model_twice
    distrust = "" if same.includes_one else ", which should include 1: the machine was too busy"
    yield f"the same model twice: {same.value:.3f} ({interval(same)}){distrust}"


def ranking(advice: Advice) -> list[list[str]]:
    """The headings and the rows of the best methods, by accuracy or by tokens kept."""
    heads = ["Method", "Schedule", "Tokens kept %", "Speed-up", "95 % interval"]
    if advice.images:
        heads.insert(2, "Top-1 %")
    rows = [_choice(choice, advice) for choice in advice.choices[:SHOWN]]
    if advice.images:
        unreduced = f"{100 * advice.unreduced_top1:.1f}"
        rows.append(["none", "none", unreduced, "100.0", "1.00", ""])
    return [heads, *rows]


def _choice(choice: Choice, advice: Advice) -> list[str]:
    accuracy = [f"{100 * choice.top1:.1f}"] if advice.images else []
    speed = f"{choice.speedup.value:.2f}" + ("*" if choice.marked else "")
    return [choice.method, choice.schedule, *accuracy, f"{100 * choice.kept:.1f}", speed, interval(choice.speedup)]


def below(advice: Advice) -> Iterator[str]:
    """Lines that explain the ranking."""
    if advice.images:
        yield (
            f"Ranked by top-1 off the shelf on {advice.images} images; differences below"
            f" {100 * advice.visible:.1f} points are within chance."
        )
    else:
        yield "No accuracy was measured: methods are ranked by how many tokens they keep at this latency (mean over"
        yield "blocks), not by which ones. With --pretrained and --data DIR they are ranked by top-1."
    if any(choice.marked for choice in advice.choices[:SHOWN]):
        yield "* misses the requested latency by more than 2 %."
    if len(advice.choices) > SHOWN:
        yield f"{len(advice.choices) - SHOWN} more methods were timed; --json shows them."
    if advice.behind:
        yield f"Not timed to the end, because they keep fewer tokens at this latency: {', '.join(advice.behind)}."
    if advice.unmet:
        yield f"Cannot meet this latency: {', '.join(advice.unmet)}."


def places(advice: Advice) -> list[list[str]]:
    """The winner's speed-up by batch size, dtype and mode."""
    heads = ["Faster", "dtype", "Batch", "Mode", "Speed-up", "95 % interval"]
    return [heads, *(_place(place) for place in advice.places)]


def _place(place: Place) -> list[str]:
    verdict = {True: "yes", False: "no", None: "not clear"}[place.pays]
    speedup = f"{place.speedup.value:.2f}"
    return [verdict, place.dtype, str(place.batch), place.mode, speedup, interval(place.speedup)]
