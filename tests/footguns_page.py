"""Write docs/footguns.md, with numbers from committed results: `python tests/footguns_page.py`.

The text is tests/footguns.md. A paragraph whose numbers are not committed, or whose direction the results do not show,
is left out of the page, and the command says so: the page says only what the records show.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from string import Formatter
from textwrap import fill

import pandas as pd

from tpbench import registry
from tpbench.recipe import tuning_path
from tpbench.record import Record, checked, read_all
from tpbench.tuning import Tuning

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("footguns.md")
PAGE = ROOT / "docs" / "footguns.md"
DIGITS = ROOT / "results" / "digits"
OPERATIONS = ROOT / "results" / "opbench"
SCHEDULE = "macs=0.5@0,1,2"
DEIT = "deit_small_patch16_224"
Facts = dict[str, str]


class NotShownError(Exception):
    """The committed results do not show what a paragraph says."""


def sure(holds: bool, what: str) -> None:
    if not holds:
        raise NotShownError(what)


def written(records: list[Record], models: pd.DataFrame, tuned: Tuning) -> tuple[str, list[str]]:
    """The text of the page, and why a paragraph was left out, in sentences."""
    known: Facts = {}
    missing = []
    sources = {of_seeds: records, of_controls: records, of_fine_tuning: records, of_the_base: records}
    sources |= {of_padding: records, of_tuning: tuned, of_cost: models, of_time: models, of_masks: models}
    for facts, source in sources.items():
        try:
            known |= facts(source)
        except NotShownError as error:
            missing.append(str(error))
    paragraphs = TEMPLATE.read_text(encoding="utf-8").strip().split("\n\n")
    kept = [wrapped(paragraph.format_map(known)) for paragraph in paragraphs if needs(paragraph) <= known.keys()]
    return "\n\n".join(kept) + "\n", missing


def wrapped(paragraph: str) -> str:
    return fill(paragraph, width=120, break_on_hyphens=False, break_long_words=False)


def needs(paragraph: str) -> set[str]:
    """The facts that a paragraph names."""
    return {name for _, name, _, _ in Formatter().parse(paragraph) if name}


def committed() -> tuple[str, list[str]]:
    """The page of the committed results."""
    records = read_all(DIGITS) if (DIGITS / "records").is_dir() else []
    return written(records, operations(), tuning())


def operations() -> pd.DataFrame:
    return pd.concat(pd.read_csv(path) for path in sorted(OPERATIONS.glob("*.csv")))


def tuning() -> Tuning:
    return checked(Tuning, tuning_path("digits").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- from the records of digits


def rows(records: list[Record]) -> pd.DataFrame:
    """The methods at half of the base's multiply-adds, without variants and null rows: top-1 in percent."""
    found = [
        (
            record.method,
            record.seed,
            100 * record.metrics["fine_tuned_top1"],
            100 * record.metrics["off_the_shelf_top1"],
        )
        for record in records
        if record.error is None and record.schedule == SCHEDULE and "(" not in record.method
    ]
    sure(len({seed for _, seed, _, _ in found}) > 1, "digits: no methods over several seeds are committed")
    return pd.DataFrame(found, columns=["method", "seed", "tuned", "shelf"])


def of_seeds(records: list[Record]) -> Facts:
    table = rows(records)
    groups = table.groupby("method")["tuned"]
    spread = (groups.max() - groups.min()).median()
    means = groups.mean().sort_values(ascending=False)
    sure(len(means) >= 10, "digits: fewer than ten methods")
    gap = means.iloc[0] - means.iloc[9]
    sure(spread > gap, "digits: ten methods' means lie further apart than one method's seeds")
    seeds = str(table["seed"].nunique())
    return {"methods": str(len(means)), "seeds": seeds, "spread": f"{spread:.1f}", "gap": f"{gap:.1f}"}


def of_controls(records: list[Record]) -> Facts:
    means = rows(records).groupby("method")["tuned"].mean()
    base = 100 * fmean(r.metrics["fine_tuned_top1"] for r in records if r.unreduced and r.error is None)
    sure({"patch_dropout", "random", "topk"} <= set(means.index), "digits: a control is missing")
    sure(means["patch_dropout"] > means["random"], "digits: random tokens do no worse than evenly spaced ones")
    best = means[["patch_dropout", "random"]].max()
    sure(best > means["topk"] - 3, "digits: tokens chosen without looking stay more than three points behind top-K")
    controls = {name: f"{means[name]:.1f}" for name in ("patch_dropout", "random", "topk")}
    return {**controls, "controls_base": f"{base:.1f}"}


def of_fine_tuning(records: list[Record]) -> Facts:
    means = rows(records).groupby("method")[["tuned", "shelf"]].mean()
    sure("maxpool" in means.index, "digits: maxpool is missing")
    tuned = means.loc["maxpool", "tuned"]
    shelf = means.loc["maxpool", "shelf"]
    sure(tuned - shelf > 10, "digits: fine-tuning gives maxpool less than 10 points")
    return {"maxpool": f"{tuned:.1f}", "maxpool_shelf": f"{shelf:.1f}"}


def of_the_base(records: list[Record]) -> Facts:
    base = [record.metrics for record in records if record.unreduced and record.error is None]
    sure(bool(base), "digits: no base is committed")
    names = {"base_before": "off_the_shelf_top1", "base": "fine_tuned_top1"}
    return {fact: f"{100 * fmean(metrics[name] for metrics in base):.1f}" for fact, name in names.items()}


def of_padding(records: list[Record]) -> Facts:
    macs = [r.macs for r in records if r.method == "ats" and r.schedule == SCHEDULE and "live" in r.macs]
    sure(bool(macs), "digits: no record of ats is committed")
    shares = {"ats_macs": "total", "ats_live": "live"}
    return {fact: f"{100 * fmean(m[name] / m['unreduced'] for m in macs):.0f}" for fact, name in shares.items()}


# ---------------------------------------------------------------- from the tuning of digits


def of_tuning(found: Tuning) -> Facts:
    chosen = [method.chosen for method in found.methods.values()]
    fell = {
        name: (method.losses[0], method.losses[method.chosen])
        for name, method in found.methods.items()
        if method.losses[0] is not None
    }
    sure(bool(fell), "digits: no tuning is committed")
    most = max(fell, key=lambda name: fell[name][0] - fell[name][1])
    return {
        "trials": str(len(found.space)),
        "tuned": str(len(chosen)),
        "tuned_away": str(sum(number > 0 for number in chosen)),
        "choices": str(len(set(chosen))),
        "most": most,
        "most_before": f"{fell[most][0]:.2f}",
        "most_after": f"{fell[most][1]:.2f}",
    }


# ---------------------------------------------------------------- from the benchmark of operations: whole models


def whole(models: pd.DataFrame, value: str) -> pd.DataFrame:
    """One value of DeiT-S by operation and batch size, float32 on a CPU, at a keep rate of 0.7."""
    found = models[(models["kind"] == "model") & (models["dtype"] == "float32")]
    found = found[found["model"] == DEIT]
    sure(not found.empty, f"opbench: no {DEIT} is committed")
    return found.pivot_table(index="operation", columns="batch", values=value)


def macs_share(models: pd.DataFrame) -> pd.Series:
    macs = whole(models, "macs")[1]
    return macs / macs["none"]


def of_cost(models: pd.DataFrame) -> Facts:
    share = macs_share(models)
    exact = [card.name for card in registry.select("all") if card.count == "exact" and not card.unreduced]
    share = share[[name for name in exact if name in share.index]]
    ends = {"cheapest": share.idxmin(), "dearest": share.idxmax()}
    return {fact: f"{100 * share[name]:.1f} % (`{name}`)" for fact, name in ends.items()}


def of_time(models: pd.DataFrame) -> Facts:
    promised = 1 / macs_share(models)["topk"]
    time = whole(models, "to_unreduced").loc["topk"]
    one = 1 / time[1]
    eight = 1 / time[8]
    sure(one < eight < promised, "opbench: the clock gives top-K what MACs promise")
    return {"topk_promised": f"{promised:.2f}", "topk_one": f"{one:.2f}", "topk_eight": f"{eight:.2f}"}


def of_masks(models: pd.DataFrame) -> Facts:
    time = whole(models, "to_unreduced").loc["avit"].max()
    sure(time >= 1, "opbench: avit is faster than the unreduced model")
    return {"avit_time": f"{time:.2f}"}


if __name__ == "__main__":
    page, left_out = committed()
    PAGE.write_text(page, encoding="utf-8")
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
