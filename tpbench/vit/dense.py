"""Dense features of a reduced model: every token back on the patches that it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.models._features import feature_take_indices
from torch import Tensor

from tpbench.errors import UsageError

if TYPE_CHECKING:
    from tpbench.tokens import Tokens
    from tpbench.vit.model import TokenModel


def intermediates(
    model: TokenModel,
    images: Tensor,
    indices: int | list[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
):
    """timm's `forward_intermediates`: the features after the chosen blocks, unmerged onto the patch grid.

    Arguments and answer are timm's: a list of [B, C, rows, columns] ("NCHW") or [B, patches, C] ("NLC"), each with its
    prefix tokens if asked for; unless intermediates_only, a pair of the last block's tokens and this list. A patch
    whose token was dropped has the features of the nearest patch that is left. Raises UsageError for masks.
    """
    refuse_masks(attn_mask, is_causal)
    if output_fmt not in ("NCHW", "NLC"):
        raise UsageError(f"output_fmt {output_fmt!r} is not supported; known: NCHW, NLC")
    chosen, last = feature_take_indices(len(model.blocks), indices)
    found = []
    for index, tokens in enumerate(model.after_each_block(images, provenance=True)):
        if index in chosen:
            seen = model.norm(tokens.x) if norm else tokens.x
            found.append(feature(tokens, x=seen, output_fmt=output_fmt, prefix=return_prefix_tokens))
        if stop_early and index == last:
            break
    return found if intermediates_only else (model.norm(tokens.x), found)


def feature(tokens: Tokens, x: Tensor, output_fmt: str, prefix: bool) -> Tensor | tuple[Tensor, Tensor]:
    """The features x of tokens on the patch grid, and the prefix tokens if asked for."""
    dense = tokens.with_x(x).unmerge()
    if output_fmt == "NCHW":
        dense = dense.transpose(1, 2).unflatten(2, tokens.provenance.grid)
    return (dense, x[:, : tokens.prefix]) if prefix else dense


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Raise UsageError for an attention mask over tokens that are about to be reduced."""
    if attn_mask is not None or is_causal:
        raise UsageError("attention masks are not supported: they would have to be reduced with the tokens")
