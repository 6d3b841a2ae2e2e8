"""The methods of 2021 to 2025 that came later, on cases small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
from conftest import tiny
from test_methods import instance, keys_of, tokens_of
from torch.utils.flop_counter import FlopCounterMode

import tpbench
from tpbench import registry
from tpbench.downsampler import Downsampler, Needs, Probe, Setup, Site
from tpbench.errors import UnsupportedModel
from tpbench.kernels import attention as kernels
from tpbench.kernels import plain
from tpbench.tokens import Tokens, stable_topk
from tpbench.vit import TokenViT


def at_stage(name: str, stage: int, stages: int, n: int, k: int, width: int, patches: int | None = None, **knobs):
    cls = registry.method(name)
    return cls(Setup(stage, stage, stages, n, k, patches or n, width, 1, None), cls.Config(**knobs)).eval()


# ---------------------------------------------------------------- what a block shows


def seen_of(model, site: Site) -> tuple[Probe, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The probe of block 1, its input, what left its attention and its output, as timm's own modules compute them."""
    seen = []

    class Looks(Downsampler):
        needs = Needs.INPUT | Needs.SHIFT | Needs.QUERIES | Needs.RECEIVED

        def forward(self, tokens, probe):
            seen.append(probe)
            return tokens

    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    setup = Setup(1, 0, 1, 100, 100, 100, 64, 2, (10, 10))
    TokenViT.around(model, [Looks(setup)], (), site).eval()(images)
    given = []
    model.blocks[1].register_forward_pre_hook(lambda _, x: given.append(x[0]))
    model(images)
    block, x = model.blocks[1], given[0]
    middle = x + block.ls1(block.attn(block.norm1(x)))
    return seen[0], x, middle, middle + block.ls2(block.mlp(block.norm2(middle)))


@torch.no_grad()
@pytest.mark.parametrize("site", Site)
def test_a_block_shows_its_input_and_its_shift(site):
    model = timm.create_model("test_vit").eval()
    probe, x, middle, out = seen_of(model, site)
    torch.testing.assert_close(probe.input, model.blocks[1].norm1(x), rtol=1e-4, atol=1e-5)
    moved = middle - x if site is Site.MID else out - middle
    torch.testing.assert_close(probe.shift, moved[:, 1:].norm(dim=2), rtol=1e-3, atol=1e-4)
    other = out - middle if site is Site.MID else middle - x
    assert not torch.allclose(probe.shift, other[:, 1:].norm(dim=2), rtol=0.01), "control: the other branch"


@torch.no_grad()
def test_queries_and_keys_give_the_attention():
    probe, *_ = seen_of(timm.create_model("test_vit").eval(), Site.MID)
    attention = (probe.queries @ probe.rotated_keys.transpose(2, 3)).softmax(dim=-1)
    torch.testing.assert_close(attention.sum(dim=2).mean(dim=1)[:, 1:], probe.received, rtol=1e-4, atol=1e-5)
    unscaled = (2 * probe.queries @ probe.rotated_keys.transpose(2, 3)).softmax(dim=-1).sum(dim=2).mean(dim=1)[:, 1:]
    assert not torch.allclose(unscaled, probe.received, rtol=1e-4, atol=1e-5), "control"


def test_what_is_not_asked_for_is_not_shown():
    model = timm.create_model("test_vit").eval()
    reduced = tpbench.reduce(model, "topk", "0.5@1")
    probes = []
    reduced.blocks[1].reducer.register_forward_pre_hook(lambda _, given: probes.append(given[1]))
    reduced(torch.randn(1, 3, 160, 160))
    shown = {name for name, value in probes[0]._asdict().items() if value is not None}
    assert shown == {"received", "own"}


# ---------------------------------------------------------------- Representation Shift


def test_shift_keeps_what_moved_farthest_in_its_order():
    moved = torch.tensor([[0.3, 0.9, 0.1, 0.5]])
    out = instance("shift", 4, 2, 1)(tokens_of([[1.0], [2.0], [3.0], [4.0]]), Probe(shift=moved))
    assert out.body[0, :, 0].tolist() == [2.0, 4.0]


# ---------------------------------------------------------------- ATC


def test_atc_merges_the_nearest_clusters():
    """Directions at 0, 10, 25 and 70 degrees, the second token of size 3. First 0 and 1 merge, at 10 degrees.

    Single linkage then joins 2 (15 from 1) and leaves 3. Complete: 2 is 25 from 0 and still nearer than 3 is to 2 (45).
    """
    angles = [math.radians(a) for a in (0, 10, 25, 70)]
    keys = keys_of([[math.cos(a), math.sin(a)] for a in angles])
    tokens = replace(tokens_of([[1.0, 0.0], [5.0, 0.0], [9.0, 0.0], [2.0, 0.0]]), size=torch.tensor([[1.0, 3, 1, 1]]))
    three = instance("atc", 4, 3, 2)(tokens, Probe(keys=keys))
    assert three.body[0, :, 0].tolist() == pytest.approx([(1 + 3 * 5) / 4, 9, 2])
    assert three.size.tolist() == [[4, 1, 1]]
    two = instance("atc", 4, 2, 2)(tokens, Probe(keys=keys))
    assert two.body[0, :, 0].tolist() == pytest.approx([(1 + 3 * 5 + 9) / 5, 2])


def test_atc_linkages_differ():
    """Directions at 0, 10, 22 and 35 degrees: single linkage chains 0, 1 and 2; the others pair 2 with 3."""
    angles = [math.radians(a) for a in (0, 10, 22, 35)]
    keys = keys_of([[math.cos(a), math.sin(a)] for a in angles])
    tokens = tokens_of([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    sizes = {}
    for linkage in ("single", "average", "complete"):
        sizes[linkage] = instance("atc", 4, 2, 2, linkage=linkage)(tokens, Probe(keys=keys)).size.tolist()
    assert sizes == {"single": [[3, 1]], "average": [[2, 2]], "complete": [[2, 2]]}


def test_atc_counts_sizes_in_later_attention_if_asked():
    assert instance("atc", 4, 2, 2).weighted_attention
    assert not instance("atc", 4, 2, 2, proportional=False).weighted_attention


# ---------------------------------------------------------------- eTPS


def test_etps_squeezes_what_it_prunes_into_the_most_similar():
    """Tokens 1 and 3 stay. 0 points where 1 does (cosine 1), 2 halfway to 3 (cosine 0.8, and 0.6 to 1)."""
    body = [[2.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.0, 3.0]]
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    out = instance("etps", 4, 2, 2)(tokens_of(body), Probe(cls=attention))
    e, w = math.e, math.exp(0.8)
    want = [[(2 * e + 1 * e) / (2 * e), 0.0], [3 * w / (e + w), (3 * e + 4 * w) / (e + w)]]
    torch.testing.assert_close(out.body[0], torch.tensor(want))
    assert out.size.tolist() == [[2, 2]]
    plain = instance("topk_cls", 4, 2, 2)(tokens_of(body), Probe(cls=attention))
    assert plain.body[0].tolist() == [[1.0, 0.0], [0.0, 3.0]], "control: without squeezing"


def test_etps_squeezes_nothing_into_the_others():
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    body = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [2.0, 0.1]]
    out = instance("etps", 4, 3, 2)(tokens_of(body), Probe(cls=attention))
    assert out.body[0, 1:].tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    assert out.size.tolist() == [[2, 1, 1]]


# ---------------------------------------------------------------- PPT


def ppt_case(scores: list[float], threshold: float, patches: int = 4) -> list[list[float]]:
    """What is left of tokens 1, 2, 4 and 8 with these scores, of which body 1 and 2 have the most similar keys."""
    keys = keys_of([[0.0, 1.0], [1.0, 0.0], [2.0, 0.1], [-0.8, 0.6]])
    values = torch.ones(1, 1, 5, 2)
    reducer = at_stage("ppt", 0, 1, 4, 3, 2, patches, threshold=threshold)
    tokens = tokens_of([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    out = reducer(tokens, Probe(keys=keys, values=values, cls=torch.tensor([scores])))
    return [out.body[0, :, 0].tolist(), out.size[0].tolist()]


def test_ppt_drops_where_scores_differ_and_merges_where_they_do_not():
    """Scores 0.1, 0.2, 0.3, 0.4 vary by 0.05 / 3 = 0.0167. At 4 patches the threshold counts (196 / 4)^2-fold.

    Positions 0 class, 1 b, 2 a, 3 b, 4 a: body 1 (in A) merges with body 2 (in B).
    """
    scores = [0.1, 0.2, 0.3, 0.4]
    variance = 0.05 / 3 / (196 / 4) ** 2
    assert ppt_case(scores, 0.99 * variance) == [[2, 4, 8], [1, 1, 1]]
    assert ppt_case(scores, 1.01 * variance) == [[8, 1, 3], [1, 1, 2]]
    assert ppt_case([5 * s for s in scores], 1.01 * variance) == [[8, 1, 3], [1, 1, 2]], "scores sum to 1"
    assert ppt_case(scores, 1.01 * variance, patches=8) == [[2, 4, 8], [1, 1, 1]], "the threshold falls with patches"


def test_ppt_scores_are_attention_times_the_length_of_values():
    """Values of length 5 (over both heads), 1, 1 and 1: the first token is worth five times its attention."""
    values = torch.zeros(1, 2, 5, 1)
    values[0, 0, 1:, 0] = torch.tensor([3.0, 1, 1, 1])
    values[0, 1, 1, 0] = 4.0
    attention = torch.tensor([[0.2, 0.3, 0.1, 0.4]])
    score = registry.method("ppt").scores(tokens_of([[0.0]] * 4), Probe(values=values, cls=attention))
    torch.testing.assert_close(score, torch.tensor([[1.0, 0.3, 0.1, 0.4]]) / 1.8)


def test_ppt_decides_image_by_image():
    keys = torch.randn(2, 1, 9, 4, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(torch.randn(2, 9, 4), 1, torch.ones(2, 8))
    attention = torch.tensor([[1.0] * 8, [20.0] + [0.1] * 7])
    reducer = at_stage("ppt", 0, 1, 8, 5, 4)
    out = reducer(tokens, Probe(keys=keys, values=torch.ones(2, 1, 9, 4), cls=attention))
    assert out.size.sum(dim=1).tolist() == [8, 5]
    assert torch.equal(out.body[1], tokens.body[1, :5])


# ---------------------------------------------------------------- ToFu


def tofu_case(stage: int) -> Tokens:
    """Body 1 (in A) leaves for body 2 (in B): [3, 4] of length 5 and [0, 1], the first of size 3."""
    keys = keys_of([[0.0, 1.0], [1.0, 0.0], [2.0, 0.1], [-0.8, 0.6]])
    tokens = tokens_of([[1.0, 1.0], [3.0, 4.0], [0.0, 1.0], [8.0, 0.0]])
    tokens.size = torch.tensor([[1.0, 3, 1, 1]])
    return at_stage("tofu", stage, 4, 4, 3, 2)(tokens, Probe(keys=keys))


def test_tofu_drops_in_the_first_half():
    for stage in (0, 1):
        out = tofu_case(stage)
        assert out.body[0].tolist() == [[8.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
        assert out.size.tolist() == [[1, 1, 1]]


def test_tofu_merges_in_the_second_half_and_keeps_the_greatest_norm():
    """The size-weighted mean is [9, 13] / 4; it becomes as long as [3, 4]."""
    for stage in (2, 3):
        out = tofu_case(stage)
        scale = 5 / math.hypot(9, 13)
        torch.testing.assert_close(out.body[0], torch.tensor([[8.0, 0.0], [1.0, 1.0], [9 * scale, 13 * scale]]))
        assert out.size.tolist() == [[1, 1, 4]]
        assert out.body[0, :2].tolist() == [[8.0, 0.0], [1.0, 1.0]], "those alone stay, to the last bit"


def test_tofu_survives_tokens_that_cancel():
    """Opposite tokens have a mean of 0, which points nowhere: it stays 0, and its gradient is finite."""
    from baselines.tofu import mlerp

    body = torch.tensor([[[0.0, 0], [1, 0], [-1, 0], [0, 2]]], requires_grad=True)
    out = mlerp(Tokens(body, 1, torch.ones(1, 3)), torch.tensor([[0, 0, 1]]), 2)
    assert out.body[0].tolist() == [[0, 0], [0, 2]]
    out.x.sum().backward()
    assert body.grad.isfinite().all()


# ---------------------------------------------------------------- TokenLearner


def test_tokenlearner_averages_under_its_maps():
    """With maps that open for tokens above the mean of their channels: sigmoid(+-20) is 1 or 0."""
    reducer = instance("tokenlearner", 4, 1, 2, hidden=1)
    _, first, _, last, _ = reducer.maps
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[10.0, -10.0]]))  # normalised tokens are (1, -1) or (-1, 1)
        first.bias.zero_()
        last.weight.fill_(2.0)  # GELU(20) = 20, GELU(-20) = 0
        last.bias.fill_(-20.0)
    out = reducer(tokens_of([[4.0, 0.0], [0.0, 4.0], [8.0, 2.0], [1.0, 9.0]]), Probe())
    torch.testing.assert_close(out.body, torch.tensor([[[12.0, 2.0]]]) / 4, rtol=1e-5, atol=1e-5)
    assert out.size.tolist() == [[4]]
    with torch.no_grad():
        last.bias.fill_(20.0)  # control: a map that is open everywhere
    everywhere = reducer(tokens_of([[4.0, 0.0], [0.0, 4.0], [8.0, 2.0], [1.0, 9.0]]), Probe())
    torch.testing.assert_close(everywhere.body, torch.tensor([[[13.0, 15.0]]]) / 4, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- MCTF


def mctf_case(r: int, received: list[float], sizes: list[float], **knobs) -> Tokens:
    """Body tokens at 0, 10, 90 and 95 degrees: A has those at 0 and 90, B those at 10 and 95."""
    angles = [math.radians(a) for a in (0, 10, 90, 95)]
    tokens = tokens_of([[math.cos(a), math.sin(a)] for a in angles])
    tokens.size = torch.tensor([sizes])
    return instance("mctf", 4, 4 - r, 2, **knobs)(tokens, Probe(received=torch.tensor([received])))


def test_mctf_merges_a_into_b_then_b_into_a():
    """The pair at 90 and 95 is the most alike; then 10, of B, goes to 0, of A: its partner at 90 has left."""
    out = mctf_case(1, [1, 1, 1, 1], [1, 1, 1, 1])
    assert out.size.tolist() == [[1, 1, 2]], "90 went to 95"
    both = mctf_case(2, [1, 1, 1, 1], [1, 1, 1, 1])
    assert both.size.tolist() == [[2, 2]]
    middle = [[(1 + math.cos(math.radians(10))) / 2, math.sin(math.radians(10)) / 2]]
    torch.testing.assert_close(both.body[0, :1], torch.tensor(middle))


def test_mctf_weighs_by_attention_received_and_size():
    out = mctf_case(1, [1, 1, 1, 2], [1, 1, 3, 1], information=1e6, size=1e6)
    a, b = (torch.tensor([math.cos(math.radians(d)), math.sin(math.radians(d))]) for d in (90, 95))
    torch.testing.assert_close(out.body[0, 2], (1 * 3 * a + 2 * 1 * b) / 5)
    assert out.size.tolist() == [[1, 1, 4]]


def test_mctf_spares_what_is_attended_and_what_is_large():
    """With a low temperature of the others' terms, the pair at 0 and 10 goes instead: it is ignored, or small."""
    assert mctf_case(1, [1, 1, 9, 9], [1, 1, 1, 1], information=0.5).size.tolist() == [[2, 1, 1]]
    assert mctf_case(1, [1, 1, 1, 1], [1, 1, 9, 9], size=0.5).size.tolist() == [[2, 9, 9]]
    assert mctf_case(1, [1, 1, 9, 9], [1, 1, 1, 1], information=1e6).size.tolist() == [[1, 1, 2]], "control"


def test_mctf_crossing_by_brute_force():
    """Both directions against loops over all pairs; a token of A whose partner leaves ends where that goes."""
    from baselines.mctf import match_both_ways

    for seed in range(20):
        attraction = torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(seed))
        source, target = match_both_ways(attraction, 4)
        w = attraction[0].tolist()
        best = sorted(range(5), key=lambda i: -max(w[i]))[:2]
        to = {2 * i: 2 * max(range(4), key=lambda j: w[i][j]) + 1 for i in best}
        rest = [i for i in range(5) if i not in best]
        back = sorted(range(4), key=lambda j: -max(w[i][j] for i in rest))[:2]
        to |= {2 * j + 1: 2 * max(rest, key=lambda i: w[i][j]) for j in back}
        want = {leaver: to.get(host, host) for leaver, host in to.items()}
        assert dict(zip(source[0].tolist(), target[0].tolist())) == want


# ---------------------------------------------------------------- dTPS


@pytest.fixture
def hard_decisions(monkeypatch):
    """In training the predictors keep the K likeliest of the living, as at inference."""
    from baselines import dynamicvit

    cls, now = registry.method("dtps"), {}
    predict = dynamicvit.DynamicViT.predict

    def remember(self, body, alive):
        now.update(alive=alive.detach(), k=self.setup.k)
        return predict(self, body, alive)

    def decide(scores):
        chance = scores[..., 0].exp()
        living = chance.detach().masked_fill(now["alive"] == 0, -1)
        hard = torch.zeros_like(living).scatter(1, stable_topk(living, now["k"]), 1)
        keep = hard + chance - chance.detach()
        return torch.stack([keep, 1 - keep], dim=-1)

    monkeypatch.setattr(cls, "predict", remember)
    monkeypatch.setattr(dynamicvit.F, "gumbel_softmax", decide)


def dtps_model(method: str = "dtps"):
    model = tpbench.reduce(tiny(), method, "0.6@0,1,2")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for reducer in model.reducers:
            for p in reducer.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.usefixtures("hard_decisions")
def test_dtps_masked_and_squeezed_is_pruned_and_squeezed():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = dtps_model()
    pruned = model.eval().forward_tokens(images)
    masked = model.train().forward_tokens(images)
    torch.testing.assert_close(masked.logits, pruned.logits, rtol=1e-4, atol=1e-4)
    for image in range(3):
        living = masked.tokens.alive[image] > 0.5
        torch.testing.assert_close(masked.tokens.body[image][living], pruned.tokens.body[image], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(masked.tokens.size[image][living], pruned.tokens.size[image])
    plain = dtps_model("dynamicvit").eval().forward_tokens(images)
    assert (plain.logits - pruned.logits).abs().max() > 1e-3, "control: without squeezing"


@pytest.mark.usefixtures("hard_decisions")
def test_dtps_decisions_are_learned_through_the_squeezing():
    """The reducer's output alone, without the mask on later attention, has a gradient to the predictor."""
    reducer = dtps_model().train().reducers[0]
    out = reducer(Tokens(torch.randn(2, 65, 32), 1, torch.ones(2, 64)), Probe())
    out.x.square().sum().backward()
    assert reducer.decide[-2].weight.grad.abs().max() > 0


# ---------------------------------------------------------------- Zero-TPrune


def attention_of(seed: int, batch: int = 3, heads: int = 2, n: int = 7, width: int = 4):
    q, k = torch.randn(2, batch, heads, n, width, generator=torch.Generator().manual_seed(seed)).unbind(0)
    return q, k, (q @ k.transpose(2, 3)).softmax(dim=-1)


@pytest.mark.parametrize("times", [0, 1, 5])
def test_the_transpose_is_applied_without_the_map(times):
    """Against powers of the explicit maps, in chunks of one image and all at once; counted as its products."""
    q, k, attention = attention_of(0)
    start = torch.rand(3, 2, 7)
    want = (torch.matrix_power(attention.transpose(2, 3), times) @ start[..., None])[..., 0]
    assert kernels.CACHE_SCORES > 3 * 2 * 7 * 7
    torch.testing.assert_close(kernels.attention_transpose_apply(q, k, start, times), want)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CACHE_SCORES", 1)
        torch.testing.assert_close(kernels.attention_transpose_apply(q, k, start, times), want)
    with FlopCounterMode(display=False) as counter:
        kernels.attention_transpose_apply(q, k, start, times)
    assert counter.get_total_flops() == 2 * 3 * 2 * 7 * 7 * (4 + times)
    torch.testing.assert_close(plain.attention_transpose_apply(q, k, start, times), want)


def test_zerotprune_importance_is_the_stationary_distribution():
    """After many rounds it is the left eigenvector of each map; heads count by their variance."""
    q, k, attention = attention_of(1)
    reducer = instance("zerotprune", 6, 4, 8, rounds=200)
    ranks = []
    for head in range(2):
        values, vectors = torch.linalg.eig(attention[0, head].T.double())
        one = vectors[:, values.real.argmax()].real
        ranks.append(one / one.sum())
    share = torch.stack([rank.var() for rank in ranks])
    want = sum(w * rank.square() for w, rank in zip(share / share.sum(), ranks)).sqrt()
    found = reducer.importance(Probe(queries=q, rotated_keys=k))[0]
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-5)
    few = instance("zerotprune", 6, 4, 8, rounds=1).importance(Probe(queries=q, rotated_keys=k))[0]
    assert not torch.allclose(few, found, rtol=1e-3), "control: the rounds show"


def test_zerotprune_drops_the_likeness_of_something_important():
    """All attend to body 0 and 1 most. Of the others 3 is like 0, and 2 like nothing: 3 goes."""
    keys = torch.tensor([[0.0, 0, 0], [8, 0, 0.1], [8, 0.1, 0], [0, 0, -4], [4, 0, 0.05]])[None, None]
    queries = torch.tensor([1.0, 0, 0]).expand(1, 1, 5, 3)
    tokens = tokens_of([[1.0, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]])
    out = instance("zerotprune", 4, 3, 3)(tokens, Probe(queries=queries, rotated_keys=keys, keys=keys))
    assert out.body[0, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_zerotprune_makes_fewer_rounds_later():
    rounds = [at_stage("zerotprune", stage, 12, 6, 4, 8).rounds for stage in range(12)]
    assert rounds == [30] * 3 + [5] * 6 + [1] * 3
    assert instance("zerotprune", 6, 4, 8).rounds == 30


# ---------------------------------------------------------------- GTP


def gtp_case(body: list[list[float]], keep: list[float], k: int, **knobs) -> Tokens:
    """A row of patches, of which those with the largest `keep` stay; each token has one edge to its most similar."""
    tokens = replace(tokens_of(body), grid=(1, len(body)))
    probe = Probe(received=torch.tensor([keep]), own=torch.ones(1, len(body)))
    return instance("gtp", len(body), k, 2, **{"similar": 1, **knobs})(tokens, probe)


GTP_PATH = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]  # 0 and 1 are alike, 2 and 3: neighbours in the row anyway


def test_gtp_propagates_along_the_row():
    """Degrees are 1, 2, 2, 1. Body 1 leaves: its edge to 0 weighs 1 / sqrt(1 * 2), that to 2 1 / sqrt(2 * 2)."""
    out = gtp_case(GTP_PATH, [4, 1, 3, 2], 3)
    near, far = 0.1 / math.sqrt(2), 0.1 / 2
    want = [[1 + near, 0.1 * near], [far, 1 + 0.1 * far], [0.1, 1.0]]
    torch.testing.assert_close(out.body[0], torch.tensor(want))
    torch.testing.assert_close(out.key_weight, torch.tensor([[1 + near, 1 + far, 1]]))
    assert out.size.tolist() == [[2, 1, 1]], "its patch counts where its heaviest edge leads"
    assert torch.equal(gtp_case(GTP_PATH, [4, 1, 3, 2], 3, strength=0.0).body[0], torch.tensor(GTP_PATH)[[0, 2, 3]])


def test_gtp_propagates_to_what_is_similar():
    """Body 3 is like 0: both have an edge more, and all degrees are 2. It reaches 0 and 2, with 0.1 / 2 each."""
    body = [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]]
    out = gtp_case(body, [4, 3, 2, 1], 3)
    torch.testing.assert_close(out.body[0], torch.tensor([[1.15, 0.0], [0.0, 1.0], [0.15, 2.0]]))
    apart = gtp_case([[1.0, 0.0], [0.9, 0.1], *body[2:]], [4, 3, 2, 1], 3)
    assert apart.body[0, 0, 0] > 1.0, "3 has an edge to 0 still, if 0 has none to 3"
    unlike = gtp_case(GTP_PATH, [4, 3, 2, 1], 3)
    assert unlike.body[0, 0].tolist() == [1.0, 0.0], "control: 3 is like 2, and 0 hears nothing"


def test_gtp_keeps_by_both_attentions():
    tokens = replace(tokens_of(GTP_PATH), grid=(1, 4))
    probe = Probe(received=torch.tensor([[1.0, 2, 3, 4]]), own=torch.tensor([[0.5, 0.6, 0.1, 0.1]]))
    out = instance("gtp", 4, 2, 2, strength=0.0)(tokens, probe)  # products 0.5, 1.2, 0.3 and 0.4
    assert out.body[0].tolist() == torch.tensor(GTP_PATH)[:2].tolist()


def test_gtp_drops_what_has_no_neighbour_left():
    out = gtp_case(GTP_PATH, [4, 3, 2, 1], 1)
    assert out.size.tolist() == [[2]], "1 goes to 0; 2 and 3 have no edge to it"
    torch.testing.assert_close(out.body[0, 0], torch.tensor([1.0, 0.0]) + 0.1 / math.sqrt(2) * torch.tensor([1.0, 0.1]))


def test_gtp_remembers_where_tokens_lie():
    """With 1 gone, 0 and 2 stand side by side and are no neighbours; 2 and 3 still are."""
    first = gtp_case(GTP_PATH, [4, 1, 3, 2], 3, strength=0.0)
    edges = instance("gtp", 3, 2, 2, similar=1).graph(first)[0] > 0
    assert edges[1:, 1:].tolist() == [[False, True], [True, False]]
    assert edges[1, 0].item() is False
    with pytest.raises(UnsupportedModel, match="on no grid"):
        instance("gtp", 4, 3, 2)(tokens_of(GTP_PATH), Probe(received=torch.ones(1, 4), own=torch.ones(1, 4)))


# ---------------------------------------------------------------- LTMP

LTMP_BODY = [[1.0, 0.0], [3.0, 0.0], [5.0, 0.0], [7.0, 0.0]]
LTMP_KEYS = [[1.0, 0.0], [2.0, 0.0], [0.6, 0.8], [0.0, 1.0]]  # cosines: 0 and 1 1.0, 2 and 1 0.6, 2 and 3 0.8


def ltmp_case(k: int, received: list[float], sizes: list[float] | None = None, thresholds=(1.0, 0.0)) -> Tokens:
    tokens = replace(tokens_of(LTMP_BODY), size=torch.tensor([sizes or [1.0] * 4]))
    reducer = instance("ltmp", 4, k, 2)
    with torch.no_grad():
        reducer.merging.fill_(thresholds[0])
        reducer.pruning.fill_(thresholds[1])
        return reducer(tokens, Probe(keys=keys_of(LTMP_KEYS), received=torch.tensor([received])))


def test_ltmp_merges_what_is_farthest_beyond_the_first_threshold():
    """Untrained, 0 is 0 beyond and 2 0.2 short; all receive the mean and are 1 above the second threshold."""
    out = ltmp_case(3, [2, 2, 2, 2], [3, 1, 1, 1])
    assert out.body[0, :, 0].tolist() == [(3 * 1 + 3) / 4, 5, 7]
    assert out.size.tolist() == [[4, 1, 1]]
    both = ltmp_case(2, [2, 2, 2, 2])
    assert both.body[0, :, 0].tolist() == [2, 6]
    assert both.size.tolist() == [[2, 2]]


def test_ltmp_prunes_what_receives_least():
    """Body 3 receives 0.1 / 0.775 = 0.13 of the mean, which is nearer to its threshold than 2 is to the other."""
    out = ltmp_case(2, [1, 1, 1, 0.1])
    assert out.body[0, :, 0].tolist() == [2, 5]
    assert out.size.tolist() == [[2, 1]]
    gone = ltmp_case(1, [1, 1, 1, 0.1])
    assert gone.body[0, :, 0].tolist() == [2], "2 would merge into 3, which is pruned, and goes with it"
    assert gone.size.tolist() == [[2]]


def test_ltmp_s_thresholds_decide_between_the_two():
    """With a high second threshold 0 and 1 go first; 0 is beyond the first as well, and 1 is its host."""
    out = ltmp_case(3, [1, 1, 1, 0.1], thresholds=(2.0, 0.5))
    assert out.body[0, :, 0].tolist() == [1, 3, 5]
    out = ltmp_case(3, [1, 1, 1, 0.1], thresholds=(0.3, 0.5))
    assert out.body[0, :, 0].tolist() == [2, 5, 7], "0.7 beyond the first is more than 0.37 beyond the second"


def ltmp_model(images: torch.Tensor, k: int):
    """One block under LTMP, with thresholds that exactly 64 - k tokens of the one image are beyond."""
    model = tpbench.reduce(tiny(), "ltmp", f"{k}@1").eval()
    seen = []
    model.reducers[0].register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        model(images)
        tokens, probe = seen[0]
        larger = model.reducers[0].excess(tokens, probe, torch.ones(1, 64)).larger[0].sort(descending=True).values
        shift = (larger[63 - k] + larger[64 - k]) / 2
        model.reducers[0].merging += shift
        model.reducers[0].pruning -= shift
    return model


def test_ltmp_masked_is_removed():
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = ltmp_model(images, 40)
    removed = model.eval().forward_tokens(images)
    masked = model.train().forward_tokens(images)
    living = masked.tokens.alive[0] > 0.5
    assert living.sum() == 40
    assert set(masked.tokens.alive.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(masked.logits, removed.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(masked.tokens.size[0][living], removed.tokens.size[0])
    assert len(set(removed.tokens.size[0].tolist())) > 1, "some merge"
    assert removed.tokens.size.sum() < 64, "some are pruned"
    with torch.no_grad():
        model.reducers[0].pruning += 0.1
    assert (model.forward_tokens(images).logits - removed.logits).abs().max() > 1e-3, "control: other thresholds"


@torch.no_grad()
def test_ltmp_masks_in_two_blocks_what_it_removes_in_them():
    """The second block divides the living into A and B, and sees how they look at each other, as at inference."""
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = tpbench.reduce(tiny(), "ltmp", "0.5@0,1")
    for reducer in model.reducers:
        reducer.merging.fill_(-1.0)  # every token of A merges
        reducer.pruning.fill_(-100.0)  # and none is pruned
    removed = model.eval().forward_tokens(images)
    masked = model.train().forward_tokens(images)
    assert removed.counts[-1] == masked.tokens.alive.sum() == 16
    torch.testing.assert_close(masked.logits, removed.logits, rtol=1e-3, atol=1e-5)


def test_dtem_meets_its_budget_in_training_too():
    """Split anew in every block. With one split for all, the second block finds A nearly empty and nothing to merge."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = tpbench.reduce(tiny(), "dtem", "0.5@0,1", temperature=1.0).train()
    out = model.forward_tokens(images)
    mass = out.tokens.size * out.tokens.alive
    torch.testing.assert_close(mass.sum(dim=1), torch.full((2,), 64.0))
    assert out.tokens.alive.sum(dim=1).tolist() == pytest.approx([16, 16], rel=0.15)
    grads = torch.autograd.grad(out.logits.square().sum(), [reducer.embed.weight for reducer in model.reducers])
    first, second = (grad.norm().item() for grad in grads)
    assert second > 0.05 * first, "the second head learns"


def test_ltmp_s_thresholds_are_learned():
    """Through the masks and the merging, and through the distance of the living from K."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = tpbench.reduce(tiny(), "ltmp", "0.7@1,2").train()
    out = model.forward_tokens(images)
    for loss in (out.logits.square().sum(), out.tokens.aux["keep_rate"]):
        grads = torch.autograd.grad(loss, [p for one in model.reducers for p in one.parameters()], retain_graph=True)
        assert all(grad.isfinite() and grad != 0 for grad in grads)
    shares = [(1 - k / 64) ** 2 for k in (44, 31)]
    assert out.tokens.aux["keep_rate"].item() == pytest.approx(10 * sum(shares) / 2), "untrained, no token leaves"


def test_ltmp_never_hides_the_last_token():
    model = tpbench.reduce(tiny(), "ltmp", "0.7@1").train()
    with torch.no_grad():
        model.reducers[0].pruning.fill_(100.0)
    alive = model.forward_tokens(torch.randn(3, 3, 32, 32)).tokens.alive
    assert alive.sum(dim=1).tolist() == [1.0] * 3


# ---------------------------------------------------------------- DTEM


def dtem_reducer(n: int, k: int, **knobs) -> Downsampler:
    """With the identity as its embedding of tokens of width 2."""
    reducer = instance("dtem", n, k, 2, embedding=2, **knobs)
    with torch.no_grad():
        reducer.embed.weight.copy_(torch.eye(2))
        reducer.embed.bias.zero_()
    return reducer


DTEM_BODY = [[1.0, 0.0], [5.0, 0.0], [9.0, 0.0], [2.0, 0.0]]
DTEM_INPUT = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-0.2, 1.0], [1.0, 0.9]]  # the class token, then the body


def test_dtem_matches_by_the_block_s_input():
    """Body 1 and 3 are in A, 0 and 2 in B. Cosines: 1 with 0 and 2 none, 3 with 0 0.67, with 2 0.51: 3 goes to 0."""
    tokens = tokens_of(DTEM_BODY)
    out = dtem_reducer(4, 3)(tokens, Probe(input=torch.tensor([DTEM_INPUT])))
    assert out.body[0, :, 0].tolist() == [5.0, 1.5, 9.0]
    assert out.size.tolist() == [[1, 2, 1]]


def test_dtem_is_soft_in_training_and_hard_where_it_is_cold():
    """Cold enough, the soft merge is the hard one; the token that went leaves nothing behind."""
    tokens, probe = tokens_of(DTEM_BODY), Probe(input=torch.tensor([DTEM_INPUT]))
    hard = dtem_reducer(4, 3)(tokens, probe)
    cold = dtem_reducer(4, 3, temperature=1e-3).train()(tokens, probe)
    mass = (cold.size * cold.alive)[0]
    assert cold.count == 4
    assert sorted(mass.tolist()) == pytest.approx(sorted([0, *hard.size[0].tolist()]), abs=1e-4)
    staying = cold.body[0][mass > 0.5][:, 0].tolist()
    assert sorted(staying) == pytest.approx(sorted(hard.body[0, :, 0].tolist()))
    warm = dtem_reducer(4, 3, temperature=1.0).train()(tokens, probe)
    assert warm.alive.min() > 0.1, "control: when it is warm, all are left in part"
    assert (warm.size * warm.alive).sum().item() == pytest.approx(4, rel=1e-4), "no patch is lost"


def test_dtem_takes_pairs_as_the_loops_do():
    from baselines.dtem import soft_pairs

    similarity = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(0))
    logits = [[s / 0.3 for s in row] for row in similarity[0].tolist()]
    taken = [[0.0, 0.0] for _ in range(3)]
    for _ in range(2):
        total = sum(math.exp(x) for row in logits for x in row)
        share = [[math.exp(x) / total for x in row] for row in logits]
        taken = [[t + s for t, s in zip(*rows)] for rows in zip(taken, share)]
        logits = [[x + math.log(1 - sum(s)) for x in row] for row, s in zip(logits, share)]
    want = torch.tensor([[t / max(1, sum(row)) for t in row] for row in taken])
    found = soft_pairs(similarity, 2, 0.3, torch.ones(1, 3, 2))[0]
    torch.testing.assert_close(found, want)
    assert found.sum().item() <= 2 + 1e-5
    nothing = soft_pairs(similarity, 2, 0.3, torch.tensor([1.0, 0, 1])[None, :, None].expand(1, 3, 2))[0]
    assert nothing[1].sum() < 1e-4, "what has gone is not taken again"


def test_dtem_heads_learn_and_the_input_feels_a_tenth_of_it():
    grads = []
    for share in (1.0, 0.1):
        reducer = dtem_reducer(4, 3, input_gradient=share).train()
        given = torch.tensor([DTEM_INPUT], requires_grad=True)
        out = reducer(tokens_of(DTEM_BODY), Probe(input=given))
        (out.x.square().sum() + out.alive.square().sum()).backward()
        assert reducer.embed.weight.grad.abs().max() > 0
        grads.append(given.grad)
    torch.testing.assert_close(grads[1], 0.1 * grads[0])
    assert grads[0].abs().max() > 0


def test_dtem_heads_can_be_trained_alone():
    assert instance("dtem", 4, 3, 2, frozen=1.0).frozen_share == 1.0
    assert instance("dtem", 4, 3, 2).frozen_share == 0.0
