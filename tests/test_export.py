"""Routes out of eager PyTorch: what they make gives the eager logits, and the table says so only where they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tpbench
from tpbench import cli
from tpbench.downsampler import Downsampler, Probe
from tpbench.kernels import plain
from tpbench.measure import export
from tpbench.report import exported
from tpbench.tokens import Tokens

ROUTES = {name: make for name, make in export.ROUTES.items() if name != "torch.compile"}  # tests/test_modes.py has it

EXPORTED = ["wkmedoids", "wkpeaks", "wkmeans", "topk", "tome", "atc", "etps", "ppt", "tofu", "tokenlearner"]
EXPORTED += ["shift", "dtem", "mctf", "dtps", "zerotprune", "gtp", "ltmp", "dpcknn"]


def needs_onnx(route: str) -> None:
    if route == "ONNX":
        for package in export.PACKAGES:
            pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", EXPORTED)
def test_what_a_route_makes_gives_the_eager_logits(make_vit: Callable[..., nn.Module], method: str, route: str):
    needs_onnx(route)
    found = export.outcome(tpbench.reduce(make_vit(depth=2), method, "0.5@0"), ROUTES[route])
    assert found == {"works": True, "difference": found["difference"], "reason": ""}
    assert found["difference"] < 1e-4


class ReadsANumber(Downsampler):
    """Keeps the first tokens, or the last, as one value on the host decides."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        start = 0 if tokens.x.sum().item() > 0 else tokens.count - self.setup.k
        return tokens.keep((start + torch.arange(self.setup.k)).expand(len(tokens.x), -1))


def test_control_a_method_that_waits_for_a_number_does_not_export(vit: nn.Module):
    found = export.outcome(tpbench.reduce(vit, ReadsANumber, "0.5@0"), export.fixed_batch)
    assert not found["works"]
    assert "data-dependent" in found["reason"]


def test_control_other_logits_are_not_accepted(vit: nn.Module):
    model, other = tpbench.reduce(vit, "topk", "0.5@0"), tpbench.reduce(vit, "topk", "0.4@0")
    assert export.outcome(model, lambda *_: model)["works"]
    found = export.outcome(model, lambda *_: other)
    assert not found["works"]
    assert found["reason"] == "the logits differ"
    assert found["difference"] > export.TOLERANCE


def test_a_method_that_draws_is_not_compared(vit: nn.Module):
    model = tpbench.reduce(vit, "random", "0.5@0")
    found = export.outcome(model, lambda *_: lambda images: export.seeded(model, images, seed=5))
    assert (found["works"], found["difference"]) == (True, None)


# ---------------------------------------------------------------- plain forms of our operators


def some_tokens() -> tuple[Tensor, Tensor, Tensor]:
    """x [4, 30, 5] of small integers, so that ties abound; weights [4, 30], some 0; ten tokens [4, 10] to start at."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (4, 30, 5), generator=generator).float()
    weight = torch.randint(0, 4, (4, 30), generator=generator).float()
    return x, weight, torch.rand(4, 30, generator=generator).argsort(1)[:, :10]


every_start = pytest.mark.parametrize("start", ["given", "topk", "peaks"])


@every_start
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_plain_kmedoids_is_the_operator(start: str, iterations: int):
    x, weight, first = some_tokens()
    given = (x, weight, weight, first if start == "given" else None, start, 10)
    want, got = torch.ops.tpbench.kmedoids(*given, iterations), plain.kmedoids(*given, iterations)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    if iterations == 5 and start == "given":  # control: the iterations show
        assert not torch.equal(want[0], plain.kmedoids(*given, 1)[0])


@every_start
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_plain_kmeans_is_the_operator(start: str, iterations: int):
    x, weight, first = some_tokens()
    x = x + 0.01 * torch.randn(x.shape)
    given = (x, weight, weight, first if start == "given" else None, start, 10)
    want, got = torch.ops.tpbench.kmeans(*given, iterations), plain.kmeans(*given, iterations)
    torch.testing.assert_close(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("biased", [False, True])
def test_plain_attention_is_the_operator(biased: bool):
    q, k, v = torch.randn(3, 2, 3, 9, 4).unbind(0)
    bias = torch.rand(2, 1, 1, 9).log() if biased else None
    want = torch.ops.tpbench.attend_and_receive(q, k, v, bias, 0.5)
    got = plain.attend_and_receive(q, k, v, bias, 0.5)
    torch.testing.assert_close(got, want)
    assert got[0].stride() == want[0].stride()  # what follows in an exported program views it so


def test_plain_searchsorted_is_torch_s():
    rising, values = torch.randint(0, 5, (3, 8)).sort(dim=1).values, torch.randint(0, 6, (3, 4))
    assert torch.equal(plain.searchsorted(rising, values), torch.searchsorted(rising, values))


@torch.no_grad()
def test_every_operator_of_ours_that_is_exported_has_a_plain_form(vit: nn.Module, images: Tensor):
    model = tpbench.reduce(vit, "wkmeans", "0.5@0")
    assert "tpbench" in str(export.exported(model, images).graph_module.code)  # control: it does call one
    plain = export.in_plain_operators(export.exported(model, images))
    left = [str(n.target) for part in plain.graph_module.modules() if hasattr(part, "graph") for n in part.graph.nodes]
    assert [name for name in left if "tpbench" in name] == []


# ---------------------------------------------------------------- the table and the command

SURVEY = {
    "model": "test_vit",
    "schedule": "0.7@1,3",
    "methods": {
        "topk": {
            "torch.export": {"works": True, "difference": 0.0, "reason": ""},
            "ONNX": {"works": True, "difference": 6.8e-07, "reason": ""},
        },
        "random": {
            "torch.export": {"works": False, "difference": None, "reason": "UserError: no"},
            "ONNX": {"works": True, "difference": None, "reason": "draws at random"},
        },
    },
    "environment": {"packages": {"torch": "2.15.0", "timm": "1.0.31", "triton": "3"}},
    "packages": {"onnx": "1.23"},
}
TABLE = f"""\
# Compiling and exporting

`test_vit` reduced at `0.7@1,3`, float32 on a CPU; torch 2.15.0, timm 1.0.31, onnx 1.23.

{exported.NOTE}

| Method | torch.export | ONNX |
| :-- | :-- | :-- |
| topk | yes | yes (7e-07) |
| random | no | yes* |

## Why not

- random, torch.export: UserError: no
"""


def test_the_table_is_made_from_the_json_alone(tmp_path: Path):
    written, table = exported.write(tmp_path, SURVEY)
    assert table.read_text() == TABLE == exported.markdown(json.loads(written.read_text()))


def test_the_committed_table_is_that_of_its_json():
    folder = Path(__file__).parents[1] / "results" / "export"
    survey = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == exported.markdown(survey)
    assert len(survey["methods"]) >= 22


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    assert cli.main(["export", "--methods", "topk"]) == cli.WRONG
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "tpbench[export]" in err
