"""Methods beside plain re-implementations of what was published: loops in float64 over one image, written from the
papers' descriptions, that share no code with the methods. Each has a control: the reference with one rule changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

import tpbench
from baselines.diffrate import RateSearch
from baselines.tome import head_mean
from tpbench import registry
from tpbench.downsampler import Probe, Setup
from tpbench.kernels.matching import pairs
from tpbench.tokens import Tokens, cosine

MODEL = {"depth": 6, "num_heads": 2}
SCHEDULE = "-12@1-3"


def pictures(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vector_mean(x: list[Tensor], weight: list[float]) -> Tensor:
    return sum(w * v for w, v in zip(weight, x)) / sum(weight)


def similarity(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


class PlainViT:
    """timm's model over one image, block by block; `step` reduces rows after attention.

    State: rows (a list of vectors, the class token first), count (how often a key counts) and patches (of each row).
    """

    def __init__(self, model: nn.Module, blocks: dict[int, int], step, weighted: bool):
        self.model = model
        self.blocks = blocks  # block -> r, or the step's other argument
        self.step = step
        self.weighted = weighted

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([self.one(image[None]) for image in images])

    def one(self, image: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(image))[0]
        count, patches = [1.0] * len(x), [1.0] * len(x)
        for index, block in enumerate(self.model.blocks):
            attended, keys, attention = self.attend(block, x, count)
            x = x + block.ls1(attended)
            if index in self.blocks:
                rows, count, patches = self.step(list(x), keys, attention, count, patches, self.blocks[index])
                x = torch.stack(rows)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return self.model.head(self.model.norm(x)[0])

    def attend(self, block: nn.Module, x: Tensor, count: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).reshape(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * attn.scale
        if self.weighted:
            scores = scores + torch.tensor(count, dtype=x.dtype).log()
        attention = scores.softmax(dim=-1)
        out = (attention @ v).transpose(0, 1).flatten(1)
        return attn.proj(out), k.mean(dim=0), attention.mean(dim=0)


def both(name: str, step, blocks: dict[int, int], weighted: bool, schedule: str = SCHEDULE, **settings):
    """Logits of the method and of the plain reference, in float64 but for the sizes, which are float32."""
    model = tiny(**MODEL).double()
    with torch.no_grad():
        ours = tpbench.reduce(model, name, schedule, **settings)(pictures())
    return ours, PlainViT(model, blocks, step, weighted)(pictures())


THREE = {1: 12, 2: 12, 3: 12}


# ---------------------------------------------------------------- ToMe


def tome_step(rows, keys, attention, count, patches, r, in_positions=False):  # noqa: ARG001
    """Split by even and odd; the r most similar pairs merge; what stays of A comes first, then B."""
    a, b = list(range(0, len(rows), 2)), list(range(1, len(rows), 2))
    edges = []
    for i in a[1:]:  # the class token is the first of A and never merges
        j = max(b, key=lambda j: similarity(keys[i], keys[j]))
        edges.append((similarity(keys[i], keys[j]), i, j))
    edges.sort(key=lambda edge: -edge[0])
    into = {j: [j] for j in b}
    for _, i, j in edges[:r]:
        into[j].append(i)
    gone = {i for _, i, _ in edges[:r]}
    groups = [[i] for i in a if i not in gone] + [into[j] for j in b]
    if in_positions:
        groups.sort(key=lambda group: group[0])
    rows = [vector_mean([rows[i] for i in group], [patches[i] for i in group]) for group in groups]
    patches = [sum(patches[i] for i in group) for group in groups]
    return rows, patches, patches


def test_three_steps_of_tome_are_as_published():
    ours, published = both("tome", tome_step, THREE, weighted=True)
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-6)


def test_control_in_the_order_of_positions_tome_is_another_from_the_second_step_on():
    def by_position(*args):
        return tome_step(*args, in_positions=True)

    one, same = both("tome", by_position, {1: 12}, weighted=True, schedule="-12@1")
    torch.testing.assert_close(one, same, rtol=0, atol=1e-6)
    ours, other = both("tome", by_position, THREE, weighted=True)
    assert (ours - other).abs().max() > 1e-3


def test_tome_puts_what_stays_of_a_before_b():
    """Positions: 0 class, 1 b, 2 a, 3 b, 4 a, 5 b. Token 2 merges into 3; out come 4, 1, 2 with 3, 5."""
    keys = [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.8, 0.6], [0.0, -1.0]]
    body = [[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0], [16.0, 0.0]]
    cls = registry.method("tome")
    tome = cls(Setup(0, 0, 1, 5, 4, 5, 2, 1, None))
    x = torch.tensor([[[0.0, 0.0], *body]])
    out = tome(Tokens(x, 1, torch.ones(1, 5)), Probe(keys=torch.tensor([[[[1.0, 0.0], *keys]]])))
    assert out.body[0, :, 0].tolist() == [8.0, 1.0, 3.0, 16.0]


# ---------------------------------------------------------------- PiToMe


def pitome_step(rows, keys, attention, count, patches, extra):  # noqa: ARG001
    """Energy ranks the body; early, alternate tokens pair up; late, only the 2r of highest energy do."""
    r, depth = extra
    body = range(1, len(rows))
    cos = {(i, j): similarity(keys[i], keys[j]) for i in body for j in body}
    margin = 0.75 * (1 - depth)
    elu = {pair: c - margin if c > margin else math.exp(c - margin) - 1 for pair, c in cos.items()}
    energy = {i: sum(elu[i, j] for j in body) / len(body) for i in body}
    order = sorted(body, key=lambda i: -energy[i])
    order = order if depth < 0.5 else order[: 2 * r]
    first, second = order[::2], order[1::2]
    edges = [(i, max(second, key=lambda j: cos[i, j])) for i in first]
    edges.sort(key=lambda edge: -cos[edge])
    groups = {j: [j] for j in range(len(rows))}
    for i, j in edges[:r]:
        groups[j] += groups.pop(i)
    rows = [vector_mean([rows[i] for i in group], [patches[i] for i in group]) for group in groups.values()]
    patches = [sum(patches[i] for i in group) for group in groups.values()]
    return rows, patches, patches


@pytest.mark.parametrize("proportional", [False, True])
def test_three_steps_of_pitome_are_as_published(proportional):
    """The published DeiT model attends without sizes; with proportional=True later keys count by them."""
    blocks = {1: (12, 0), 2: (12, 1 / 3), 3: (12, 2 / 3)}
    ours, published = both("pitome", pitome_step, blocks, weighted=proportional, proportional=proportional)
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-6)
    _, other = both("pitome", pitome_step, blocks, weighted=not proportional)
    assert (ours - other).abs().max() > 1e-3, "control: the other attention is another"


# ---------------------------------------------------------------- DiffRate


def diffrate_step(rows, keys, attention, count, patches, extra, by_size=False, likeness=True):  # noqa: ARG001
    """Sort by class attention, prune the last, merge the next into the most similar of the first: plain means."""
    pruned_to, k = extra
    order = sorted(range(1, len(rows)), key=lambda i: -attention[0, i])[:pruned_to]
    groups = {j: [j] for j in [0, *order[:k]]}
    votes = {i: count[i] for i in groups}
    for i in order[k:]:
        j = max(order[:k], key=lambda j: similarity(rows[i], rows[j]))
        groups[j].append(i)
        votes[j] += count[i] * (max(0.0, similarity(rows[i], rows[j])) if likeness else 1)
    rows = [
        vector_mean([rows[i] for i in group], [patches[i] if by_size else 1 for i in group])
        for group in groups.values()
    ]
    return rows, list(votes.values()), [sum(patches[i] for i in group) for group in groups.values()]


DIFFRATE = {1: (58, 52), 2: (46, 40), 3: (34, 28)}


def test_three_steps_of_diffrate_are_as_published():
    ours, published = both("diffrate", diffrate_step, DIFFRATE, weighted=True)
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("weighted", "rule"), [(False, {}), (True, {"by_size": True}), (True, {"likeness": False})], ids=str
)
def test_control_another_rule_of_diffrate_is_another_model(weighted, rule):
    def step(*args):
        return diffrate_step(*args, **rule)

    ours, other = both("diffrate", step, DIFFRATE, weighted=weighted)
    assert (ours - other).abs().max() > 1e-4


def test_diffrates_search_masks_what_the_method_removes_over_two_stages():
    """Masked and removed agree from the second block on too, where keys count otherwise than once."""
    base, images = tiny(**MODEL), pictures().float()
    model = tpbench.reduce(base, RateSearch, "64,64@1,2", granularity=1).train()
    for reducer, (pruned_to, k, n) in zip(model.reducers, ((48, 32, 64), (24, 16, 32))):
        with torch.no_grad():
            for logits, share in ((reducer.pruning, pruned_to / n), (reducer.merging, k / pruned_to)):
                nearest = (reducer.candidates - share).abs().argmin()
                logits.zero_()
                logits[nearest] = 60.0
    masked = model.forward_tokens(images)
    kept = [int(k) for k in masked.tokens.alive.sum(dim=1)]
    removed = tpbench.reduce(base, "diffrate", f"32,{kept[0]}@1,2", pruned=0.5)
    assert kept == [16, 16]
    torch.testing.assert_close(masked.logits, removed(images), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- DPC-KNN


def dpcknn_centres(points: list[list[float]], k: int, neighbours: int) -> list[int]:
    """In the log domain; of equally dense points the lower index is the denser, and so for equal products."""
    n, c = len(points), len(points[0])
    d = [[math.dist(p, q) / math.sqrt(c) for q in points] for p in points]
    density = [-sum(sorted(x * x for x in row)[:neighbours]) / neighbours for row in d]
    top = max(map(max, d))
    rank = sorted(range(n), key=lambda i: (-density[i], i))
    product = []
    for place, i in enumerate(rank):
        separation = min((d[i][j] for j in rank[:place]), default=top)
        product.append((density[i] + (math.log(separation) if separation > 0 else -math.inf), i))
    return [i for _, i in sorted(product, key=lambda pair: (-pair[0], pair[1]))[:k]]


def dpcknn_groups(points: list[list[float]], k: int, neighbours: int) -> list[list[float]]:
    centres = dpcknn_centres(points, k, neighbours)
    nearest = [
        i if i in centres else min(centres, key=lambda c: math.dist(points[c], points[i])) for i in range(len(points))
    ]
    groups = [[points[i] for i in range(len(points)) if nearest[i] == c] for c in centres]
    return [[sum(values) / len(group) for values in zip(*group)] for group in groups]


def dpcknn_of(points: list[list[float]], k: int, neighbours: int) -> Tokens:
    n, width = len(points), len(points[0])
    cls = registry.method("dpcknn")
    reducer = cls(Setup(0, 0, 1, n, k, n, width, 1, None), cls.Config(neighbours=neighbours))
    return reducer(Tokens(torch.tensor([points]), 0, torch.ones(1, n)), Probe())


def test_dpcknn_puts_one_centre_on_duplicates():
    """Three tokens at the origin, two about [5, 0], one at [9, 9]: the centres are the first and the fourth."""
    points = [[0.0, 0.0]] * 3 + [[5.0, 0.0], [5.1, 0.0], [9.0, 9.0]]
    assert dpcknn_centres(points, 2, 2) == [0, 3]
    out = dpcknn_of(points, 2, 2)
    torch.testing.assert_close(out.body[0], torch.tensor([[0.0, 0.0], [19.1 / 3, 3.0]]))
    assert out.size.tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_dpcknn_is_as_published_at_any_scale(scale):
    """At a standard deviation of 100 exp(-d^2) is 0 for every token: the first K would win."""
    generator = torch.Generator().manual_seed(0)
    points = (scale * torch.randn(30, 4, generator=generator)).tolist()
    out = dpcknn_of(points, 5, 5)
    torch.testing.assert_close(out.body[0], torch.tensor(dpcknn_groups(points, 5, 5)), rtol=1e-4, atol=1e-4 * scale)
    assert dpcknn_centres(points, 5, 5) != list(range(5)), "control"


# ---------------------------------------------------------------- Sinkhorn, ATS, PatchMerger


def test_sinkhorn_sums_unit_tokens_by_their_mass():
    torch.manual_seed(0)
    reducer = registry.method("sinkhorn")(Setup(0, 0, 1, 9, 4, 9, 6, 1, None)).double()
    body = torch.randn(9, 6, dtype=torch.float64) * 5
    unit = [list(v / v.norm()) for v in body]
    centre = [list(v / v.norm()) for v in reducer.centres.detach()]
    plan = [[math.exp(sum(a * b for a, b in zip(c, u))) for u in unit] for c in centre]
    for _ in range(3):
        plan = [[p / sum(row) for p in row] for row in plan]
        columns = [sum(row[j] for row in plan) for j in range(9)]
        plan = [[p / columns[j] for j, p in enumerate(row)] for row in plan]
    want = torch.stack([sum(p * torch.stack(u) for p, u in zip(row, unit)) for row in plan])
    out = reducer(Tokens(body[None], 0, torch.ones(1, 9)), Probe())
    torch.testing.assert_close(out.body[0], want, rtol=1e-5, atol=1e-6)
    means = want / torch.tensor([sum(row) for row in plan])[:, None]
    assert (out.body[0] - means).abs().max() > 0.1, "control: means are another"
    longer = reducer(Tokens(10 * body[None], 0, torch.ones(1, 9)), Probe())
    torch.testing.assert_close(longer.body, out.body)


def ats_choice(scores: list[float], k: int) -> list[int]:
    """Tokens in rising order of score whose rescaled cumulative scores are nearest to k samples."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total, sums = 0.0, []
    for i in order:
        total += scores[i]
        sums.append(total)
    shares = [(s - sums[0]) / (sums[-1] - sums[0]) for s in sums]
    start = min(s for s in shares if s > 0)
    samples = [start + (1 - start) * s / (k - 1) for s in range(k)]
    places = {min(range(len(shares)), key=lambda p, u=u: abs(shares[p] - u)) for u in samples}
    return [order[place] for place in sorted(places)]


@pytest.mark.parametrize("dead", [0, 20])
def test_ats_takes_the_nearest_cumulative_scores(dead):
    generator = torch.Generator().manual_seed(0)
    attention, values = torch.rand(3, 64, generator=generator) ** 3, torch.randn(3, 2, 65, 4, generator=generator)
    alive = (torch.arange(64) >= dead).float().expand(3, -1)
    ats = registry.method("ats")(Setup(0, 0, 1, 64, 24, 64, 8, 2, None))
    body = torch.arange(64.0)[None, :, None].expand(3, -1, 8)
    x = torch.cat([torch.zeros(3, 1, 8), body], dim=1)
    out = ats(Tokens(x, 1, torch.ones(3, 64), alive=alive if dead else None), Probe(values=values, cls=attention))
    for image in range(3):
        length = values[image, :, 1:].double().square().sum(dim=(0, 2)).sqrt()
        score = (attention[image].double() * length * alive[image]).tolist()
        got = out.body[image, :, 0][out.alive[image] > 0].int().tolist()
        assert got == ats_choice(score, 24)
        assert got != ats_choice(attention[image].tolist(), 24), "control: by attention alone they are others"


def test_patchmerger_starts_with_queries_of_standard_deviation_one():
    torch.manual_seed(0)
    reducer = registry.method("patchmerger")(Setup(0, 0, 1, 98, 49, 98, 192, 3, None))
    assert reducer.queries.std().item() == pytest.approx(1, abs=0.03)


# ---------------------------------------------------------------- A-ViT and DynamicViT: an image without a living token

POOLS = [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("name", ["avit", "dynamicvit"])
def test_an_image_keeps_its_last_token(name, pool):
    """All tokens of the first image would go at once; logits, losses and gradients stay finite."""
    model = tpbench.reduce(tiny(**pool), name, "0.7@1,2").train()
    for reducer in model.reducers:
        reducer.register_forward_pre_hook(let_the_first_image_go)
        if name == "dynamicvit":
            with torch.no_grad():
                reducer.decide[-2].bias.copy_(torch.tensor([-200.0, 200.0]))
    out = model.forward_tokens(pictures().float())
    assert out.tokens.alive[0].sum() == 1
    assert (out.tokens.alive.sum(dim=1) >= 1).all()
    assert out.logits.isfinite().all()
    (out.logits.square().sum() + sum(out.tokens.aux.values())).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if name == "avit":
        with torch.no_grad():
            assert model.eval()(pictures().float()).isfinite().all()


def let_the_first_image_go(reducer: nn.Module, given: tuple[Tokens, Probe]) -> tuple[Tokens, Probe]:  # noqa: ARG001
    tokens, probe = given
    x = tokens.x.clone()
    x[0, tokens.prefix :, 0] = 50.0
    tokens = copy.copy(tokens)
    tokens.x = x
    return tokens, probe


def test_control_without_a_living_token_the_average_is_not_a_number():
    model = tpbench.reduce(tiny(global_pool="avg"), "avit", "0.7@1")
    tokens = Tokens(torch.randn(1, 65, 32), 1, torch.ones(1, 64), alive=torch.zeros(1, 64))
    assert model.classify(tokens).isnan().all()


def test_avit_keeps_the_token_with_the_lowest_sum_and_the_dead_stay_dead():
    avit = registry.method("avit")(Setup(0, 0, 1, 3, 2, 3, 1, 1, None))
    x = torch.tensor([[[0.0], [9.0], [5.0], [7.0]], [[0.0], [9.0], [5.0], [0.0]]])
    one = avit(Tokens(x, 1, torch.ones(2, 3)), Probe())
    assert one.alive.tolist() == [[0, 1, 0], [0, 0, 1]]
    two = avit(one, Probe())
    assert two.alive.tolist() == [[0, 1, 0], [0, 0, 1]]


# ---------------------------------------------------------------- matching in float32


def near_ties(*shape: int) -> Tensor:
    """bfloat16 vectors about one direction: their cosines differ by less than bfloat16 can tell."""
    generator = torch.Generator().manual_seed(0)
    return (1 + 0.1 * torch.randn(*shape, generator=generator)).bfloat16()


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["tome", "pitome", "diffrate", "dpcknn", "kmedoids", "wkmedoids", "wkmeans"])
def test_partners_are_those_of_float32(name, autocast):
    """On the same bfloat16 keys and tokens: the same clusters as in float32."""
    keys, x = near_ties(2, 2, 65, 16), near_ties(2, 65, 32)
    received = torch.rand(2, 64, generator=torch.Generator().manual_seed(2))
    outcomes = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        reducer = registry.method(name)(Setup(0, 0, 2, 64, 40, 64, 32, 2, (8, 8)))
        probe = Probe(keys=keys.to(dtype), cls=received, received=received, own=0 * received)
        tokens = Tokens(x.float() if autocast else x.to(dtype), 1, torch.ones(2, 64), (8, 8))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype is torch.bfloat16):
            outcomes.append(reducer(tokens, probe))
    want, got = outcomes
    assert torch.equal(got.size, want.size)
    torch.testing.assert_close(got.body.float(), want.body.float(), rtol=0, atol=0 if autocast else 2**-7)


def test_control_in_bfloat16_other_partners_are_found():
    keys = near_ties(2, 2, 65, 16)
    metric = nn.functional.normalize(keys.mean(dim=1), dim=-1)
    _, coarse, _ = pairs(metric[:, ::2] @ metric[:, 1::2].transpose(1, 2), 1)
    exact = head_mean(keys)
    _, fine, _ = pairs(cosine(exact[:, ::2], exact[:, 1::2]), 1)
    assert (coarse == fine).float().mean() < 0.9
    brute = exact.double()
    for a in range(1, 33):
        best = max(range(32), key=lambda b: similarity(brute[0, 2 * a], brute[0, 2 * b + 1]))
        assert fine[0, a] == 2 * best + 1
