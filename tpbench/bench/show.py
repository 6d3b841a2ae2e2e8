"""The subject of `tpbench show`: a model and some images, from a recipe or from timm and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tpbench import environment, vit
from tpbench.bench import models
from tpbench.bench.bases import base_path, load_base
from tpbench.bench.jobs import side_by_side
from tpbench.bench.plan import Plan
from tpbench.bench.progress import Progress
from tpbench.bench.runner import base_job
from tpbench.bench.workspace import Workspace
from tpbench.errors import ScheduleError, Unreachable, UnsupportedModel, UsageError, in_short
from tpbench.measure.followed import follow
from tpbench.recipe import Recipe
from tpbench.registry import Variant
from tpbench.report.pictures import Row
from tpbench.schedule import Schedule


@dataclass(frozen=True)
class Subject:
    """An unreduced model with images for it.

    images [B, C, H, W] as the model takes them, pixels [B, H, W, 3] in 0..1 as people see them.
    """

    model: nn.Module
    images: Tensor
    pixels: np.ndarray
    names: tuple[str, ...]
    about: str
    recipe: Recipe | None = None


def recipe_subject(plan: Plan, seed: int, count: int, progress: Progress) -> Subject:
    """The first test images of a recipe and its base of a seed, which is trained if it is not there."""
    workspace = Workspace(plan)
    if not base_path(workspace, seed).exists():
        workspace.prepare(fresh=False)
        jobs = [base_job(workspace, seed)]
        progress.start(0, 0, jobs)
        side_by_side(jobs, workers=1, context=workspace, make_context=partial(Workspace, plan), progress=progress)
    images = next(iter(workspace.data(seed).test.batches(count))).images
    data = plan.recipe.data
    return Subject(
        model=load_base(workspace, seed).eval(),
        images=images,
        pixels=denormalised(images, data.mean, data.std),
        names=tuple(f"test-{number}" for number in range(len(images))),
        about=f"recipe {plan.recipe.name}, base of seed {seed}",
        recipe=plan.recipe,
    )


def model_subject(name: str, pretrained: bool | str, files: Sequence[Path], device: str) -> Subject:
    """A timm model and image files; without files, the two photographs that come with scikit-learn."""
    where = environment.device(device)
    torch.manual_seed(0)
    model = vit.create(name, {}, pretrained).eval().to(where)
    if model.in_chans != 3:
        raise UsageError(f"model {name} takes {model.in_chans} channels; photographs have 3")
    how = vit.preprocessing(model)
    prepare = vit.transform(model)
    photographs = dict(read_images(files) if files else sample_photographs())
    images = torch.stack([prepare(photograph) for photograph in photographs.values()]).to(where)
    weights = {True: "weights from the hub", False: "untrained weights"}.get(pretrained, f"weights of {pretrained}")
    return Subject(
        model=model,
        images=images,
        pixels=denormalised(images, how["mean"], how["std"]),
        names=tuple(photographs),
        about=f"{name}, {weights}",
    )


def read_images(files: Iterable[Path]) -> Iterable[tuple[str, Image.Image]]:
    """The images of some files, by name. Raises UsageError for a file that cannot be read."""
    for number, path in enumerate(files):
        try:
            yield f"{number}-{path.stem}", Image.open(path).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"image {path} cannot be read: {in_short(error, 200)}") from error


def sample_photographs() -> Iterable[tuple[str, Image.Image]]:
    """scikit-learn's two photographs: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    for path, pixels in zip(found.filenames, found.images):
        yield Path(path).stem, Image.fromarray(pixels)


def denormalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Images as they were before they were normalised: [B, C, H, W] -> [B, H, W, 3] in 0..1."""
    shape = (1, -1, 1, 1)
    pixels = images.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return pixels.clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def reduced(subject: Subject, variant: Variant, schedule: Schedule) -> vit.TokenModel:
    """The subject's model under a method, with the recipe's settings of it where there is a recipe."""
    if subject.recipe is None:
        return vit.reduce(subject.model, variant.method, schedule, **dict(variant.settings))
    return models.reduced(subject.recipe, subject.model, variant=variant, schedule=schedule)


def stages_by_method(subject: Subject, variants: Iterable[Variant], schedule: Schedule, seed: int) -> dict[str, Row]:
    """The stages of every method by name, or the reason why it cannot run on this model or at this budget."""
    found: dict[str, Row] = {}
    for variant in variants:
        try:
            found[str(variant)] = follow(reduced(subject, variant, schedule), subject.images, seed)
        except (UnsupportedModel, Unreachable) as error:
            found[str(variant)] = str(error)
    return found


def check_any_shown(found: dict[str, Row]) -> None:
    """Raise ScheduleError unless at least one method has run."""
    if all(isinstance(row, str) for row in found.values()):
        name, reason = next(iter(found.items()))
        raise ScheduleError(f"no method can be shown; {name}: {reason}")
