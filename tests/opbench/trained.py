"""A model whose tokens are not noise: the base of the digits recipe after a few epochs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tpbench import vit
from tpbench.bench.models import build_base
from tpbench.recipe import load
from tpbench.training import data
from tpbench.training.conditions import Conditions
from tpbench.training.train import train


def trained_base(epochs: int) -> tuple[nn.Module, data.Parts]:
    """The timm model, trained as the recipe says but for so many epochs, and the images of the recipe."""
    recipe = load("digits")
    parts = data.load(recipe.data, torch.device("cpu"))
    base = build_base(recipe, 0)
    model = vit.reduce(base, "none")
    train(model, Conditions(parts), replace(recipe.base, epochs=epochs), seed=0)
    base.load_state_dict(model.state_dict())
    return base, parts
