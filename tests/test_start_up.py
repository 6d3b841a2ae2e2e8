"""What a verb loads: a process that only reads, or only times, must not wait for what it does not use.

torch, timm and torchvision load each other's parts (torchvision.ops loads torch._dynamo); that is theirs, and a verb
that needs a model needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import example, store
from test_timed_report import filed, session

MODELS = {"torch", "torchvision", "timm", "deepspeed", "numba", "sklearn"}
FIGURES = {"matplotlib", "scipy", "pandas"}
TRAINING = {"deepspeed", "tensorboard", "timm.optim", "timm.scheduler"}
SCRIPT = """
import json, sys
{first}
from tpbench.cli import main
code = main({words!r})
print()
print(json.dumps([code, *sys.modules]))
"""
MODEL = ["--model", "test_vit", "--batch-sizes", "1"]
VERBS = {
    "list": (["list"], MODELS | FIGURES),
    "report of records": (["report", "RECORDS"], MODELS | {"scipy.stats", "matplotlib.pyplot"}),
    "report of a session": (["report", "SESSION"], MODELS | {"scipy", "matplotlib"}),
    "profile of one": (
        ["profile", "--method", "topk", "--schedule", "0.5@1", "--repeats", "1", *MODEL],
        FIGURES | TRAINING | {"numba", "sklearn"},
    ),
    "profile of many": (
        ["profile", "--methods", "topk", "--schedules", "0.5@1", "--rounds", "1", *MODEL],
        FIGURES | TRAINING | {"numba", "sklearn"},
    ),
}


def loaded(words: list[str], folder: Path, first: str = "") -> set[str]:
    """The modules that a process has loaded when a verb is done."""
    store(folder / "records-only", example())
    filed(folder / "session-only", session())
    named = {"RECORDS": str(folder / "records-only"), "SESSION": str(folder / "session-only")}
    script = SCRIPT.format(first=first, words=[named.get(word, word) for word in words])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, *modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_loads_nothing_that_it_does_not_need(verb, tmp_path):
    words, forbidden = VERBS[verb]
    assert loaded(words, tmp_path) & forbidden == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "first", "seen"),
    [
        ("list", "import scipy", {"scipy"}),
        ("report of records", "import matplotlib.pyplot", {"matplotlib.pyplot"}),
        ("report of a session", "from tpbench.report import pareto, two_way; import torch", {"torch"}),
    ],
)
def test_control_a_module_too_many_is_seen(verb, first, seen, tmp_path):
    words, forbidden = VERBS[verb]
    assert loaded(words, tmp_path, first) & forbidden >= seen
