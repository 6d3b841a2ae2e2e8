"""How fast a training loop is: images per second, and the share of the time that is spent outside the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

WARM_UP = 3  # untimed steps whenever a run starts or continues: they compile, allocate and fill caches
ASK_EVERY = 5.0  # seconds between two readings of the GPU's own utilisation counter


class Pace:
    """Measures the seconds of the timed steps, and how many of them the model's forward and backward passes took.

    On a GPU the model's seconds are those between two events on its stream. They are read at the end of an epoch, so
    that timing makes nothing wait. The rest of a step is data, augmentation, the optimiser, and idle time between
    kernels. before is what `measured` returned when an interrupted run was saved, empty for a new one.
    """

    def __init__(self, device: torch.device, before: dict[str, Any]):
        self.device = device
        self.images = before.get("images", 0)
        self.seconds = before.get("seconds", 0.0)
        self.model_seconds = before.get("model_seconds", 0.0)
        self.utilization: list[int] = list(before.get("gpu_utilization_percent") or [])
        self.warming = WARM_UP
        self.asked = time.monotonic()
        self.began: float | None = None
        self.spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """Start timing: an epoch begins or continues."""
        if not self.warming:
            self.began = self.now()

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        """Time the model's forward and backward pass, which the block contains."""
        start = self.mark()
        yield
        if self.began is not None:
            self.spans.append((start, self.mark()))

    def step(self, images: int) -> None:
        """Count one optimiser step over this number of images."""
        if self.warming:
            self.warming -= 1
            self.begin()
            return
        self.images += images
        if self.device.type == "cuda" and time.monotonic() - self.asked > ASK_EVERY:
            self.asked = time.monotonic()
            self.utilization += utilization(self.device)

    def end(self) -> None:
        """Stop timing: an epoch is complete or interrupted."""
        if self.began is None:
            return
        self.seconds += self.now() - self.began
        self.model_seconds += sum(seconds(*span) for span in self.spans)
        self.began = None
        self.spans = []

    def measured(self) -> dict[str, Any]:
        """The figures as a record keeps them; None where too few steps were timed or no counter is available."""
        timed = self.seconds > 0 and self.images > 0
        return {
            "images_per_second": self.images / self.seconds if timed else None,
            "outside_model_share": 1 - self.model_seconds / self.seconds if timed else None,
            "gpu_utilization_percent": self.utilization or None,
            "images": self.images,
            "seconds": self.seconds,
            "model_seconds": self.model_seconds,
        }

    def now(self) -> float:
        """The time in seconds, once the GPU has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def mark(self) -> Any:
        """A point in time: an event on the GPU's stream, or the time in seconds on a CPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds(start: Any, end: Any) -> float:
    """The seconds between two marks."""
    if isinstance(start, float):
        return end - start
    return start.elapsed_time(end) / 1e3


def utilization(device: torch.device) -> list[int]:
    """One sample of the GPU's utilisation in percent; empty if NVIDIA's library or its Python binding is missing."""
    try:
        return [torch.cuda.utilization(device)]
    except Exception:  # whatever the binding raises: a missing counter must not end the training
        return []
