"""All measurements of the fused kernels that need a GPU: `python -m opbench.gpu --out DIR`, under 9 minutes.

First the agreement of every kernel with its definition, then timings, with DeiT-S at 224 pixels, batch 256, bfloat16.
Measurements are independent: one that fails has its traceback in its record, the others continue, and the exit code is
1. Numbers are medians of samples taken in turns. Device time is measured with CUDA graphs, which leave out the cost of
launching; since a call that waits for the host cannot be captured, this also shows that none does. `--device cpu
--quick` runs the same code with small shapes, as a test of the script.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from tpbench import environment, vit
from tpbench.downsampler import Probe
from tpbench.kernels import attention, clustering
from tpbench.kernels.device import definitions, triton_runs_on
from tpbench.measure import flops, latency, modes
from tpbench.record import slug
from tpbench.tokens import Tokens

Calls = Mapping[str, Callable[[], object]]
MINUTES = 9
SCALE = 0.125  # of attention, for heads 64 wide


@dataclass(frozen=True)
class Setting:
    """Device, model and shapes of the measurements.

    Shapes below: B images, H heads, N body tokens, C width.
    """

    device: torch.device
    model: str
    args: dict
    schedule: str
    batch: int
    repeats: int
    dtype: torch.dtype = torch.bfloat16
    backend: str = "inductor"  # of torch.compile

    def base(self) -> vit.VisionTransformer:
        """The unreduced model with random weights."""
        torch.manual_seed(0)
        return vit.create(self.model, self.args).eval().to(self.device)

    def compiled(self, call: Callable | nn.Module) -> Callable:
        """A call compiled by the setting's backend."""
        return torch.compile(call, backend=self.backend)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal noise, always from the same seed."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, dtype or self.dtype)


def deit_small(device: torch.device) -> Setting:
    """The setting of all published numbers."""
    return Setting(device, model="deit_small_patch16_224", args={}, schedule="0.7@3,6,9", batch=256, repeats=20)


def quick(device: torch.device) -> Setting:
    """A small setting, to test the script."""
    args = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 7}
    return Setting(
        device,
        model="vit_tiny_patch16_224",
        args=args,
        schedule="0.7@1,2",
        batch=4,
        repeats=2,
        backend="eager",
    )


# ---------------------------------------------------------------- how to measure


def device_seconds(calls: Calls, setting: Setting, inner: int = 10) -> dict[str, float]:
    """Median seconds of each call on the device alone, in turns; each sample is `inner` calls in one CUDA graph."""
    with torch.inference_mode():
        graphs = {name: captured(call, setting.device, inner) for name, call in calls.items()}
        samples = latency.interleaved(graphs, setting.repeats, warmup=3, device=setting.device)
    return {name: median(times) / inner for name, times in samples.items()}


def captured(call: Callable[[], object], device: torch.device, inner: int = 1) -> Callable[[], object]:
    """`inner` calls as one CUDA graph, or as a loop if the device is not a CUDA device."""

    def repeated() -> None:
        for _ in range(inner):
            call()

    return modes.captured(repeated) if device.type == "cuda" else repeated


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """The number of kernels and copies that one call launches on the GPU; None without a GPU."""
    if device.type != "cuda":
        return None
    with torch.inference_mode():
        call()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
            call()
            torch.cuda.synchronize(device)
    seen = (event for event in record.events() if not getattr(event, "is_user_annotation", False))
    return sum(event.device_type == DeviceType.CUDA for event in seen)


def by_definition(call: Callable[[], object]) -> Callable[[], object]:
    """The same call with definitions in place of fused kernels."""

    def unfused() -> object:
        with definitions():
            return call()

    return unfused


def heads(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, D] in the memory layout of a block's projection, and a bias [B, 1, 1, N]."""
    block = setting.base().blocks[0].attn
    n = setting.base().patch_embed.num_patches + 1
    width = block.num_heads * block.head_dim
    q, k, v = setting.normal(setting.batch, n, 3 * width).unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = setting.normal(setting.batch, 1, 1, n).abs()
    return q, k, v, bias


def layer(setting: Setting, method: str) -> Callable[[], Tokens]:
    """The method's reducer after the first block, on random tokens."""
    base = setting.base()
    reducer = vit.reduce(base, method, "0.7@0").to(setting.dtype).blocks[0].reducer
    n = reducer.setup.tokens
    x = setting.normal(setting.batch, n + 1, reducer.setup.width)
    tokens = Tokens(x, prefix=1, size=torch.ones(setting.batch, n).to(setting.device))
    row = setting.normal(setting.batch, n, dtype=torch.float32).abs()
    return lambda: reducer(tokens, Probe(received=row, own=row / 2, cls=row))


def block(setting: Setting) -> Callable[[], Tensor]:
    """One unreduced block, compiled."""
    base = setting.base()
    x = setting.normal(setting.batch, base.patch_embed.num_patches + 1, base.embed_dim)
    compiled = setting.compiled(base.blocks[0].to(setting.dtype))
    return lambda: compiled(x)


# ---------------------------------------------------------------- what is measured


def agreement(setting: Setting) -> dict[str, object]:
    """The distance of each kernel from its definition, relative to the largest number; indices must be the same."""
    q, k, v, bias = heads(setting)
    x = setting.normal(setting.batch, q.shape[2], setting.base().embed_dim)[:, 1:]
    weight = setting.normal(*x.shape[:2], dtype=torch.float32).abs()
    kept = round(0.7 * x.shape[1])
    distance = clustering.squared_distances(x)
    first = clustering.heaviest(weight, kept)
    steps = clustering.steps_for(x)
    found: dict[str, object] = {"fused": triton_runs_on(setting.device)}
    for name, extra in (("", None), ("_with_bias", bias)):
        exact = torch.ops.tpbench.attend_and_receive
        with definitions():
            exact_bias = None if extra is None else extra.float()
            want = exact(q.float(), k.float(), v.float(), bias=exact_bias, scale=SCALE)
        got = torch.ops.tpbench.attend_and_receive(q, k, v, bias=extra, scale=SCALE)
        second = torch.ops.tpbench.receive(q, k, bias=extra, lse=None, scale=SCALE)
        for what, a, b in zip(("out", "received", "own"), got, want):
            found[f"{what}{name}"] = distance_of(a, b)
        found[f"second_pass{name}"] = max(distance_of(a, b) for a, b in zip(second, want[1:]))
    found["distances"] = distance_of(steps.squared_distances(x), distance)
    pairs = {
        "heaviest": (steps.heaviest(weight, kept), first),
        "peaks": (steps.peaks(distance, weight, kept), clustering.peaks(distance, weight, kept)),
        "farthest": (steps.farthest(distance, weight, kept), clustering.farthest(distance, weight, kept)),
        "medoids": tuple(
            r.iterate_medoids(distance, weight, first=first, iterations=5)[0] for r in (steps, clustering)
        ),
    }
    found |= {f"{name}_same": (a == b).float().mean().item() for name, (a, b) in pairs.items()}
    products = steps.inner_products(x)
    share, cluster = steps.iterate_means(products, weight, first, 5)
    exact_share, exact_cluster = clustering.iterate_means(products, weight, first, 5)
    found["means"] = distance_of(share, exact_share)
    found["means_same"] = (cluster == exact_cluster).float().mean().item()
    wrong = {n: x for n, x in found.items() if isinstance(x, float) and (x < 0.99 if n.endswith("same") else x > 0.02)}
    if wrong:
        raise AssertionError(f"kernels disagree with their definitions: {wrong}; all: {found}")
    return found


def distance_of(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number of `b`."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def column_sums(setting: Setting) -> dict[str, object]:
    """The cost of computing the attention received, in several ways, as a share of a block. Target: 0.08."""
    q, k, v, bias = heads(setting)
    op = torch.ops.tpbench
    calls = {
        "block": block(setting),
        "attention": lambda: F.scaled_dot_product_attention(q, k, v),
        "attention_with_bias": lambda: F.scaled_dot_product_attention(q, k, v, bias),
        "one_pass": lambda: op.attend_and_receive(q, k, v, bias=None, scale=SCALE),
        "one_pass_with_bias": lambda: op.attend_and_receive(q, k, v, bias=bias, scale=SCALE),
        "second_pass": lambda: (
            F.scaled_dot_product_attention(q, k, v),
            op.receive(q, k, bias=None, lse=None, scale=SCALE),
        ),
        "explicit": by_definition(lambda: op.attend_and_receive(q, k, v, bias=None, scale=SCALE)),
        "class_row": lambda: attention.class_attention(q, k, bias=None, scale=SCALE),
    }
    if setting.device.type == "cuda":
        flash = torch.ops.aten._scaled_dot_product_flash_attention

        def given_lse() -> object:
            out, lse = flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, scale=SCALE)[:2]
            return out, op.receive(q, k, bias=None, lse=lse, scale=SCALE)

        calls["second_pass_given_lse"] = given_lse
    seconds = device_seconds(calls, setting)
    ways = [name for name in ("one_pass", "second_pass", "second_pass_given_lse") if name in seconds]
    share = {name: (seconds[name] - seconds["attention"]) / seconds["block"] for name in (*ways, "explicit")}
    return {"seconds": seconds, "share_of_a_block": share, "fastest": min(ways, key=seconds.__getitem__)}


def clustering_layer(setting: Setting) -> dict[str, object]:
    """One layer of each method beside a block and beside its definition. Targets: 0.30 of a block, 3x, 8 launches."""
    methods = ("wkmedoids", "wkpeaks", "wkmeans", "topk", "dpcknn")
    calls = {name: layer(setting, name) for name in methods}
    compiled = {f"{name}_compiled": setting.compiled(layer(setting, name)) for name in methods[:3]}
    eager = {f"{name}_by_definition": by_definition(calls[name]) for name in methods[:3]}
    seconds = device_seconds({"block": block(setting), **calls, **compiled, **eager}, setting)
    return {
        "seconds": seconds,
        "share_of_a_block": {name: seconds[name] / seconds["block"] for name in (*calls, *compiled)},
        "times_faster_than_definition": {
            name: seconds[f"{name}_by_definition"] / seconds[name] for name in methods[:3]
        },
        "launches": {n: launches(call, setting.device) for n, call in {**calls, **compiled, **eager}.items()},
        "captured_in_cuda_graphs": setting.device.type == "cuda",  # so nothing waited for the host
    }


def clustering_steps(setting: Setting) -> dict[str, object]:
    """Each step of one clustering layer by itself."""
    n = setting.base().patch_embed.num_patches
    x = setting.normal(setting.batch, n + 1, setting.base().embed_dim)[:, 1:]
    weight = setting.normal(setting.batch, n, dtype=torch.float32).abs()
    kept = round(0.7 * n)
    steps = clustering.steps_for(x)
    distance = steps.squared_distances(x)
    products = steps.inner_products(x)
    first = steps.heaviest(weight, kept)
    calls = {
        "distances": lambda: steps.squared_distances(x),
        "heaviest": lambda: steps.heaviest(weight, kept),
        "peaks": lambda: steps.peaks(distance, weight, kept),
        "farthest": lambda: steps.farthest(distance, weight, kept),
        "medoids_5": lambda: steps.iterate_medoids(distance, weight, first=first, iterations=5),
        "medoids_2": lambda: steps.iterate_medoids(distance, weight, first=first, iterations=2),
        "means_5": lambda: steps.iterate_means(products, weight, first=first, iterations=5),
    }
    return {"seconds": device_seconds(calls, setting)}


def whole_model(setting: Setting) -> dict[str, object]:
    """Throughput, all compiled. Targets: wkmedoids 0.94 of top-K, 0.90 of the MACs' promise; top-K 0.95 of it."""
    base = setting.base()
    names = ("topk", "wkmedoids", "wkpeaks")
    models = {name: vit.reduce(base, name, setting.schedule) for name in names}
    images = latency.random_images(base, setting.batch)
    calls: dict[str, Callable[[], object]] = {"unreduced_eager": latency.forward_call(base, images, setting.dtype)}
    for name, model in {"unreduced": base, **models}.items():
        calls[name] = latency.forward_call(setting.compiled(model), images, setting.dtype)
    samples = latency.interleaved(calls, setting.repeats, warmup=3, device=setting.device)
    seconds = {name: median(times) for name, times in samples.items()}
    unreduced = flops.closed_form(vit.reduce(base, "none")).total
    fastest = min(seconds["unreduced"], seconds["unreduced_eager"])
    promised = {name: unreduced / flops.closed_form(model).total for name, model in models.items()}
    return {
        "seconds": seconds,
        "samples": samples,
        "speedup_promised": promised,
        "speedup_reached": {name: fastest / seconds[name] for name in names},
        "share_of_promise": {name: fastest / seconds[name] / promised[name] for name in names},
        "throughput_against_topk": {name: seconds["topk"] / seconds[name] for name in names},
    }


def batch_1(setting: Setting, method: str) -> dict[str, object]:
    """Latency of one image by CUDA graphs. Targets: reduced / unreduced 1.0, wkmedoids / topk 1.25."""
    base = setting.base()
    image = latency.random_images(base, 1).to(setting.dtype)
    models = {"unreduced": base} | {n: vit.reduce(setting.base(), n, setting.schedule) for n in {"topk", method}}
    calls = {name: forward(model.to(setting.dtype).eval(), image) for name, model in models.items()}
    seconds = device_seconds(calls, setting, inner=1)
    return {
        "seconds": seconds,
        "against_unreduced": seconds[method] / seconds["unreduced"],
        "against_topk": seconds[method] / seconds["topk"],
        "launches": {name: launches(call, setting.device) for name, call in calls.items()},
    }


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A forward pass as a call."""
    return lambda: model(images)


def training_step(setting: Setting) -> dict[str, object]:
    """Forward, backward and AdamW under autocast. Target: wkmedoids / topk 1.1."""
    images = latency.random_images(setting.base(), max(2, setting.batch // 2))
    calls = {name: step(setting, name, images) for name in ("none", "topk", "wkmedoids", "wkpeaks")}
    samples = latency.interleaved(calls, max(2, setting.repeats // 2), warmup=3, device=setting.device)
    seconds = {name: median(times) for name, times in samples.items()}
    return {"seconds": seconds, "against_topk": {name: seconds[name] / seconds["topk"] for name in seconds}}


def step(setting: Setting, method: str, images: Tensor) -> Callable[[], None]:
    """A training step of a method as a call."""
    model = vit.reduce(setting.base(), method, setting.schedule if method != "none" else "none").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(images), dtype=torch.int64, device=setting.device)

    def one_step() -> None:
        with torch.autocast(setting.device.type, setting.dtype):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return one_step


MEASUREMENTS: dict[str, Callable[[Setting], dict[str, object]]] = {
    "agreement": agreement,
    "column_sums": column_sums,
    "clustering_steps": clustering_steps,
    "clustering_layer": clustering_layer,
    "training_step": training_step,
    **{
        f"batch_1_{method}": partial(batch_1, method=method)
        for method in ("wkmedoids", "wkpeaks", "topk_cls", "evit", "tome", "wkmeans", "kmedoids", "dpcknn")
    },
    "whole_model": whole_model,  # last, because it compiles four models and the time may run out
}


def run(setting: Setting, out: Path) -> dict[str, dict]:
    """Run all measurements and write each into its own file OUT/DEVICE/NAME.json; return the records."""
    machine = environment.describe(setting.device, setting.dtype)
    folder = out / slug(machine["device"])
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    records = {}
    for name, measure in MEASUREMENTS.items():
        start = time.monotonic()
        if start - begun > 60 * MINUTES:
            result = None
            error = f"not measured: {MINUTES} minutes were over"
        else:
            result, error = attempt(measure, setting)
        records[name] = {
            "measurement": name,
            "result": result,
            "error": error,
            "seconds_taken": time.monotonic() - start,
            "setting": {"model": setting.model, "batch": setting.batch, "schedule": setting.schedule},
            "environment": machine,
            "git": environment.git(),
        }
        (folder / f"{name}.json").write_text(json.dumps(records[name], indent=1))
        print(f"{name} ({records[name]['seconds_taken']:.0f} s)", error or summary(result), flush=True)
    return records


def attempt(measure: Callable[[Setting], dict[str, object]], setting: Setting) -> tuple[dict | None, str | None]:
    """(result, None), or (None, traceback) if the measurement fails."""
    torch.compiler.reset()  # otherwise the models of one process reach the limit of compilations of their common code
    try:
        return measure(setting), None
    except Exception:
        return None, traceback.format_exc()


def summary(result: dict) -> str:
    """A result without raw samples, rounded, as JSON."""
    flat = {key: value for key, value in result.items() if key != "samples"}
    return json.dumps(json.loads(json.dumps(flat), parse_float=lambda x: float(f"{float(x):.4g}")))


def main(argv: list[str] | None = None) -> int:
    """Run all measurements; the exit code is 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m opbench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the records are in OUT/DEVICE")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to test the script")
    parser.add_argument("--quick", action="store_true", help="small shapes, few samples")
    given = parser.parse_args(argv)
    device = environment.device(given.device)
    records = run((quick if given.quick else deit_small)(device), given.out)
    return int(any(record["error"] for record in records.values()))


if __name__ == "__main__":
    raise SystemExit(main())
