"""How a module of timm's becomes one of ours around the same parameters."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def adopt(cls: type[M], module: nn.Module) -> M:
    """A `cls` with modules of its own, all the way down, around module's own parameters and buffers.

    Names stay, and so does `module`: training mode, hooks or replaced layers of the one do not reach the other.
    """
    adopted = cls.__new__(cls)
    adopted.__dict__ = {n: copy.copy(v) if isinstance(v, dict | set) else v for n, v in vars(module).items()}
    for name, child in module.named_children():
        adopted._modules[name] = adopt(type(child), child)
    return adopted
