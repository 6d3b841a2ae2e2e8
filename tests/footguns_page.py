"""Write docs/footguns.md, with numbers from committed results: `python tests/footguns_page.py`.

The text is in tests/footguns.md. What it says of a number must hold: a direction that the results no longer show is an
error here, and the sentence has to change.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pandas as pd

from tpbench import registry
from tpbench.recipe import tuning_path
from tpbench.record import Record, checked, read_all
from tpbench.tuning import Tuning

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("footguns.md")
PAGE = ROOT / "docs" / "footguns.md"
SCHEDULE = "macs=0.5@0,1,2"
DEIT = "deit_small_patch16_224"
CONTROLS = ("random", "patch_dropout", "topk")


def page() -> str:
    """The text of docs/footguns.md."""
    records = read_all(ROOT / "results" / "digits")
    operations = pd.concat(pd.read_csv(path) for path in (ROOT / "results" / "opbench").glob("*.csv"))
    facts = {**of_accuracy(records), **of_budgets(records), **of_tuning(), **of_operations(operations)}
    return TEMPLATE.read_text(encoding="utf-8").format_map(facts)


def sure(holds: bool, sentence: str) -> None:
    """Raise ValueError where the committed results no longer show what the page says."""
    if not holds:
        raise ValueError(f"the committed results no longer show that {sentence}: change tests/footguns.md")


def of_accuracy(records: list[Record]) -> dict[str, str]:
    """What seeds, controls and fine-tuning do, on digits at half of the multiply-adds."""
    sound = [record for record in records if record.error is None]
    rows = pd.DataFrame(
        {
            "method": record.method,
            "seed": record.seed,
            "tuned": 100 * record.metrics["fine_tuned_top1"],
            "shelf": 100 * record.metrics["off_the_shelf_top1"],
        }
        for record in sound
        if record.schedule == SCHEDULE and "(" not in record.method
    )
    base = [record.metrics for record in sound if record.unreduced]
    groups = rows.groupby("method")
    means = groups[["tuned", "shelf"]].mean()
    spread = (groups["tuned"].max() - groups["tuned"].min()).median()
    ranked = means["tuned"].sort_values(ascending=False)
    gap = ranked.iloc[0] - ranked.iloc[9]
    sure(spread > gap, "one method's seeds lie further apart than ten methods' means")
    sure(means.loc["patch_dropout", "tuned"] > means.loc["random", "tuned"], "evenly spaced tokens beat random ones")
    sure(means.loc["maxpool", "tuned"] - means.loc["maxpool", "shelf"] > 10, "fine-tuning makes up for maxpool's loss")
    return {
        "methods": str(len(means)),
        "seeds": str(rows["seed"].nunique()),
        "spread": f"{spread:.1f}",
        "gap": f"{gap:.1f}",
        "base": f"{100 * fmean(metrics['fine_tuned_top1'] for metrics in base):.1f}",
        "base_before": f"{100 * fmean(metrics['off_the_shelf_top1'] for metrics in base):.1f}",
        **{name: f"{means.loc[name, 'tuned']:.1f}" for name in CONTROLS},
        "maxpool_shelf": f"{means.loc['maxpool', 'shelf']:.1f}",
        "maxpool": f"{means.loc['maxpool', 'tuned']:.1f}",
    }


def of_budgets(records: list[Record]) -> dict[str, str]:
    """What cannot be met, and what padding hides."""
    unreachable = sorted({record.method for record in records if not record.reachable})
    ats = [r for r in records if r.method == "ats" and r.schedule == SCHEDULE and "live" in r.macs]
    sure("avit" in unreachable, "avit meets no budget of multiply-adds")
    sure(bool(ats), "ats pads")
    return {
        "ats_macs": f"{100 * fmean(r.macs['total'] / r.macs['unreduced'] for r in ats):.0f}",
        "ats_live": f"{100 * fmean(r.macs['live'] / r.macs['unreduced'] for r in ats):.0f}",
    }


def of_tuning() -> dict[str, str]:
    """How many methods chose another fine-tuning than the recipe's, on validation images."""
    tuning = checked(Tuning, tuning_path("digits").read_text(encoding="utf-8"))
    tuned = list(tuning.methods.values())
    fell = {name: (method.losses[0], method.losses[method.chosen]) for name, method in tuning.methods.items()}
    most = max(fell, key=lambda name: fell[name][0] - fell[name][1])  # the recipe's own did not diverge for any method
    return {
        "most": most,
        "most_before": f"{fell[most][0]:.2f}",
        "most_after": f"{fell[most][1]:.2f}",
        "trials": str(len(tuning.space)),
        "tuned": str(len(tuned)),
        "tuned_away": str(sum(method.chosen > 0 for method in tuned)),
        "choices": str(len({method.chosen for method in tuned})),
    }


def of_operations(operations: pd.DataFrame) -> dict[str, str]:
    """Cost and time of whole models on a CPU, at a keep rate of 0.7."""
    whole = operations[(operations["kind"] == "model") & (operations["dtype"] == "float32")]
    whole = whole[whole["model"] == DEIT]
    time = whole.pivot_table(index="operation", columns="batch", values="to_unreduced")
    macs = whole[whole["batch"] == 1].set_index("operation")["macs"]
    exact = [card.name for card in registry.select("all") if card.count == "exact" and card.name in macs.index]
    share = (macs / macs["none"])[exact].drop("none").sort_values()
    sure(time.loc["avit"].max() >= 1, "avit is no faster than the unreduced model")
    sure(
        time.loc["topk", 1] > time.loc["topk", 8] > share["topk"], "a batch of one gains less, and eight less than MACs"
    )
    return {
        "cheapest": f"`{share.index[0]}` {100 * share.iloc[0]:.1f} %",
        "dearest": f"`{share.index[-1]}` {100 * share.iloc[-1]:.1f} %",
        "topk_promised": f"{1 / share['topk']:.2f}",
        "topk_one": f"{1 / time.loc['topk', 1]:.2f}",
        "topk_eight": f"{1 / time.loc['topk', 8]:.2f}",
        "avit_time": f"{time.loc['avit'].max():.2f}",
    }


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
