"""Which input patches each token stands for, and where it lies: by hand, for every method, and back on the grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

import tpbench
from tpbench import registry
from tpbench.downsampler import Downsampler
from tpbench.errors import UnsupportedModel, UsageError
from tpbench.provenance import DROPPED, MERGED, Provenance, on_grid
from tpbench.tokens import Tokens

REDUCING = [name for name, card in registry.catalogue()[0].items() if not card.unreduced]
MASKS = [name for name in REDUCING if registry.method(name).masks]
SOFT = {"patchmerger", "sinkhorn", "sit"}  # every new token is made of all
CPU = torch.device("cpu")


def fresh(grid: tuple[int, int] = (2, 3), batch: int = 1) -> Provenance:
    return Provenance.of_patches(batch, grid, CPU)


def some_tokens(grid: tuple[int, int] = (2, 3), batch: int = 1, prefix: int = 1, width: int = 4) -> Tokens:
    n = grid[0] * grid[1]
    x = torch.randn(batch, prefix + n, width, generator=torch.Generator().manual_seed(0))
    position = on_grid(grid, CPU).expand(batch, -1, -1)
    return Tokens(x, prefix, torch.ones(batch, n), grid, position=position, provenance=fresh(grid, batch))


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def backbone() -> nn.Module:
    return tiny(depth=4)


# ---------------------------------------------------------------- by hand


def test_kept_tokens_stay_their_patches_and_the_others_are_dropped():
    after = fresh().keep(torch.tensor([[4, 1]]))
    assert after.owner.tolist() == [[DROPPED, 1, DROPPED, DROPPED, 0, DROPPED]]
    assert after.patch.tolist() == [[4, 1]]
    again = after.keep(torch.tensor([[1]]))
    assert again.owner.tolist() == [[DROPPED, 0, DROPPED, DROPPED, DROPPED, DROPPED]]
    assert again.patch.tolist() == [[1]]


def test_a_kept_token_can_absorb_others():
    after = fresh().keep(torch.tensor([[4, 1]]), assignment=torch.tensor([[1, 1, 1, 0, 0, 0]]))
    assert after.owner.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert after.patch.tolist() == [[4, 1]]


def test_merged_tokens_are_no_patch_and_tokens_alone_stay_one():
    after = fresh().merge(torch.tensor([[0, 2, 0, 1, 1, 1]]), 3)
    assert after.owner.tolist() == [[0, 2, 0, 1, 1, 1]]
    assert after.patch.tolist() == [[MERGED, MERGED, 1]]
    pruned = after.keep(torch.tensor([[2, 0]])).merge(torch.tensor([[0, 0]]), 1)
    assert pruned.owner.tolist() == [[0, 0, 0, DROPPED, DROPPED, DROPPED]]
    assert pruned.patch.tolist() == [[MERGED]]


def test_soft_assignments_are_followed_by_their_strongest_part():
    share = torch.tensor([[[0.9, 0.6, 0.1], [0.1, 0.4, 0.5]]])
    after = fresh((1, 3)).mix(share)
    assert after.owner.tolist() == [[0, 0, 1]]
    assert after.patch.tolist() == [[MERGED, MERGED]]
    assert fresh().exact
    assert not after.exact
    assert not after.keep(torch.tensor([[0]])).exact


def test_the_first_of_a_repeated_token_has_its_patch_and_the_dead_have_none():
    twice = fresh((1, 3)).keep(torch.tensor([[2, 2, 0]]))
    assert twice.owner.tolist() == [[2, DROPPED, 0]]
    living = twice.without_dead(torch.tensor([[1.0, 0.0, 0.0]]))
    assert living.owner.tolist() == [[DROPPED, DROPPED, 0]]
    assert living.patch.tolist() == [[2, MERGED, MERGED]]


def test_positions_are_kept_or_the_mean_of_the_patches():
    tokens = replace(some_tokens(), size=torch.tensor([[1.0, 3.0, 1.0, 1.0, 1.0, 1.0]]))
    assert tokens.keep(torch.tensor([[4, 1]])).position.tolist() == [[[1, 1], [0, 1]]]
    medoid = tokens.keep(torch.tensor([[4, 1]]), assignment=torch.tensor([[1, 1, 1, 0, 0, 0]]))
    assert medoid.position.tolist() == [[[1, 1], [0, 1]]]
    assert medoid.size.tolist() == [[3, 5]]
    merged = tokens.merge(torch.tensor([[0, 0, 1, 1, 1, 1]]), 2, weight=torch.rand(1, 6))
    assert merged.position.tolist() == [[[0, 0.75], [0.75, 1.25]]], "by the patches they stand for, not by the weight"
    share = torch.tensor([[[1, 1, 0, 0, 0, 0.5], [0, 0, 1, 1, 1, 0.5]]])
    soft = tokens.with_body(tokens.body[:, :2], torch.ones(1, 2), share=share)
    torch.testing.assert_close(soft.position, torch.tensor([[[0.5 / 4.5, 4 / 4.5], [2.5 / 3.5, 4 / 3.5]]]))


def test_a_method_that_does_not_say_where_tokens_go_has_no_provenance():
    tokens = some_tokens()
    with pytest.raises(UnsupportedModel, match="rotary position embedding needs their positions"):
        tokens.with_body(tokens.body[:, :2], torch.ones(1, 2))
    unsaid = replace(tokens, position=None).with_body(tokens.body[:, :2], torch.ones(1, 2))
    assert unsaid.provenance is None
    with pytest.raises(UsageError, match="provenance=True"):
        unsaid.unmerge()


# ---------------------------------------------------------------- back on the grid


def test_unmerging_gives_every_patch_its_token():
    tokens = some_tokens()
    assert torch.equal(tokens.unmerge(), tokens.body)
    merged = tokens.merge(torch.tensor([[0, 2, 0, 1, 1, 1]]), 3)
    assert torch.equal(merged.unmerge(), merged.body[:, [0, 2, 0, 1, 1, 1]])


def test_dropped_patches_take_the_nearest_token_or_nothing():
    tokens = some_tokens((2, 4))  # row 0: patches 0 1 2 3, row 1: patches 4 5 6 7
    kept = tokens.keep(torch.tensor([[7, 0]]))
    nearest = kept.unmerge()
    assert torch.equal(nearest, kept.body[:, [1, 1, 0, 0, 1, 1, 0, 0]])
    empty = kept.unmerge("zero")
    assert torch.equal(empty[:, [0, 7]], kept.body[:, [1, 0]])
    assert not empty[:, 1:7].any()
    dead = replace(kept, alive=torch.tensor([[1.0, 0.0]]))
    assert torch.equal(dead.unmerge(), kept.body[:, [0] * 8])


def test_the_nearest_patch_counts_and_not_the_nearest_number():
    tokens = some_tokens((3, 3)).keep(torch.tensor([[1, 5]]))
    owner = tokens.provenance.nearest_owner()
    assert owner[0, 8] == 1
    assert owner[0, 4] == 0, "both are next to it: the first in row order"
    assert owner[0, 3] == 0, "at distance root 2, where patch 5 is 2 away though as near by number"


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("name", REDUCING)
@torch.no_grad()
def test_asking_changes_nothing(name, pictures):
    model = tpbench.reduce(backbone(), name, "0.7@1,2")
    torch.manual_seed(0)
    plain = model.forward_tokens(pictures)
    torch.manual_seed(0)
    asked = model.forward_tokens(pictures, provenance=True)
    assert torch.equal(plain.logits, asked.logits)
    assert plain.tokens.provenance is None
    assert asked.tokens.provenance is not None


@pytest.mark.parametrize("name", [name for name in REDUCING if name not in MASKS])
@torch.no_grad()
def test_as_many_patches_go_into_a_token_as_it_stands_for(name, pictures):
    model = tpbench.reduce(backbone(), name, "0.7@1,2")
    torch.manual_seed(0)
    tokens = model.forward_tokens(pictures, provenance=True).tokens
    known = tokens.provenance.without_dead(tokens.alive)
    if not known.exact:
        pytest.skip("a patch is in several tokens")
    for image in range(2):
        living = known.owner[image][known.owner[image] != DROPPED]
        members = living.bincount(minlength=tokens.count)
        alive = torch.ones(tokens.count) if tokens.alive is None else tokens.alive[image]
        assert torch.equal(members.float(), tokens.size[image] * alive)


def made_of(reducer: Downsampler, tokens: Tokens, probe) -> tuple[Tensor, Tokens]:
    """[K, N] whether a new token's vector depends on an old one's, by gradients; and the new tokens."""
    x = tokens.x.detach().requires_grad_()
    torch.manual_seed(0)
    after = reducer(replace(tokens, x=x), probe)
    depends = []
    for k in range(after.count):
        gradient = torch.autograd.grad(after.body[0, k].square().sum(), x, retain_graph=True)[0]
        depends.append(gradient[0, tokens.prefix :].abs().sum(dim=1) > 0)
    return torch.stack(depends), after


def members(after: Tokens) -> Tensor:
    """[K, N] whether a new token stands for a patch."""
    return after.provenance.owner[0] == torch.arange(after.count)[:, None]


def first_step(method: str | type[Downsampler], pictures: Tensor) -> tuple[Tensor, Tokens]:
    model = tpbench.reduce(backbone(), method, "0.7@1")
    seen = []
    model.reducers[0].register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        model.forward_tokens(pictures[:1], provenance=True)
    (tokens, probe) = seen[0]
    return made_of(model.reducers[0], tokens, probe)


@pytest.mark.parametrize("name", [name for name in REDUCING if name not in MASKS])
def test_a_token_is_made_of_patches_that_it_stands_for(name, pictures):
    """Told by the gradient of each new token to the old ones, which knows nothing of provenance."""
    depends, after = first_step(name, pictures)
    stands_for = members(after)
    if not after.provenance.exact:
        assert not (stands_for & ~depends).any(), "a patch is said to be in a token that has a part of it"
        return
    living = torch.ones(after.count, dtype=torch.bool) if after.alive is None else after.alive[0] > 0
    assert not (depends & ~stands_for)[living].any()
    assert (depends & stands_for)[living].any(dim=1).all()


@pytest.mark.parametrize("name", sorted(SOFT))
def test_a_soft_token_is_made_of_all_patches(name, pictures):
    depends, after = first_step(name, pictures)
    assert depends.all()
    assert not after.provenance.exact


class Lies(Downsampler):
    """Merges neighbours and says that it merged others."""

    def forward(self, tokens: Tokens, probe) -> Tokens:  # noqa: ARG002
        pairs = (torch.arange(tokens.count) * self.setup.k // tokens.count).expand(len(tokens.x), -1)
        merged = tokens.merge(pairs, self.setup.k)
        return replace(merged, provenance=tokens.provenance.merge(pairs.roll(1, dims=1), self.setup.k))


def test_control_a_wrong_provenance_is_found(pictures):
    depends, after = first_step(Lies, pictures)
    assert (depends & ~members(after)).any()


@torch.no_grad()
def test_masked_tokens_are_dropped_where_they_are_dead(pictures):
    model = tpbench.reduce(backbone(), "avit", "0.5@1,2", scale=5.0, shift=0.0)
    tokens = model.forward_tokens(pictures, provenance=True).tokens
    known = tokens.provenance.without_dead(tokens.alive)
    assert (tokens.alive == 0).any()
    assert torch.equal(known.owner != DROPPED, tokens.alive > 0)


# ---------------------------------------------------------------- dense features


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"]
)
def test_intermediate_features_are_timms_with_nothing_reduced(name, pictures):
    model = tiny(name, depth=3)
    same = tpbench.reduce(model, "none")
    for options in (
        {},
        {"indices": [0, 2], "norm": True},
        {"indices": 1, "output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True},
        {"indices": [0], "stop_early": True, "intermediates_only": True},
    ):
        flat, _ = torch.utils._pytree.tree_flatten(same.forward_intermediates(pictures, **options))
        want, _ = torch.utils._pytree.tree_flatten(model.forward_intermediates(pictures, **options))
        assert len(flat) == len(want)
        assert all(torch.equal(a, b) for a, b in zip(flat, want))


@torch.no_grad()
def test_intermediate_features_of_a_reduced_model_lie_on_the_grid(pictures):
    reduced = tpbench.reduce(backbone(), "tome", "0.6@1,2")
    out = reduced.forward_tokens(pictures, provenance=True)
    last, maps = reduced.forward_intermediates(pictures, indices=[0, 3], norm=True)
    assert torch.equal(last, out.tokens.x)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 8)] * 2
    assert torch.equal(maps[1].flatten(2).transpose(1, 2), reduced.unmerge(out.tokens))
    distinct = [len(set(map(tuple, m[0].flatten(1).T.tolist()))) for m in maps]
    assert distinct == [64, out.counts[-1]]
    with pytest.raises(UsageError, match="output_fmt 'NHWC' is not supported"):
        reduced.forward_intermediates(pictures, output_fmt="NHWC")
