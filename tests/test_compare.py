"""`tpbench compare`: what changed between two results folders, machines or commits, and what fails a build."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_report import MACHINE, REDUCED, SCHEDULE, T2, measured, over_seeds, store

from tpbench.cli import main
from tpbench.errors import UsageError
from tpbench.measure import timings
from tpbench.measure.timings import Row, Session, Sitting
from tpbench.outcomes import outcomes, pack
from tpbench.record import Record
from tpbench.report import compare, compare_text, sides, worse
from tpbench.report.compare import Change, Changes, changes

IMAGES = 400
TOPS = {"none": (97.0, 98.0, 97.5), "tome": (95.0, 96.2, 95.7), "topk": (94.0, 95.1, 94.6)}


def records(**moved: tuple[float, ...]) -> list[Record]:
    """Three rows over three seeds; the accuracies named are others than TOPS'."""
    tops = TOPS | moved
    return [record for method, own in tops.items() for record in over_seeds(method, own)]


def row(compared: Changes, method: str) -> Change:
    (found,) = [row for row in compared.rows if row.method == method]
    return found


def answered(right: np.ndarray, method: str = "topk", images: str = "test") -> list[Record]:
    """Records whose outcomes are `right`, [S, I]."""
    return [
        measured(method, seed, 100 * own.mean(), outcomes={"fine_tuned": pack(outcomes(images, own))})
        for seed, own in enumerate(right)
    ]


def shown(a: Path, b: Path, width: int = 100) -> str:
    first, second = sides.read(str(a)), sides.read(str(b))
    compared = [changes(first.machines[x], second.machines[y]) for x, y in sides.pairs(first, second)]
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    compare_text.show(first, second, compared, console)
    return out.getvalue()


# ------------------------------------------------------------------------------------------ accuracy


def test_a_change_is_paired_by_seed() -> None:
    """The seeds scatter by points, the changes by a tenth: -1.0, -1.1, -0.9."""
    compared = changes(records(), records(topk=(93.0, 94.0, 93.7)))
    topk = row(compared, "topk")
    assert topk.paired == "seeds"
    assert topk.top1 == pytest.approx((94.566667, 93.566667))
    assert topk.difference.value == pytest.approx(-1.0)
    assert topk.difference.half_width() == pytest.approx(T2 * 0.1 / 3**0.5)
    shuffled = changes(records(), records(topk=(93.7, 93.0, 94.0)))  # control: the same values at other seeds
    assert row(shuffled, "topk").difference.half_width() > 5 * topk.difference.half_width()


def test_only_common_seeds_count() -> None:
    fewer = [record for record in records() if record.seed != 0]
    topk = row(changes(records(), fewer), "topk")
    assert topk.difference.seeds == 2
    assert topk.top1[0] == topk.top1[1]
    apart = [replace(record, seed=record.seed + 7) for record in records()]
    lonely = row(changes(records(), apart), "topk")
    assert "no seed is in common" in lonely.notes
    assert np.isnan(lonely.difference.value)


def test_each_schedule_is_compared_at_its_own_stage():
    """A loss off the shelf is seen although the reference schedule is fine-tuned."""
    shelf = "macs=0.8@0,1,2"

    def both(*values: float) -> list[Record]:
        own = [measured("tome", seed, value, shelf, 0.8) for seed, value in enumerate(values)]
        return [
            *records(),
            *(replace(one, metrics={"off_the_shelf_top1": one.metrics["fine_tuned_top1"]}) for one in own),
        ]

    compared = changes(both(75.0, 76.1, 75.4), both(30.0, 31.3, 30.2))
    found = {one.schedule: one for one in compared.rows if one.method == "tome"}
    assert found[shelf].stage == "off_the_shelf"
    assert found[shelf].difference.value == pytest.approx(-45.0)
    assert found[SCHEDULE].stage == "fine_tuned"
    text = " ".join(compare_text.findings(compared))
    assert "Top-1 (fine-tuned)" in text
    assert "Top-1 (off the shelf)" in text
    assert any(shelf in sentence for sentence in worse.worse([compared], 2))


def test_seeds_that_failed_on_one_side_are_named_and_costs_are_over_common_seeds():
    after = [
        replace(one, error="RuntimeError: gone") if (one.method, one.seed) == ("topk", 1) else one for one in records()
    ]
    before = [
        replace(one, macs=one.macs | {"total": 5 * one.macs["total"]}) if (one.method, one.seed) == ("topk", 1) else one
        for one in records()
    ]
    compared = changes(before, after)
    topk = row(compared, "topk")
    assert topk.failed_seeds == {"B": [1]}
    assert topk.macs_percent == 0
    assert "topk at" in " ".join(compare_text.findings(compared))
    assert any("no numbers in B with seed 1" in sentence for sentence in worse.worse([compared], 2))
    assert row(changes(records(), records()), "topk").failed_seeds == {}, "control: nothing failed"


def test_outcomes_on_the_same_images_are_paired_image_by_image() -> None:
    rng = np.random.default_rng(0)
    right = np.broadcast_to(rng.random(IMAGES) < 0.9, (4, IMAGES)).copy()
    other = right.copy()
    for seed in range(4):
        other[seed, rng.choice(IMAGES, 20 + seed, replace=False)] = False
    topk = row(changes(answered(right), answered(other)), "topk")
    assert topk.paired == "images"
    assert not topk.identical
    assert topk.difference.value == pytest.approx(100 * (other.mean() - right.mean()))
    elsewhere = row(changes(answered(right), answered(other, images="other")), "topk")
    assert elsewhere.paired == "seeds", "control: outcomes on other images cannot be paired so"
    assert "different images" in elsewhere.notes[0]


def test_identical_outcomes_are_said_and_not_judged() -> None:
    right = np.random.default_rng(0).random((4, IMAGES)) < 0.9
    topk = row(changes(answered(right), answered(right)), "topk")
    assert topk.identical
    one = right.copy()
    one[2, 5] ^= True
    assert not row(changes(answered(right), answered(one)), "topk").identical, "control: one answer of 1,600"


def test_verdicts_are_after_holm_over_all_rows() -> None:
    """One clear change among three rows; alone, the small one would be decided."""
    alone = changes(records()[6:], records(topk=(93.9, 95.02, 94.5))[6:])
    assert row(alone, "topk").judgement.verdict == "worse"
    many = [record for number in range(30) for record in over_seeds(f"m{number}", (90.0, 91.1, 90.6))]
    noisy = [replace(r, metrics=r.metrics | {"fine_tuned_top1": r.metrics["fine_tuned_top1"] + 0.01 * (r.seed - 1)})
             for r in many]  # fmt: skip
    family = changes([*records()[6:], *many], [*records(topk=(93.9, 95.02, 94.5))[6:], *noisy])
    assert row(family, "topk").judgement.verdict != "worse"


# ------------------------------------------------------------------------------------------ cost


def test_macs_and_tokens_are_counts() -> None:
    after = records()
    after[6:] = [
        replace(r, macs=r.macs | {"total": 4_200_000}, tokens=REDUCED | {"achieved": [33, 17, 9]}) for r in after[6:]
    ]
    compared = changes(records(), after)
    assert row(compared, "topk").macs_percent == pytest.approx(5.0)
    assert row(compared, "tome").macs_percent == 0
    text = " ".join(compare_text.findings(compared))
    assert "MACs differ in 1 of 3 rows: topk at 0.5@0,1,2: +5.0 %." in text
    assert "topk at 0.5@0,1,2: 32,16,8 -> 33,17,9" in text
    same = " ".join(compare_text.findings(changes(records(), records())))
    assert "MACs are the same in all 3 rows." in same
    assert "Token counts are the same in all 3 rows." in same


def session(factor: float = 1.0, rounds: int = 40, seed: int = 0) -> Session:
    """topk takes half of the unreduced model's time, times a factor; samples scatter by two percent."""
    rng = np.random.default_rng(seed)
    busy = 1 + rng.random(rounds)  # a busy machine slows both down

    def sampled(seconds: float) -> list[float]:
        return list(seconds * busy * (1 + 0.02 * rng.standard_normal(rounds)))

    rows = [
        Row("timm", "none", 32, "float32", "eager", "reference", macs=8, seconds=sampled(0.02)),
        Row("topk", SCHEDULE, 32, "float32", "eager", macs=4, seconds=sampled(0.01 * factor)),
    ]
    empty = {"images": {}, "environment": {}, "facts": {}}
    return Session(MACHINE, "vit", "random", rounds, **empty, sittings=[Sitting("now", rounds)], rows=rows)


def test_speed_is_the_change_of_the_time_relative_to_the_unreduced_model() -> None:
    compared = changes(records(), records(), (session(), session(1.10, seed=3)))
    (change,) = row(compared, "topk").times
    low, high = change.bounds_percent
    assert low < 10 < high
    assert high - low < 6
    assert not row(compared, "tome").times
    (same,) = row(changes(records(), records(), (session(), session(seed=3))), "topk").times
    assert same.bounds_percent[0] < 0 < same.bounds_percent[1], "control: the same speed"
    text = compare_text.findings(compared)
    assert any("1 slower: topk at 0.5@0,1,2: time at batch 32, float32, eager +" in sentence for sentence in text)
    without = compare_text.findings(changes(records(), records(), (session(), None)))
    assert any("Speed is not compared" in sentence for sentence in without)


def test_a_speed_interval_covers_the_truth() -> None:
    """Forty pairs of sessions of equal speed: about two of the intervals miss zero."""
    several = [session(rounds=20, seed=number) for number in range(80)]
    found = [compare.time_changes(a, b)[SCHEDULE, "topk"][0] for a, b in zip(several[::2], several[1::2])]
    missed = sum(not change.bounds_percent[0] < 0 < change.bounds_percent[1] for change in found)
    assert missed <= 6
    assert max(change.bounds_percent[1] - change.bounds_percent[0] for change in found) < 8, "and they are narrow"


# ------------------------------------------------------------------------------------------ what fails


CLEARLY_LOWER = (88.0, 89.2, 88.5)


def failing(after: list[Record], percent: float = 2, **sessions) -> list[str]:
    return worse.worse([changes(records(), after, **sessions)], percent)


def test_a_decided_loss_beyond_the_threshold_fails() -> None:
    (found,) = failing(records(topk=CLEARLY_LOWER))
    assert found.startswith("topk at 0.5@0,1,2: top-1 -6.0 points [")
    assert failing(records(topk=CLEARLY_LOWER), 7) == [], "the loss is smaller than the threshold"
    assert failing(records(topk=(99.0, 99.9, 99.5))) == [], "a gain"
    assert failing(records()) == []


def test_a_loss_that_is_not_decided_does_not_fail() -> None:
    """The same mean loss of six points, from seeds that scatter by ten."""
    assert failing(records(topk=(98.0, 79.2, 88.5))) == []
    one = [record for record in records(topk=CLEARLY_LOWER) if record.seed == 0]
    assert failing(one) == [], "one seed decides nothing"


def test_nothing_in_common_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = store(tmp_path / "a", records()), store(tmp_path / "b", over_seeds("ats", (90.0, 91.0, 92.0)))
    assert main(["compare", str(a), str(b), "--fail-above", "2%"]) == 2
    assert "no row in common" in capsys.readouterr().err
    assert main(["compare", str(a), str(b)]) == 0
    one = store(tmp_path / "one", [record for record in records(topk=CLEARLY_LOWER) if record.seed == 0])
    assert main(["compare", str(a), str(one), "--fail-above", "2%"]) == 0
    assert "no difference in accuracy has an interval" in capsys.readouterr().err
    assert main(["compare", str(a), str(store(tmp_path / "c", records(topk=CLEARLY_LOWER))), "--fail-above", "9%"]) == 0
    assert "no accuracy" not in capsys.readouterr().err, "control"


def test_a_loss_below_the_threshold_is_no_failure_even_where_it_is_certain() -> None:
    certain = records(topk=(93.0, 94.11, 93.59))
    assert row(changes(records(), certain), "topk").judgement.p_difference < 0.05
    assert failing(certain) == []
    assert len(failing(certain, 0.5)) == 1


def test_macs_above_the_threshold_fail() -> None:
    def costing(factor: float) -> list[Record]:
        return [replace(r, macs=r.macs | {"total": int(r.macs["total"] * factor)}) for r in records()]

    assert failing(costing(1.019)) == []
    assert failing(costing(0.5)) == []
    assert [found.endswith("MACs +2.1 %") for found in failing(costing(1.021))] == [True] * 3


def test_time_above_the_threshold_fails() -> None:
    slow = {"sessions": (session(), session(1.10, seed=1))}
    (found,) = failing(records(), **slow)
    assert "time at batch 32, float32, eager +" in found
    assert failing(records(), 15, **slow) == []
    assert failing(records(), sessions=(session(1.10), session(seed=1))) == []


def test_a_row_that_lost_its_numbers_fails() -> None:
    broken = [replace(r, error="out of memory") if r.method == "topk" else r for r in records()]
    assert failing(broken) == ["topk at 0.5@0,1,2: no numbers in B: out of memory"]
    assert worse.worse([changes(broken, records())], 2) == [], "mended is not worse"
    assert worse.worse([changes(broken, broken)], 2) == []


@pytest.mark.parametrize("text", ["2", "two%", "0%", "-1%", ""])
def test_a_threshold_is_a_positive_percentage(text: str) -> None:
    assert worse.threshold("0.5 %") == 0.5
    with pytest.raises(UsageError, match="such as 2%"):
        worse.threshold(text)


# ------------------------------------------------------------------------------------------ sides


def test_rows_of_one_side_are_named(tmp_path: Path) -> None:
    a, b = (
        store(tmp_path / "a", records()),
        store(tmp_path / "b", records()[:6] + over_seeds("ats", (90.0, 91.0, 92.0))),
    )
    text = shown(a, b)
    assert "Only in A, at 0.5@0,1,2: topk." in text
    assert "Only in B, at 0.5@0,1,2: ats." in text


def test_other_settings_are_said() -> None:
    other = [replace(record, config={"init": "grid"}) for record in records()]
    text = " ".join(compare_text.findings(changes(records(), other)))
    assert "topk at 0.5@0,1,2: settings differ: init absent -> grid" in text
    elsewhere = [replace(record, data={"fingerprint": "another"}) for record in records()]
    assert "measured on other images" in " ".join(compare_text.findings(changes(records(), elsewhere)))
    same = " ".join(compare_text.findings(changes(records(), records())))
    assert "differ" not in same
    assert "other images" not in same


def test_other_recipes_are_said_and_never_fail_a_build(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = store(tmp_path / "a", records())
    b = store(tmp_path / "b", [replace(record, recipe_digest="another") for record in records(topk=CLEARLY_LOWER)])
    assert "The recipes differ" in shown(a, b)
    assert "The recipes differ" not in shown(a, a)
    assert main(["compare", str(a), str(b), "--fail-above", "2%"]) == 2
    assert "needs the same recipe on both sides" in capsys.readouterr().err
    mixed = store(tmp_path / "b", [replace(records()[0], seed=9)])
    assert main(["compare", str(a), str(mixed)]) == 2
    assert "records of several recipes" in capsys.readouterr().err


def test_machines_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    both = store(tmp_path / "both", records() + [replace(record, machine="other") for record in records()])
    one = store(tmp_path / "one", [replace(record, machine="third") for record in records(topk=CLEARLY_LOWER)])
    assert sides.pairs(sides.read(str(both)), sides.read(str(both))) == [("other", "other"), (MACHINE, MACHINE)]
    assert sides.pairs(sides.read(f"{both}:other"), sides.read(str(one))) == [("other", "third")]
    assert main(["compare", str(both), str(one)]) == 2
    assert "no machine in common" in capsys.readouterr().err
    assert main(["compare", f"{both}:nowhere", str(one)]) == 2
    assert f"it has other, {MACHINE}" in capsys.readouterr().err


def test_a_folder_may_hold_the_signs_in_its_name(tmp_path: Path) -> None:
    odd = store(tmp_path / "run@home:1", records())
    assert sides.parse(str(odd)) == (odd, "", "")
    assert sides.parse(f"{odd}:m") == (odd, "", "m")
    assert sides.parse("results/digits@HEAD~1:m") == (Path("results/digits"), "HEAD~1", "m")
    assert sides.parse("gone@main") == (Path("gone"), "main", "")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A results folder in a repository: committed with topk as in TOPS, then measured anew and lower."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    folder = store(tmp_path / "results" / "digits", records())
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    store(folder, records(topk=CLEARLY_LOWER))
    return folder


def test_a_commit_is_compared_with_the_working_tree(repository: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(repository.rglob("*"))
    assert main(["compare", f"{repository}@HEAD", str(repository), "--json", "--fail-above", "2%"]) == 1
    out, err = capsys.readouterr()
    whole = json.loads(out)
    rows = {row["method"]: row for row in whole["comparisons"][0]["rows"]}
    assert rows["topk"]["difference_points"] == pytest.approx(-6.0, abs=0.1)
    assert rows["tome"]["difference_points"] == 0
    assert whole["worse"][0].startswith("topk at")
    assert err.startswith("tpbench: worse by more than 2 %: topk at")
    assert sorted(repository.rglob("*")) == before
    assert main(["compare", f"{repository}@HEAD", f"{repository}@HEAD", "--fail-above", "2%"]) == 0
    subprocess.run(["rm", "-r", str(repository)], check=True)
    assert main(["compare", f"{repository}@HEAD", f"{repository}@HEAD"]) == 0, "it is gone from the working tree"


@pytest.mark.parametrize(
    ("what", "says"),
    [("@gone", "unknown commit 'gone'"), ("@--all", "unknown commit '--all'"), ("2@HEAD", "does not hold")],
)
def test_a_commit_that_is_not_there_is_refused(
    repository: Path, capsys: pytest.CaptureFixture, what: str, says: str
) -> None:
    assert main(["compare", f"{repository}{what}", str(repository)]) == 2
    assert says in capsys.readouterr().err


def test_outside_a_repository_a_commit_is_refused(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = store(tmp_path / "a", records())
    assert main(["compare", f"{folder}@HEAD", str(folder)]) == 2
    assert "is in no git repository" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = store(tmp_path / "a", records()), store(tmp_path / "b", records())
    path = next((b / "records").rglob("*.json"))
    path.write_text(path.read_text().replace("0.97", "0.96"))
    assert main(["compare", str(a), str(b)]) == 1
    assert "was changed since it was written" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path / "c")]) == 2
    assert "holds no records" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ text


def test_the_table_fits(tmp_path: Path) -> None:
    a = store(tmp_path / "a", records())
    b = store(tmp_path / "b", [replace(r, macs=r.macs | {"total": 4_200_000}) for r in records(topk=CLEARLY_LOWER)])
    for width in (100, 60):
        text = shown(a, b, width)
        assert "-6.0 ±" in text
        assert all(len(line.rstrip()) <= width for line in text.splitlines() if str(tmp_path) not in line)
    assert [line.split()[0] for line in shown(a, b).splitlines() if line.startswith(("topk ", "tome "))] == [
        "topk",
        "tome",
    ], "the greatest loss first"


def test_json_holds_no_number_that_json_lacks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = store(tmp_path / "one", [record for record in records() if record.seed == 0])
    timings.write(timings.path_in(one, MACHINE), session())
    assert main(["compare", str(one), str(one), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    topk = next(row for row in whole["comparisons"][0]["rows"] if row["method"] == "topk")
    assert topk["interval_points"] == [None, None]
    assert topk["time"][0]["percent"] == 0
