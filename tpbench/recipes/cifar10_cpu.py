"""CIFAR-10 on two CPU cores: natural images, a base worth reducing, all 10,000 test images.

    python -m tpbench run --recipe cifar10-cpu --time-limit 9h    # again and again, until nothing is left
    python -m tpbench tune --recipe cifar10-cpu                   # before it: the same trials for every method
    python -m tpbench run --recipe cifar10-cpu --plan             # cells and estimated hours, runs nothing

Data: fetched once, as for the cifar10 recipe. Model: 64 tokens of 4x4 pixels, width 128, 6 blocks, 4 heads. The base
trains with Muon for 24 epochs: on half of each image's patches, twice as fast, and in the last 4 epochs on all of them.
Expect 80 % of the test images (80.4 and 80.2 % for the first two seeds). A learning rate of 4e-3 or 8e-3 had a larger
training loss after three epochs (1.50 and 1.58; here 1.48). Machine: 2 CPU cores (AMD EPYC). A base took 87
and 91 minutes of one core at low priority; methods have been evaluated off the shelf, but not been fine-tuned yet.

For every seed the base comes first, then every method off the shelf (seconds a cell), then fine-tuned for one epoch at
half of the base's multiply-adds, at 0.3 of them, and the methods that the claims need at 0.7 and 0.9. So a run that
was stopped is a comparison. cifar10-cpu-w64, -w96 and -w192 are other widths, for the Pareto hull.
"""

from tpbench.recipe import Measure, Optim, Recipe, Search
from tpbench.recipes import cifar10

BLOCKS = "0,1,2"
NULL = "wkmedoids(finetune_seed=1)"


def recipe(
    name: str = "cifar10-cpu",
    width: int = 128,
    methods: tuple[str, ...] = ("all",),
    controls: tuple[str, ...] = (NULL, *cifar10.SETTINGS),
) -> Recipe:
    """The recipe that the module describes, or one on a base of another width."""
    everywhere = tuple(f"macs={share}@{BLOCKS}" for share in (0.5, 0.3))
    claimed = tuple(f"macs={share}@{BLOCKS}" for share in (0.7, 0.9))
    seconds = tuple(f"macs={share}@{BLOCKS}" for share in (0.8, 0.4))
    claims = cifar10.EQUAL_COST + cifar10.SETTINGS
    return Recipe(
        name=name,
        model="vit_tiny_patch16_224",
        model_args={
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": width,
            "depth": 6,
            "num_heads": 4,
            "mlp_ratio": 2,
            "num_classes": 10,
        },
        sincos=100.0,
        data=cifar10.images(validation=0.05),
        base=Optim(
            epochs=24,
            lr=2e-3,
            batch_size=128,
            optimizer="muon",
            warmup_epochs=1,
            smoothing=0.1,
            patch_drop=0.5,
            patch_drop_until=5 / 6,
        ),
        finetune=Optim(epochs=1, lr=5e-4, batch_size=64, optimizer="muon", warmup_epochs=0.1, smoothing=0.1),
        search={
            "topk": Search(Optim(epochs=1, lr=5e-3, batch_size=128), backbone_lr_scale=0.05, knobs={"strength": 2e-3}),
            "diffrate": Search(Optim(epochs=1, lr=0.05, batch_size=128), knobs={"target": 0.5}),
        },
        schedules=everywhere + claimed + seconds,
        finetuned=dict.fromkeys(claimed, claims) | dict.fromkeys(seconds, ()),
        methods=methods,
        controls=controls,
        expected_base=80.0,
        trial_images=12_000,
        seeds=3,
        workers=2,
        measure=Measure(batch_sizes=(1, 32), repeats=0, warmup=0),
    )
