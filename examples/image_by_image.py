"""Read the records of a results folder with pandas, and compare two methods image by image.

python examples/image_by_image.py results/smoke wkmedoids topk
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from tpbench.errors import UsageError
from tpbench.outcomes import Outcomes, paired, unpack
from tpbench.record import read_all


def table(folder: Path) -> pd.DataFrame:
    """One row for each record: method, schedule, seed, cost and accuracies, as shares and not in percent."""
    rows = [
        {
            "method": record.method,
            "schedule": record.schedule,
            "seed": record.seed,
            "macs_share": record.macs["total"] / record.macs["unreduced"],
            **record.metrics,
        }
        for record in read_all(folder)
        if record.error is None
    ]
    return pd.DataFrame(rows)


def outcomes(folder: Path, method: str, schedule: str) -> dict[int, Outcomes]:
    """Which test images a fine-tuned method classified correctly, by seed."""
    return {
        record.seed: unpack(record.outcomes["fine_tuned"])
        for record in read_all(folder)
        if (record.method, record.schedule) == (method, schedule) and "fine_tuned" in record.outcomes
    }


def main(folder: Path, first: str, second: str) -> None:
    """Print the accuracies of all methods, then the difference of two methods at each schedule."""
    frame = table(folder)
    print(frame.groupby(["schedule", "method"])[["macs_share", "fine_tuned_top1"]].mean().round(3).to_string())
    for schedule in frame.loc[frame["method"] == first, "schedule"].unique():
        points = paired(outcomes(folder, first, schedule), outcomes(folder, second, schedule))
        tested = np.isfinite(points)
        print(f"\n{first} minus {second} at {schedule}: {np.nanmean(points):+.2f} points on {tested.sum()} answers")
        print(f"only {first} is right: {(points > 0).sum()}, only {second}: {(points < 0).sum()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("first")
    parser.add_argument("second")
    arguments = parser.parse_args()
    try:
        main(arguments.folder, arguments.first, arguments.second)
    except UsageError as error:
        sys.exit(str(error))
