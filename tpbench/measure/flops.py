"""Multiply-adds (MACs) of a model on one image, layer by layer: counted, and in closed form. They must agree.

A layer is the patch embedding, a block's attention, reducer and MLP, or the head. A reducer's row holds what reducing
costs: the method's own operations and the part of the attention that only its probe needs. Matrix products,
convolutions and registered operators count; additions, norms, softmax, sorting and gathering do not, by the field's
convention. (Most papers call this number "FLOPs"; two FLOPs are one MAC.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tpbench.downsampler import Needs, Site
from tpbench.kernels.attention import extra_pass
from tpbench.vit import TokenBlock, TokenViT


class MacsDisagree(AssertionError):
    """The counter and the closed form differ: one of them misses an operation."""


@dataclass(frozen=True)
class Macs:
    """MACs per image by layer name, in the order of the forward pass."""

    layers: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.layers.values())

    @property
    def reducers(self) -> int:
        """What reducing itself costs."""
        return sum(macs for name, macs in self.layers.items() if name.endswith(".reducer"))


def measured(model: TokenViT) -> Macs:
    """The counted MACs of a model on its own device, checked layer by layer against the closed form."""
    count, form = counted(model), closed_form(model)
    if count != form:
        off = {n: (count.layers.get(n), form.layers.get(n)) for n in form.layers | count.layers}
        wrong = ", ".join(f"{n}: counted {c}, closed form {f}" for n, (c, f) in off.items() if c != f)
        raise MacsDisagree(f"MACs disagree in {wrong}")
    return count


def counted(model: TokenViT) -> Macs:
    """MACs as torch's FlopCounterMode sees them in one forward pass of one image, in evaluation mode."""
    where = next(model.parameters())
    size = model.patch_embed.img_size
    image = torch.zeros(1, model.in_chans, *size, device=where.device, dtype=where.dtype)
    training = model.training
    model.eval()
    # The plain kernel: the counter of some versions does not see the fused one on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(training)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    macs = {
        name: sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name in closed_form(model).layers if name != "head"
    }
    macs["head"] = sum(sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name in ("head", "head_dist"))
    for index, block in enumerate(model.blocks):
        if block.reducer is not None:  # the probe is computed inside the attention: move it to whom it serves
            macs[f"blocks.{index}.attn"] -= probe_macs(block)
            macs[f"blocks.{index}.reducer"] += probe_macs(block)
    whole = sum(flops["Global"].values()) // 2
    if whole != sum(macs.values()):
        raise MacsDisagree(f"the counter finds {whole} MACs in the model but {sum(macs.values())} in its layers")
    return Macs(macs)


def closed_form(model: TokenViT) -> Macs:
    """MACs from the shapes of the layers and the planned token counts."""
    patches, prefix, width = model.patch_embed.num_patches, model.num_prefix_tokens, model.embed_dim
    macs = {"patch_embed": patches * model.patch_embed.proj.weight.numel()}
    n = patches
    for index, block in enumerate(model.blocks):
        attending, after = prefix + n, n if block.reducer is None else block.reducer.setup.k
        macs[f"blocks.{index}.attn"] = attention_macs(block, attending)
        if block.reducer is not None:
            macs[f"blocks.{index}.reducer"] = block.reducer.macs() + probe_macs(block)
        processed = prefix + (after if block.site is Site.MID else n)
        macs[f"blocks.{index}.mlp"] = processed * linear_macs(block.mlp)
        n = after
    heads = [head for head in (model.head, getattr(model, "head_dist", None)) if isinstance(head, nn.Linear)]
    macs["head"] = len(heads) * width * model.num_classes
    return Macs(macs)


def attention_macs(block: TokenBlock, n: int) -> int:
    """Projections of n tokens, and query-key and attention-value products of all pairs."""
    attn = block.attn
    return n * linear_macs(attn) + 2 * n * n * (attn.qkv.out_features // 3)


def probe_macs(block: TokenBlock) -> int:
    """What attention spends only because the reducer looks: a class-token row, or a second pass over the scores."""
    needs, n = block.reducer.needs, block.reducer.setup.tokens + block.prefix
    width = block.attn.qkv.out_features // 3
    device = block.attn.qkv.weight.device
    row = n * width if needs & Needs.CLS else 0
    return row + (n * n * width if needs & Needs.RECEIVED and extra_pass(device) else 0)


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers in a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
