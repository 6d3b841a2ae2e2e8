"""python -m opbench: every timing and its report, or `compare` two records (what `tox -e opbench` runs)."""

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
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    with tempfile.TemporaryDirectory() as room:
        record = Path(room) / "run.json"
        how = ["--benchmark-only", "--benchmark-quiet", f"--benchmark-json={record}", *words]
        files = [str(HERE / name) for name in CASES]
        done = subprocess.run([sys.executable, "-m", "pytest", *files, *how], check=False)
        reported = report.main([str(record), str(compare.FOLDER)]) if record.exists() else 0
        return done.returncode or reported


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
