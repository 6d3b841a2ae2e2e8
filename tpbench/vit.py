"""All that is known of timm: how a vision transformer is adopted, block by block, so that its tokens can be reduced.

timm's own modules stay what they are and keep their names, so state dicts fit and a model with nothing reduced is
bit-identical to timm's. Only two kinds are put around them: TokenBlock, which passes Tokens instead of a tensor and
holds the reducer, and ProbedAttention in the blocks whose reducer must see the attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.layers import Attention, build_sincos2d_pos_embed
from timm.models import checkpoint, load_checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from tpbench import budget, registry
from tpbench.downsampler import Downsampler, Needs, Output, Probe, Setup, Site
from tpbench.errors import ScheduleError, UnsupportedModel, UsageError
from tpbench.kernels import attention as kernels
from tpbench.schedule import Schedule, parse
from tpbench.tokens import Tokens

M = TypeVar("M", bound=nn.Module)


def reduce(
    model: nn.Module,
    method: str | type[Downsampler],
    schedule: str | Schedule = "none",
    *,
    site: str | Site = Site.MID,
    **knobs: Any,
) -> TokenViT:
    """A timm vision transformer with its tokens reduced by a method.

    method is a registered name (`tpbench list`) or a Downsampler class, schedule as in `tpbench.schedule`, site where
    in the named blocks ("mid" or "end"), knobs fields of the method's Config. The result is called like the model it
    came from and returns the same logits type; it shares that model's parameters (deepcopy the model first to train
    the two apart), which itself stays as it was. Raises UnsupportedModel, ScheduleError or UsageError.
    """
    cls = registry.method(method) if isinstance(method, str) else method
    schedule = parse(schedule) if isinstance(schedule, str) else schedule
    site = _site(site)
    config = registry.configure(cls, knobs)
    check_supported(model)
    if not cls.reduces:
        return TokenViT.around(model, [], (), site)
    if not schedule.blocks:
        raise ScheduleError(f"method {cls.__name__} needs a schedule such as 0.7@3,6,9")
    if schedule.macs_share is not None:
        schedule.check(len(model.blocks))
        schedule = budget.solve(schedule, macs_share(model, cls, config, site), model.patch_embed.num_patches)
    setups, requested = plan(model, cls, schedule, config)
    where = next(model.parameters())
    reducers = [cls(setup, config).to(where.device).train(model.training) for setup in setups]
    return TokenViT.around(model, reducers, requested, site)


def create(
    name: str, args: dict[str, Any], pretrained: bool | str = False, sincos: float | None = None
) -> VisionTransformer:
    """A timm model by name; an unknown one is refused with the nearest names.

    pretrained: timm's weights from the hub (True), or those of a file by its path, which must hold every weight of the
    model; timm fits the position embedding to another patch grid. sincos is the temperature of a 2-D sine-cosine start
    of the learned position embedding. Raises UsageError where weights cannot be had or do not fit.
    """
    if not timm.is_model(name):
        raise UsageError(
            f"unknown model {name!r}; {registry.nearest(name, timm.list_models(module='vision_transformer'))}"
        )
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise UsageError(f"the file of pretrained weights {pretrained} does not exist")
    try:
        model = timm.create_model(name, pretrained=pretrained is True, **args)
        if isinstance(pretrained, str):
            load_checkpoint(model, pretrained, filter_fn=checkpoint_filter_fn)
    except Exception as error:
        if not pretrained:
            raise UsageError(f"model {name!r} cannot be made: {' '.join(str(error).split())[:200]}") from error
        where = "from the hub" if pretrained is True else f"in {pretrained}"
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"the pretrained weights of {name} {where} cannot be loaded: {why}") from error
    if sincos is not None:
        table = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), model.embed_dim, temperature=sincos)
        with torch.no_grad():
            model.pos_embed.zero_()
            model.pos_embed[0, -len(table) :] = table.to(model.pos_embed)
    return model


def hub_classes(name: str) -> int:
    """For how many classes the hub's weights of a timm model are; for another number timm makes a new head."""
    return timm.get_pretrained_cfg(name).num_classes


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How a timm model's weights want images: mean and std of the channels, crop and interpolation of the evaluation.

    A model that says nothing gets timm's default for vision transformers.
    """
    own = getattr(model, "pretrained_cfg", None) or {}
    return {
        "mean": tuple(own.get("mean", (0.5, 0.5, 0.5))),
        "std": tuple(own.get("std", (0.5, 0.5, 0.5))),
        "crop": own.get("crop_pct") or 0.875,
        "interpolation": own.get("interpolation", "bicubic"),
    }


def macs_share(
    model: nn.Module, cls: type[Downsampler], config: Downsampler.Config, site: Site
) -> Callable[[Schedule], float]:
    """A function that gives the MACs of the model under a schedule, as a share of the unreduced model's."""
    plain = TokenViT.around(model, [], (), site)
    whole = sum(plain.macs().values())

    def share(schedule: Schedule) -> float:
        setups, _ = plan(model, cls, schedule, config)
        with torch.device("meta"):  # shapes decide; no weight is made
            reducers = [cls(setup, config) for setup in setups]
        return sum(plain.macs_under(reducers).values()) / whole

    return share


def plan(
    model: nn.Module, cls: type[Downsampler], schedule: Schedule, config: Downsampler.Config | None = None
) -> tuple[list[Setup], tuple[tuple[int, int], ...]]:
    """What each reducing block meets and must reach, and the (block, K) pairs that were asked for."""
    patches, grid = model.patch_embed.num_patches, tuple(model.patch_embed.grid_size)
    requested = tuple(zip(schedule.blocks, schedule.requested(patches, len(model.blocks))))
    if cls.asks(config or cls.Config()) & Needs.CLS and not model.has_class_token:
        raise UnsupportedModel(f"{cls.__name__} reads the class token's attention, and this model has no class token")
    setups, n = [], patches
    for stage, (block, k) in enumerate(requested):
        reached, next_grid = cls.reachable(n, min(k, n), grid)
        if reached < n or cls.masks:  # where as many leave as arrive there is nothing to do
            heads, prefix = model.blocks[block].attn.num_heads, model.num_prefix_tokens
            here = (block, stage, len(requested), n, reached, patches)
            setups.append(Setup(*here, model.embed_dim, heads, grid, prefix))
            n, grid = (n, grid) if cls.masks else (reached, next_grid)
    return setups, requested


def check_supported(model: nn.Module) -> None:
    """Refuse, in words, every model whose tokens cannot be reduced without changing what it computes."""
    if isinstance(model, TokenViT):
        raise UnsupportedModel("the model is reduced already; reduce the timm model it came from")
    name = type(model).__name__
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise UnsupportedModel(f"{name} is not supported: only timm's VisionTransformer and its distilled form are")
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        pool = "attention pooling" if model.attn_pool is not None else f"global pool {model.global_pool!r}"
        raise UnsupportedModel(
            f"{pool} is not supported: the head reads all tokens and would ignore what each stands for"
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise UnsupportedModel(
            "patch dropout is not supported: it changes the number of tokens before the schedule starts"
        )
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedModel(f"block {index} is a {type(block).__name__}; only timm's plain Block is supported")
        if type(block.attn) is not Attention:
            raise UnsupportedModel(
                f"block {index} attends with {type(block.attn).__name__}; only timm's Attention is supported"
            )


def _site(site: str | Site) -> Site:
    try:
        return Site(site)
    except ValueError:
        raise UsageError(f"unknown site {site!r}; known: {', '.join(Site)}") from None


def adopt(cls: type[M], module: nn.Module) -> M:
    """A `cls` with modules of its own, all the way down, around module's own parameters and buffers.

    Names stay, and so does `module`: training mode, hooks or replaced layers of the one do not reach the other.
    """
    adopted = cls.__new__(cls)
    adopted.__dict__ = {n: copy.copy(v) if isinstance(v, dict | set) else v for n, v in vars(module).items()}
    for name, child in module.named_children():
        adopted._modules[name] = adopt(type(child), child)
    return adopted


class ProbedAttention(Attention):
    """timm's Attention, which can also return what a reducer asked to see. Asked nothing, it is timm's own code."""

    def forward(self, x: Tensor, bias: Tensor | None = None, needs: Needs = Needs.NONE) -> tuple[Tensor, Probe]:
        """x [B, P + N, C], bias [B, 1, 1, P + N] for the scores or None -> the same shape and a Probe of all tokens."""
        if not needs:
            return (super().forward(x) if bias is None else super().forward(x, attn_mask=bias)), Probe()
        q, k, v = self.project(x)
        drop = self.attn_drop.p if self.training else 0.0
        cls = kernels.class_attention(q, k, bias, self.scale) if needs & Needs.CLS else None
        received = own = None
        if needs & Needs.RECEIVED:
            out, received, own = kernels.attention_with_received(q, k, v, bias, self.scale, drop)
        else:
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=self.scale)
        probe = Probe(k if needs & Needs.KEYS else None, v if needs & Needs.VALUES else None, cls, received, own)
        return self.finish(x, out), probe

    def masked(self, x: Tensor, alive: Tensor, count: Tensor | None, needs: Needs) -> tuple[Tensor, Probe]:
        """Attention in which key j counts alive x count [B, P + N] times, with a gradient to alive; and its Probe."""
        q, k, v = self.project(x)
        out, attention = kernels.masked_attention(q, k, v, alive, self.scale, count)
        cls = attention[:, :, 0].mean(dim=1) if needs & Needs.CLS else None
        received = own = None
        if needs & Needs.RECEIVED:
            received = attention.sum(dim=2).mean(dim=1)
            own = attention.diagonal(dim1=2, dim2=3).mean(dim=1)
        probe = Probe(k if needs & Needs.KEYS else None, v if needs & Needs.VALUES else None, cls, received, own)
        return self.finish(x, out), probe

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> q, k, v [B, H, N, D]."""
        batch, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def macs(self, n: int) -> int:
        """Projections of n tokens, and query-key and attention-value products of all pairs."""
        return n * linear_macs(self) + 2 * n * n * self.width

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.qkv.out_features // 3

    def finish(self, x: Tensor, out: Tensor) -> Tensor:
        """Heads joined, normalised, gated and projected: [B, H, N, D] -> [B, N, C]."""
        out = self.norm(out.transpose(1, 2).flatten(2))
        gate = getattr(self, "gate", None)  # timm >= 1.0.26
        out = out if gate is None else out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class TokenBlock(Block):
    """timm's Block over Tokens, with at most one reducer."""

    reducer: Downsampler | None
    site: Site
    prefix: int
    weighted: bool  # whether keys count as often as the patches they stand for, or as the method says

    @classmethod
    def around(cls, block: Block, reducer: Downsampler | None, site: Site, prefix: int, weighted: bool) -> TokenBlock:
        adopted = adopt(cls, block)
        adopted.attn = adopt(ProbedAttention, block.attn)
        adopted.site, adopted.prefix, adopted.weighted, adopted.reducer = site, prefix, weighted, reducer
        return adopted

    def forward(self, tokens: Tokens) -> Tokens:
        attended, probe = self.attend(tokens)
        tokens = replace(tokens, x=tokens.x + self.drop_path1(self.ls1(attended)))
        if self.reducer is not None and self.site is Site.MID:
            tokens = self.reducer(tokens, probe)
        tokens = replace(tokens, x=tokens.x + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens.x)))))
        if self.reducer is not None and self.site is Site.END:
            tokens = self.reducer(tokens, probe)
        return tokens

    def attend(self, tokens: Tokens) -> tuple[Tensor, Probe]:
        """Attention over the normalised tokens, and what the reducer asked to see of it (body tokens only)."""
        x, needs = self.norm1(tokens.x), Needs.NONE if self.reducer is None else self.reducer.needs
        if tokens.alive is not None and tokens.alive.requires_grad:
            count = pad_prefix(self.key_count(tokens), tokens.prefix) if self.weighted else None
            attended, probe = self.attn.masked(x, pad_prefix(tokens.alive, tokens.prefix), count, needs)
        else:
            bias = self.key_weight(tokens).log().to(x.dtype)[:, None, None, :] if self.counts_keys(tokens) else None
            attended, probe = self.attn(x, bias, needs)
        body = (None if row is None else row[:, tokens.prefix :] for row in probe[2:])
        return attended, Probe(probe.keys, probe.values, *body)

    def macs(self, n: int, after: int) -> tuple[int, int]:
        """MACs of attention and MLP when n body tokens arrive and `after` leave; without the reducer's own."""
        processed = after if self.site is Site.MID else n
        return self.attn.macs(self.prefix + n), (self.prefix + processed) * linear_macs(self.mlp)

    def probe_macs(self, reducer: Downsampler) -> int:
        """What attention spends only because a reducer looks: a class-token row, or a second pass over the scores."""
        needs, n, width = reducer.needs, reducer.setup.tokens + self.prefix, self.attn.width
        row = n * width if needs & Needs.CLS else 0
        twice = bool(needs & Needs.RECEIVED) and kernels.extra_pass(self.attn.qkv.weight.device, n)
        return row + (n * n * width if twice else 0)

    def counts_keys(self, tokens: Tokens) -> bool:
        return self.weighted or tokens.alive is not None

    def key_weight(self, tokens: Tokens) -> Tensor:
        """How often each key counts: [B, P + N] float32, 1 for the prefix."""
        weight = self.key_count(tokens)
        weight = weight if tokens.alive is None else weight * tokens.alive
        return pad_prefix(weight, tokens.prefix)

    def key_count(self, tokens: Tokens) -> Tensor:
        """How often each body token counts as a key while it is alive: [B, N] float32."""
        if not self.weighted:
            return torch.ones_like(tokens.size)
        return tokens.size if tokens.key_weight is None else tokens.key_weight


class TokenViT(VisionTransformer):
    """A vision transformer over Tokens. Made by `reduce`; called, saved and loaded like the model it came from.

    requested and achieved: (block, K) of every block the schedule names, as asked for and as planned.
    """

    requested: tuple[tuple[int, int], ...]

    @staticmethod
    def around(
        model: VisionTransformer, reducers: Sequence[Downsampler], requested: tuple[tuple[int, int], ...], site: Site
    ) -> TokenViT:
        adopted = adopt(TokenViTDistilled if isinstance(model, VisionTransformerDistilled) else TokenViT, model)
        by_block = {reducer.setup.block: reducer for reducer in reducers}
        weighted = any(reducer.weighted_attention for reducer in reducers)
        prefix = model.num_prefix_tokens
        blocks = [TokenBlock.around(b, by_block.get(i), site, prefix, weighted) for i, b in enumerate(model.blocks)]
        adopted.blocks = nn.Sequential(*blocks)
        adopted.requested, adopted.site = requested, site
        return adopted

    @property
    def reducers(self) -> list[Downsampler]:
        return [block.reducer for block in self.blocks if block.reducer is not None]

    @property
    def achieved(self) -> tuple[tuple[int, int], ...]:
        """(block, K) as planned: equal to `requested` for methods that count exactly, at most that for the others."""
        k_after, result = {r.setup.block: r.leaves for r in self.reducers}, []
        n = self.patch_embed.num_patches
        for block, _ in self.requested:
            n = k_after.get(block, n)
            result.append((block, n))
        return tuple(result)

    def macs(self) -> dict[str, int]:
        """Multiply-adds per image in closed form, by layer, from the shapes of the layers and the planned tokens.

        A reducer's row holds what reducing costs: the method's own operations and what only its probe needs.
        """
        return self.macs_under(self.reducers)

    def macs_under(self, reducers: Sequence[Downsampler]) -> dict[str, int]:
        """The same with other reducers in the place of the model's own."""
        n, by_block = self.patch_embed.num_patches, {reducer.setup.block: reducer for reducer in reducers}
        macs = {"patch_embed": n * self.patch_embed.proj.weight.numel()}
        for index, block in enumerate(self.blocks):
            reducer = by_block.get(index)
            after = n if reducer is None else reducer.leaves
            own = {} if reducer is None else {f"blocks.{index}.reducer": reducer.macs() + block.probe_macs(reducer)}
            attention, mlp = block.macs(n, after)
            macs |= {f"blocks.{index}.attn": attention} | own | {f"blocks.{index}.mlp": mlp}
            n = after
        return macs | {"head": self.head_macs()}

    def macs_leaving(self, counts: Sequence[Tensor]) -> Tensor:
        """Multiply-adds per image when counts[i] body tokens, any real number, leave block i; differentiable.

        What reducing itself costs is left out.
        """
        arriving = (torch.full_like(counts[0], self.patch_embed.num_patches), *counts)
        macs = (sum(block.macs(n, after)) for block, n, after in zip(self.blocks, arriving, counts))
        return sum(macs) + arriving[0] * self.patch_embed.proj.weight.numel() + self.head_macs()

    def head_macs(self) -> int:
        heads = [head for head in (self.head, getattr(self, "head_dist", None)) if head is not None]
        return sum(linear_macs(head) for head in heads)

    def embed(self, images: Tensor) -> Tokens:
        """Images [B, channels, height, width] -> the tokens that enter the first block."""
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        n, patches = x.shape[1] - self.num_prefix_tokens, self.patch_embed.num_patches
        if n != patches and self.reducers:
            raise UsageError(f"the schedule was made for {patches} patch tokens, these images give {n}")
        grid = tuple(self.patch_embed.grid_size) if n == patches else None
        return Tokens(x, self.num_prefix_tokens, x.new_ones(x.shape[0], n, dtype=torch.float32), grid)

    def forward_tokens(self, images: Tensor) -> Output:
        """Images -> logits, final tokens and the body tokens that left each block, in every mode."""
        tokens, counts = self.embed(images), []
        for block in self.blocks:
            again = self.grad_checkpointing and self.training and not torch.jit.is_scripting()
            tokens = checkpoint(block, tokens) if again else block(tokens)
            counts.append(tokens.count)
        tokens = replace(tokens, x=self.norm(tokens.x))
        return Output(self.classify(tokens), tokens, tuple(counts))

    def classify(self, tokens: Tokens) -> Tensor:
        """timm's head; an average over tokens counts each as often as the patches it stands for."""
        if self.global_pool != "avg" or not self.reducers:
            return self.forward_head(tokens.x)
        weight = tokens.size if tokens.alive is None else tokens.size * tokens.alive
        if self.pool_include_prefix:
            weight = pad_prefix(weight, tokens.prefix)
        x = tokens.x if self.pool_include_prefix else tokens.body
        share = (weight / weight.sum(dim=1, keepdim=True)).to(x.dtype)
        return self.head(self.head_drop(self.fc_norm((share[:, :, None] * x).sum(dim=1))))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, channels, height, width] -> logits, as timm's."""
        _refuse_masks(attn_mask, is_causal)
        return self.forward_tokens(x).logits

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images -> the tokens behind the final norm [B, P + K, C]."""
        _refuse_masks(attn_mask, is_causal)
        return self.forward_tokens(x).tokens.x

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        raise UsageError("a reduced model has no intermediate feature maps: its tokens lie on no grid")

    def objective(self, out: Output, teacher: Output) -> dict[str, Tensor]:
        """The method's own loss terms."""
        return self.reducers[-1].objective(out, teacher) if self.reducers else {}


class TokenViTDistilled(TokenViT, VisionTransformerDistilled):
    """The same with timm's distillation token and its two heads."""


def pad_prefix(weight: Tensor, prefix: int) -> Tensor:
    """Weights [B, N] of the body tokens -> [B, P + N] with 1 for each prefix token."""
    return nn.functional.pad(weight, (prefix, 0), value=1.0)


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers in a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise UsageError("attention masks are not supported: they would have to be reduced with the tokens")
