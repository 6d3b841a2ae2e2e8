"""How good and how fast are the starts of K-Medoids on the tokens of a trained model?

Run it with `PYTHONPATH=tests python -m opbench.bench_starts`.

A model of the digits recipe is trained for a few epochs. Then the tokens that reach each block's
reducer are clustered, weighted by the attention that they receive. Losses are means over all test images, relative to
top-K with five iterations, which is probably the paper's choice. Seconds are medians of turns on one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

from opbench.trained import trained_base
from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.measure import latency
from tpbench.pooling import cluster
from tpbench.tokens import Tokens
from tpbench.training import data
from tpbench.vit import TokenViT, reduce

CPU = torch.device("cpu")
PAPER = ("topk", 5)
FEW = [(init, n) for init in ("topk", "peaks", "farthest", "grid", "random") for n in (1, 2, 3)]
WAYS = [PAPER, *FEW, ("topk", 30)]


class Recorder(Downsampler):
    """Reduces nothing, but keeps the tokens that arrive and the attention that each receives."""

    needs = Needs.RECEIVED
    seen: tuple[Tensor, Tensor]

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        self.seen = (tokens.body.clone(), probe.received.clone())
        return tokens


def sites(model: TokenViT, parts: data.Parts) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(block, tokens [B, N, C], attention received [B, N]) of each reducer for the first 256 test images."""
    images, labels = next(iter(parts.test.batches(256)))
    with torch.inference_mode():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"test accuracy of the trained model on these images: {accuracy:.3f}")
    for reducer in model.reducers:
        yield reducer.setup.block, *reducer.seen


def main(epochs: int = 10) -> None:
    """Print a table of loss and seconds for each block, K and start."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("block | N | K | " + " | ".join(f"{init} {n}: loss, seconds" for init, n in WAYS))
    base, parts = trained_base(epochs)
    model = reduce(base, Recorder, "0.9@0,1,2,3").eval()  # the schedule places the recorder, which keeps all tokens
    for block, x, weight in sites(model, parts):
        for k in (round(share * x.shape[1]) for share in (0.7, 0.5, 0.3)):
            losses = {}
            calls = {}
            for init, n in WAYS:
                calls[init, n] = partial(cluster.kmedoids, x, weight, k=k, iterations=n, init=init)
                medoids, assignment = calls[init, n]()
                centres = cluster.rows(x, medoids)
                found = cluster.objective(x, weight, centres=centres, assignment=assignment)
                losses[init, n] = found.mean().item()
            with torch.inference_mode():
                samples = latency.interleaved(calls, 9, warmup=1, device=CPU)
            seconds = {way: median(taken) for way, taken in samples.items()}
            cells = (f"{losses[w] / losses[PAPER]:.2f}, {seconds[w] / seconds[PAPER]:.2f}" for w in WAYS)
            print(f"{block} | {x.shape[1]} | {k} | " + " | ".join(cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
