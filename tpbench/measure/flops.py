"""Multiply-adds (MACs) of a model on one image, layer by layer: counted, and in closed form. They must agree.

A layer is the patch embedding, a block's attention, reducer or MLP, or the head. The reducer's number includes the part
of the attention that is computed only for its probe. Matrix products, convolutions and registered operators count; by
the field's convention, additions, norms, softmax, sorting and gathering do not. (Most papers call this number "FLOPs";
two FLOPs are one MAC.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tpbench.vit import TokenViT


class MacsDisagree(AssertionError):
    """The counter and the closed form differ: one of them misses an operation."""


@dataclass(frozen=True)
class Macs:
    """MACs per image by layer name, in the order of the forward pass."""

    layers: dict[str, int]

    @property
    def total(self) -> int:
        """Multiply-adds of all layers together."""
        return sum(self.layers.values())

    @property
    def reducers(self) -> int:
        """Multiply-adds of all reducers together."""
        return sum(macs for name, macs in self.layers.items() if name.endswith(".reducer"))


def measured(model: TokenViT) -> Macs:
    """The counted MACs of a model on its own device. Raises MacsDisagree if a layer differs from the closed form."""
    count = counted(model)
    form = closed_form(model)
    if count != form:
        off = {n: (count.layers.get(n), form.layers.get(n)) for n in form.layers | count.layers}
        wrong = ", ".join(f"{n}: counted {c}, closed form {f}" for n, (c, f) in off.items() if c != f)
        raise MacsDisagree(f"MACs disagree in {wrong}")
    return count


def counted(model: TokenViT) -> Macs:
    """MACs as torch's FlopCounterMode sees them in one forward pass of one image, in evaluation mode."""
    parameter = next(model.parameters())
    size = model.patch_embed.img_size
    image = torch.zeros(1, model.in_chans, *size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    # Use the plain attention kernel, since some versions of the counter miss the fused one on a CPU.
    with torch.no_grad(), frozen(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(training)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    macs = {
        name: sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name in closed_form(model).layers if name != "head"
    }
    macs["head"] = sum(sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name in ("head", "head_dist"))
    for index, block in enumerate(model.blocks):
        if block.reducer is not None:  # the probe is computed inside the attention but belongs to the reducer
            macs[f"blocks.{index}.attn"] -= block.probe_macs(block.reducer)
            macs[f"blocks.{index}.reducer"] += block.probe_macs(block.reducer)
    total = sum(flops["Global"].values()) // 2
    if total != sum(macs.values()):
        raise MacsDisagree(f"the counter finds {total} MACs in the model but {sum(macs.values())} in its layers")
    return Macs(macs)


@contextmanager
def frozen(model: TokenViT) -> Iterator[None]:
    """Switch off all gradients: the counter fails on modules that get a view of a parameter with a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(requires_grad=False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(requires_grad=True)


def closed_form(model: TokenViT) -> Macs:
    """MACs from the shapes of the layers and the planned token counts, by the formulas of the model itself."""
    return Macs(model.macs())
