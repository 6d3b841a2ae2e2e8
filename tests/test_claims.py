"""The paper's claims: hand-made records in, hand-computed verdicts out.

`python tests/test_claims.py` rewrites the golden page.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import GOLDEN, T2, measured, store

from tpbench.claims import claims
from tpbench.claims import page as claims_page
from tpbench.claims.study import Study, read_studies
from tpbench.claims.verdict import FAILS, HOLDS, OPEN, Reading, Rule
from tpbench.cli import DONE, WRONG, main
from tpbench.errors import UsageError
from tpbench.record import Record
from tpbench.report.interval import Interval

SECONDS = {"patch_embed": 0.1, "blocks.0.attn": 0.4, "blocks.0.reducer": 0.03, "head": 0.5}
SPREAD = {0: -0.1, 1: 0.0, 2: 0.1}  # by seed, around a mean: a half-width of 0.25 points


def cells(
    method: str, top1: float, schedule: str = "0.5@0,1,2", share: float = 0.5, spread=SPREAD, **other
) -> list[Record]:
    """Three seeds of a method, fine-tuned to `top1` percent and off the shelf 10 points below it."""
    made = [measured(method, seed, top1 + by, schedule, share, **other) for seed, by in spread.items()]
    return [replace(record, layers_seconds=SECONDS, data={"fingerprint": "images"}) for record in made]


def study(*records: list[Record], recipe: str = "digits", width: int = 1, spectra=()) -> Study:
    """A study on a base of so many times the multiply-adds."""
    scaled = [
        replace(r, recipe=recipe, macs={name: width * value for name, value in r.macs.items()})
        for own in records
        for r in own
    ]
    return Study(recipe, scaled[0].machine, scaled, list(spectra))


def spectra(*ratios: float) -> list[dict]:
    names = {"at_the_keys": 0.5, "as_it_is": 1.0, "one_key_norm": 0.8}
    return [{name: {"high_over_low": factor * r} for name, factor in names.items()} for r in ratios]


def found(studies: Study | list[Study], claim: int, words: str = "", schedule: str | None = None) -> Reading:
    """The one reading of a claim whose test has these words."""
    readings = claims.readings(studies if isinstance(studies, list) else [studies])
    own = [r for r in readings if r.claim == claim and words in r.test and schedule in (None, r.schedule)]
    assert len(own) == 1, [reading.test for reading in own]
    return own[0]


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("rule", "mean", "half_width", "verdict"),
    [
        (Rule(low=0), 1.0, 0.9, HOLDS),
        (Rule(low=0), 1.0, 1.1, OPEN),
        (Rule(low=0), -1.0, 0.9, FAILS),
        (Rule(low=0), -1.0, 1.1, OPEN),
        (Rule(high=3.7), 3.0, 0.5, HOLDS),
        (Rule(high=3.7), 4.3, 0.5, FAILS),
        (Rule(-0.5, 0.5), 0.1, 0.3, HOLDS),
        (Rule(-0.5, 0.5), 0.4, 0.3, OPEN),
        (Rule(-0.5, 0.5), -0.9, 0.3, FAILS),
        (Rule(low=0), 1.0, math.nan, OPEN),
        (Rule(low=0), 0.0, 0.0, FAILS),  # all seeds alike: not better
    ],
)
def test_only_a_whole_interval_decides(rule, mean, half_width, verdict):
    reading = Reading(4, "", "", "", "", "points", rule, Interval(mean, half_width, 3))
    assert reading.verdict == verdict
    assert bool(reading.decided_by) == (verdict == OPEN)


def test_what_is_counted_needs_no_interval_and_one_seed_decides_nothing():
    one = Interval(5.0, math.nan, 1)
    assert Reading(6, "", "", "", "", "%", Rule(high=3.7), one, exact=True).verdict == FAILS
    sampled = Reading(6, "", "", "", "", "%", Rule(high=3.7), one)
    assert (sampled.verdict, sampled.decided_by) == (OPEN, "a second seed: there is no interval")


# ---------------------------------------------------------------- 1


@pytest.mark.parametrize(
    ("width", "pixels", "gmacs", "share"),
    [
        (192, 224, 1.254, 83.4),
        (384, 224, 4.599, 91.0),
        (768, 224, 17.564, 95.3),
        (768, 384, 55.484, 88.3),
        (384, 384, 15.490, 79.1),
        (192, 384, 4.682, 65.4),
    ],
)
def test_the_closed_form_gives_the_known_numbers(width, pixels, gmacs, share):
    linear, total = claims.vit_macs(width, 12, pixels)
    assert (round(total / 1e9, 3), round(100 * linear / total, 1)) == (gmacs, share)


def test_the_closed_form_is_the_models():
    import timm

    from tpbench.vit import reduce

    layers = reduce(timm.create_model("deit_tiny_patch16_224"), "none").macs()
    linear, total = claims.vit_macs(192, 12, 224)
    products = sum(macs - 197 * 4 * 192**2 for name, macs in layers.items() if name.endswith("attn"))
    assert total == sum(layers.values())
    assert linear == total - products - layers["patch_embed"] - layers["head"]


# ---------------------------------------------------------------- 2


def test_the_spectrum_decides_by_seeds():
    records = cells("none", 98, share=1.0)
    low = found(study(records, spectra=spectra(0.5, 0.6, 0.55)), 2, "token for token")
    assert (low.verdict, round(low.ours.mean, 9)) == (HOLDS, 0.55)
    assert found(study(records, spectra=spectra(1.2, 1.3, 1.25)), 2, "token for token").verdict == FAILS
    assert found(study(records, spectra=spectra(0.5)), 2, "token for token").verdict == OPEN
    assert "run the recipe again" in found(study(records), 2, "token for token").decided_by


# ---------------------------------------------------------------- 3


def test_saving_on_one_base_is_read_from_its_own_front():
    """Token Pooling reaches the base's 90 % between 89 % at 0.4 and 91 % at 0.6 of its MACs: at 0.5."""
    own = study(cells("none", 90, share=1.0), cells("wkmedoids", 89, "a", 0.4), cells("wkmedoids", 91, "b", 0.6))
    saved, lost = found(own, 3, "one base: MACs"), found(own, 3, "one base: accuracy")
    assert saved.ours.mean == pytest.approx(50)
    assert lost.ours.mean == pytest.approx(0.8)  # 90.8 % at 0.58
    assert saved.verdict == lost.verdict == HOLDS
    worse = study(cells("none", 90, share=1.0), cells("wkmedoids", 88, "a", 0.4), cells("wkmedoids", 89, "b", 0.6))
    assert found(worse, 3, "one base: MACs").ours.mean == pytest.approx(0), "control: only the base reaches itself"
    assert found(worse, 3, "one base: MACs").verdict == FAILS
    assert found(worse, 3, "one base: accuracy").ours.mean == pytest.approx(-1.1)


def test_a_seed_whose_pooled_model_beats_the_base_is_not_left_out():
    """Its front ends at the pooled model: for more MACs than that, that accuracy can be had."""
    better = cells("wkmedoids", 89, "a", 0.5, spread={0: 2, 1: -1, 2: -1})
    lost = found(
        study(cells("none", 90, share=1.0, spread=dict.fromkeys(range(3), 0)), better), 3, "one base: accuracy"
    )
    assert lost.ours.n == 3
    assert lost.ours.mean == pytest.approx((1 + 2 * (-2 + 2 * 0.08 / 0.5)) / 3)


def test_the_hull_over_widths_finds_what_one_base_does_not():
    """The wide base has 90 %. Its own pooled models fall below; a base half as large, pooled, reaches 92 % at 0.4."""
    wide = study(cells("none", 90, share=1.0), cells("wkmedoids", 88, "a", 0.6), recipe="wide", width=2)
    narrow = study(cells("none", 93, share=1.0), cells("wkmedoids", 92, "a", 0.8), recipe="narrow")
    hull = found([wide, narrow], 3, "hull")
    assert hull.ours.mean == pytest.approx(60)
    assert hull.verdict == HOLDS
    assert claims.readings([wide, narrow]).count(hull) == 1
    alone = found(wide, 3, "hull")
    assert (alone.verdict, alone.ours.n) == (OPEN, 0), "control: one width is no hull"
    assert "other widths" in alone.decided_by
    other = replace(narrow, records=[replace(r, data={"fingerprint": "others"}) for r in narrow.records])
    readings = [r for r in claims.readings([wide, other]) if "hull" in r.test]
    assert [r.verdict for r in readings] == [OPEN, OPEN], "control: other images share no hull"


# ---------------------------------------------------------------- 4 and 5


def test_methods_are_compared_at_equal_macs_latency_and_tokens_separately():
    base = cells("none", 98, share=1.0)
    rows = [cells(m, t, s) for m, t, s in [("wkmedoids", 95, "macs=0.5@0"), ("topk", 94, "macs=0.5@0")]]
    rows += [cells("wkmedoids", 94, "latency=0.5@0"), cells("topk", 95, "latency=0.5@0")]
    rows += [cells("wkmedoids", 95), cells("topk", 95, spread={0: 0.5, 1: -0.4, 2: 0.1})]
    verdicts = [found(study(base, *rows), 4, f"{cost}: wkmedoids minus topk").verdict for cost in claims.COSTS]
    assert verdicts == [HOLDS, FAILS, OPEN]
    nothing = found(study(base, *rows), 4, "equal MACs: wkmedoids minus random")
    assert (nothing.verdict, nothing.ours.n) == (OPEN, 0)
    assert nothing.decided_by == "records of wkmedoids and random at a schedule macs=..."


def test_differences_are_paired_by_seed():
    """Seeds lie points apart, the methods 1.0, 1.1 and 0.9 within each."""
    a = cells("wkmedoids", 95, spread={0: -3, 1: 0, 2: 4})
    b = cells("kmedoids", 94, spread={0: -3, 1: -0.1, 2: 4.1})
    reading = found(study(cells("none", 98, share=1.0), a, b), 5, "equal tokens: wkmedoids")
    assert reading.ours == pytest.approx((1.0, T2 * 0.1 / math.sqrt(3), 3))
    assert reading.verdict == HOLDS
    shuffled = cells("kmedoids", 94, spread={0: 4.1, 1: -3, 2: -0.1})
    reading = found(study(cells("none", 98, share=1.0), a, shuffled), 5, "equal tokens: wkmedoids")
    assert reading.ours.mean == pytest.approx(1.0)
    assert reading.verdict == OPEN, "control: the same values under other seeds decide nothing"


def test_several_schedules_are_averaged_and_shown():
    rows = [cells("wkmedoids", 95, "a"), cells("topk", 94, "a"), cells("wkmedoids", 93, "b"), cells("topk", 92.5, "b")]
    readings = claims.readings([study(cells("none", 98, share=1.0), *rows)])
    own = [r for r in readings if r.claim == 4 and r.test == "equal tokens: wkmedoids minus topk (PoWER-BERT)"]
    assert [(r.schedule, r.detail) for r in own] == [("mean of 2 schedules", False), ("a", True), ("b", True)]
    assert [r.ours.mean for r in own] == pytest.approx([0.75, 1.0, 0.5])


def test_a_row_that_is_not_of_equal_macs_says_so():
    rows = [cells("wkmedoids", 95, "macs=0.5@0", 0.504), cells("topk", 94, "macs=0.5@0", 0.48)]
    assert found(study(cells("none", 98, share=1.0), *rows), 4, "equal MACs: wkmedoids minus topk").note == (
        "MACs differ by +2.4 % of the base's"
    )
    rows[1] = cells("topk", 94, "macs=0.5@0", 0.498)
    assert found(study(cells("none", 98, share=1.0), *rows), 4, "equal MACs: wkmedoids minus topk").note == ""


def test_failed_records_are_no_evidence(tmp_path):
    failed = [replace(r, error="loss is NaN") for r in cells("topk", 10)]
    store(tmp_path, [*cells("none", 98, share=1.0), *cells("wkmedoids", 95), *failed])
    reading = found(read_studies([tmp_path]), 4, "equal tokens: wkmedoids minus topk")
    assert (reading.verdict, reading.ours.n) == (OPEN, 0)


# ---------------------------------------------------------------- 6, 7 and 8


def test_what_clustering_costs_is_counted_and_timed():
    own = study(cells("none", 98, share=1.0), cells("wkmedoids", 95))  # 50,000 of 4,000,000; 0.03 of 1.03 seconds
    counted, timed = found(own, 6, "counted"), found(own, 6, "measured")
    assert counted.ours.mean == pytest.approx(100 * 50_000 / 3_950_000)
    assert timed.ours.mean == pytest.approx(3.0)
    assert counted.verdict == timed.verdict == HOLDS
    slow = [replace(r, layers_seconds=SECONDS | {"blocks.0.reducer": 0.08}) for r in cells("wkmedoids", 95)]
    assert found(study(cells("none", 98, share=1.0), slow), 6, "measured").verdict == FAILS, "control"


def test_settings_are_held_against_the_default():
    base, default = cells("none", 98, share=1.0), cells("wkmedoids", 95)
    near, far = cells("wkmedoids(init=grid)", 95.1), cells("wkmedoids(init=random)", 93)
    more, fewer = cells("wkmedoids(iterations=10)", 95.05), cells("wkmedoids(iterations=1)", 90)
    own = study(base, default, near, far, more, fewer)
    verdicts = {r.test: r.verdict for r in claims.readings([own]) if r.claim == 7}
    assert verdicts == {
        "init=grid minus the default": HOLDS,
        "init=random minus the default": FAILS,
        "iterations=10 minus the default": HOLDS,
    }
    assert found(study(base, default), 7).verdict == OPEN


def test_off_the_shelf_is_held_against_the_base_off_the_shelf():
    own = study(cells("none", 98, share=1.0), cells("wkmedoids", 95, "a"), cells("wkmedoids", 80, "b"))
    assert found(own, 8, schedule="a").ours.mean == pytest.approx(-3)
    assert [found(own, 8, schedule=text).verdict for text in "ab"] == [HOLDS, FAILS]


# ---------------------------------------------------------------- the page


def example(folder: Path) -> list[Study]:
    """Two widths of one study, with equal-cost rows, spectra and one ablation, as files."""
    for name, factor, lift in (("wide", 2, 0.0), ("narrow", 1, -1.0)):
        own = study(
            cells("none", 98 + lift, share=1.0),
            cells("wkmedoids", 97.5 + lift),
            cells("kmedoids", 97.2 + lift),
            cells("topk", 96 + lift),
            cells("wkmedoids", 97, "macs=0.4@0,1,2", 0.398),
            cells("topk", 97.2, "macs=0.4@0,1,2", 0.4),
            cells("wkmedoids(init=grid)", 97.4 + lift),
            recipe=name,
            width=factor,
        )
        store(folder / name, own.records)
        for seed, told in enumerate(spectra(0.5, 0.6, 0.7)):
            path = folder / name / "spectra" / own.machine / f"seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told))
    return read_studies([folder / "wide", folder / "narrow"])


def page(folder: Path) -> str:
    studies = example(folder)
    return claims_page.markdown(studies, claims.readings(studies))


def test_a_study_that_says_nothing_stands_back(tmp_path):
    """A study without records for a test is left out where another has some; where none has, one says what to do."""
    whole = claims.readings(example(tmp_path))
    keys = [(reading.claim, reading.test) for reading in whole if reading.missing and reading.claim != 3]
    said = {(reading.claim, reading.test) for reading in whole if not reading.missing}
    assert len(keys) == len(set(keys)), "each is missing once"
    assert not set(keys) & said
    assert keys, "control: the example leaves something out"


def test_the_page_is_the_golden_one(tmp_path):
    assert page(tmp_path) == (GOLDEN / "claims.md").read_text(encoding="utf-8")


def test_control_one_accuracy_changes_the_page(tmp_path):
    page(tmp_path)
    path = next((tmp_path / "wide" / "records").rglob("topk_*.json"))
    told = json.loads(path.read_text())
    told["metrics"]["fine_tuned_top1"] += 0.01
    path.write_text(json.dumps(told))
    studies = read_studies([tmp_path / "wide", tmp_path / "narrow"])
    changed = claims_page.markdown(studies, claims.readings(studies))
    assert changed != (GOLDEN / "claims.md").read_text(encoding="utf-8")


def test_a_claim_holds_only_if_every_reading_does():
    def outcome(*verdicts: str) -> str:
        mean = {HOLDS: 1.0, FAILS: -1.0, OPEN: math.nan}
        made = [Reading(4, "", "", "", "", "", Rule(low=0), Interval(mean[v], 0.0, 3)) for v in verdicts]
        return claims_page.outcome(made)

    assert outcome(HOLDS, HOLDS) == HOLDS
    assert outcome(FAILS) == FAILS
    assert outcome() == outcome(OPEN, OPEN) == OPEN
    assert outcome(HOLDS, OPEN) == f"{OPEN} (of 2 readings 1 hold, 0 do not, 1 undecided)"
    assert outcome(HOLDS, FAILS).startswith("holds in part")
    assert outcome(FAILS, OPEN).startswith(FAILS)


def test_the_verb_writes_its_files_and_names_what_it_cannot_read(tmp_path, capsys):
    example(tmp_path)
    words = ["claims", str(tmp_path / "wide"), str(tmp_path / "narrow"), "--out", str(tmp_path / "out")]
    assert main(words) == DONE
    out = capsys.readouterr().out
    assert "2. Softmax attention is a low-pass filter over key space: holds\n" in out
    names = {"claims.md", "claims.csv", "claims.json", "claims-hull-wide.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out" / "claims-hull-wide.png").read_bytes().startswith(b"\x89PNG")
    assert main(["claims", str(tmp_path / "wide"), "--out", str(tmp_path / "one")]) == DONE
    assert not list((tmp_path / "one").glob("*.png")), "control: one width has no hull"
    capsys.readouterr()
    rows = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert {row["claim"] for row in rows} == set(claims.CLAIMS)
    assert main(["claims", str(tmp_path / "nowhere")]) == WRONG
    assert "holds no records" in capsys.readouterr().err
    next((tmp_path / "wide" / "spectra").rglob("*.json")).write_text("{}")
    with pytest.raises(UsageError, match=r"seed\d\.json is corrupt"):
        read_studies([tmp_path / "wide"])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        (GOLDEN / "claims.md").write_text(page(Path(temporary)), encoding="utf-8")
