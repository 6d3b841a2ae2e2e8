"""What is special about single methods, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import timm
import torch

import tpbench
from tpbench import registry
from tpbench.downsampler import Probe, Setup
from tpbench.errors import ScheduleError
from tpbench.tokens import Tokens


def tokens_of(values: list[list[float]], prefix: int = 1) -> Tokens:
    """One image: a class token of zeros and body tokens of the given features."""
    x = torch.tensor([[[0.0] * len(values[0])] * prefix + values])
    return Tokens(x, prefix, torch.ones(1, len(values)))


def instance(name: str, n: int, k: int, width: int, **knobs):
    cls = registry.method(name)
    return cls(Setup(0, 0, 1, n, k, n, width, 1, None), cls.Config(**knobs)).eval()


def keys_of(values: list[list[float]], prefix: int = 1) -> torch.Tensor:
    return torch.tensor([[[[1.0] + [0.0] * (len(values[0]) - 1)] * prefix + values]])


# ---------------------------------------------------------------- ToMe


def test_tome_splits_with_the_class_token_counted():
    """Positions 0 class, 1 b, 2 a, 3 b, 4 a: A = {2, 4} (the class token is barred), B = {1, 3}.

    Keys: a2 is nearest to b3 (cosine 1), a4 nearest to b1 (cosine 0.6): with one merge, tokens 2 and 3 become one.
    """
    keys = [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.8, 0.6]]
    body = [[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]]
    out = instance("tome", 4, 3, 2)(tokens_of(body), Probe(keys=keys_of(keys)))
    assert sorted(out.body[0, :, 0].tolist()) == [1.0, 3.0, 8.0]
    assert sorted(out.size[0].tolist()) == [1.0, 1.0, 2.0]


def test_tome_merges_by_the_patches_tokens_stand_for():
    keys = [[1.0, 0.0], [1.0, 0.0]]
    tokens = tokens_of([[1.0, 0.0], [5.0, 0.0]])
    tokens.size = torch.tensor([[3.0, 1.0]])
    out = instance("tome", 2, 1, 2)(tokens, Probe(keys=keys_of(keys)))
    assert out.body[0, 0, 0].item() == pytest.approx((3 * 1 + 1 * 5) / 4)
    assert out.size.tolist() == [[4.0]]


def test_tome_counts_merged_keys_as_often_as_they_stand_for():
    """Proportional attention: two equal tokens merged attend and are attended to as the two were."""
    model = timm.create_model("test_vit", img_size=32, patch_size=16).eval()
    cls = registry.method("tome")
    assert cls.weighted_attention
    first, *others = tpbench.reduce(model, "tome", "3@0").blocks
    assert all(block.weighted for block in others)
    assert not first.weighted, "before its reducer every token is one patch"
    assert not any(block.weighted for block in tpbench.reduce(model, "topk", "3@0").blocks)


def test_tome_refuses_more_than_half():
    model = timm.create_model("test_vit").eval()
    assert tpbench.reduce(model, "tome", "50@1").achieved == ((1, 50),)
    with pytest.raises(ScheduleError, match="down to 50; asked: 49"):
        tpbench.reduce(model, "tome", "49@1")


# ---------------------------------------------------------------- EViT


def test_evit_fuses_what_the_class_token_ignores():
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    out = instance("evit", 4, 3, 1)(tokens_of([[1.0], [2.0], [3.0], [4.0]]), Probe(cls=attention))
    assert out.body[0, :, 0].tolist() == pytest.approx([2.0, 4.0, 0.1 * 1 + 0.2 * 3])
    assert out.size.tolist() == [[1.0, 1.0, 2.0]]


def test_evit_with_one_token_fuses_all():
    attention = torch.tensor([[0.25, 0.75]])
    out = instance("evit", 2, 1, 1)(tokens_of([[4.0], [8.0]]), Probe(cls=attention))
    assert out.body[0, :, 0].tolist() == pytest.approx([7.0])


# ---------------------------------------------------------------- DPC-KNN


def test_dpcknn_finds_the_density_peaks():
    """On a line: a tight group at 0, 0.1, 0.2, a looser one at 5, 5.4, 5.8. One centre in each, at its middle."""
    line = [[0.0], [0.1], [0.2], [5.0], [5.4], [5.8]]
    out = instance("dpcknn", 6, 2, 1, neighbours=3)(tokens_of(line), Probe())
    assert sorted(out.body[0, :, 0].tolist()) == pytest.approx([0.1, 5.4])
    assert out.size.tolist() == [[3.0, 3.0]]


def test_dpcknn_by_hand():
    """Densities, separations and centres of four tokens on a line, worked out with loops in float64."""
    line = [0.0, 1.0, 3.0, 7.0]
    n, k = 4, 2
    d = [[abs(a - b) for b in line] for a in line]
    density = [math.exp(-sum(sorted(x * x for x in row)[:2]) / 2) for row in d]
    top = max(max(row) for row in d)
    separation = [min([d[i][j] for j in range(n) if density[j] > density[i]], default=top) for i in range(n)]
    centres = sorted(range(n), key=lambda i: (-density[i] * separation[i], i))[:k]
    groups = [min(centres, key=lambda c: d[i][c]) for i in range(n)]
    means = sorted(sum(line[i] for i in range(n) if groups[i] == c) / groups.count(c) for c in centres)
    out = instance("dpcknn", n, k, 1, neighbours=2)(tokens_of([[x] for x in line]), Probe())
    assert sorted(out.body[0, :, 0].tolist()) == pytest.approx(means)


# ---------------------------------------------------------------- ATS


def test_ats_samples_the_inverse_of_the_cumulative_scores():
    """Sorted scores 0 | 1 | 2 | 7 of tokens 3, 0, 2, 1: sums 0, 0.1, 0.3, 1. Four samples at 0.1, 0.4, 0.7, 1.

    The nearest sums are 0.1, 0.3, 1 and 1: the first sum at or above 0.4 would be 1, and token 2 would go.
    """
    values = torch.ones(1, 1, 5, 1)
    attention = torch.tensor([[0.1, 0.7, 0.2, 0.0]])
    out = instance("ats", 4, 4, 1)(tokens_of([[1.0], [2.0], [3.0], [4.0]]), Probe(values=values, cls=attention))
    assert out.alive.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert out.body[0, :3, 0].tolist() == [1.0, 3.0, 2.0]


def test_ats_keeps_fewer_where_attention_is_concentrated():
    cls = registry.method("ats")
    ats = cls(Setup(0, 0, 1, 64, 32, 64, 8, 1, None)).eval()
    tokens = Tokens(torch.randn(2, 65, 8), 1, torch.ones(2, 64))
    flat, peaked = torch.full((64,), 1 / 64), torch.tensor([0.97] + [0.03 / 63] * 63)
    out = ats(tokens, Probe(values=torch.ones(2, 1, 65, 8), cls=torch.stack([flat, peaked])))
    assert out.alive.sum(dim=1).tolist()[0] == 32
    assert out.alive.sum(dim=1).tolist()[1] <= 3


# ---------------------------------------------------------------- DiffRate


def test_diffrate_prunes_the_ignored_and_merges_the_rest():
    """Class attention sorts 1, 3, 0, 2, 4. Of three that leave 4 is pruned; 0 and 2 merge, each into the more alike."""
    attention = torch.tensor([[0.2, 0.4, 0.1, 0.3, 0.0]])
    body = [[1.0, 0.1], [0.0, 2.0], [0.2, 3.0], [4.0, 0.0], [9.0, 9.0]]
    reducer = instance("diffrate", 5, 2, 2, pruned=0.34)
    out = reducer(tokens_of(body), Probe(cls=attention))
    assert reducer.pruned_to == 4
    torch.testing.assert_close(out.body[0], torch.tensor([[0.1, 2.5], [2.5, 0.05]]))  # 1 with 2, 3 with 0
    assert out.size.tolist() == [[2.0, 2.0]]
    all_pruned = instance("diffrate", 5, 2, 2, pruned=1.0)(tokens_of(body), Probe(cls=attention))  # control
    assert all_pruned.body[0].tolist() == [[0.0, 2.0], [4.0, 0.0]]
    all_merged = instance("diffrate", 5, 2, 2, pruned=0.0)(tokens_of(body), Probe(cls=attention))
    assert all_merged.size.sum().item() == 5


# ---------------------------------------------------------------- A-ViT


def test_avit_hides_a_token_when_its_scores_sum_to_the_threshold():
    """sigmoid(5 x - 10): at x = 2 one half, so that a token of 2 halts at the second block; one of 4 at the first."""
    tokens = tokens_of([[0.0], [2.0], [4.0]])
    for want in ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        tokens = instance("avit", 3, 2, 1)(tokens, Probe())
        assert tokens.alive[0].tolist() == want
        assert tokens.count == 3, "nothing is removed"


def test_avit_is_drawn_to_its_budget_and_pays_for_the_living():
    """All three live, two were asked for: (1 - 2/3)^2; what is left of their halting mass is pondered."""
    reducer = instance("avit", 3, 2, 1, ponder_weight=0.5, rate_weight=2.0).train()
    body = torch.tensor([[[9.0], [0.0], [1.0], [1.5]]], requires_grad=True)
    out = reducer(Tokens(body, 1, torch.ones(1, 3)), Probe())
    left = [1 - 1 / (1 + math.exp(10 - 5 * x)) for x in (0.0, 1.0, 1.5)]
    assert out.aux["ponder"].item() == pytest.approx(0.5 * sum(left) / 3, rel=1e-4)
    assert out.aux["keep_rate"].item() == pytest.approx(2 * (1 - 2 / 3) ** 2, rel=1e-4)
    sum(out.aux.values()).backward()
    assert (body.grad[0, 1:, 0] < 0).all(), "a higher score costs less"
    assert body.grad[0, 0, 0] == 0, "the class token is nobody's to halt"


def test_avit_saves_nothing_and_its_row_says_so():
    model = timm.create_model("test_vit").eval()
    whole = sum(tpbench.reduce(model, "none").macs().values())
    reduced = tpbench.reduce(model, "avit", "0.5@1,3")
    assert sum(reduced.macs().values()) == whole
    assert [n for _, n in reduced.achieved] == [100, 100]
    assert "saves nothing" in registry.catalogue()[0]["avit"].title


# ---------------------------------------------------------------- PiToMe


def test_pitome_merges_the_crowd_and_spares_the_loner():
    """Three like tokens and one alone, late in the model: the loner has the least energy and stays by itself."""
    crowd = [[1.0, 0.0], [1.0, 0.05], [1.0, -0.05], [0.0, 1.0]]
    cls = registry.method("pitome")
    late = cls(Setup(3, 1, 2, 4, 3, 4, 2, 1, None)).eval()
    out = late(tokens_of(crowd), Probe(keys=keys_of(crowd)))
    assert out.body[0].tolist().count([0.0, 1.0]) == 1
    assert sorted(out.size[0].tolist()) == [1.0, 1.0, 2.0]


# ---------------------------------------------------------------- soft assignments


@pytest.mark.parametrize("name", ["patchmerger", "sit", "sinkhorn"])
def test_soft_assignments_are_means_of_the_tokens(name):
    """Equal tokens stay what they are, and the patches they stand for are all still there.

    Sinkhorn adds up unit tokens: of 6 alike, each of 3 centres receives the mass of 2.
    """
    torch.manual_seed(0)
    reducer = instance(name, 6, 3, 8)
    token = torch.randn(8)
    tokens = Tokens(token.expand(2, 7, 8).clone(), 1, torch.ones(2, 6))
    out = reducer(tokens, Probe())
    expected = token
    if name == "patchmerger":
        expected = reducer.norm(token)
    if name == "sinkhorn":
        expected = 2 * token / token.norm()
    torch.testing.assert_close(out.body, expected.expand(2, 3, 8), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.size.sum(dim=1), torch.full((2,), 6.0))
    varied = Tokens(torch.randn(2, 7, 8), 1, torch.ones(2, 6))
    assert reducer(varied, Probe()).body.std(dim=1).max() > 0, "control: other tokens come out otherwise"


def test_tome_leaves_set_a_before_set_b():
    """Five body tokens behind a class token: positions 0 to 5, so that body 1 and 3 are in A, and 0, 2 and 4 in B."""
    from tpbench.kernels.matching import numbered, set_order

    tokens = Tokens(torch.arange(6.0).reshape(1, 6, 1), 1, torch.ones(1, 5))
    order = set_order(1, 5, torch.device("cpu"))
    assert order.tolist() == [1, 3, 0, 2, 4]
    out = tokens.merge(numbered(torch.tensor([[1]]), torch.tensor([[2]]), 5, order), 4)
    assert out.body.flatten().tolist() == [4.0, 1.0, 2.5, 5.0], "token 3 of A, then 0, 2 with 1, and 4"
    assert out.size.tolist() == [[1, 1, 2, 1]]
    by_position = tokens.merge(numbered(torch.tensor([[1]]), torch.tensor([[2]]), 5), 4)
    assert by_position.body.flatten().tolist() == [1.0, 2.5, 4.0, 5.0], "control: the order shows"


def test_dpcknn_breaks_ties_by_the_lower_index_and_does_not_underflow():
    points = torch.tensor([[0.0, 0], [0, 0], [0, 0], [5, 0], [5.1, 0], [9, 9]])
    for scale in (1.0, 100.0):  # exp of -(1000^2) is 0 in float32
        method = registry.method("dpcknn")
        setup = Setup(0, 0, 1, 6, 2, 6, 2, 1, None)
        reducer = method(setup, method.Config(neighbours=2))
        x = torch.cat([torch.zeros(1, 1, 2), scale * points[None]], dim=1)
        out = reducer(Tokens(x, 1, torch.ones(1, 6)), Probe())
        assert out.size.tolist() == [[3, 3]], "the three duplicates, and the three others"
        assert out.body[0, 0].tolist() == [0, 0]
