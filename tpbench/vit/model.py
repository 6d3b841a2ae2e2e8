"""timm's vision transformers over Tokens: what enters, what leaves a block, the head, and what each layer costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tpbench.downsampler import Downsampler, Output, Site
from tpbench.errors import UsageError
from tpbench.provenance import Provenance, on_grid
from tpbench.schedule import Schedule
from tpbench.tokens import Tokens
from tpbench.vit.adoption import adopt
from tpbench.vit.blocks import Reducing, TokenBlock
from tpbench.vit.dense import intermediates, refuse_masks
from tpbench.vit.pooling import WeightedPool, linear_macs, pad_prefix, weighted_mean
from tpbench.vit.rotary import Rotations
from tpbench.vit.sizing import planned_for


class TokenModel:
    """A mixin for a class of timm's vision transformer (`of`): it passes Tokens from block to block.

    Made by `reduce`; called, saved and loaded like the model it came from.
    requested and achieved: (block, K) of every block the schedule names, as asked for and as planned.
    """

    kinds: ClassVar[dict[type[nn.Module], type[TokenModel]]] = {}
    block: ClassVar[type[Reducing]]
    requested: tuple[tuple[int, int], ...]
    schedule: Schedule | None  # None: unknown, so that images of another size cannot be planned for

    def __init_subclass__(cls, *, of: type[nn.Module]):
        TokenModel.kinds[of] = cls

    @staticmethod
    def around(
        model: nn.Module,
        reducers: Sequence[Downsampler],
        requested: tuple[tuple[int, int], ...],
        site: Site,
        schedule: Schedule | None = None,
    ) -> TokenModel:
        """A model over Tokens around timm's model, whose modules it shares."""
        kind = TokenModel.kinds[type(model)]
        adopted = adopt(kind, model)
        by_block = {reducer.setup.block: reducer for reducer in reducers}
        weighted = any(reducer.weighted_attention for reducer in reducers)
        prefix = model.num_prefix_tokens
        first = min((block for block, _ in requested), default=-1)  # up to its attention every token is one patch
        blocks = [
            kind.block.around(block, by_block.get(index), site=site, prefix=prefix, weighted=weighted and index > first)
            for index, block in enumerate(model.blocks)
        ]
        adopted.blocks = nn.ModuleList(blocks) if isinstance(model.blocks, nn.ModuleList) else nn.Sequential(*blocks)
        if adopted.attn_pool is not None:
            adopted.attn_pool = adopt(WeightedPool, model.attn_pool)
        adopted.requested = requested
        adopted.site = site
        adopted.schedule = schedule
        return adopted

    @property
    def reducers(self) -> list[Downsampler]:
        """The instances of the method, in the order of their blocks."""
        return [block.reducer for block in self.blocks if block.reducer is not None]

    @property
    def achieved(self) -> tuple[tuple[int, int], ...]:
        """(block, K) as planned: equal to `requested` for methods that meet counts exactly, at most that for others."""
        k_after = {reducer.setup.block: reducer.tokens_out for reducer in self.reducers}
        result = []
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
        n = self.patch_embed.num_patches
        by_block = {reducer.setup.block: reducer for reducer in reducers}
        macs = {"patch_embed": n * self.patch_embed.proj.weight.numel()}
        for index, block in enumerate(self.blocks):
            reducer = by_block.get(index)
            after = n if reducer is None else reducer.tokens_out
            own = {} if reducer is None else {f"blocks.{index}.reducer": reducer.macs() + block.probe_macs(reducer)}
            attention, mlp = block.macs(n, after)
            macs |= {f"blocks.{index}.attn": attention} | own | {f"blocks.{index}.mlp": mlp}
            n = after
        if self.attn_pool is not None:
            macs["attn_pool"] = self.attn_pool.macs(self.pooled_tokens(n))
        return macs | {"head": self.head_macs()}

    def macs_with_counts(self, counts: Sequence[Tensor]) -> Tensor:
        """Multiply-adds per image if counts[i] body tokens, any real number, go on after block i; differentiable.

        The cost of reducing itself is not included.
        """
        arriving = (torch.full_like(counts[0], self.patch_embed.num_patches), *counts)
        macs = (sum(block.macs(n, after)) for block, n, after in zip(self.blocks, arriving, counts))
        pooling = 0
        if self.attn_pool is not None:
            pooling = self.attn_pool.macs(self.pooled_tokens(counts[-1]))
        return sum(macs) + arriving[0] * self.patch_embed.proj.weight.numel() + pooling + self.head_macs()

    def macs_living(self, living: Mapping[int, float]) -> float:
        """The same if only living tokens were computed: living[i] body tokens live after block i, on average.

        After a block that is not named, as many live as before it.
        """
        count = float(self.patch_embed.num_patches)
        counts = []
        for block in range(len(self.blocks)):
            count = living.get(block, count)
            counts.append(torch.tensor(count, dtype=torch.float64))
        return self.macs_with_counts(counts).item()

    def pooled_tokens(self, body: int | Tensor) -> int | Tensor:
        """How many tokens pooling reads if this many body tokens are left."""
        return body + self.num_prefix_tokens if self.pools_prefix else body

    def head_macs(self) -> int:
        """Multiply-adds of the classifiers per image."""
        heads = [head for head in (self.head, getattr(self, "head_dist", None)) if head is not None]
        return sum(linear_macs(head) for head in heads)

    def embed(self, images: Tensor, provenance: bool = False) -> Tokens:
        """Images [B, channels, height, width] -> the tokens that enter the first block."""
        return self.enter(images, provenance)[0]

    def enter(self, images: Tensor, provenance: bool) -> tuple[Tokens, Rotations | None]:
        """The tokens that enter the first block, and the rotations of queries and keys, if the model has any."""
        patches = self.patch_embed(images)
        grid = tuple(patches.shape[1:3]) if patches.dim() == 4 else tuple(self.patch_embed.grid_size)
        x, table = self.positioned(patches)
        x = self.norm_pre(x)
        n = x.shape[1] - self.num_prefix_tokens
        tokens = Tokens(
            x, prefix=self.num_prefix_tokens, size=x.new_ones(x.shape[0], n, dtype=torch.float32), grid=grid
        )
        if provenance:
            tokens.provenance = Provenance.of_patches(x.shape[0], grid, x.device)
        if table is None:
            return tokens, None
        tokens.position = on_grid(grid, x.device).expand(x.shape[0], -1, -1)
        return tokens, Rotations(self.rope, table=table, grid=grid, position=tokens.position)

    def positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """All tokens with their position embedding, and timm's own table of rotations, if it has one."""
        return self.patch_drop(self._pos_embed(patches)), None

    def after_each_block(self, images: Tensor, provenance: bool = False) -> Iterator[Tokens]:
        """Run the blocks one after the other, and yield the tokens after each."""
        tokens, rotations = self.enter(images, provenance)
        again = self.grad_checkpointing and self.training and not torch.jit.is_scripting()
        with planned_for(self, tokens.grid):
            for index, block in enumerate(self.blocks):
                rotation = None if rotations is None else rotations.of(tokens.position, index)
                tokens = checkpoint(block, tokens, rotation) if again else block(tokens, rotation)
                yield tokens

    def forward_tokens(self, images: Tensor, provenance: bool = False) -> Output:
        """Images -> logits, final tokens and the number of body tokens after each block, in every mode.

        provenance: whether the tokens record which input patches each stands for, as `unmerge` needs.
        """
        counts = []
        for tokens in self.after_each_block(images, provenance):
            counts.append(tokens.count)
        tokens = tokens.with_x(self.norm(tokens.x))
        return Output(self.classify(tokens), tokens, tuple(counts))

    def unmerge(self, tokens: Tokens, dropped: Literal["nearest", "zero"] = "nearest") -> Tensor:
        """A vector for every input patch, in row order: [B, patches, C]. See `Tokens.unmerge`."""
        return tokens.unmerge(dropped)

    @property
    def pools_prefix(self) -> bool:
        """Whether pooling reads the prefix tokens too."""
        return self.pool_include_prefix

    def classify(self, tokens: Tokens) -> Tensor:
        """timm's head; pooling counts each token as often as the patches it stands for."""
        if self.global_pool == "token" or not self.reducers:
            return self.forward_head(tokens.x)
        weight = tokens.size if tokens.alive is None else tokens.size * tokens.alive
        if self.pools_prefix:
            weight = pad_prefix(weight, tokens.prefix)
        x = tokens.x if self.pools_prefix else tokens.body
        pooled = weighted_mean(x, weight) if self.attn_pool is None else self.attn_pool(x, weight)
        return self.head(self.head_drop(self.fc_norm(pooled)))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, channels, height, width] -> logits, as timm's."""
        refuse_masks(attn_mask, is_causal)
        return self.forward_tokens(x).logits

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images -> the tokens after the final norm [B, P + K, C]."""
        refuse_masks(attn_mask, is_causal)
        return self.forward_tokens(x).tokens.x

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Dense features after the blocks, as timm's: see `dense.intermediates`."""
        return intermediates(self, x, *args, **options)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's, from tokens [B, P + K, C]. Raises UsageError for a reduced model that pools over tokens."""
        if self.reducers and self.global_pool != "token":
            raise UsageError("a tensor does not say what each token stands for: call the model or forward_tokens")
        return super().forward_head(x, pre_logits)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's. Raises UsageError for pooling that would ignore what each token of a reduced model stands for."""
        if self.reducers and global_pool not in (None, "token", "avg"):
            raise UsageError(
                f"a reduced model cannot pool by {global_pool!r}, which ignores what each token stands for"
            )
        super().reset_classifier(num_classes, global_pool)

    def set_input_size(self, *args: Any, **options: Any) -> None:
        """timm's. Raises UsageError for a reduced model, whose token counts are planned for one size."""
        if self.reducers:
            raise UsageError("token counts are planned for one image size: call set_input_size before reduce")
        super().set_input_size(*args, **options)

    def objective(self, out: Output, teacher: Output) -> dict[str, Tensor]:
        """The method's own loss terms."""
        return self.reducers[-1].objective(out, teacher) if self.reducers else {}


class TokenViT(TokenModel, VisionTransformer, of=VisionTransformer):
    """timm's VisionTransformer over Tokens."""

    block = TokenBlock


class TokenViTDistilled(TokenModel, VisionTransformerDistilled, of=VisionTransformerDistilled):
    """The same with timm's distillation token and its two heads."""

    block = TokenBlock
