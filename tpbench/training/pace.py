"""How fast a training loop is: images per second, and the share of its time that is not the model's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

WARM_UP = 3  # steps of every sitting that are not timed: they compile, allocate and fill caches
ASK_EVERY = 5.0  # seconds between two looks at the GPU's own utilisation counter


class Pace:
    """Seconds of the timed steps altogether, and of them inside the model: its forward and backward pass.

    On a GPU the model's seconds lie between events on its stream, read at the end of an epoch, so timing waits for
    nothing. The rest is data, augmentation, the optimiser, and a GPU that waits for its next kernel between them.
    """

    def __init__(self, device: torch.device, before: dict[str, Any]):
        self.device = device
        self.images, self.seconds = before.get("images", 0), before.get("seconds", 0.0)
        self.model_seconds = before.get("model_seconds", 0.0)
        self.utilization: list[int] = list(before.get("gpu_utilization_percent") or [])
        self.warming, self.asked = WARM_UP, time.monotonic()
        self.began: float | None = None
        self.spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """An epoch begins or goes on."""
        if not self.warming:
            self.began = self.now()

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        """Around the model's forward and backward pass."""
        start = self.mark()
        yield
        if self.began is not None:
            self.spans.append((start, self.mark()))

    def step(self, images: int) -> None:
        """An optimiser step over so many images is done."""
        if self.warming:
            self.warming -= 1
            self.begin()
            return
        self.images += images
        if self.device.type == "cuda" and time.monotonic() - self.asked > ASK_EVERY:
            self.asked = time.monotonic()
            self.utilization += utilization(self.device)

    def end(self) -> None:
        """An epoch is done or left."""
        if self.began is None:
            return
        self.seconds += self.now() - self.began
        self.model_seconds += sum(seconds(*span) for span in self.spans)
        self.began, self.spans = None, []

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
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def utilization(device: torch.device) -> list[int]:
    """One sample of the GPU's utilisation in percent; none where NVIDIA's library or its Python binding is missing."""
    try:
        return [torch.cuda.utilization(device)]
    except Exception:  # whatever the binding raises: training never fails because nobody counts
        return []
