"""Tuning: the same few trials of the recipe's fine-tuning for every method.

OUT/tuning/METHOD.json holds the trials of one method, and OUT/work/tuning/METHOD.json those of a method that is not
finished, so that an interrupted tuning continues. At the end, all trials are written into one file beside the recipe,
where `tpbench run` finds it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean

from tpbench import environment
from tpbench.bench.cell_model import build_cell
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.plan import NOTHING_REDUCED, Cell, Plan
from tpbench.bench.progress import Progress
from tpbench.bench.results_folder import locked
from tpbench.bench.runner import base_job
from tpbench.bench.workspace import Workspace
from tpbench.errors import Diverged, Unreachable, UsageError
from tpbench.record import checked, replace_text
from tpbench.registry import Variant
from tpbench.schedule import Schedule
from tpbench.training.conditions import Conditions
from tpbench.training.evaluate import evaluate
from tpbench.training.train import Update, train
from tpbench.tuning import SEEDS, Tuned, Tuning, previously_tuned, space


def run(plan: Plan, path: Path, progress: Progress) -> Tuning:
    """Tune a plan's methods at its first schedule, and write them to the tuning file `path`.

    Other methods that the file holds for this recipe stay. A method that cannot meet the schedule keeps the recipe's
    fine-tuning. Raises UsageError for a file that was tuned at another schedule, and OutOfTime where the plan's
    deadline came first: then the finished methods' trials are kept, and the tuning file stays as it was.
    """
    previously_tuned(plan.recipe, path)  # refuses a file that cannot be added to, before hours of work
    if not plan.recipe.finetune.epochs:
        raise UsageError(f"recipe {plan.recipe.name} has no fine-tuning to tune")
    workspace = Workspace(plan)
    workspace.prepare(fresh=False)
    jobs = list(tuning_jobs(workspace))
    progress.start(len(plan.variants), 0, jobs)
    side_by_side(
        jobs, workers=workspace.workers, context=workspace, make_context=partial(Workspace, plan), progress=progress
    )
    own = {variant.method: read_trials(workspace, variant) for variant in plan.variants}
    with locked(plan.out):  # another command may have added methods meanwhile
        methods = previously_tuned(plan.recipe, path) | own
        found = Tuning(
            recipe=plan.recipe.name,
            digest=plan.recipe.digest,
            schedule=plan.reducing_schedules[0].text,
            seeds=list(SEEDS),
            space=space(plan.recipe.finetune),
            methods={method: tuned for method, tuned in methods.items() if tuned is not None},
            machine=workspace.machine,
            git=environment.git(),
            trial_images=plan.recipe.trial_images,
        )
        replace_text(path, json.dumps(asdict(found), indent=1) + "\n")
    return found


def tuning_jobs(workspace: Workspace) -> Iterator[Job]:
    """The bases of the seeds that only tuning uses, then every method that has not been tuned; often nothing."""
    untuned = [variant for variant in workspace.plan.variants if not trials_path(workspace.out, variant).exists()]
    if not untuned:
        return
    finetune = workspace.recipe.finetune
    bases = [base_job(workspace, seed) for seed in SEEDS]
    yield from bases
    epochs = finetune.epochs * len(SEEDS) * len(space(finetune)) * trial_share(workspace)
    for variant in untuned:
        work = epochs * tuning_schedule(workspace, variant).expected_cost
        names = tuple(base.name for base in bases)
        is_done = trials_path(workspace.out, variant).exists
        yield Job(f"tuning of {variant.method}", try_all, variant, needs=names, is_done=is_done, work=work)


def tuning_schedule(workspace: Workspace, variant: Variant) -> Schedule:
    """The schedule at which a method is tuned: the plan's first, or that of the unreduced model for `none`."""
    return NOTHING_REDUCED if variant.card.unreduced else workspace.plan.reducing_schedules[0]


def try_all(workspace: Workspace, variant: Variant, update: Update) -> None:
    """Fine-tune one method with every trial and write the validation losses, or that it cannot meet the schedule."""
    schedule = tuning_schedule(workspace, variant)
    conditions = {
        "digest": workspace.recipe.digest,
        "trial_images": workspace.recipe.trial_images,
        "schedule": workspace.plan.reducing_schedules[0].text,
    }
    unfinished = workspace.work / "tuning" / f"{variant.method}.json"
    results = finished_trials(unfinished, conditions)
    trials = space(workspace.recipe.finetune)
    try:
        for lines in trials[len(results) :]:
            workspace.check_time()
            results.append(try_one(workspace, variant=variant, schedule=schedule, lines=lines))
            replace_text(unfinished, json.dumps(conditions | {"results": results}) + "\n")
            update(f"trial {len(results)} of {len(trials)}", len(results) / len(trials))
        losses = [loss for loss, _ in results]
        found = asdict(Tuned(best_trial(losses), losses, top1=[top1 for _, top1 in results]))
    except Unreachable:
        found = None
    replace_text(trials_path(workspace.out, variant), json.dumps(conditions | {"trials": found}) + "\n")
    unfinished.unlink(missing_ok=True)


def finished_trials(path: Path, conditions: dict[str, object]) -> list[tuple[float | None, float | None]]:
    """The (loss, top-1) of the trials of an interrupted tuning; none if there was none under these conditions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = [(loss, top1) for loss, top1 in content.pop("results")]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return results if content == conditions else []


def try_one(
    workspace: Workspace, variant: Variant, schedule: Schedule, lines: dict[str, float]
) -> tuple[float | None, float | None]:
    """Mean validation loss (nats) and top-1 (share) over the seeds; None if the training loss is no longer finite."""
    recipe = workspace.recipe
    optim = replace(recipe.finetune, **lines)
    losses = []
    top1 = []
    for seed in SEEDS:
        model, teacher = build_cell(workspace, Cell(variant, schedule, seed))
        try:
            train(model, trial_conditions(workspace, seed), optim, seed=seed, teacher=teacher)
        except Diverged:
            return None, None
        score = evaluate(
            model,
            part=workspace.data(seed).validation,
            batch_size=recipe.finetune.batch_size,
            dtype=workspace.dtype,
            seed=seed,
        )
        losses.append(score.loss)
        top1.append(score.top1)
    return mean(losses), mean(top1)


def trial_share(workspace: Workspace) -> float:
    """The share of the training images that a trial sees; the images are read only if it is not all of them."""
    if workspace.recipe.trial_images is None:
        return 1.0
    return min(1.0, workspace.recipe.trial_images / len(workspace.data(SEEDS[0]).train))


def trial_conditions(workspace: Workspace, seed: int) -> Conditions:
    """The conditions of a seed, with as many training images as the recipe gives a trial."""
    conditions = workspace.conditions(seed)
    if workspace.recipe.trial_images is None:
        return conditions
    fewer = conditions.data.train.subset(workspace.recipe.trial_images)
    return replace(conditions, data=replace(conditions.data, train=fewer))


def best_trial(losses: list[float | None]) -> int:
    """The index of the smallest loss; 0, the recipe's own settings, if no trial stayed finite."""

    def loss_of(number: int) -> float:
        loss = losses[number]
        return math.inf if loss is None or math.isnan(loss) else loss

    return min(range(len(losses)), key=loss_of)


def trials_path(out: Path, variant: Variant) -> Path:
    """The path of a method's trials in a results folder."""
    return out / "tuning" / f"{variant.method}.json"


def methods_left(plan: Plan) -> int:
    """How many methods of a plan have not been tuned."""
    return sum(not trials_path(plan.out, variant).exists() for variant in plan.variants)


def read_trials(workspace: Workspace, variant: Variant) -> Tuned | None:
    """The trials of a method; None if it could not meet the schedule. Raises UsageError for those of another recipe."""
    path = trials_path(workspace.out, variant)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content["digest"]
        images = content.get("trial_images")  # None in files of earlier versions, whose trials had all images
        schedule = content.get("schedule")  # None likewise
        trials = content["trials"]
        tuned = None if trials is None else checked(Tuned, json.dumps(trials))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"trials {path} cannot be used ({error}); delete the file to try them again") from error
    if digest != workspace.recipe.digest or images != workspace.recipe.trial_images:
        raise UsageError(f"trials {path} are for another version of the recipe; delete the folder to try them again")
    if schedule not in (None, workspace.plan.reducing_schedules[0].text):
        raise UsageError(f"trials {path} were made at {schedule}; delete the folder to try them again")
    return tuned
