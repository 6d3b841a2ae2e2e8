"""Traces, read by the program they are written for: TensorBoard with its PyTorch Profiler plug-in, over HTTP.

Every trace stands there twice, as written and as the profiler left it before the layers were made operators. The
second shows no layer at all, and nothing else in the first may differ from it.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import tpbench
from tpbench.measure import trace
from tpbench.vit import TokenViT

RunProfileData = pytest.importorskip("torch_tb_profiler.profiler.data").RunProfileData

STEPS, PATIENCE_SECONDS = 3, 90
PARTS = {"blocks.0": ("attn", "reducer", "mlp"), "blocks.1": ("attn", "mlp"), "blocks.2": ("attn", "reducer", "mlp")}
ROWS = {"patch_embed", "head", *PARTS, *(f"{block}.{part}" for block, parts in PARTS.items() for part in parts)}
NAMES = ROWS | {"blocks.1.reducer"}  # a row that must not be there

Table = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(make_vit: Callable[..., nn.Module]) -> TokenViT:
    return tpbench.reduce(make_vit(depth=3), "wkmedoids", "0.5@0,2")


# ---------------------------------------------------------------- the file


def test_file_is_named_for_the_plugin_and_comes_alone(model: TokenViT, images: Tensor, tmp_path: Path):
    path = trace.write_trace(model, images, tmp_path / "new", name="worker", steps=1)
    assert re.fullmatch(r"worker\.\d+\.pt\.trace\.json", path.name)
    assert list((tmp_path / "new").iterdir()) == [path]
    assert {e["name"] for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "cpu_op"} >= ROWS


def test_model_is_left_without_hooks(model: TokenViT, images: Tensor, tmp_path: Path):
    with trace.annotated(trace.traced_layers(model)):
        assert hooks(model) == 2 * len(ROWS)  # the count sees them
    trace.write_trace(model, images, tmp_path, steps=1)
    assert hooks(model) == 0


def test_failure_leaves_no_hooks_and_no_file(
    model: TokenViT, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model.blocks[1].mlp, "forward", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        trace.write_trace(model, images, tmp_path / "none")
    assert hooks(model) == 0
    assert not (tmp_path / "none").exists()


def test_annotation_ends_where_its_layer_fails(monkeypatch: pytest.MonkeyPatch):
    layer = nn.Identity()
    monkeypatch.setattr(layer, "forward", fail)
    with profile(activities=[ProfilerActivity.CPU]) as record, trace.annotated({"failing": layer}):
        with pytest.raises(RuntimeError, match="on purpose"):
            layer(torch.zeros(1))
        torch.arange(3)
    ranges = {event.name: event.time_range for event in record.events()}
    assert ranges["failing"].end <= ranges["aten::arange"].start


def test_only_the_named_annotations_become_operators():
    def event(category: str, name: str, **args: int) -> dict[str, Any]:
        return {"cat": category, "name": name, "args": args}

    before = [
        event("user_annotation", "head"),
        event("user_annotation", "ProfilerStep#2"),
        event("user_annotation", "someone else's"),
        event("gpu_user_annotation", "head"),
        event("cuda_runtime", "cudaDeviceSynchronize"),  # launched by no operator
        event("cuda_driver", "cuLaunchKernel", **{"External id": 3}),
        {"name": "process_name", "ph": "M"},
    ]
    after = trace.as_operators({"traceEvents": copy.deepcopy(before)}, {"head"})["traceEvents"]
    changed = {b["name"]: (b["cat"], a["cat"]) for b, a in zip(before, after) if b != a}
    assert changed == {"head": ("user_annotation", "cpu_op"), "cuLaunchKernel": ("cuda_driver", "runtime")}


def test_kernels_count_for_the_layer_that_launches_them():
    """The plug-in's own reading of a made-up trace; without the rewrite it gives no operator any device time."""
    assert device_times(gpu_trace()) == {"aten::mm": 0}
    times = device_times(trace.as_operators(gpu_trace(), {"blocks.0", "blocks.0.reducer"}))
    assert times == {"aten::mm": 100, "blocks.0.reducer": 100, "blocks.0": 100}


def device_times(recorded: dict[str, Any]) -> dict[str, float]:
    operators = RunProfileData.from_json("worker", "1", recorded).op_list_groupby_name
    return {operator.name: operator.device_duration for operator in operators}


def gpu_trace() -> dict[str, Any]:
    """One step as Kineto writes it on a GPU: a reducer whose matmul launches two kernels, of 70 and 30 microseconds,
    one through CUDA's runtime and one through its driver. Written by hand: CI has no GPU."""

    def event(category: str, name: str, start: int, duration: int, thread: int = 10, **args: object) -> dict[str, Any]:
        args = {"External id" if key == "id" else key: value for key, value in args.items()}
        place = {"pid": thread, "tid": thread, "ts": start, "dur": duration}
        return {"ph": "X", "cat": category, "name": name, **place, "args": args}

    kernel = {"thread": 7, "id": 4, "device": 0, "stream": 7, "grid": [1, 1, 1], "block": [32, 1, 1]}
    events = [
        event("user_annotation", "ProfilerStep#2", 0, 1000, id=1),
        event("user_annotation", "blocks.0", 100, 500, id=2),
        event("user_annotation", "blocks.0.reducer", 200, 200, id=3),
        event("cpu_op", "aten::mm", 250, 100, id=4),
        event("cuda_runtime", "cudaLaunchKernel", 260, 10, id=4, correlation=8),
        event("cuda_driver", "cuLaunchKernel", 280, 10, id=4, correlation=9),
        event("kernel", "first", 300, 70, correlation=8, **kernel),
        event("kernel", "second", 370, 30, correlation=9, **kernel),
        event("gpu_user_annotation", "blocks.0", 300, 100, thread=7, id=2),
        event("cuda_runtime", "cudaDeviceSynchronize", 700, 10, correlation=10),
    ]
    return {"schemaVersion": 1, "deviceProperties": [], "traceEvents": events}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def fail(*_: object) -> None:
    raise RuntimeError("on purpose")


# ---------------------------------------------------------------- the plug-in


class Plugin:
    """A running TensorBoard's PyTorch Profiler plug-in."""

    def __init__(self, address: str):
        self.address = f"{address}data/plugin/pytorch_profiler/"
        self.opener = build_opener(ProxyHandler({}))  # localhost is behind no proxy

    def get(self, route: str, **query: str) -> Any:
        with self.opener.open(f"{self.address}{route}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)

    def table(self, run: str) -> Table:
        """The operator table by name."""
        answer = self.get("operation/table", run=run, worker="tpbench", span="1", group_by="Operation")
        return {row["name"]: row for row in answer["data"]}


@pytest.fixture(scope="module")
def logdir(model: TokenViT, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recording as two runs: "traced", as written, and "raw", as it was before."""
    folder = tmp_path_factory.mktemp("logdir")
    rewrite = trace.as_operators

    def keeping_raw(recorded: dict[str, Any], names: set[str]) -> dict[str, Any]:
        save(folder / "raw", recorded)
        return rewrite(recorded, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "as_operators", keeping_raw)
        trace.write_trace(model, images, folder / "traced", steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def plugin(logdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """TensorBoard on a free port of localhost, once the plug-in has read all runs."""
    log = tmp_path_factory.mktemp("tensorboard") / "log"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--load_fast=false"]
    with log.open("w") as out:
        server = subprocess.Popen([*command, "--host=127.0.0.1", "--port=0"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        address = until(deadline, server, log, lambda: re.search(r"http://\S+", log.read_text()))[0]
        plugin = Plugin(address)
        runs = sorted(path.name for path in logdir.iterdir())
        until(deadline, server, log, lambda: loaded(plugin, runs))
        yield plugin
    finally:
        stop(server)


def until(deadline: float, server: subprocess.Popen, log: Path, ready: Callable[[], Any]) -> Any:
    """What `ready` returns as soon as that is true; the server's log where it never is."""
    while server.poll() is None and time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"TensorBoard (exit code {server.poll()}) was not ready in time:\n{log.read_text()}")


def loaded(plugin: Plugin, runs: list[str]) -> bool:
    answer = plugin.get("runs")
    return not answer["loading"] and sorted(answer["runs"]) == runs


def stop(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def save(folder: Path, recorded: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "tpbench.1.pt.trace.json").write_text(json.dumps(recorded))


@pytest.mark.slow
def test_operator_view_has_a_row_for_every_block_and_reducer(plugin: Plugin):
    assert {"Overview", "Operator", "Trace", "Memory", "Module"} <= set(plugin.get("views", run="traced"))
    assert plugin.get("workers", run="traced", view="Operator") == ["tpbench"]
    assert plugin.get("spans", run="traced", worker="tpbench") == ["1"]
    table = plugin.table("traced")
    assert {name: table[name]["calls"] for name in NAMES & table.keys()} == dict.fromkeys(ROWS, STEPS)


@pytest.mark.slow
def test_without_the_rewrite_no_layer_has_a_row_and_all_other_rows_are_the_same(plugin: Plugin):
    table, raw = plugin.table("traced"), plugin.table("raw")
    assert not NAMES & raw.keys()
    assert {name: row for name, row in table.items() if name not in NAMES} == raw


@pytest.mark.slow
def test_times_nest(plugin: Plugin):
    table = plugin.table("traced")
    total = {name: row["host_total_duration"] for name, row in table.items()}
    assert all(0 <= row["host_self_duration"] <= total[name] for name, row in table.items())
    for block, parts in PARTS.items():
        rest = total[block] - sum(total[f"{block}.{part}"] for part in parts)
        assert rest > table[block]["host_self_duration"] > 0  # norms, residuals: operators of the block's own


@pytest.mark.slow
def test_overview_counts_the_recorded_steps(plugin: Plugin):
    steps = plugin.get("overview", run="traced", worker="tpbench", span="1")["steps"]["rows"]
    assert [row[0] for row in steps] == [str(trace.WARMUP + step) for step in range(STEPS)]
