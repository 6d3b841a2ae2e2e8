"""CIFAR-10 with a vision transformer of DeiT-Ti's width and depth at 64 tokens.

    python -m tpbench run --recipe cifar10 --methods all

Data: train.parquet and test.parquet of encoded 32x32 images under data/cifar10. Machine: one data-centre GPU; not
measured yet. On 2 CPU cores one epoch of the base alone takes about 10 minutes.
"""

from tpbench.recipe import Data, Measure, Optim, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="cifar10",
        model="deit_tiny_patch16_224",
        model_args={"img_size": 32, "patch_size": 4, "num_classes": 10},
        data=Data(
            "parquet",
            root="data/cifar10",
            image_size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            shift=4,
            flip=True,
            validation=0.02,
        ),
        base=Optim(epochs=200, lr=1e-3, batch_size=512, warmup_epochs=10, smoothing=0.1, mixup=0.8, cutmix=1.0),
        finetune=Optim(epochs=10, lr=1e-4, batch_size=512, smoothing=0.1, mixup=0.8, cutmix=1.0),
        schedules=("0.5@3,6,9", "0.7@3,6,9", "0.9@3,6,9", "0.25@3,6,9"),
        seeds=3,
        measure=Measure(batch_sizes=(1, 256)),
    )
