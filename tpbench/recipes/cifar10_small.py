"""CIFAR-10 on one data-centre GPU in a quarter of an hour: the cifar10-cpu study on a wider base, in large batches.

    python -m tpbench run --recipe cifar10-small --time-limit 9m   # again and again, until nothing is left
    python -m tpbench tune --recipe cifar10-small                  # only after a change of the recipe

Data: fetched once, as for the cifar10 recipe. Model: 64 tokens of 4x4 pixels, width 192, 6 blocks, 3 heads. Expect the
base at 80 % (80.9, 80.8, 80.8 and 81.1 % for the first four seeds). Machine: one GPU, bfloat16. So small a model keeps
a GPU waiting for its launches, so several workers share it, each on one core of the processor (`--set workers=14` for
another number), and rows are timed at the end, when nothing trains. An H200 with 16 cores trained ten bases of three
widths side by side in 240 s and then measured a fine-tuned cell every 1.1 s. An H100 trained four bases in 130 s, tried
the settings of 37 methods in 120 s and measured a cell every 1.7 s.

Budgets and order are those of cifar10-cpu: for every seed the base, then what is evaluated off the shelf alone, then
every method fine-tuned at half of the base's multiply-adds and at 0.3 of them, and the methods that the claims need at
0.7 and 0.9. cifar10-small-w96 and -w144 are narrower bases, for the Pareto hull.
"""

from dataclasses import replace

from tpbench.recipe import Measure, Optim, Recipe
from tpbench.recipes import cifar10, cifar10_cpu


def recipe(
    name: str = "cifar10-small",
    width: int = 192,
    methods: tuple[str, ...] = ("all",),
    controls: tuple[str, ...] = (cifar10_cpu.NULL, *cifar10.SETTINGS),
) -> Recipe:
    """The recipe that the module describes, or one on a base of another width."""
    on_two_cores = cifar10_cpu.recipe(name, width=width, methods=methods, controls=controls)
    return replace(
        on_two_cores,
        model="deit_tiny_patch16_224",
        model_args={"img_size": 32, "patch_size": 4, "embed_dim": width, "depth": 6, "num_heads": 3, "num_classes": 10},
        base=replace(on_two_cores.base, epochs=34, lr=3e-3, batch_size=512, warmup_epochs=2, patch_drop=0.25),
        finetune=Optim(epochs=2, lr=5e-4, batch_size=512, warmup_epochs=0.2, smoothing=0.1),
        search={},
        workers=8,
        measure=Measure(batch_sizes=(1, 256), repeats=0, warmup=0, cuda_graph=True),
    )


def of_width(width: int, expected_base: float) -> Recipe:
    """The unreduced model and Token Pooling on a base of another width, with the settings tuned for cifar10-small."""
    own = recipe(f"cifar10-small-w{width}", width=width, methods=("none", "wkmedoids"), controls=())
    return replace(own, expected_base=expected_base, tuned_as="cifar10-small")
