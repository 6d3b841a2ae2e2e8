"""Wheel and source distribution: what is in them, whether an index takes them, and that the wheel works installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tpbench import registry

ROOT = Path(__file__).parents[1]
SOURCES = ("tpbench", "baselines", "tests", "results", "pyproject.toml", "MANIFEST.in")
SOURCES += ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md")
MISSING = [tool for tool in ("build", "twine", "setuptools") if find_spec(tool) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (`pip install -e .[test]`)"),
]


def run(*words: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution of a copy of the checkout, and a wheel made from that distribution."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", folder=source)
    return source / "dist"


def names_in(archive: Path) -> set[str]:
    """The files of a wheel, or of a source distribution without its leading folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as content:
        return {name.partition("/")[2] for name in content.getnames()}


def test_both_hold_the_licence_and_the_packages_data_and_no_tests(built):
    wheel = names_in(next(built.glob("*.whl")))
    source = names_in(next(built.glob("*.tar.gz")))
    about = next(name for name in wheel if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
    assert f"{about}licenses/LICENSE" in wheel
    assert {"LICENSE", "SECURITY.md", "README.md", "pyproject.toml"} <= source
    packages = [path for name in ("tpbench", "baselines") for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in packages if path.suffix not in (".pyc", ".nbi", ".nbc")}
    assert any(name.endswith(".tuned.json") for name in wanted), "control: there is data to be forgotten"
    assert "tpbench/report/published.csv" in wanted
    assert wanted <= wheel, sorted(wanted - wheel)
    assert wanted <= source, sorted(wanted - source)
    for names in (wheel, source):
        assert not {name for name in names if name.startswith(("tests/", "results/"))}
    assert {name.partition("/")[0] for name in wheel} == {"tpbench", "baselines", about.rstrip("/")}


def test_an_index_takes_them(built, tmp_path):
    files = sorted(built.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files, folder=tmp_path)
    broken = tmp_path / next(built.glob("*.whl")).name
    with zipfile.ZipFile(next(built.glob("*.whl"))) as whole, zipfile.ZipFile(broken, "w") as copy:
        for name in whole.namelist():
            if not name.endswith("METADATA"):
                copy.writestr(name, whole.read(name))
    with pytest.raises(AssertionError):  # the control: a wheel without metadata
        run(sys.executable, "-m", "twine", "check", "--strict", broken, folder=tmp_path)


def test_the_installed_wheel_works(built, tmp_path):
    """In an environment of its own, with the dependencies of this one and nothing of the checkout."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    installer = [sys.executable, "-m", "pip", "--python", python, "install"]
    if find_spec("pip") is None:
        if shutil.which("uv") is None:
            pytest.skip("neither pip nor uv is installed")
        installer = ["uv", "pip", "install", "--python", python]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run(*installer, "--no-deps", "--no-index", next(built.glob("*.whl")), folder=tmp_path, environment=environment)
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import tpbench; print(tpbench.__file__)", folder=tmp_path, environment=environment)
    assert where.startswith(str(own)), where
    command = tmp_path / "venv" / "bin" / "tpbench"
    listed = json.loads(run(command, "list", "--json", folder=tmp_path, environment=environment))
    assert {card["name"] for card in listed} == set(registry.catalogue()[0])
    assert "usage: tpbench list" in run(
        python, "-m", "tpbench", "list", "--help", folder=tmp_path, environment=environment
    )
    code = "from tpbench import recipe; from tpbench.report import published; r = recipe.load('digits');"
    code += " print(bool(r.tuned), len(published.published()) > 10)"
    assert run(python, "-c", code, folder=tmp_path, environment=environment).split() == ["True", "True"]
