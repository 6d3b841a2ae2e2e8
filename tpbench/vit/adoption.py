"""Making one of our modules from one of timm's, with the same parameters."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def adopt(cls: type[M], module: nn.Module) -> M:
    """A `cls` made of a module: its submodules are new at every level, its parameters and buffers are the module's.

    Names stay the same. The module stays as it is: training mode, hooks or replaced layers of one do not reach the
    other.
    """
    adopted = cls.__new__(cls)
    adopted.__dict__ = {n: copy.copy(v) if isinstance(v, dict | set) else v for n, v in vars(module).items()}
    for name, child in module.named_children():
        adopted._modules[name] = adopt(type(child), child)
    return adopted
