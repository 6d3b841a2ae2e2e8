"""Budgets: solved counts cost the share asked for; a share that cannot be met is rejected with the nearest one."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from itertools import pairwise

import pytest
import tiny_recipe
import torch

import tpbench
from tpbench import budget, registry, schedule
from tpbench.bench import models
from tpbench.cli import DONE, WRONG, main
from tpbench.errors import ScheduleError, Unreachable, UsageError
from tpbench.measure import cell, flops, live_budget
from tpbench.record import read_all

PATCHES = 196
REDUCING = [name for name, card in registry.catalogue()[0].items() if not card.unreduced]


def cost(asked: schedule.Schedule) -> float:
    """A made-up model: half its cost before the first reducing block, the rest in proportion to what is left."""
    counts = asked.requested(PATCHES, 12)
    return 0.5 + 0.5 * sum(counts) / (PATCHES * len(counts))


def solve(text: str, price=cost) -> schedule.Schedule:
    return budget.solve(schedule.parse(text), price, PATCHES)


# ---------------------------------------------------------------- keep rates


@pytest.mark.parametrize("stages", [1, 2, 3, 12])
def test_the_chain_holds_the_counts_of_every_keep_rate_and_no_others(stages):
    chain = budget.rates(64, stages)
    draw = random.Random(stages)
    for _ in range(2000):
        rate = Fraction(draw.randint(1, 10**6), 10**6)
        assert tuple(max(1, int(64 * rate ** (stage + 1))) for stage in range(stages)) in set(chain)
    assert chain[0] == (1,) * stages
    assert chain[-1] == (64,) * stages
    for fewer, more in pairwise(chain):
        assert fewer != more
        assert all(a <= b for a, b in zip(fewer, more))
    assert (32, 33, 1)[:stages] not in chain or stages == 1  # control: no rate gives more after less


# ---------------------------------------------------------------- solving


@pytest.mark.parametrize("share", ["0.55", "0.6", "0.75", "0.9", "0.999", "1"])
@pytest.mark.parametrize("blocks", ["5", "3,6,9", "0-11"])
def test_solved_counts_cost_the_share_asked_for(share, blocks):
    solved = solve(f"macs={share}@{blocks}")
    assert solved.budget is None
    assert cost(solved) == pytest.approx(float(share), rel=budget.TOLERANCE)
    assert schedule.parse(solved.text) == solved  # the text gives the schedule back
    halved = solved.with_counts([max(1, k // 2) for k in solved.counts])
    assert cost(halved) != pytest.approx(float(share), rel=budget.TOLERANCE)  # control


def test_coarse_steps_are_solved_by_single_counts():
    """Counts come in steps of 28: no keep rate is within 1 %, single counts are."""

    def coarse(asked: schedule.Schedule) -> float:
        return cost(asked.with_counts([k // 28 * 28 or 1 for k in asked.counts]))

    near = min(abs(coarse(schedule.parse("macs=1@3,6,9").with_counts(c)) - 0.95) for c in budget.rates(PATCHES, 3))
    assert near > 0.95 * budget.TOLERANCE  # control
    assert coarse(solve("macs=0.95@3,6,9", coarse)) == pytest.approx(0.95, rel=budget.TOLERANCE)


def test_a_share_that_is_too_small_is_rejected_with_the_nearest():
    with pytest.raises(
        Unreachable, match=r"cannot cost 0.4 of the .* MACs; the nearest it reaches is 0.503, with 1,1,1@"
    ):
        solve("macs=0.4@3,6,9")


@pytest.mark.parametrize("floor", [98, 120, 150])
def test_a_method_that_cannot_go_low_still_meets_a_budget_it_can(floor):
    """Like ToMe, which removes at most half of the tokens: it meets 85 % of the MACs but not 52 %."""

    def limited(asked: schedule.Schedule) -> float:
        if asked.counts[0] < floor:
            raise Unreachable("so many tokens cannot go")
        return cost(asked)

    assert solve("macs=0.85@3,6,9", limited) == solve("macs=0.85@3,6,9")
    nearest = cost(schedule.parse(f"{floor},1,1@3,6,9"))
    with pytest.raises(Unreachable, match=f"nearest it reaches is {nearest:.3f}"):
        solve(f"macs={0.9 * nearest:.3f}@3,6,9", limited)


def test_a_method_that_reaches_no_counts_is_reported():
    def never(asked: schedule.Schedule) -> float:
        raise Unreachable(f"not {asked.text}")

    with pytest.raises(Unreachable, match="nor come near it"):
        solve("macs=0.8@3,6,9", never)


def test_an_unsolved_budget_has_no_counts():
    for text, what in (("macs=0.5@3", "MACs"), ("latency=0.5@3", "latency")):
        with pytest.raises(ScheduleError, match=f"a share of {what} must be solved"):
            schedule.parse(text).requested(PATCHES, 12)


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("method", REDUCING)
def test_every_method_costs_the_same(make_vit, method, share):
    """In MACs as torch counts them, the reducer included."""
    model = make_vit()
    unreduced = flops.counted(tpbench.reduce(model, "none")).total
    solved = tpbench.reduce(model, method, f"macs={share}@0,1,2")
    if registry.method(method).masks:  # it hides as many tokens as others remove, and saves nothing
        assert flops.measured(solved).total == pytest.approx(unreduced, rel=1e-3)
        living = dict(solved.requested)
        assert solved.macs_living(living) / unreduced == pytest.approx(share, rel=budget.TOLERANCE)
        return
    assert flops.measured(solved).total / unreduced == pytest.approx(share, rel=budget.TOLERANCE)
    at_rate = tpbench.reduce(model, method, "0.9@0,1,2")  # control
    assert flops.measured(at_rate).total / unreduced != pytest.approx(share, rel=budget.TOLERANCE)


# ---------------------------------------------------------------- as a user runs it


def run(out, *words: str) -> int:
    return main(["run", "--recipe", "tests/tiny_recipe.py", "--out", str(out), *words])


def test_equal_cost_from_the_command_line(tmp_path, capsys, request):
    request.getfixturevalue("monkeypatch").chdir(request.config.rootpath)
    methods = "none,topk,wkmedoids(iterations=1),random"
    assert run(tmp_path, "--methods", methods, "--budget", "0.8", "--budget-latency", "0.9") in (DONE, 0)
    found = {(record.method, record.schedule): record for record in read_all(tmp_path)}
    assert len(found) == 1 + 3 * 2
    for (method, text), record in found.items():
        if text.startswith("macs"):
            assert record.macs["total"] / record.macs["unreduced"] == pytest.approx(0.8, rel=budget.TOLERANCE)
            assert record.tokens["requested"] == record.tokens["achieved"]
        if text.startswith("latency"):
            (path,) = (tmp_path / "budgets").glob(f"*/{method.split('(')[0]}*.json")
            solved = json.loads(path.read_text())
            assert all(len(t["reduced"]) == len(t["unreduced"]) > 0 for t in solved["tried"]), "samples are kept"
            if record.error is None:
                assert record.tokens["requested"] == solved["counts"]
            else:
                assert not record.reachable
                assert "the nearest it reaches is" in record.error
    assert found["wkmedoids(iterations=1)", "macs=0.8@0,1"].config["iterations"] == 1
    before = {path: path.read_bytes() for path in (tmp_path / "budgets").rglob("*.json")}
    capsys.readouterr()
    assert run(tmp_path, "--methods", methods, "--budget", "0.8", "--budget-latency", "0.9") == DONE
    assert "7 of 7 cells have been measured before" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "budgets").rglob("*.json")}


def test_a_budget_below_the_cost_of_the_first_blocks_is_rejected(tmp_path, capsys, request):
    request.getfixturevalue("monkeypatch").chdir(request.config.rootpath)
    assert run(tmp_path, "--methods", "topk", "--budget", "0.05") == WRONG
    error = capsys.readouterr().err
    assert "the nearest it reaches is 0." in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(("text", "says"), [("1.5", "outside (0, 1]"), ("half", "macs=SHARE"), ("0", "outside (0, 1]")])
def test_a_budget_that_is_not_a_share_is_rejected(tmp_path, capsys, request, text, says):
    request.getfixturevalue("monkeypatch").chdir(request.config.rootpath)
    assert run(tmp_path, "--methods", "topk", "--budget", text) == WRONG
    assert says.split("(")[0].lower() in capsys.readouterr().err.lower()


# ---------------------------------------------------------------- by the tokens that live


def live_share(base, model, images) -> float:
    """What the living tokens of a reduced model cost, as a share of the unreduced model's MACs."""
    macs = cell.live_macs(model, cell.token_counts(model, images)["live"])
    return macs / flops.closed_form(tpbench.reduce(base, "none")).total


def test_living_tokens_meet_the_budget_where_asked(make_vit):
    base = make_vit()
    recipe = tiny_recipe.recipe()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = schedule.parse("macs=0.5@0,1,2")
    plain, live = registry.variants("ats,ats(live=True)")
    met = models.with_live_budget(recipe, base, live, asked, lambda: images)
    assert live_share(base, models.reduced(recipe, base, live, met), images) == pytest.approx(0.5, rel=budget.TOLERANCE)
    as_it_is = models.with_live_budget(recipe, base, plain, asked, lambda: images)
    assert as_it_is == asked
    assert live_share(base, models.reduced(recipe, base, plain, asked), images) < 0.48  # control


@pytest.mark.parametrize(
    ("variant", "text", "message"),
    [
        ("topk(live=True)", "macs=0.5@0", "for methods that may keep fewer tokens"),
        ("ats(live=3)", "macs=0.5@0", "live must be True or False"),
        ("ats(live=True)", "0.7@0", "needs a share of the MACs"),
    ],
)
def test_living_tokens_are_refused_where_they_mean_nothing(make_vit, variant, text, message):
    (variant,) = registry.variants(variant)
    with pytest.raises(UsageError, match=message):
        models.with_live_budget(tiny_recipe.recipe(), make_vit(), variant, schedule.parse(text), lambda: None)


def test_living_tokens_that_never_cost_so_much_are_out_of_reach(make_vit):
    """With room for all but one token too few are sampled, and with room for all nothing is reduced."""
    base = make_vit()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = schedule.parse("macs=0.9@0,1,2")
    with pytest.raises(Unreachable, match="the nearest it reaches is"):
        live_budget.solve(asked, base, lambda counts: tpbench.reduce(base, "ats", counts), images)
    assert tpbench.reduce(base, "ats", schedule.parse("64,64,64@0,1,2")).reducers == []
