"""The optimiser: any of timm's by name.

ZeRO stages 1 and 2 hand the optimiser one flat share of all parameters. That is the same step only for optimisers
that treat every element by itself; those that look at a whole tensor (Muon, LAMB, Adafactor, ...) need stage 0.

Muon (Jordan et al., https://kellerjordan.github.io/posts/muon/) makes each weight matrix's step orthogonal by
Newton-Schulz iterations; biases, norms and position embeddings fall back to AdamW. timm iterates in bfloat16 and has no
setting for it. On a CPU we iterate in float32: most CPUs emulate bfloat16, at a multiple of the time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, muon

from tpbench.errors import UsageError
from tpbench.recipe import Optim
from tpbench.registry import nearest
from tpbench.training.groups import parameter_groups
from tpbench.vit import TokenViT

NEWTON_SCHULZ = muon.zeropower_via_newtonschulz
FUSED = ("adam", "adamw", "sgd")  # torch's own: all parameters in one operation, on CPUs too
# Of timm's optimisers, those whose step is the same on a flattened share of the parameters.
ELEMENTWISE = frozenset(
    {"adam", "adamax", "adamw", "adopt", "adoptw", "lion", "momentum", "nadam", "nadamw", "radam", "rmsprop", "sgd"}
)


def make_optimizer(model: TokenViT, optim: Optim) -> torch.optim.Optimizer:
    """timm's optimiser of that name over the model's parameter groups.

    Raises UsageError for an unknown name, for arguments that it does not take, and for one that ZeRO would change.
    """
    name = optim.optimizer.lower()
    if optim.zero_stage and name not in ELEMENTWISE:
        raise UsageError(
            f"optimizer {optim.optimizer!r} needs zero_stage=0: ZeRO flattens the parameters, which is safe for"
            f" {', '.join(sorted(ELEMENTWISE))}"
        )
    if name not in list_optimizers():
        raise UsageError(f"unknown optimizer {optim.optimizer!r}; {nearest(name, list_optimizers())}")
    own = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if taken := own.keys() & optim.optimizer_args.keys():
        raise UsageError(f"optimizer_args holds {', '.join(sorted(taken))}, which has a recipe line of its own")
    if name in FUSED:
        own["fused"] = True
    try:
        optimizer = create_optimizer_v2(parameter_groups(model, optim), opt=name, **own | optim.optimizer_args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {name!r} with {optim.optimizer_args}: {' '.join(str(error).split())}") from error
    if isinstance(optimizer, muon.Muon) and next(model.parameters()).device.type == "cpu":
        optimizer.register_step_pre_hook(_in_float32)
        optimizer.register_step_post_hook(_in_bfloat16)
    return optimizer


def _in_float32(*_: Any) -> None:
    muon.zeropower_via_newtonschulz = partial(NEWTON_SCHULZ, dtype=torch.float32)


def _in_bfloat16(*_: Any) -> None:
    muon.zeropower_via_newtonschulz = NEWTON_SCHULZ
