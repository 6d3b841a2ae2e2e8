"""CIFAR-10 with a vision transformer of DeiT-Ti's width and depth at 64 tokens: the study's main table.

    python -m tpbench run --recipe cifar10 --time-limit 9m      # again and again, until nothing is left
    python -m tpbench run --recipe cifar10 --methods all        # and every other method too
    python -m tpbench run --recipe cifar10 --plan               # cells and estimated hours, runs nothing

Data: uoft-cs/cifar10 of the Hugging Face hub, fetched once, or train.parquet and test.parquet of encoded 32x32 images
under data/cifar10 or `--data DIR`. Machine: one data-centre GPU, bfloat16; not measured yet. Estimated from what an
H100 reached on other models, 5,000 to 45,000 images/s: 20 minutes to 2.5 hours for the three bases, 11 to 100 seconds
for a cell. Expect the base at 90 % or better. Other encodings of the images (JPEG) give other accuracies, and records
of the two are never mixed.

cifar10-p2 has 256 tokens, as a 224-pixel image in patches of 16 would; cifar10-w128 and cifar10-w256 are the same study
on narrower and wider bases; with them the claims can use the Pareto hull over widths.
"""

from tpbench.recipe import Data, Measure, Optim, Recipe

MIXING = {"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}


# What the claims ask for besides the methods themselves: other starts, and more than the default five iterations.
SETTINGS = ("wkmedoids(init=grid)", "wkmedoids(init=random)", "wkmedoids(iterations=10)")
EQUAL_COST = ("none", "wkmedoids", "kmedoids", "wkmeans", "kmeans", "topk", "importance", "random", "strided_conv")


def images(validation: float) -> Data:
    """The images of every CIFAR-10 recipe; validation is the share of the training side that is set apart."""
    return Data(
        "parquet",
        root="data/cifar10",
        hub="uoft-cs/cifar10/plain_text",
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        shift=4,
        flip=True,
        validation=validation,
        train_images=50_000,
    )


def recipe(
    name: str = "cifar10", width: int = 192, patch: int = 4, methods: tuple[str, ...] = EQUAL_COST + SETTINGS
) -> Recipe:
    """The recipe that the module describes, or one on a base of another width or patch size in pixels."""
    return Recipe(
        name=name,
        model="deit_tiny_patch16_224",
        model_args={
            "img_size": 32,
            "patch_size": patch,
            "embed_dim": width,
            "num_heads": width // 64,
            "num_classes": 10,
        },
        data=images(validation=0.02),
        base=Optim(epochs=300, lr=1e-3, batch_size=512, warmup_epochs=10, compile=True, **MIXING),
        finetune=Optim(epochs=10, lr=1e-4, batch_size=512, **MIXING),  # too short for a compilation to pay
        schedules=("0.5@3,6,9", "macs=0.5@3,6,9", "latency=0.6@3,6,9", "0.7@3,6,9", "0.9@3,6,9", "0.25@3,6,9"),
        methods=methods,
        expected_base=90.0,
        seeds=3,
        measure=Measure(batch_sizes=(1, 256), cuda_graph=True),  # so small a model is launched longer than it runs
    )
