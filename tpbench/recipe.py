"""Recipes: everything that decides a result, as frozen values. The command line only picks one.

A recipe is a function `recipe() -> Recipe` in `tpbench/recipes/NAME.py` or in a file of the user's. Its module
docstring opens with the command, the machine, the time and the numbers to expect.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tpbench import overrides, tuning
from tpbench.errors import UsageError, in_short
from tpbench.registry import nearest


@dataclass(frozen=True)
class Data:
    """Where images come from and how they are prepared.

    source: "digits" (scikit-learn's), "parquet" (train.parquet and test.parquet of encoded images under root), or any
    timm data set name ("torch/cifar100", "hfds/...", "wds/...", "" for an ImageFolder) with its root.
    """

    source: str = "digits"
    root: str = ""
    image_size: int = 16  # pixels; smaller or larger images are resized
    channels: int = 3
    classes: int = 10
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    validation: float = 0.08  # share of the training side set apart for choosing anything
    shift: int = 0  # random shift of every training image, pixels (data held in memory)
    flip: bool = False  # random horizontal flip of every training image (data held in memory)
    erase: float = 0.0  # share of training images of which timm erases a rectangle (data held in memory)
    transform: dict[str, Any] = field(default_factory=dict)  # timm.data.create_transform in training (timm data sets)
    crop: float = 0.875  # share of the shorter side that evaluation looks at (timm data sets)
    interpolation: str = "bilinear"  # of both (timm data sets)
    loader_processes: int = 0  # timm data sets
    train_limit: int | None = None  # images, for cut-down recipes
    test_limit: int | None = None
    folds: int = 0  # digits: number of stratified folds, one of which the seed chooses to test on; 0: a fixed test part
    hub: str = ""  # "OWNER/NAME/FOLDER" on the Hugging Face hub: fetched where parquet files are not under root
    train_images: int | None = None  # in the training set, for `run --plan` without the files


@dataclass(frozen=True)
class Optim:
    """One training run. Learning rates are as given, not scaled by the batch."""

    epochs: int
    lr: float
    batch_size: int = 32  # images per optimiser step, over all ranks and accumulation steps
    optimizer: str = "adamw"  # any of timm's
    optimizer_args: dict[str, Any] = field(default_factory=dict)  # its further arguments, such as {"momentum": 0.95}
    weight_decay: float = 0.05
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    clip: float = 1.0  # gradient norm; 0 is off
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    patch_drop: float = 0.0  # share of its patches that every training image loses at random; for the base alone
    patch_drop_until: float = 1.0  # share of the epochs in which it does; later ones see all patches
    mixup_mode: str = "batch"  # batch | pair | elem, as timm: what shares one draw
    compile: bool = False  # torch.compile the model for training
    ema: float | None = None  # decay of the averaged weights that are then evaluated
    accumulation: int = 1
    zero_stage: int = 0
    new_lr_scale: float = 1.0  # learning rate of a method's own new parameters, relative to lr
    backbone_lr_scale: float | None = None  # of all other parameters, relative to lr; None: what the method asks for
    frozen_share: float | None = None  # share of the epochs without training them; None: what the method asks for


@dataclass(frozen=True)
class Measure:
    """How a model's speed is sampled. Reduced and unreduced models take turns, sample by sample."""

    batch_sizes: tuple[int, ...] = (1, 32)
    repeats: int = 30  # 0: cells sample no latency; the timing session at the end does
    warmup: int = 5
    compile: bool = False
    cuda_graph: bool = False  # on a GPU: one recorded forward pass, replayed, so that launching is not what is timed


OVERRIDDEN = "+"  # between the name of a recipe and the lines that the command line has changed


LATER_IN_TRAINING = {
    "mixup_mode": "batch",
    "compile": False,
    "new_lr_scale": 1.0,
    "backbone_lr_scale": None,
    "frozen_share": None,
    "optimizer_args": {},
    "patch_drop": 0.0,
    "patch_drop_until": 1.0,
}
# Fields added later; at these defaults they are left out of the digest, so that older digests stay valid.
LATER = {
    "data": {"erase": 0.0, "crop": 0.875, "interpolation": "bilinear", "folds": 0},
    "base": LATER_IN_TRAINING,
    "finetune": LATER_IN_TRAINING,
    "measure": {"cuda_graph": False},
}


@dataclass(frozen=True)
class Search:
    """How K is learned by one method's search (`tpbench search`)."""

    optim: Optim  # its lr is that of the search's own parameters
    backbone_lr_scale: float = 0.0  # learning rate of the model's weights relative to that; 0: frozen
    knobs: dict[str, Any] = field(default_factory=dict)  # settings of the search: lambda, target


@dataclass(frozen=True)
class Recipe:
    """One benchmark: everything about what is trained, reduced and measured."""

    name: str
    model: str  # a timm model name
    data: Data
    base: Optim
    finetune: Optim
    schedules: tuple[str, ...]
    methods: tuple[str, ...] = ("all",)  # what runs unless the command line names others; see registry.variants
    # schedule ("none" for the unreduced model) -> the only variants that are fine-tuned there; the others are evaluated
    # off the shelf, which takes seconds. At a schedule that is not named here, all variants are fine-tuned.
    finetuned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    controls: tuple[str, ...] = ()  # variants that also run where their method runs; see registry.variants
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool | str = False  # timm's weights from the hub, or those in a file; then the base needs no epochs
    sincos: float | None = None  # temperature of a 2-D sine-cosine start of the position embedding
    site: str = "mid"  # mid | end: where in the named blocks every method reduces
    knobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings by method
    search: dict[str, Search] = field(default_factory=dict)  # by method
    trial_images: int | None = None  # training images of each trial of `tpbench tune`; None: all of them
    tuned: dict[str, dict[str, float]] = field(default_factory=dict)  # by method: lines of finetune that were tuned
    tuned_as: str = ""  # another recipe, whose tuned lines hold for the methods that were not tuned for this one
    reference: str = "wkmedoids"  # the method that every other is compared with
    margin: float = 1.0  # points of top-1 within which two methods count as equivalent
    expected_base: float = 0.0  # top-1 in percent that the base should reach; 0: a smoke recipe, which proves nothing
    seeds: int = 2
    dtype: str = "auto"  # float32 | bfloat16 | auto: bfloat16 on a GPU, float32 on a CPU
    workers: int = 1  # one-thread processes side by side; on a GPU only where cells sample no latency
    measure: Measure = Measure()

    def __post_init__(self):
        if self.finetune.patch_drop:
            raise UsageError(
                f"recipe {self.name}: patch_drop is for the base only; reduced models have a planned number of tokens"
            )
        if unknown := self.finetuned.keys() - {"none", *self.schedules}:
            raise UsageError(
                f"recipe {self.name}: finetuned names schedules that are not its own: {', '.join(sorted(unknown))}"
            )

    def finetune_epochs(self, variant: str, schedule: str) -> int:
        """The epochs of fine-tuning of a row; 0 if it is only evaluated off the shelf."""
        chosen = self.finetuned.get(schedule)
        if chosen is None or variant in chosen:
            return self.finetune.epochs
        return 0

    def untrained(self, pretrained: bool | str) -> Recipe:
        """The recipe with pretrained weights and no training: every method is evaluated off the shelf."""
        base = replace(self.base, epochs=0)
        finetune = replace(self.finetune, epochs=0)
        return replace(self, pretrained=pretrained, sincos=None, base=base, finetune=finetune, tuned={})

    def without_finetuning(self, schedules: tuple[str, ...]) -> Recipe:
        """The recipe with these schedules and nothing trained but the base: methods are evaluated off the shelf."""
        return replace(self, schedules=schedules, finetuned=dict.fromkeys(("none", *schedules), ()))

    def can_share(self, kind: str) -> bool:
        """Whether several workers may share a device of this kind: any CPU, and a GPU where cells time nothing."""
        return kind == "cpu" or not self.measure.repeats

    def tuned_lines(self, method: str) -> dict[str, float]:
        """The lines of the fine-tuning that were tuned for a method, with their values; often none."""
        return self.tuned.get(method, {})

    def finetune_of(self, method: str) -> Optim:
        """The fine-tuning of a method: the recipe's, with the lines that were tuned for the method."""
        return replace(self.finetune, **self.tuned_lines(method))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any line that can change a result."""
        # No field in these three groups changes the value of a result.
        which_results = ("seeds", "schedules", "methods", "finetuned", "controls", "search")
        how_they_are_read = ("reference", "margin", "expected_base")
        # A record holds the tuned lines that it was trained with.
        others = ("workers", "trial_images", "tuned", "tuned_as")
        excluded = (*which_results, *how_they_are_read, *others)
        return self._hash(line.name for line in fields(self) if line.name not in excluded)

    @property
    def base_digest(self) -> str:
        """Twelve hexadecimal digits that change with any line that can change the trained base."""
        return self._hash(("model", "model_args", "pretrained", "sincos", "data", "base", "dtype"))

    def _hash(self, names: Iterable[str]) -> str:
        lines = asdict(self)
        decisive = {name: lines[name] for name in names}
        decisive["data"] |= {"root": ""}  # where the files lie; a record's fingerprint says what they are
        del decisive["data"]["train_images"], decisive["data"]["hub"]
        for part, later in LATER.items():
            if part in decisive:
                kept = decisive[part].items()
                decisive[part] = {line: value for line, value in kept if line not in later or value != later[line]}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]


def names() -> list[str]:
    """The packaged recipes; a file's underscores are dashes in its recipe's name."""
    import tpbench.recipes

    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(tpbench.recipes.__path__))


def with_data_at(recipe: Recipe, root: Path) -> Recipe:
    """The same recipe with its files in another folder, and there alone: nothing is fetched."""
    if recipe.data.source == "digits":
        raise UsageError(f"recipe {recipe.name} reads no files: its images come with scikit-learn")
    return replace(recipe, data=replace(recipe.data, root=str(root), hub=""))


def tuning_path(name: str, recipe: Recipe | None = None) -> Path:
    """Where the tuned fine-tuning of a recipe is kept: beside the recipe, packaged or a file.

    recipe: as loaded by this name; one with overridden lines has a file of its own.
    """
    own = "" if recipe is None or OVERRIDDEN not in recipe.name else f"+{recipe.digest}"
    if name.endswith(".py"):
        return Path(name).with_name(f"{Path(name).stem}{own}.tuned.json")
    import tpbench.recipes

    return Path(tpbench.recipes.__path__[0]) / f"{name.replace('-', '_')}{own}.tuned.json"


def load(name: str, tuned: bool = True, lines: Sequence[str] = ()) -> Recipe:
    """A packaged recipe by name, or the recipe in a Python file by path.

    tuned: whether to add the lines of its tuning file, where there is one. lines: overrides such as
    "finetune.epochs=5". Those that the digest covers become part of the recipe's name, as in digits+finetune.epochs=5,
    so that every record and table shows them and no folder mixes them with the plain recipe.
    """
    recipe = _overridden(_load(name), lines)
    if not tuned:
        return recipe
    lines_of = _tuned(name, recipe)
    if recipe.tuned_as and OVERRIDDEN not in recipe.name:
        lines_of = _tuned(recipe.tuned_as, _load(recipe.tuned_as)) | lines_of
    return replace(recipe, tuned=lines_of)


def _tuned(name: str, recipe: Recipe) -> dict[str, dict[str, float]]:
    """The lines in a recipe's own tuning file, by method; none where there is no file."""
    path = tuning_path(name, recipe)
    return tuning.lines_for(recipe, path) if path.exists() else {}


def _overridden(recipe: Recipe, lines: Sequence[str]) -> Recipe:
    plain = recipe
    decisive = []
    for line in overrides.parse(lines):
        changed = overrides.apply(recipe, line)
        if changed.digest != recipe.digest:
            decisive.append(overrides.canonical(changed, line))
        recipe = changed
    return replace(recipe, name=OVERRIDDEN.join([plain.name, *decisive]))


def _load(name: str) -> Recipe:
    if name.endswith(".py"):
        path = Path(name)
        if not os.path.isfile(path):  # also false for a name that no file can have
            raise UsageError(f"recipe file {name} does not exist")
        spec = importlib.util.spec_from_file_location(f"tpbench_recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise UsageError(f"recipe file {name} is broken: {type(error).__name__}: {in_short(error)}") from error
    elif name in names():
        module = importlib.import_module(f"tpbench.recipes.{name.replace('-', '_')}")
    else:
        raise UsageError(f"unknown recipe {name!r}; {nearest(name, names())}")
    made = module.recipe() if hasattr(module, "recipe") else None
    if not isinstance(made, Recipe):
        raise UsageError(f"recipe {name} has no function recipe() that returns a Recipe")
    return made
