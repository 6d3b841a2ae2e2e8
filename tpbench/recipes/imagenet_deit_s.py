"""ImageNet with the pretrained DeiT-S of the hub: the paper's main setting, as far as it is known.

    torchrun --nproc-per-node 8 -m tpbench run --recipe imagenet-deit-s --data DIR --methods none,wkmedoids,topk
    python -m tpbench run --recipe imagenet-deit-s --plan        # cells and estimated hours on 1 and 8 GPUs

Machine: 8 data-centre GPUs. Everything but the model is imagenet-deit-ti's. Not run yet. The paper's numbers on DeiT-S
stand in the tables' own column: 81.2 % for the base as its authors trained it, 79.8 % for the hub's weights.
"""

from tpbench.recipe import Recipe
from tpbench.recipes import imagenet_deit_ti


def recipe() -> Recipe:
    """The recipe that the module describes."""
    return imagenet_deit_ti.recipe("imagenet-deit-s", "deit_small_patch16_224", expected_base=79.8)
