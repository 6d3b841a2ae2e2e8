"""Defining operators of PyTorch: compilers, exporters and counters see an operation as one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

LIBRARY = torch.library.Library("tpbench", "FRAGMENT")


def operator(name: str) -> Callable[[F], F]:
    """Make a function the operator tpbench::name on every device. It changes no argument and returns fresh tensors.

    `torch.library.custom_op` does the same with checks around every call that take as long as clustering a small image.
    The operator has no gradient: call it without one.
    """

    def define(function: F) -> F:
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return define


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off on a device; where it is off already, this costs nothing."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def without_gradient() -> AbstractContextManager[object]:
    """Gradients switched off; where they are off already, this costs nothing."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()
