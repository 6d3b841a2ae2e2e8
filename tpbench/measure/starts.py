"""Does the start of K-Medoids matter, and are its default iterations enough? Measured by the clustering objective.

The objective is what Token Pooling minimises: sum_i w_i |x_i - c_a(i)|^2. At every reducing block, the tokens that
arrive are clustered from every start and with several numbers of iterations. The model itself continues with its own
setting, so that all starts see the same tokens.

Shapes: B images, L blocks that cluster, S starts, T numbers of iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tpbench.downsampler import Probe
from tpbench.pooling import cluster
from tpbench.pooling.methods import WeightedKMedoids
from tpbench.tokens import Tokens, rows
from tpbench.vit import TokenViT

ITERATIONS = (0, 1, 2, 3, 5, 10)
CONVERGED = 50  # iterations after which K-Medoids on a few hundred tokens no longer changes
NEGLIGIBLE = 1e-9  # objective over the tokens' weighted energy that counts as zero, as when every token is a medoid
SETTLED = 1e-6  # two objectives with at most this relative difference count as equal


def clusters_by_medoids(model: TokenViT) -> bool:
    """Whether the model has blocks that this measurement applies to."""
    return bool(medoid_reducers(model))


def medoid_reducers(model: TokenViT) -> list[WeightedKMedoids]:
    """The reducers of a model that cluster by K-Medoids, in the order of their blocks."""
    return [block.reducer for block in model.blocks if isinstance(block.reducer, WeightedKMedoids)]


@torch.no_grad()
def starts(model: TokenViT, batches: Iterable[Tensor], seed: int) -> dict[str, Any]:
    """Measure objectives over all images [B, C, height, width] of all batches; return a JSON object.

    "default": the model's own start and iterations. "starts": start -> iterations -> {"mean", "sd"} over images, of the
    logarithm of the objective divided by that of the default, mean over blocks. "unconverged": start -> the same for
    the objective after the default iterations divided by the converged one, and "settled", the share of clusterings
    (image and block) where the two are equal. The random start draws from a generator seeded with `seed`; torch's own
    generator is left unchanged.
    """
    config = medoid_reducers(model)[0].config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        logs = torch.cat([blocks.cpu() for blocks in _log_objectives(model, batches)], dim=1)  # [L, B, S, T]
    iterations = _iterations(config.iterations)
    own = iterations.index(config.iterations)
    default = cluster.INITIALISATIONS.index(config.init)
    relative = (logs - logs[:, :, default, own, None, None]).mean(dim=0)  # [B, S, T]
    late = logs[..., own] - logs[..., -1]  # [L, B, S]
    result: dict[str, Any] = {
        "images": logs.shape[1],
        "default": {"start": config.init, "iterations": config.iterations},
        "starts": {},
        "unconverged": {},
    }
    for place, start in enumerate(cluster.INITIALISATIONS):
        columns = enumerate(iterations[:-1])
        result["starts"][start] = {str(count): _summary(relative[:, place, column]) for column, count in columns}
        settled = (late[:, :, place] <= SETTLED).double().mean().item()
        result["unconverged"][start] = _summary(late[:, :, place].mean(dim=0)) | {"settled": settled}
    return result


def _iterations(own: int) -> list[int]:
    return [*sorted({*ITERATIONS, own}), CONVERGED]


def _summary(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "sd": values.std(correction=1).item() if len(values) > 1 else 0.0}


def _log_objectives(model: TokenViT, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """For each batch, the log objectives [L, B, S, T]; the last of T is the converged one."""
    found: list[Tensor] = []

    def look(reducer: nn.Module, inputs: tuple[Tokens, Probe]) -> None:
        found.append(objectives(reducer, *inputs).log())

    hooks = [reducer.register_forward_pre_hook(look) for reducer in medoid_reducers(model)]
    model.eval()
    try:
        for images in batches:
            found.clear()
            model(images)
            yield torch.stack(found)
    finally:
        for hook in hooks:
            hook.remove()


def objectives(reducer: WeightedKMedoids, tokens: Tokens, probe: Probe) -> Tensor:
    """The objectives [B, S, T] of one block in double precision, at least NEGLIGIBLE of the tokens' energy."""
    points, weight, score = (part.double() for part in reducer.clustering(tokens, probe))
    least = NEGLIGIBLE * (weight * points.square().sum(dim=-1)).sum(dim=-1).clamp(min=torch.finfo(points.dtype).tiny)
    distance = cluster.squared_distances(points)
    by_start = []
    for start in cluster.INITIALISATIONS:
        chosen = cluster.initial(start, score=score, k=reducer.setup.k, distance=distance)
        values = _along(points, weight=weight, medoids=chosen, iterations=_iterations(reducer.config.iterations))
        by_start.append(torch.maximum(values, least[:, None]))
    return torch.stack(by_start, dim=1)


def _along(points: Tensor, weight: Tensor, medoids: Tensor, iterations: list[int]) -> Tensor:
    """The objective [B, T] after each of these numbers of iterations; each continues from the one before."""
    k = medoids.shape[1]
    values: list[Tensor] = []
    done = 0
    moving = True
    for count in iterations:
        if moving:
            before = medoids
            medoids, assignment = cluster.kmedoids(points, weight=weight, k=k, iterations=count - done, init=medoids)
            values.append(
                cluster.objective(points, weight=weight, centres=rows(points, medoids), assignment=assignment)
            )
            moving = count == done or not torch.equal(before, medoids)
            done = count
        else:
            values.append(values[-1])
    return torch.stack(values, dim=-1)
