"""The columns that a timing session adds to a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import TYPE_CHECKING

from tpbench.report.column import Column, Source
from tpbench.report.layout import Row, fixed, significant

if TYPE_CHECKING:
    from tpbench.measure.speeds import Speed

DECIMALS = 2  # of a speed-up


def columns(batches: Sequence[int | str]) -> list[Column]:
    """The columns of each batch size of the session."""
    return [column for batch in batches for column in (*_milliseconds(batch), *_speedup(batch), *_rest(batch))]


def names(batches: Sequence[int]) -> list[str]:
    """The names of the columns in wide tables: milliseconds, speed-ups measured and promised, images per second."""
    found = [f"timed_b{batch}_{quantity}" for batch in batches for quantity in ("ms", "speedup")]
    return [*found, "speedup_promised", *(f"timed_b{batch}_images_per_second" for batch in batches[-1:])]


def misses_latency(row: Row) -> bool:
    """Whether a row misses the requested latency by more than 2 % at any batch size."""
    return any(row[name] is True for name in row if name.startswith("timed_b") and name.endswith("_missed"))


def _milliseconds(batch: int | str) -> list[Column]:
    name = f"timed_b{batch}_ms"
    return [
        Column(
            name,
            f"timing session: median time of one forward pass of {batch} images, milliseconds, in the fastest mode",
            _of(batch, lambda speed: 1e3 * speed.median),
            head=f"Batch {batch}",
            unit="ms (95 % interval)",
            text=lambda row: _ends(row, name, lambda value: significant(value, 4), mark=_star(row, batch)),
            brief=lambda row: _half(row, name, lambda value: significant(value, 3)) + _star(row, batch),
            brief_unit="ms",
        ),
        Column(f"{name}_low", "lower end of its 95 % interval", _of(batch, lambda speed: 1e3 * speed.low)),
        Column(f"{name}_high", "upper end", _of(batch, lambda speed: 1e3 * speed.high)),
        Column(
            f"timed_b{batch}_p95_ms",
            "95th percentile, milliseconds; blank below 200 samples",
            _of(batch, lambda speed: nan if speed.p95 is None else 1e3 * speed.p95),
        ),
    ]


def _speedup(batch: int | str) -> list[Column]:
    name = f"timed_b{batch}_speedup"
    return [
        Column(
            name,
            "timing session: median, over rounds, of the time of timm's unreduced model in its fastest mode over the"
            " row's",
            _of(batch, lambda speed: speed.speedup.value),
            head="Speed-up",
            unit=f"batch {batch} (95 % interval)",
            text=lambda row: _ends(row, name, lambda value: fixed(value, DECIMALS)),
            brief=lambda row: _of_promised(row, _half(row, name, lambda value: fixed(value, DECIMALS))),
            brief_unit="of promised",
        ),
        Column(f"{name}_low", "lower end of its 95 % interval", _of(batch, lambda speed: speed.speedup.low)),
        Column(f"{name}_high", "upper end", _of(batch, lambda speed: speed.speedup.high)),
    ]


def _rest(batch: int | str) -> list[Column]:
    name = f"timed_b{batch}_images_per_second"
    return [
        Column(
            name,
            f"timing session: images per second, {batch} / that median",
            _of(batch, lambda speed: speed.images_per_second),
            head="Images/s",
            unit=f"at batch {batch}",
            text=lambda row: significant(row[name], 4),
        ),
        Column(
            f"timed_b{batch}_missed",
            "whether it misses the requested latency by more than 2 %; blank if none was requested",
            _of(batch, lambda speed: speed.misses_latency if speed.off is not None else nan),
        ),
    ]


def _of(batch: int | str, value: Callable[[Speed], object]) -> Callable[[Source], object]:
    """A column's value from the row's speed at a batch size; NaN if the session has no such row."""

    def found(source: Source) -> object:
        speed = source.timed.get(batch)
        return nan if speed is None else value(speed)

    return found


def _star(row: Row, batch: int | str) -> str:
    """The sign of a row that misses the requested latency; "" for other rows."""
    return "*" if row[f"timed_b{batch}_missed"] is True else ""


def _ends(row: Row, name: str, text: Callable[[float], str], mark: str = "") -> str:
    """A value with the ends of its interval: "1.32 (1.30 to 1.34)"; "" for a blank."""
    if not text(row[name]):
        return ""
    return f"{text(row[name])}{mark} ({text(row[f'{name}_low'])} to {text(row[f'{name}_high'])})"


def _half(row: Row, name: str, text: Callable[[float], str]) -> str:
    """A value with the wider side of its interval: "1.32 ±0.02"; "" for a blank."""
    middle = text(row[name])
    if not middle:
        return ""
    wider = max(row[f"{name}_high"] - row[name], row[name] - row[f"{name}_low"])
    return f"{middle} ±{fixed(wider, len(middle.partition('.')[2]))}"


def _of_promised(row: Row, measured: str) -> str:
    return measured and f"{measured} of {fixed(row['speedup_promised'], DECIMALS)}"
