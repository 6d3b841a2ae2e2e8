"""What every method owes the harness, for every registered method; and for each promise a class that breaks it.

A promise is a function of a Downsampler class. The tests ask it of the registered ones, the controls of broken ones.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import tpbench
from tpbench import registry
from tpbench.downsampler import Downsampler, Needs, Probe, Setup, Site
from tpbench.errors import Unreachable, UnsupportedModel
from tpbench.measure import flops
from tpbench.schedule import parse
from tpbench.tokens import Tokens, segment_mean, stable_topk
from tpbench.vit import TokenViT

CARDS = registry.catalogue()[0]
EVERY = list(CARDS)
REDUCING = [name for name, card in CARDS.items() if not card.unreduced]
SCHEDULES = ["0.7@1,2", "40,40,23@0,1,3", "-11@0-3"]  # no block loses more than half
PATCHES = 64

every_method = pytest.mark.parametrize("name", EVERY)
every_reducing_method = pytest.mark.parametrize("name", REDUCING)
both_sites = pytest.mark.parametrize("site", list(Site), ids=str)


def make(dtype: torch.dtype = torch.float32, **overrides) -> nn.Module:
    return tiny(**overrides).to(dtype)


def pictures(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def reduced(
    cls, schedule: str = SCHEDULES[0], site: Site = Site.MID, knobs: dict[str, Any] | None = None, **overrides
) -> TokenViT:
    """A tiny model under a method; the method's own parameters randomised like the others."""
    model = make(**overrides)
    torch.manual_seed(0)
    result = tpbench.reduce(model, cls, schedule, site=site, **(knobs or {}))
    for number, reducer in enumerate(result.reducers):
        with torch.no_grad():
            for p in reducer.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    return result.to(next(model.parameters()).dtype)


def seeded(model: nn.Module, x: Tensor, seed: int = 0):
    torch.manual_seed(seed)
    return model.forward_tokens(x)


@cache
@torch.no_grad()
def is_random(cls) -> bool:
    model = reduced(cls)
    return not torch.equal(seeded(model, pictures(), 0).logits, seeded(model, pictures(), 1).logits)


def steps(model: TokenViT, x: Tensor) -> list[tuple[Downsampler, Tokens, Tokens]]:
    """(reducer, tokens before, tokens after) of every reduction in one seeded pass."""
    seen = []
    hooks = [
        reducer.register_forward_hook(lambda module, given, after: seen.append((module, given[0], after)))
        for reducer in model.reducers
    ]
    with torch.no_grad():
        seeded(model, x)
    for hook in hooks:
        hook.remove()
    return seen


# ================================================================ the promises


def promise_counts(cls, site: Site, count: str) -> None:
    """As many tokens leave every block as were asked for, or the most that the method can reach."""
    for text in SCHEDULES:
        model = reduced(cls, text, site)
        asked = dict(zip(parse(text).blocks, parse(text).requested(PATCHES, 4)))
        n, want = PATCHES, []
        for block in range(4):
            n = min(n, asked.get(block, n))
            if count == "masked":
                n = PATCHES
            if count == "at_most" and block in asked:  # what `achieved` claims is checked in promise_largest
                assert dict(model.achieved)[block] <= n
                n = dict(model.achieved)[block]
            want.append(n)
        with torch.no_grad():
            out = seeded(model, pictures())
        assert out.counts == tuple(want)
        assert out.tokens.count == want[-1]
        assert out.tokens.body.shape == (3, want[-1], 32)
        assert dict(model.requested) == asked
        assert model.achieved == tuple((block, want[block]) for block in asked)


def promise_prefix(cls, site: Site) -> None:
    """Class token and registers pass a reducer unchanged."""
    for overrides in ({}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}):
        try:
            model = reduced(cls, site=site, **overrides)
        except UnsupportedModel:
            assert cls.needs & Needs.CLS
            assert not overrides["class_token"]
            continue
        taken = steps(model, pictures())
        assert len(taken) == 2
        for _, before, after in taken:
            assert after.prefix == before.prefix == model.num_prefix_tokens
            assert torch.equal(after.x[:, : after.prefix], before.x[:, : before.prefix])


def promise_sizes(cls, site: Site) -> str:
    """Sizes say what each token stands for. Says what the method does: "merges", "prunes" or "does both"."""
    kinds = set()
    for reducer, before, after in steps(reduced(cls, site=site), pictures()):
        assert after.size.shape == (3, reducer.tokens_out)
        assert after.size.dtype == torch.float32
        rows = {tuple(row) for image in before.body.tolist() for row in image}
        for image, size in enumerate(after.size):
            living = slice(None) if after.alive is None else after.alive[image] > 0
            kind = kind_of(size[living])
            kinds.add(kind)
            if kind == "prunes":
                kept = after.body[image][living].tolist()
                assert all(tuple(row) in rows for row in kept), "a pruned token is another"
    return kinds.pop() if len(kinds) == 1 else "does both"


def kind_of(size: Tensor) -> str:
    """What was done to the tokens of one image, by what those that are left stand for."""
    if torch.equal(size, torch.ones_like(size)):
        return "prunes"
    if size.sum().item() == pytest.approx(PATCHES, rel=1e-4):
        assert (size >= 0).all()
        return "merges"
    assert torch.equal(size, size.round()), f"sizes neither sum to the patches nor are whole numbers: {size}"
    assert (size >= 1).all()
    assert len(size) < size.sum() < PATCHES
    return "does both"


@torch.no_grad()
def promise_same_seed_same_answer(cls, site: Site) -> None:
    model = reduced(cls, site=site)
    assert torch.equal(seeded(model, pictures(), 3).logits, seeded(model, pictures(), 3).logits)
    assert torch.equal(seeded(reduced(cls, site=site), pictures(), 3).logits, seeded(model, pictures(), 3).logits)


@torch.no_grad()
def promise_images_are_alone(cls, site: Site) -> None:
    """Batch 1 works, and an image's answer does not depend on the others'. Float64: no near-tie can flip."""
    model = reduced(cls, site=site, dtype=torch.float64)
    x = pictures(dtype=torch.float64)
    together = seeded(model, x)
    for image in range(3):
        alone = seeded(model, x[image : image + 1])
        assert alone.counts == together.counts
        assert alone.logits.isfinite().all()
        if not is_random(cls):
            torch.testing.assert_close(alone.logits, together.logits[image : image + 1])


def promise_gradients(cls, site: Site, training: bool) -> None:
    """The loss, with all of the method's terms, has a finite gradient everywhere: in training to every parameter."""
    model = reduced(cls, site=site).train(training)
    with torch.no_grad():
        teacher = tpbench.reduce(make(), "none").forward_tokens(pictures())
    out = seeded(model, pictures())
    terms = {**out.tokens.aux, **(model.objective(out, teacher) if training else {})}
    assert all(term.dim() == 0 and term.isfinite() for term in terms.values())
    (F.cross_entropy(out.logits, torch.tensor([0, 3, 6])) + sum(terms.values())).backward()
    for name, p in model.named_parameters():
        if training or ".reducer." not in name:
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name
        assert p.grad is None or p.grad.isfinite().all(), name


@torch.no_grad()
def promise_low_precision(cls, site: Site) -> None:
    want = seeded(reduced(cls, site=site), pictures()).counts
    model = reduced(cls, site=site)
    with torch.autocast("cpu", torch.bfloat16):
        out = seeded(model, pictures())
    assert out.counts == want
    assert out.logits.isfinite().all()
    whole = seeded(model.bfloat16(), pictures(dtype=torch.bfloat16))
    assert whole.counts == want
    assert whole.logits.isfinite().all()
    assert whole.tokens.x.dtype == torch.bfloat16
    assert whole.tokens.size.dtype == torch.float32


def promise_macs(cls) -> None:
    """The closed form is what the counter finds in the reducer itself, for two grids of tokens."""
    for n, k, grid in ((64, 33, (8, 8)), (32, 20, (8, 4))):
        reached, _ = cls.reachable(n, k, grid)
        reducer = cls(Setup(0, 0, 1, n, reached, n, 32, 2, grid)).eval()
        tokens = Tokens(torch.randn(2, 1 + n, 32), 1, torch.ones(2, n), grid)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            after = reducer(tokens, some_probe(reducer.needs, n))
        assert after.count == reducer.tokens_out
        assert counter.get_total_flops() == 2 * 2 * reducer.macs()


def some_probe(needs: Needs, n: int) -> Probe:
    keys, values = torch.randn(2, 2, 2, 1 + n, 16)
    received = torch.rand(2, n)
    seen = {
        Needs.KEYS: {"keys": keys},
        Needs.VALUES: {"values": values},
        Needs.CLS: {"cls": torch.rand(2, n)},
        Needs.RECEIVED: {"received": received, "own": received * torch.rand(2, n)},
        Needs.QUERIES: {"queries": torch.randn(2, 2, 1 + n, 16), "rotated_keys": keys},
        Needs.INPUT: {"input": torch.randn(2, 1 + n, 32)},
        Needs.SHIFT: {"shift": torch.rand(2, n)},
    }
    assert seen.keys() == set(Needs)
    return Probe(**{name: value for need, row in seen.items() if need in needs for name, value in row.items()})


def promise_macs_in_a_model(cls, site: Site) -> None:
    for text in SCHEDULES:
        model = reduced(cls, text, site)
        assert flops.measured(model) == flops.closed_form(model)


@torch.no_grad()
def promise_copies(cls, site: Site) -> None:
    """A deep copy answers the same and is apart; a state dict carries all that the answer depends on."""
    model = reduced(cls, site=site)
    want = seeded(model, pictures()).logits
    twin = copy.deepcopy(model)
    assert torch.equal(seeded(twin, pictures()).logits, want)
    other = reduced(cls, site=site)
    for p in other.parameters():
        p.add_(0.3)
    assert not torch.equal(seeded(other, pictures()).logits, want)
    other.load_state_dict(model.state_dict())
    assert torch.equal(seeded(other, pictures()).logits, want)
    for p in model.parameters():
        p.mul_(1.5)
    assert torch.equal(seeded(twin, pictures()).logits, want)


@torch.no_grad()
def promise_compiles(cls, site: Site) -> None:
    torch._dynamo.reset()
    model = reduced(cls, "0.7@0", site, depth=2)
    want = seeded(model, pictures()).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    assert torch.equal(compiled(pictures()), want)


def promise_checkpointing(cls) -> None:
    """Activations computed a second time are the first ones: the same random numbers, the same gradients."""
    grads = []
    for again in (False, True):
        model = reduced(cls).train()
        model.set_grad_checkpointing(again)
        out = seeded(model, pictures())
        (out.logits.square().sum() + sum(out.tokens.aux.values())).backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, msg=key)


def promise_largest_reachable(cls, exact: bool) -> None:
    """Of a method that counts exactly, K. Of the others: what is reached is reached when asked for, and asking for
    fewer never gives more."""
    for grid in ((8, 8), (14, 14), (7, 3), (1, 9)):
        n = grid[0] * grid[1]
        got = []
        for k in range((n + 1) // 2, n + 1):  # nobody need be able to drop more than half at once
            reached, next_grid = cls.reachable(n, k, grid)
            assert 1 <= reached <= k
            assert reached == k or not exact
            assert next_grid is None or next_grid[0] * next_grid[1] == reached
            assert cls.reachable(n, reached, grid) == (reached, next_grid)
            got.append(reached)
        assert got == sorted(got)
        assert got[-1] == n


# ================================================================ asked of every method


@every_reducing_method
@both_sites
def test_counts_are_met(name, site):
    promise_counts(registry.method(name), site, CARDS[name].count)


@every_reducing_method
def test_counts_are_the_largest_reachable(name):
    promise_largest_reachable(registry.method(name), CARDS[name].count == "exact")


@every_reducing_method
@both_sites
def test_prefix_tokens_are_untouched(name, site):
    promise_prefix(registry.method(name), site)


KINDS = {
    **dict.fromkeys(["kmedoids", "wkmedoids", "wkpeaks", "kmeans", "wkmeans", "avgpool", "strided_conv"], "merges"),
    **dict.fromkeys(["tome", "pitome", "dpcknn", "evit", "patchmerger", "sit", "sinkhorn"], "merges"),
    **dict.fromkeys(
        ["random", "importance", "topk", "topk_cls", "dynamicvit", "ats", "avit", "shift", "zerotprune"], "prunes"
    ),
    **dict.fromkeys(["atc", "etps", "tokenlearner", "mctf", "dtps", "dtem"], "merges"),
    **dict.fromkeys(["diffrate", "ppt", "tofu"], "does both"),
}


@every_reducing_method
@both_sites
def test_sizes_say_what_tokens_stand_for(name, site):
    kind = promise_sizes(registry.method(name), site)
    assert kind == KINDS.get(name, kind)


@every_method
@both_sites
def test_same_seed_same_answer(name, site):
    promise_same_seed_same_answer(registry.method(name), site)


@every_reducing_method
@both_sites
def test_images_are_alone(name, site):
    promise_images_are_alone(registry.method(name), site)


@every_reducing_method
@both_sites
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_are_finite(name, site, training):
    promise_gradients(registry.method(name), site, training)


@every_reducing_method
@both_sites
def test_low_precision_works(name, site):
    promise_low_precision(registry.method(name), site)


@every_reducing_method
def test_macs_are_what_the_counter_finds(name):
    promise_macs(registry.method(name))


@every_method
@both_sites
def test_macs_of_the_model_agree(name, site):
    promise_macs_in_a_model(registry.method(name), site)


@every_reducing_method
@both_sites
def test_copies_and_state_dicts(name, site):
    promise_copies(registry.method(name), site)


@torch.no_grad()
def test_copies_are_aligned_whatever_the_original_is():
    """Copies answer alike to the last bit, but not always like a model whose parameters lie across 16-byte addresses.

    ZeRO makes parameters views into one flat buffer, at any address; there a CPU's matrix-vector product (a batch of
    one) adds in another order. Copies and loaded state dicts are aligned, so that they agree with each other.
    """
    model = reduced(registry.method("tome"), embed_dim=64)
    for p in model.parameters():
        p.data = torch.empty(p.numel() + 1)[1:].view(p.shape).copy_(p.data)
    assert all(p.data_ptr() % 16 for p in model.parameters())
    copies = [copy.deepcopy(model), reduced(registry.method("tome"), embed_dim=64)]
    copies[1].load_state_dict(model.state_dict())
    assert all(p.data_ptr() % 16 == 0 for twin in copies for p in twin.parameters())
    for batch in (1, 3):
        answers = [seeded(twin, pictures(batch)).logits for twin in copies]
        assert torch.equal(*answers)
        torch.testing.assert_close(answers[0], seeded(model, pictures(batch)).logits, rtol=1e-5, atol=1e-6)


@every_method
def test_compiles_in_one_graph(name):
    promise_compiles(registry.method(name), Site.MID)


@every_reducing_method
def test_checkpointing_changes_no_gradient(name):
    promise_checkpointing(registry.method(name))


def settings(name: str) -> list[dict[str, Any]]:
    """Every alternative of every setting that has a few: Literals and truth values."""
    cls = registry.method(name)
    hints, found = get_type_hints(cls.Config), []
    for field in fields(cls.Config):
        kind = hints[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
        found += [{field.name: choice} for choice in choices if choice != field.default]
    return found


every_setting = pytest.mark.parametrize(
    ("name", "knobs"), [(name, knobs) for name in REDUCING for knobs in settings(name)], ids=str
)


@every_setting
@torch.no_grad()
def test_every_setting_works(name, knobs):
    model = reduced(registry.method(name), knobs=knobs)
    out = seeded(model, pictures())
    assert out.counts == seeded(reduced(registry.method(name)), pictures()).counts
    assert out.logits.isfinite().all()
    assert flops.measured(model) == flops.closed_form(model)


@every_setting
@torch.no_grad()
def test_every_setting_matters(name, knobs):
    """Tokens of very different lengths come out otherwise, or later attention counts them otherwise."""
    cls, outcomes, weighted = registry.method(name), [], []
    try:
        reached, _ = cls.reachable(64, 9, (8, 8))
    except Unreachable:
        reached, _ = cls.reachable(64, 33, (8, 8))
    for given in ({}, knobs):
        torch.manual_seed(0)
        tokens = Tokens(torch.randn(2, 65, 32) * torch.randn(2, 65, 1).exp(), 1, torch.ones(2, 64), (8, 8))
        reducer = cls(Setup(0, 0, 1, 64, reached, 64, 32, 2, (8, 8)), cls.Config(**given)).eval()
        probe = some_probe(reducer.needs, 64)
        after = reducer(tokens, probe)
        outcomes.append(torch.cat([after.x.flatten(), after.size.flatten()]))
        weighted.append(reducer.weighted_attention)
    assert weighted[0] != weighted[1] or not torch.equal(*outcomes)


@every_reducing_method
def test_reducers_say_where_they_stand(name):
    model = reduced(registry.method(name))
    setups = [reducer.setup for reducer in model.reducers]
    assert [(s.block, s.stage, s.stages) for s in setups] == [(1, 0, 2), (2, 1, 2)]
    assert all((s.patches, s.width, s.heads) == (PATCHES, 32, 2) for s in setups)
    assert setups[0].tokens == PATCHES
    assert setups[0].grid == (8, 8)
    assert model.reducers[0].tokens_out == setups[1].tokens
    assert f"tokens={PATCHES} -> {setups[0].k}" in repr(model)


@every_reducing_method
def test_site_is_where_tokens_leave(name):
    """At the end of a block all tokens have been through its MLP, in the middle only those that stay."""
    for site in Site:
        model, met = reduced(registry.method(name), site=site), []
        model.blocks[1].mlp.register_forward_pre_hook(lambda _, given, met=met: met.append(given[0].shape[1]))
        with torch.no_grad():
            seeded(model, pictures())
        assert met == [1 + (PATCHES if site is Site.END else model.reducers[0].tokens_out)]


@every_reducing_method
@torch.no_grad()
def test_the_average_over_tokens_counts_patches(name):
    """With average pooling the head sees sum(size x) / sum(size) over the living."""
    model = reduced(registry.method(name), global_pool="avg")
    out = seeded(model, pictures())
    size = out.tokens.size if out.tokens.alive is None else out.tokens.size * out.tokens.alive
    mean = (size[..., None] * out.tokens.body).sum(1) / size.sum(1, keepdim=True)
    torch.testing.assert_close(out.logits, model.head(model.fc_norm(mean)), rtol=1e-4, atol=1e-5)
    plain = model.head(model.fc_norm(out.tokens.body.mean(1)))
    uneven = (size.amax() - size.amin()) / size.mean()
    if not 0 < uneven < 0.1:  # control; soft assignments leave sizes that are all but even
        assert torch.allclose(plain, out.logits, atol=1e-4) == bool(uneven == 0)


# ================================================================ controls: each breaks one promise


class Sound(Downsampler):
    """Keeps the first K; the controls are one step away from it."""

    def forward(self, tokens, probe):  # noqa: ARG002
        return tokens.keep(torch.arange(self.setup.k).expand(len(tokens.x), -1))


class DropsNothing(Sound):
    def forward(self, tokens, probe):  # noqa: ARG002
        return tokens


class DropsOneMore(Sound):
    def forward(self, tokens, probe):  # noqa: ARG002
        return tokens.keep(torch.arange(self.setup.k - 1).expand(len(tokens.x), -1))


class TouchesThePrefix(Sound):
    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        return replace(after, x=torch.cat([after.x[:, : after.prefix] * 1.01, after.body], dim=1))


class SwapsThePrefix(Sound):
    def forward(self, tokens, probe):  # noqa: ARG002
        index = torch.arange(1, self.setup.k + 1).expand(len(tokens.x), -1)
        rows = torch.cat([tokens.x[:, 1 : 1 + tokens.prefix], tokens.x[:, tokens.prefix + index[0]]], dim=1)
        return replace(tokens, x=rows, size=tokens.size.gather(1, index), grid=None)


class ForgetsSizes(Sound):
    """Merges, but calls every mean one patch."""

    def forward(self, tokens, probe):  # noqa: ARG002
        assignment = (torch.arange(tokens.count) % self.setup.k).expand(len(tokens.x), -1)
        return tokens.with_body(
            segment_mean(tokens.body, tokens.size, assignment, self.setup.k), tokens.size[:, : self.setup.k]
        )


class CountsTwice(Sound):
    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        return replace(after, size=after.size * 2)


class Restless(Sound):
    """Draws from a generator of its own."""

    own = torch.Generator().manual_seed(0)

    def forward(self, tokens, probe):  # noqa: ARG002
        return tokens.keep(torch.rand(tokens.size.shape, generator=self.own).argsort(1)[:, : self.setup.k])


class LooksAtTheNeighbours(Sound):
    """Scores tokens by their distance from the batch's mean."""

    def forward(self, tokens, probe):  # noqa: ARG002
        score = (tokens.body - tokens.body.mean(dim=(0, 1))).square().sum(-1)
        return tokens.keep(stable_topk(score, self.setup.k))


class Detaches(Sound):
    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        return replace(after, x=after.x.detach())


class DividesByZero(Sound):
    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        zero = (after.x[:, :1, :1] * 0).square()
        return replace(after, x=after.x + zero.sqrt())


class Upcasts(Sound):
    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        return replace(after, size=after.size.to(after.x.dtype))


class Understates(Sound):
    """Multiplies matrices and says nothing of it."""

    def forward(self, tokens, probe):
        tokens.body @ tokens.body.transpose(1, 2)
        return super().forward(tokens, probe)


class Overstates(Sound):
    def macs(self):
        return 1


class HidesState(Sound):
    """Keeps what its answer depends on where no state dict sees it."""

    def __init__(self, setup, config=None):
        super().__init__(setup, config)
        self.secret = torch.rand(1) * 0 + next(self.numbers)

    numbers = iter(range(1, 10**6))

    def forward(self, tokens, probe):
        after = super().forward(tokens, probe)
        return replace(after, x=after.x * self.secret)


class PromisesTooLittle(Sound):
    """Could keep any number of tokens and settles for an even one, and one pair less than that."""

    @classmethod
    def reachable(cls, tokens, k, grid):
        return (tokens, grid) if k == tokens else (max(1, k // 2 * 2 - 2), None)


class BreaksTheGraph(Sound):
    def forward(self, tokens, probe):
        if float(tokens.x.sum()) > 1e9:
            return tokens
        return super().forward(tokens, probe)


def both(cls) -> None:
    promise_gradients(cls, Site.MID, training=True)
    promise_gradients(cls, Site.MID, training=False)


PROMISES = {
    "counts": lambda cls: promise_counts(cls, Site.MID, "exact"),
    "prefix": lambda cls: promise_prefix(cls, Site.MID),
    "sizes": lambda cls: promise_sizes(cls, Site.MID),
    "seed": lambda cls: promise_same_seed_same_answer(cls, Site.MID),
    "alone": lambda cls: promise_images_are_alone(cls, Site.MID),
    "gradients": both,
    "precision": lambda cls: promise_low_precision(cls, Site.MID),
    "macs": promise_macs,
    "model_macs": lambda cls: promise_macs_in_a_model(cls, Site.MID),
    "copies": lambda cls: promise_copies(cls, Site.MID),
    "compiles": lambda cls: promise_compiles(cls, Site.MID),
    "checkpointing": promise_checkpointing,
    "reachable": lambda cls: promise_largest_reachable(cls, exact=cls is Sound),
}
FAULTS = [
    (DropsNothing, "counts"),
    (DropsOneMore, "counts"),
    (TouchesThePrefix, "prefix"),
    (SwapsThePrefix, "prefix"),
    (ForgetsSizes, "sizes"),
    (CountsTwice, "sizes"),
    (Restless, "seed"),
    (LooksAtTheNeighbours, "alone"),
    (Detaches, "gradients"),
    (DividesByZero, "gradients"),
    (Upcasts, "precision"),
    (Understates, "macs"),
    (Overstates, "macs"),
    (Understates, "model_macs"),
    (HidesState, "copies"),
    (BreaksTheGraph, "compiles"),
    (Restless, "checkpointing"),
    (PromisesTooLittle, "reachable"),
]


@pytest.mark.parametrize("promise", PROMISES)
def test_control_a_sound_method_keeps_every_promise(promise):
    PROMISES[promise](Sound)


@pytest.mark.parametrize(("cls", "promise"), FAULTS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_control_a_faulty_method_breaks_its_promise(cls, promise):
    no_graph = (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)
    with pytest.raises(no_graph if promise == "compiles" else AssertionError):
        PROMISES[promise](cls)


# ================================================================ Tokens, and what each method chooses by


def some_tokens(n: int = 12, c: int = 3, prefix: int = 2) -> Tokens:
    generator = torch.Generator().manual_seed(4)
    x, size = torch.randn(2, prefix + n, c, generator=generator), torch.rand(2, n, generator=generator) + 0.5
    return Tokens(x, prefix, size, (3, 4), (torch.rand(2, n, generator=generator) > 0.3).float(), {"loss": size.sum()})


def test_keeping_takes_rows_with_all_that_belongs_to_them():
    tokens, index = some_tokens(), torch.tensor([[3, 0, 11], [5, 6, 2]])
    kept = tokens.keep(index)
    assert torch.equal(kept.x[:, :2], tokens.x[:, :2])
    for b in range(2):
        for place, i in enumerate(index[b].tolist()):
            assert torch.equal(kept.body[b, place], tokens.x[b, 2 + i])
            assert kept.size[b, place] == tokens.size[b, i]
            assert kept.alive[b, place] == tokens.alive[b, i]
    assert (kept.count, kept.prefix, kept.grid, kept.aux) == (3, 2, None, tokens.aux)
    assert torch.equal(tokens.keep(index, torch.full((2, 3), 4.0)).size, torch.full((2, 3), 4.0))
    assert not torch.equal(kept.body, tokens.keep(index.flip(1)).body)  # control: the order is the index's


@pytest.mark.parametrize("kind", ["size", "random", "zeros_in_a_cluster"])
def test_merging_is_the_weighted_mean(kind):
    """By hand: sum w x / sum w over the members; their plain mean where nobody weighs; sizes added."""
    tokens, k = some_tokens(), 4
    assignment = torch.tensor([[0, 1, 2, 3, 3, 3, 0, 1, 0, 2, 2, 2], [3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    weight = None if kind == "size" else torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    if kind == "zeros_in_a_cluster":
        weight = weight.masked_fill((assignment == 0) | (assignment == 1), 0)
    merged = tokens.merge(assignment, k, weight)
    assert torch.equal(merged.x[:, :2], tokens.x[:, :2])
    assert (merged.grid, merged.alive) == (None, None)
    used = tokens.size if weight is None else weight
    for b in range(2):
        for cluster in range(k):
            members = [i for i in range(12) if assignment[b, i] == cluster]
            shares = [float(used[b, i]) for i in members]
            shares = shares if sum(shares) > 0 else [1.0] * len(members)
            mean = sum(w * tokens.body[b, i] for w, i in zip(shares, members)) / sum(shares)
            torch.testing.assert_close(merged.body[b, cluster], mean)
            torch.testing.assert_close(merged.size[b, cluster], sum(tokens.size[b, i] for i in members))
    if kind == "random":  # control: by size, or by nothing, it is another
        assert not torch.allclose(merged.body, tokens.merge(assignment, k).body)
        assert not torch.allclose(merged.body, tokens.merge(assignment, k, torch.ones(2, 12)).body)


def chosen(name: str, k: int, batch: int = 2, n: int = 64, **probed: Tensor) -> list[list[int]]:
    """Which tokens a pruning method keeps, in its order."""
    body = torch.arange(n, dtype=torch.float32)[None, :, None].expand(batch, -1, 32)
    tokens = Tokens(torch.cat([torch.zeros(batch, 1, 32), body], dim=1), 1, torch.ones(batch, n), (8, 8))
    reducer = registry.method(name)(Setup(0, 0, 1, n, k, n, 32, 2, (8, 8))).eval()
    return reducer(tokens, Probe(**probed)).body[..., 0].int().tolist()


@pytest.mark.parametrize(("name", "field"), [("topk", "received"), ("topk_cls", "cls")])
def test_topk_keeps_the_highest_in_their_order(name, field):
    score = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    want = [sorted(sorted(range(64), key=lambda i: -row[i])[:10]) for row in score.tolist()]
    assert chosen(name, 10, **{field: score}) == want
    assert chosen(name, 10, **{field: -score}) != want  # control
    assert chosen(name, 10, **{field: torch.ones(2, 64)}) == [list(range(10))] * 2  # ties go to the lowest


def test_importance_draws_in_proportion():
    """Over 20,000 draws of one token, and of two without replacement (the second from what is left)."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draws = 20_000
    for k in (1, 2):
        torch.manual_seed(0)
        got = torch.tensor(chosen("importance", k, draws, 5, received=(7 * p).expand(draws, -1)))
        share = torch.bincount(got.flatten(), minlength=5) / draws
        second = sum(p[i] * p / (1 - p[i]) * (torch.arange(5) != i) for i in range(4)) if k == 2 else 0
        torch.testing.assert_close(share, p + second, rtol=0, atol=0.02)
        assert (share - k * torch.full((5,), 0.2)).abs().max() > 0.1  # control: they are not equally likely
        assert got.diff(dim=1).numel() == 0 or (got.diff(dim=1) > 0).all()


def test_random_draws_all_alike():
    torch.manual_seed(0)
    got = torch.tensor(chosen("random", 2, 20_000, 5))
    torch.testing.assert_close(torch.bincount(got.flatten()) / 20_000, torch.full((5,), 0.4), rtol=0, atol=0.02)
    assert (got.diff(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["kmedoids", "kmeans"])
def test_weights_count_in_the_weighted_forms_alone(name):
    """The same start, but other significances among the rest: only the weighted forms may answer otherwise."""
    generator = torch.Generator().manual_seed(0)
    plane = F.pad(torch.randn(2, 65, 2, generator=generator), (0, 30))  # in 32 dimensions the heaviest would win
    tokens = Tokens(plane, 1, torch.ones(2, 64), (8, 8))
    low = torch.rand(2, 64, generator=generator) * (torch.arange(64) >= 6)
    top = (torch.arange(64) < 6) * (1.1 - torch.arange(64) / 100)
    probes = [Probe(received=top + rest, own=torch.zeros(2, 64)) for rest in (low, low.flip(1) * (top == 0))]
    for method, alike in ((name, True), (f"w{name}", False)):
        reducer = registry.method(method)(Setup(0, 0, 1, 64, 6, 64, 32, 2, (8, 8)))
        assert torch.equal(*(reducer(tokens, probe).x for probe in probes)) == alike, method


# ================================================================ grids


def largest_grid(grid: tuple[int, int], k: int) -> int:
    """By trying all: at most k tokens, no side shrunk more than twice as much as the other if that can be."""
    height, width = grid
    every = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= k]
    even = [(h, w) for h, w in every if h * width <= 2 * w * height and w * height <= 2 * h * width]
    return max(h * w for h, w in even or every)


@pytest.mark.parametrize("name", ["avgpool", "strided_conv"])
@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (7, 3), (1, 9)], ids=str)
def test_grids_are_the_largest_even_ones(name, grid):
    cls, n = registry.method(name), grid[0] * grid[1]
    for k in range(1, n + 1):
        reached, (h, w) = cls.reachable(n, k, grid)
        assert (reached, h * w) == (largest_grid(grid, k),) * 2, k
        assert h <= grid[0]
        assert w <= grid[1]


@pytest.mark.parametrize("name", ["avgpool", "strided_conv"])
def test_grids_of_equal_values_stay_equal(name):
    """An untrained grid method pools: a constant image stays the constant."""
    cls = registry.method(name)
    for k in (49, 30, 16, 3):
        reached, _ = cls.reachable(64, k, (8, 8))
        reducer = cls(Setup(0, 0, 1, 64, reached, 64, 32, 2, (8, 8)))
        after = reducer(Tokens(torch.full((2, 65, 32), 3.0), 1, torch.ones(2, 64), (8, 8)), Probe())
        torch.testing.assert_close(after.body, torch.full((2, reached, 32), 3.0))


# ================================================================ dead tokens


class Kills(Downsampler):
    """Every third token dies; with `garbage` it also becomes something else. Nothing leaves."""

    garbage = 0.0
    gradient = False

    def forward(self, tokens, probe):  # noqa: ARG002
        alive = (torch.arange(tokens.count) % 3 > 0).float().expand(len(tokens.x), -1)
        change = self.garbage * (1 - alive)[..., None] * torch.randn(tokens.body.shape)
        x = torch.cat([tokens.x[:, : tokens.prefix], tokens.body + change], dim=1)
        return replace(tokens, x=x, alive=alive.clone().requires_grad_(self.gradient))


class RemovesThem(Sound):
    def forward(self, tokens, probe):  # noqa: ARG002
        index = (torch.arange(tokens.count) % 3 > 0).nonzero()[:, 0]
        return tokens.keep(index.expand(len(tokens.x), -1))


def after_block_1(cls, k: int, **overrides) -> Tensor:
    model = make(**overrides)
    setup = Setup(1, 0, 1, PATCHES, k, PATCHES, 32, 2, (8, 8))
    net = TokenViT.around(model, [cls(setup)], (), Site.MID).eval()
    return seeded(net, pictures()).logits.detach()


POOLS = [{}, {"global_pool": "avg"}, {"global_pool": "avg", "pool_include_prefix": True}, {"reg_tokens": 3}]


@pytest.mark.parametrize("gradient", [False, True], ids=["padding", "policy"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_dead_tokens_are_invisible(gradient, pool):
    class Quiet(Kills):
        pass

    class Loud(Kills):
        garbage = 50.0

    Quiet.gradient = Loud.gradient = gradient
    quiet, loud = after_block_1(Quiet, PATCHES, **pool), after_block_1(Loud, PATCHES, **pool)
    torch.testing.assert_close(loud, quiet, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quiet, after_block_1(RemovesThem, PATCHES // 3 * 2, **pool), rtol=1e-4, atol=1e-5)


def test_control_without_the_mask_they_are_seen():
    class Forgets(Kills):
        garbage = 50.0

        def forward(self, tokens, probe):
            return replace(super().forward(tokens, probe), alive=None)

    assert (after_block_1(Forgets, PATCHES) - after_block_1(Kills, PATCHES)).abs().max() > 0.01


class Doubles(Sound):
    """Merges tokens that are alike: the even ones are first copied over the odd ones."""

    weighted_attention = True

    def forward(self, tokens, probe):  # noqa: ARG002
        even = tokens.body[:, ::2]
        if self.setup.k == tokens.count:
            return tokens.with_body(even.repeat_interleave(2, dim=1), tokens.size)
        return tokens.with_body(even, 2 * tokens.size[:, ::2])


class DoublesUnweighted(Doubles):
    weighted_attention = False


@pytest.mark.parametrize("pool", POOLS[:3], ids=str)
def test_a_merged_token_counts_as_often_as_its_patches(pool):
    """Proportional attention: one token of size 2 is seen as two alike are. (Control: not without weights.)"""
    together, apart = after_block_1(Doubles, PATCHES // 2, **pool), after_block_1(Doubles, PATCHES, **pool)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert (after_block_1(DoublesUnweighted, PATCHES // 2, **pool) - apart).abs().max() > 1e-3


# ================================================================ DynamicViT


@pytest.fixture
def hard_decisions(monkeypatch) -> SimpleNamespace:
    """In training DynamicViT keeps the very tokens it would keep at inference: the K likeliest of the living."""
    cls, state = registry.method("dynamicvit"), SimpleNamespace(shift=0)
    module = __import__(cls.__module__, fromlist=["F"])
    predict, gumbel = cls.predict, module.F.gumbel_softmax

    def remember(self, body, alive):
        state.alive, state.k = alive.detach(), self.setup.k
        return predict(self, body, alive)

    def decide(scores):
        likeliest = scores[..., 0].detach().masked_fill(state.alive == 0, -math.inf)
        hard_keep = torch.zeros_like(likeliest).scatter_(1, stable_topk(likeliest, state.k + state.shift), 1)
        keep = hard_keep + scores[..., 0].exp() - scores[..., 0].exp().detach()  # straight through, as Gumbel's
        return torch.stack([keep, 1 - keep], dim=-1)

    monkeypatch.setattr(cls, "predict", remember)
    monkeypatch.setattr(module.F, "gumbel_softmax", decide)
    assert gumbel is not module.F.gumbel_softmax
    return state


@pytest.mark.usefixtures("hard_decisions")
@pytest.mark.parametrize("pool", POOLS, ids=str)
@both_sites
def test_dynamicvit_masked_is_pruned(site, pool):
    model = reduced(registry.method("dynamicvit"), "0.7@0,1,2", site, **pool)
    pruned, masked = seeded(model.eval(), pictures()), seeded(model.train(), pictures())
    assert pruned.counts == (44, 31, 21, 21)
    assert masked.counts == (64,) * 4
    assert masked.tokens.alive.sum(1).tolist() == [21.0] * 3
    torch.testing.assert_close(masked.logits, pruned.logits, rtol=1e-4, atol=1e-5)
    for image in range(3):
        living = masked.tokens.alive[image] > 0.5
        torch.testing.assert_close(masked.tokens.body[image][living], pruned.tokens.body[image], rtol=1e-4, atol=1e-4)


def test_control_one_decision_more_and_they_differ(hard_decisions):
    model = reduced(registry.method("dynamicvit"), "0.7@0,1,2")
    pruned = seeded(model.eval(), pictures()).logits
    hard_decisions.shift = 1
    masked = seeded(model.train(), pictures())
    assert masked.tokens.alive.sum(1).tolist() == [22.0] * 3
    assert (masked.logits - pruned).abs().max() > 1e-3


@pytest.mark.usefixtures("hard_decisions")
def test_dynamicvit_decisions_are_learned_through():
    """The predictors hear of the classification loss, through the mask alone."""
    model = reduced(registry.method("dynamicvit"), "0.7@0,1,2").train()
    seeded(model, pictures()).logits.square().sum().backward()
    for reducer in model.reducers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in reducer.parameters())
        assert reducer.decide[-2].weight.grad.abs().max() > 0


def test_dynamicvit_the_dead_stay_dead():
    model = reduced(registry.method("dynamicvit"), "0.7@0,1,2").train()
    alive = [after.alive for _, _, after in steps(model, pictures())]
    assert all(set(a.unique().tolist()) <= {0.0, 1.0} for a in alive)
    assert all((later <= sooner).all() for sooner, later in pairwise(alive))


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1).mean()


def test_dynamicvit_losses_are_the_papers():
    """2 mean_s (kept share - K_s / N)^2, .5 KL between student and teacher, .5 MSE over the kept tokens; only these.

    The paper writes KL(student || teacher); its code, which is followed, computes KL(teacher || student).
    """
    model, plain = reduced(registry.method("dynamicvit"), "0.7@0,1").train(), tpbench.reduce(make(), "none")
    out, teacher = seeded(model, pictures()), plain.forward_tokens(pictures())
    shares = [after.alive.mean(1) for _, _, after in steps(model, pictures())]
    off = sum((share - k / 64).square().mean() for share, k in zip(shares, (44, 31))) / 2
    torch.testing.assert_close(out.tokens.aux["keep_rate"], 2 * off)
    terms = model.objective(out, teacher)
    p, q = teacher.logits.softmax(-1), out.logits.softmax(-1)
    torch.testing.assert_close(terms["teacher_logits"], 0.5 * kl(p, q))
    assert not torch.allclose(kl(p, q), kl(q, p), rtol=0.01)  # control: the other way round is another number
    kept = out.tokens.alive > 0
    mse = (out.tokens.body - teacher.tokens.body)[kept].square().mean()
    torch.testing.assert_close(terms["teacher_tokens"], 0.5 * mse)
    assert terms.keys() | out.tokens.aux.keys() == {"keep_rate", "teacher_logits", "teacher_tokens"}


def test_under_a_mask_a_method_sees_what_the_living_do():
    """Attention is seen as if the dead were not there: the rows of the living, and nothing to the dead."""
    seen = []

    class Looks(Kills):
        needs, gradient = Needs.CLS | Needs.RECEIVED, True

        def forward(self, tokens, probe):
            if self.setup.block == 2:
                seen.append(probe)
            return super().forward(tokens, probe) if self.setup.block == 1 else tokens

    class Removes(RemovesThem):
        needs = Looks.needs

        def forward(self, tokens, probe):
            if self.setup.block == 2:
                seen.append(probe)
            return super().forward(tokens, probe) if self.setup.block == 1 else tokens

    for cls, k in ((Looks, PATCHES), (Removes, PATCHES // 3 * 2)):
        setups = [Setup(1, 0, 2, PATCHES, k, PATCHES, 32, 2, (8, 8)), Setup(2, 1, 2, k, k, PATCHES, 32, 2, None)]
        seeded(TokenViT.around(make(), [cls(setup) for setup in setups], (), Site.MID).eval(), pictures())
    masked, removed = seen
    living = (torch.arange(PATCHES) % 3 > 0).nonzero()[:, 0]
    dead = (torch.arange(PATCHES) % 3 == 0).nonzero()[:, 0]
    torch.testing.assert_close(masked.cls[:, living], removed.cls, rtol=1e-4, atol=1e-6)
    assert not masked.cls.requires_grad
    assert masked.cls[:, dead].abs().max() == 0
    torch.testing.assert_close(masked.received[:, living], removed.received, rtol=1e-4, atol=1e-5)
    assert masked.received[:, dead].abs().max() == 0
