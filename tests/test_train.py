"""Training: DeepSpeed's steps are a plain loop's, an interrupted run ends like an uninterrupted one, ranks agree."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import tiny_recipe
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch.nn import functional as F

from tpbench import vit
from tpbench.bench.models import build_base
from tpbench.errors import CellFailed, OutOfTime, UsageError
from tpbench.training import data
from tpbench.training.checkpoint import State
from tpbench.training.data.resident import Augmentation
from tpbench.training.train import Conditions, Run, parameter_groups, seed_all, train

CPU = torch.device("cpu")
RECIPE = tiny_recipe.recipe()


@pytest.fixture(scope="module")
def conditions():
    return Conditions(data.load(RECIPE.data, CPU))


def fresh(method: str = "none", schedule: str = "0.5@0,1", seed: int = 0):
    model = build_base(RECIPE, seed)
    torch.manual_seed(seed)
    return vit.reduce(model, method, schedule)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loop(model, conditions, optim, seed: int) -> None:
    """The same training without DeepSpeed."""
    groups = param_groups_weight_decay(model, optim.weight_decay, model.no_weight_decay())
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=optim.lr, weight_decay=optim.weight_decay)
    updates = len(conditions.data.train) // optim.batch_size
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=optim.epochs,
        warmup_epochs=optim.warmup_epochs,
        warmup_lr=optim.lr * 0.01,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    step = 0
    for epoch in range(optim.epochs):
        seed_all(seed, epoch + 1)
        model.train()
        for images, labels in conditions.data.train.batches(optim.batch_size, (seed, epoch)):
            scheduler.step_update(step)
            F.cross_entropy(model(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1


def test_deepspeed_trains_as_a_plain_loop_does(conditions):
    ours = fresh()
    plain = fresh()
    result = train(ours, conditions, RECIPE.base, seed=3)
    plain_loop(plain, conditions, RECIPE.base, seed=3)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-4, atol=1e-5)
    assert result.steps == 3 * (len(conditions.data.train) // 16)
    assert result.images == result.steps * 16
    other = fresh()
    plain_loop(other, conditions, replace(RECIPE.base, lr=RECIPE.base.lr * 1.05), seed=3)
    assert (weights(ours) - weights(other)).abs().max() > 1e-4, "control: another learning rate shows"


def test_accumulation_gives_the_step_of_the_whole_batch(conditions):
    whole = fresh()
    halves = fresh()
    optim = replace(RECIPE.base, epochs=1)
    train(whole, conditions, optim, seed=0)
    train(halves, conditions, replace(optim, accumulation=2), seed=0)
    # The two draw augmentation in other portions, so only the number of steps and the scale can agree.
    assert (weights(whole) - weights(halves)).abs().max() < 0.05
    assert torch.isfinite(weights(halves)).all()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_rank_takes_the_same_steps_without_deepspeeds_reduction(conditions, accumulation):
    """To the last bit, also for parameters without a gradient, which decay. Control: unfilled, they do not."""

    def trained(reduces: bool, fills: bool = True) -> torch.Tensor:
        model = fresh("topk")
        model.unused = torch.nn.Parameter(torch.ones(3, 3))
        run = Run(model, conditions, replace(RECIPE.finetune, accumulation=accumulation), seed=0)
        run.reduces = reduces
        run.engine.enable_backward_allreduce = reduces
        if not fills:
            run.trained = []
        run.engine.train()
        for batch in islice(run.batches(0, 0), 2 * accumulation):
            run.micro_step(*batch)
        return weights(model)

    assert torch.equal(trained(reduces=False), trained(reduces=True))
    assert not torch.equal(trained(reduces=False, fills=False), trained(reduces=True)), "control"


@pytest.mark.parametrize("method", ["dynamicvit", "random"])
def test_a_run_interrupted_after_an_epoch_ends_like_an_uninterrupted_one(conditions, tmp_path, method):
    class Cut(Exception):
        pass

    def cut(text: str = "", share: float | None = None) -> None:  # noqa: ARG001
        if text.startswith("epoch 2,"):
            raise Cut

    optim = RECIPE.base
    teacher = fresh()
    uncut = fresh(method)
    whole = train(uncut, conditions, optim, seed=1, teacher=teacher, folder=tmp_path / "a")
    with pytest.raises(Cut):
        train(fresh(method), conditions, optim, seed=1, teacher=teacher, folder=tmp_path / "b", update=cut)
    continued = fresh(method)
    torch.randn(100)  # the state of the generators before must not matter
    rest = train(continued, conditions, optim, seed=1, teacher=teacher, folder=tmp_path / "b")
    assert torch.equal(weights(uncut), weights(continued))
    assert rest.losses == whole.losses
    assert len(list((tmp_path / "b").glob("epoch*"))) == 1, "older checkpoints are dropped"
    anew = fresh(method)
    train(anew, conditions, optim, seed=2, teacher=teacher)
    assert not torch.equal(weights(uncut), weights(anew)), "control: another seed shows"


class Clock:
    """A deadline that has passed when it is asked for the given time. Training asks once at the end of every step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, questions: int):
        self.left = questions
        monkeypatch.setattr(Run, "past_deadline", self.late)

    def late(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("random", {}),
        ("dynamicvit", {"accumulation": 2}),
        ("topk", {"mixup": 0.8, "cutmix": 1.0, "ema": 0.9}),
        ("topk", {"mixup": 0.8, "mixup_mode": "elem"}),
        ("topk", {"zero_stage": 1, "ema": 0.9}),
        ("topk", {"zero_stage": 2}),
    ],
    ids=["random", "accumulated", "mixed and averaged", "mixed by element", "ZeRO 1", "ZeRO 2"],
)
def test_a_run_stopped_within_an_epoch_ends_like_an_uninterrupted_one(conditions, tmp_path, monkeypatch, method, lines):
    """Stopped three times, in its first, second and third epoch, each time at another place."""
    optim = replace(RECIPE.base, **lines)
    teacher = fresh()
    how = {"seed": 1, "teacher": teacher}
    conditions = replace(conditions, identity="a recipe")
    uninterrupted = fresh(method)
    stopped = fresh(method)
    whole = train(uninterrupted, conditions, optim, **how)
    seen = []
    for steps in (3, 9, 7):
        with monkeypatch.context() as patch:
            Clock(patch, steps)
            with pytest.raises(OutOfTime):
                train(fresh(method), conditions, optim, folder=tmp_path, **how)
        progress = json.loads((tmp_path / "progress.json").read_text())
        assert 0 < progress["step"] < 8
        seen.append((progress["training"]["epochs"], progress["step"], progress["training"]["steps"]))
    torch.randn(100)  # the state of the generators before must not matter
    rest = train(stopped, conditions, optim, folder=tmp_path, **how)
    assert [epochs for epochs, _, _ in seen] == [0, 1, 2]
    assert all(8 * epochs + step == steps for epochs, step, steps in seen)
    assert torch.equal(weights(uninterrupted), weights(stopped))
    assert (rest.losses, rest.steps, rest.images) == (whole.losses, whole.steps, whole.images)
    assert len(list(tmp_path.glob("epoch*"))) == 1, "older checkpoints are dropped"


@pytest.mark.parametrize("forgotten", ["random state", "place in the epoch"])
def test_control_a_run_that_forgets_its_state_ends_differently(conditions, tmp_path, monkeypatch, forgotten):
    uninterrupted = fresh("random")
    stopped = fresh("random")
    train(uninterrupted, conditions, RECIPE.base, seed=1)
    with monkeypatch.context() as patch:
        Clock(patch, 3)
        with pytest.raises(OutOfTime):
            train(fresh("random"), conditions, RECIPE.base, seed=1, folder=tmp_path)
    if forgotten == "random state":
        monkeypatch.setattr("tpbench.training.run.set_generators", lambda *_: None)
    else:
        every = data.Resident.batches
        monkeypatch.setattr(data.Resident, "batches", lambda *words, **more: every(*words, **more | {"skip": 0}))
    train(stopped, conditions, RECIPE.base, seed=1, folder=tmp_path)
    assert not torch.equal(weights(uninterrupted), weights(stopped))


def test_a_deadline_stops_after_a_step_but_not_after_the_last(conditions, tmp_path, monkeypatch):
    with pytest.raises(OutOfTime):
        train(fresh(), replace(conditions, deadline=0.0), RECIPE.base, seed=0, folder=tmp_path)
    assert json.loads((tmp_path / "progress.json").read_text())["tag"] == "epoch0-step1"
    clock = Clock(monkeypatch, 8 + 8 + 8)  # it is asked seven times within an epoch and once after it
    assert train(fresh(), conditions, RECIPE.base, seed=0).epochs == 3
    assert clock.left == 0, "control: it passed, after the last step"


def test_a_checkpoint_of_another_recipe_is_rejected(conditions, tmp_path):
    optim = replace(RECIPE.base, epochs=1)
    train(fresh(), replace(conditions, identity="this recipe"), optim, seed=0, folder=tmp_path)
    train(fresh(), replace(conditions, identity="this recipe"), optim, seed=0, folder=tmp_path)  # control
    with pytest.raises(UsageError, match="belongs to another recipe or other data"):
        train(fresh(), replace(conditions, identity="that recipe"), optim, seed=0, folder=tmp_path)


def test_a_checkpoint_of_other_settings_is_not_continued(conditions, tmp_path, monkeypatch):
    """As after another tuning: the run begins again, and ends as if nothing had been there."""
    slow = replace(RECIPE.base, lr=RECIPE.base.lr / 8)
    expected, anew, mixed = fresh(), fresh(), fresh()
    train(expected, conditions, RECIPE.base, seed=0)
    for folder in ("a", "b"):
        with monkeypatch.context() as patch:
            Clock(patch, 9)
            with pytest.raises(OutOfTime):
                train(fresh(), replace(conditions, settings="slow"), slow, seed=0, folder=tmp_path / folder)
    train(anew, replace(conditions, settings="fast"), RECIPE.base, seed=0, folder=tmp_path / "a")
    assert torch.equal(weights(expected), weights(anew))
    assert len(list((tmp_path / "a").glob("epoch*"))) == 1, "the old checkpoint is dropped"
    train(mixed, replace(conditions, settings="slow"), RECIPE.base, seed=0, folder=tmp_path / "b")
    assert not torch.equal(weights(expected), weights(mixed)), "control: it would have been continued"


def test_out_of_memory_suggests_a_batch_and_changes_none(conditions, monkeypatch):
    asked = []

    def full(_, images: torch.Tensor) -> None:
        asked.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model = fresh()
    monkeypatch.setattr(type(model), "forward_tokens", full)
    with pytest.raises(
        CellFailed, match=r"out of GPU memory in training with 16 images at a time; 8 may fit"
    ) as caught:
        train(model, conditions, RECIPE.base, seed=0)
    assert "accumulation=2" in str(caught.value)
    assert asked == [16]


def test_the_pace_is_measured(conditions):
    training = train(fresh(), conditions, RECIPE.base, seed=0)
    pace = training.pace
    assert pace["images"] == training.images - 3 * 16, "all steps but the warm-up"
    assert pace["images_per_second"] == pytest.approx(pace["images"] / pace["seconds"])
    assert 0 < pace["outside_model_share"] < 1
    assert pace["model_seconds"] < pace["seconds"] < training.seconds
    short = train(fresh(), conditions, replace(RECIPE.base, epochs=1, batch_size=64), seed=0)
    assert short.pace["images_per_second"] is None, "two steps are too few"


def test_time_outside_the_model_is_seen(conditions, monkeypatch):
    """The control of the share: a slow augmentation raises it."""
    move = Augmentation.move

    def slow(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return move(self, images, index)

    share = train(fresh(), conditions, RECIPE.base, seed=0).pace["outside_model_share"]
    monkeypatch.setattr(Augmentation, "move", slow)
    slower = train(fresh(), conditions, RECIPE.base, seed=0).pace["outside_model_share"]
    assert slower > share + 0.1


def test_averaged_weights_survive_an_interruption(conditions, tmp_path):
    optim = replace(RECIPE.base, ema=0.9)
    uncut = fresh()
    continued = fresh()
    train(uncut, conditions, optim, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), conditions, optim, seed=1, folder=tmp_path, update=_stop_at(1))
    train(continued, conditions, optim, seed=1, folder=tmp_path)
    assert torch.equal(weights(uncut), weights(continued))


def _stop_at(last: int):
    def stop(text: str = "", share: float | None = None) -> None:  # noqa: ARG001
        if text.startswith(f"epoch {last + 1},"):
            raise KeyboardInterrupt

    return stop


def test_a_corrupt_checkpoint_is_rejected_by_name(conditions, tmp_path):
    train(fresh(), conditions, replace(RECIPE.base, epochs=1), seed=0, folder=tmp_path)
    saved = next(tmp_path.glob("epoch1/*.pt"))
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"cannot be read.*--fresh"):
        train(fresh(), conditions, RECIPE.base, seed=0, folder=tmp_path)


def test_a_flipped_bit_in_a_checkpoint_is_found(conditions, tmp_path):
    train(fresh(), conditions, replace(RECIPE.base, epochs=1), seed=0, folder=tmp_path)
    train(
        fresh(), conditions, replace(RECIPE.base, epochs=1), seed=0, folder=tmp_path
    )  # control: undamaged, it is used
    saved = next(tmp_path.glob("epoch1/*.pt"))
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UsageError, match="was changed since it was written"):
        train(fresh(), conditions, RECIPE.base, seed=0, folder=tmp_path)


class Executed:
    """Pickled, it names a call that unpickling would make."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("file", ["random-rank0.pt", "mp_rank_00_model_states.pt"])
def test_a_checkpoint_executes_no_code(conditions, tmp_path, monkeypatch, capsys, file):
    Clock(monkeypatch, 3)
    with pytest.raises(OutOfTime):
        train(fresh("random"), conditions, RECIPE.base, seed=0, folder=tmp_path)
    saved = next(tmp_path.glob(f"epoch0-step*/{file}"))
    torch.save({"payload": Executed()}, saved)
    progress = json.loads((tmp_path / "progress.json").read_text())
    progress["checksums"] = {}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(UsageError, match="cannot be read"):
        train(fresh("random"), conditions, RECIPE.base, seed=0, folder=tmp_path)
    assert "executed" not in capsys.readouterr().out
    torch.load(saved, weights_only=False)
    assert "executed" in capsys.readouterr().out, "control: read carelessly, it does run"


def test_a_diverging_run_ends_with_its_step(conditions):
    model = fresh()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(CellFailed, match="no longer finite at step 0"):
        train(model, conditions, RECIPE.base, seed=0)


def test_the_backbone_does_not_change_while_it_is_frozen(conditions):
    model = fresh("dynamicvit")
    optim = replace(RECIPE.base, epochs=6, warmup_epochs=0)
    run = Run(model, conditions, optim, seed=0, teacher=fresh())
    own = {name for name, _ in model.named_parameters() if ".reducer." in name}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = State()
    run.advance(state)  # the first sixth of six epochs
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= own
    assert moved
    run.advance(state)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not moved <= own, "control: it learns afterwards"
    run.finish()


def test_parameter_groups_hold_every_parameter_once():
    model = fresh("dynamicvit")
    groups = parameter_groups(model, RECIPE.base)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert {group["lr_scale"] for group in groups} == {1.0, 0.01}
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


@pytest.mark.parametrize(
    "lines", [{"mixup": 0.8, "cutmix": 1.0}, {"zero_stage": 1}, {"zero_stage": 2}, {"smoothing": 0.1}]
)
def test_recipe_lines_train(conditions, lines):
    result = train(fresh(), conditions, replace(RECIPE.base, epochs=1, **lines), seed=0)
    assert math.isfinite(result.losses[0])


def test_bfloat16_trains(conditions):
    exact = fresh()
    rounded = fresh()
    train(exact, conditions, RECIPE.base, seed=0)
    result = train(rounded, replace(conditions, dtype=torch.bfloat16), RECIPE.base, seed=0)
    assert math.isfinite(result.losses[-1])
    assert not torch.equal(weights(exact), weights(rounded)), "control: the precision did change"
    assert rounded.head.weight.dtype == torch.float32


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import json, sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "from dataclasses import replace\n"
        "import test_train as t\n"
        "from tpbench.training import data\n"
        "conditions = t.Conditions(data.load(replace(t.RECIPE.data, shift=0), t.CPU))\n"
        "model = t.fresh()\n"
        "t.train(model, conditions, t.RECIPE.base, seed=0)\n"
        "if torch.distributed.get_rank() == 0: torch.save(t.weights(model), sys.argv[2])\n"
    )
    tests = str(Path(__file__).parent)
    one = tmp_path / "one.pt"
    two = tmp_path / "two.pt"
    for ranks, path in ((1, one), (2, two)):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        words = [sys.executable, *launcher, str(script), tests, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.load(one), torch.load(two), rtol=1e-3, atol=1e-4)


def test_the_process_group_is_left_before_the_interpreter_ends():
    """Left connected, a process of several ranks ends in SIGABRT now and then."""
    script = (
        "import atexit, torch\n"
        "from tpbench.training.ranks import connect\n"
        "atexit.register(lambda: print('connected' if torch.distributed.is_initialized() else 'parted'))\n"
        "connect(torch.device('cpu'))\n"
        "print('connected' if torch.distributed.is_initialized() else 'parted')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["connected", "parted"], done.stderr[-2000:]


@pytest.mark.slow
def test_two_ranks_stop_together_and_end_like_uninterrupted_ones(tmp_path):
    """Rank 0's clock decides, at the tenth step: within the second epoch. One rank cannot continue what two left."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "import test_train as t\n"
        "from tpbench.training import data\n"
        "from tpbench.errors import OutOfTime\n"
        "conditions, folder = t.Conditions(data.load(t.RECIPE.data, t.CPU)), Path(sys.argv[2])\n"
        "whole, stopped = t.fresh('random'), t.fresh('random')\n"
        "t.train(whole, conditions, t.RECIPE.base, seed=0)\n"
        "rank = torch.distributed.get_rank()\n"
        "clock = 0.0 if rank == 0 else 1e30\n"
        "limited = t.replace(conditions, deadline=clock)\n"
        "try: t.train(t.fresh('random'), limited, t.RECIPE.base, seed=0, folder=folder)\n"
        "except OutOfTime: assert len(list(folder.glob('epoch1-step2/random-rank*.pt'))) == 2\n"
        "else: raise AssertionError('it was not stopped')\n"
        "if rank == 0: (folder / 'copy.json').write_text((folder / 'progress.json').read_text())\n"
        "t.train(stopped, conditions, t.RECIPE.base, seed=0, folder=folder)\n"
        "assert torch.equal(t.weights(whole), t.weights(stopped))\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [sys.executable, *launcher, str(script), str(Path(__file__).parent), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "run" / "copy.json").replace(tmp_path / "run" / "progress.json")
    with pytest.raises(UsageError, match="was left within an epoch by 2 ranks and cannot be continued by 1"):
        train(fresh("random"), Conditions(data.load(RECIPE.data, CPU)), RECIPE.base, seed=0, folder=tmp_path / "run")


def test_the_progress_file_is_valid_json(conditions, tmp_path):
    train(fresh(), conditions, replace(RECIPE.base, epochs=2), seed=0, folder=tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["tag"] == "epoch2"
    assert len(progress["training"]["losses"]) == 2
