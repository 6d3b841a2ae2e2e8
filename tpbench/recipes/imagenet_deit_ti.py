"""ImageNet with the pretrained DeiT-Ti of the hub: the paper's setting, as far as it is known.

    torchrun --nproc-per-node 8 -m tpbench run --recipe imagenet-deit-ti --data DIR --methods none,wkmedoids,topk
    python -m tpbench run --recipe imagenet-deit-ti --plan       # cells and estimated hours on 1 and 8 GPUs

Machine: 8 data-centre GPUs. Data: an ImageFolder, DIR/train/CLASS/*.JPEG and DIR/validation/CLASS/*.JPEG (or val), as
it is unpacked for torchvision. Hours: `--plan` estimates them. Not run yet: only its code path is tested, on a small
folder. Known of the paper: DeiT weights, no distillation, fine-tuned with tokens reduced. Not known: epochs and
learning rate; these are the ones that token reduction papers share (30 epochs, AdamW, lr 1e-3 for a batch of 1024,
RandAugment, mixup, cutmix, erasing, averaged weights). The unreduced base is fine-tuned as long as the others.
"""

from tpbench.recipe import Data, Measure, Optim, Recipe


def recipe(name: str = "imagenet-deit-ti", model: str = "deit_tiny_patch16_224", expected_base: float = 72.2) -> Recipe:
    """The recipe that the module describes, or the same for another model."""
    return Recipe(
        name=name,
        model=model,
        model_args={"drop_path_rate": 0.1},
        pretrained=True,
        data=Data(
            "",
            root="data/imagenet",
            image_size=224,
            classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop=0.9,
            interpolation="bicubic",
            validation=0.02,
            # "rand-m9-mstd0.5-inc1", DeiT's own, fails on some images with recent Pillow
            transform={"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.25, "re_mode": "pixel"},
            loader_processes=8,
            train_images=1_281_167,
        ),
        base=Optim(epochs=0, lr=0.0, batch_size=1024),  # the hub's weights as they are
        finetune=Optim(
            epochs=30,
            lr=1e-3,
            min_lr=1e-5,
            batch_size=1024,
            smoothing=0.1,
            mixup=0.8,
            cutmix=1.0,
            ema=0.9998,
            compile=True,
            zero_stage=1,
        ),
        schedules=("0.7@3,6,9", "0.5@3,6,9", "0.9@3,6,9", "0.25@3,6,9"),
        expected_base=expected_base,
        seeds=3,
        dtype="bfloat16",
        measure=Measure(batch_sizes=(1, 256)),
    )
