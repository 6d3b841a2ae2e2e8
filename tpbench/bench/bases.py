"""The trained weights of a benchmark's unreduced bases: one safetensors file per seed, with a checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from tpbench.bench.models import build_base
from tpbench.bench.results_folder import weights_path
from tpbench.bench.workspace import Workspace
from tpbench.errors import UsageError
from tpbench.record import replace_bytes


def base_path(workspace: Workspace, seed: int) -> Path:
    """The path of a seed's trained base; the file need not exist."""
    return weights_path(workspace.out, seed)


def save_base(workspace: Workspace, seed: int, model: torch.nn.Module, seconds: float) -> None:
    """Write the base's weights atomically, so that a reader finds the complete file or none."""
    if not workspace.writes:
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    about = {
        "recipe": workspace.recipe.base_digest,
        "data": workspace.fingerprint,
        "seed": str(seed),
        "seconds": str(seconds),
        "checksum": checksum(state),
    }
    replace_bytes(base_path(workspace, seed), save(state, metadata=about))


def load_base(workspace: Workspace, seed: int) -> torch.nn.Module:
    """The trained unreduced timm model of a seed.

    Raises UsageError for a file that cannot be read, that was changed since it was written, or that was trained by
    other lines of a recipe or on other images. Files of earlier versions have no checksum and are accepted without one,
    or name the digest of the whole recipe.
    """
    path = base_path(workspace, seed)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
        weights = load_file(path)
        recipe = about["recipe"]
        images = about["data"]
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise UsageError(f"base checkpoint {path} cannot be read ({error}); delete it or run with --fresh") from error
    if recipe not in (workspace.recipe.base_digest, workspace.recipe.digest):
        raise UsageError(f"base checkpoint {path} belongs to another recipe; run with --fresh or another --out")
    if images != workspace.fingerprint:
        raise UsageError(f"base checkpoint {path} was trained on other images; run with --fresh or another --out")
    if "checksum" in about and about["checksum"] != checksum(weights):
        raise UsageError(f"base checkpoint {path} was changed since it was written; delete it or run with --fresh")
    model = build_base(workspace.recipe, seed)
    model.load_state_dict(weights)
    return model.to(workspace.device)


def checksum(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of some tensors, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
