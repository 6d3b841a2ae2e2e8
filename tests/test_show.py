"""`tpbench show`: what is painted, which tables follow, and the command on photographs and on a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpbench import cli
from tpbench.report import overlap, pictures
from tpbench.report.pictures import Stage

TINY = str(Path(__file__).parent / "tiny_recipe.py")


def stage(owner: list[int], patch: list[int], grid: tuple[int, int] = (2, 3), block: int = 0) -> Stage:
    return Stage(block, grid, np.array([owner]), np.array([patch]), exact=True)


def image(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (height, width, 3))


# ---------------------------------------------------------------- painting


def patch_of(painted: np.ndarray, row: int, column: int, grid: tuple[int, int] = (2, 3)) -> np.ndarray:
    height = painted.shape[0] // grid[0]
    width = painted.shape[1] // grid[1]
    return painted[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_kept_patches_are_seen_dropped_ones_fade_and_merged_ones_in_their_mean():
    pixels = image()
    owner = np.array([[0, -1, 1], [2, 1, 1]])
    plain = pictures.enlarged(pixels, (2, 3))
    painted = pictures.paint(pixels, owner)
    assert np.array_equal(patch_of(painted, 0, 0), patch_of(plain, 0, 0))
    assert np.array_equal(patch_of(painted, 1, 0), patch_of(plain, 1, 0))
    faint = patch_of(painted, 0, 1)
    assert np.allclose(faint - pictures.DROPPED, pictures.FAINT * (patch_of(plain, 0, 1) - pictures.DROPPED))
    members = [patch_of(plain, *place) for place in ((0, 2), (1, 1), (1, 2))]
    mean = np.mean([part.mean(axis=(0, 1)) for part in members], axis=0)
    for place in ((0, 2), (1, 1), (1, 2)):
        assert np.allclose(patch_of(painted, *place), mean)


def test_a_patch_is_never_too_small_to_see():
    assert pictures.enlarged(image(), (2, 3)).shape == (32, 48, 3)
    assert pictures.enlarged(image(80, 120), (2, 3)).shape == (80, 120, 3)
    assert pictures.enlarged(image(81, 122), (2, 3)).shape == (80, 120, 3), "what is no whole patch is cut off"


def test_outlines_run_around_clusters_alone():
    assert pictures.outlines(np.array([[0, 1], [2, -1]])) == []
    lines = pictures.outlines(np.array([[0, 0, 1], [2, 3, 4]]))
    assert sorted(lines) == sorted([[(2, 0), (2, 1)], [(0, 1), (1, 1)], [(1, 1), (2, 1)]])
    assert pictures.outlines(np.zeros((2, 2), dtype=int)) == []


def test_a_dot_marks_the_medoid_and_no_token_that_stands_for_itself():
    seen = stage([0, 0, 1, 2, 2, 2], [1, 2, -1])
    assert pictures.medoids(seen, 0) == [1]
    assert seen.standing(0) == 3


def test_a_picture_is_the_same_bytes_for_the_same_tokens(tmp_path):
    rows = {
        "topk(x=$1$)": [stage([0, -1, 1, -1, 2, -1], [0, 2, 4])],
        "soft": [stage([0, 0, 1, 2, 2, 2], [-1] * 3)._replace(exact=False)],
        "other": "it does not say",
    }
    paths = [pictures.draw(image(), rows, 0, "<about>", tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = pictures.draw(image(), {"topk": [stage([0, -1, -1, 1, 2, -1], [0, 3, 4])]}, 0, "", tmp_path / "c.png")
    assert other.read_bytes() != paths[0].read_bytes()
    assert Image.open(paths[0]).size[0] > 300


# ---------------------------------------------------------------- overlap


def test_tokens_kept_in_common_by_hand():
    one = stage([0, 1, 2, -1, -1, -1], [0, 1, 2])
    two = stage([-1, 0, 1, 2, -1, -1], [1, 2, 3])
    assert overlap.kept_in_common(one, two) == pytest.approx(2 / 3)
    assert overlap.kept_in_common(one, one) == 1
    fewer = stage([-1, 0, -1, -1, -1, 1], [1, 5])
    assert overlap.kept_in_common(one, fewer) == pytest.approx(1 / 2)
    assert overlap.chance([one, two]) == "0.50"
    assert overlap.chance([one, fewer]).startswith("0.33 to 0.50")


def test_groups_are_alike_whatever_their_numbers():
    one = stage([0, 0, 1, 1, 2, 2], [-1] * 3)
    assert overlap.grouped_alike(one, stage([2, 2, 0, 0, 1, 1], [-1] * 3)) == 1
    assert overlap.grouped_alike(one, stage([0, 1, 2, 0, 1, 2], [-1] * 3)) < 0


def test_the_tables_have_whom_they_can_compare():
    rows = {
        "a|b": stage([0, 1, 2, -1, -1, -1], [0, 1, 2]),
        "medoids": stage([0, 0, 1, 1, 2, 2], [0, 2, 4]),
        "means": stage([0, 0, 1, 1, 1, 2], [-1, -1, 5]),
        "soft": stage([0, 0, 0, 1, 1, 1], [-1, -1]),
        "fused": stage([-1, -1, 0, 0, 0, 0], [-1]),
    }
    text = "\n".join(overlap.tables(rows))
    assert r"| a\|b |  | 0.67 |" in text
    assert "| Method | medoids | means | soft |" in text
    assert "In neither table: fused." in text
    assert "soft (" not in text


# ---------------------------------------------------------------- the command


def test_photographs_of_ones_own(tmp_path, capsys):
    files = []
    for name in ("cat", "dog"):
        files.append(tmp_path / f"{name}.png")
        Image.fromarray((image(40, 60) * 255).astype(np.uint8)).save(files[-1])
    words = ["show", "--model", "test_vit", "--methods", "topk,tome,patchmerger,none", "--schedule", "0.6@1,3"]
    assert cli.main([*words, "--images", *map(str, files), "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0-cat.png", "1-dog.png", "overlap.md"]
    text = (tmp_path / "pictures" / "overlap.md").read_text(encoding="utf-8")
    assert text.count("## After block") == 2
    assert "test_vit, untrained weights, schedule 0.6@1,3." in text
    assert "Tokens kept in common" in capsys.readouterr().out


def test_a_method_that_cannot_run_is_named_and_the_others_are_drawn(tmp_path, capsys):
    words = ["show", "--model", "test_vit", "--out", str(tmp_path), "--device", "cpu", "--schedule", "0.4@1"]
    assert cli.main([*words, "--methods", "topk,tome"]) == 0
    assert "not shown: tome: tome removes at most half of" in capsys.readouterr().out
    assert (tmp_path / "pictures" / "china.png").is_file()
    assert cli.main([*words, "--methods", "tome"]) == 2
    assert "no method can be shown; tome: tome removes at most half" in capsys.readouterr().err


@pytest.mark.slow
def test_the_base_and_the_images_of_a_recipe(tmp_path, capsys):
    words = ["show", "--recipe", TINY, "--methods", "topk,wkmedoids", "--count", "3", "--out", str(tmp_path)]
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "test-0.png",
        "test-1.png",
        "test-2.png",
        "overlap.md",
    }
    assert (tmp_path / "work" / "base_seed0.safetensors").is_file()
    assert "base of seed 0" in (tmp_path / "pictures" / "overlap.md").read_text(encoding="utf-8")
    assert "Tokens kept in common" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "x.png"], "--images and --pretrained need --model"),
        (["--pretrained"], "--images and --pretrained need --model"),
        (["--model", "test_vit", "--recipe", "digits"], "not allowed with argument"),
        (["--count", "0"], "--count 0: at least 1 image is needed"),
        (["--methods", "none"], "--methods none reduces nothing"),
        (["--methods", "topp"], "unknown method 'topp'"),
        (["--model", "test_vit", "--images", "nowhere.png"], "image nowhere.png cannot be read"),
        (["--model", "test_vit", "--schedule", "0.7@9"], "block 9 is out of range"),
        (["--model", "no_such_model"], "unknown model 'no_such_model'"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(words, says, tmp_path, capsys):
    assert cli.main(["show", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
