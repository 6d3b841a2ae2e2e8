"""`python -m opbench`, which `tox -e opbench` runs: all benchmarks and their report, or `compare` two records."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from opbench import compare, report

HERE = Path(__file__).parent
CASES = ("bench_operations.py", "bench_targets.py", "bench_steps.py")


def main(words: Sequence[str]) -> int:
    """Run the benchmarks with further flags for pytest, or `compare`; the exit code."""
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.json"
        flags = ["--benchmark-only", "--benchmark-quiet", f"--benchmark-json={record}", *words]
        files = [str(HERE / name) for name in CASES]
        done = subprocess.run([sys.executable, "-m", "pytest", *files, *flags], check=False)
        reported = report.main([str(record), str(compare.FOLDER)]) if record.exists() else 0
        return done.returncode or reported


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
