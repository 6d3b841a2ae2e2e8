"""What README says of the paper's claims: sentences around numbers of results/claims.csv."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tpbench.claims.at_base import UNREDUCED
from tpbench.claims.study import OTHER_START

RESULTS = Path(__file__).parents[1] / "results"
NATURAL, DIGITS = "cifar10-small on nvidia-h200-51c2", "digits on amd-epyc-2c-3e9e"
RIVALS = ("topk (PoWER-BERT)", "importance (importance)", "random (random)", "strided_conv (convolution)")
ALONE = f"shown only: ({OTHER_START}|{UNREDUCED})"  # readings that do not count and are told nevertheless
NUMBERS = {2: "two", 3: "three", 4: "four"}
WIDTH = 115


class Claims:
    """The committed readings and verdicts."""

    def __init__(self):
        self.rows = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False, na_values={"value": "", "low": ""})
        page = (RESULTS / "claims.md").read_text(encoding="utf-8")
        self.verdicts = {int(claim): verdict for claim, verdict in re.findall(r"^(\d)\. .*: \*\*(.+?)\*\*", page, re.M)}

    def row(self, claim: int, test: str, study: str = "") -> pd.Series:
        """The only reading of a claim with this test, in a study or in any: the one that counts, or is told alone."""
        own = self.rows[(self.rows["claim"] == claim) & self.rows["test"].str.startswith(test)]
        own = own[own["counts"] | own["remark"].str.match(ALONE)]
        own = own[own["study"] == study] if study else own
        if len(own) != 1:
            raise ValueError(f"{len(own)} readings of {test!r} in {study or 'any study'}")
        return own.iloc[0]

    def points(self, claim: int, test: str, study: str = NATURAL) -> str:
        """The only reading with this test, in points."""
        return in_points(self.row(claim, test, study))

    def against_rivals(self, pooling: str, study: str = NATURAL) -> str:
        """Token Pooling minus each of its four rivals, in points, and over how many budgets."""
        rows = [self.row(4, f"equal MACs: {pooling} minus {rival}", study) for rival in RIVALS]
        (budgets,) = {len(row["schedule"].split("; ")) for row in rows}
        return f"{', '.join(in_points(row) for row in rows)} (means over {NUMBERS[budgets]} budgets)"


def in_points(row: pd.Series) -> str:
    """A reading in points: "+0.8 ±0.3"."""
    return f"{row['value']:+.1f} ±{(float(row['high']) - float(row['low'])) / 2:.1f}"


def section() -> str:
    """The claims as a list, each with its verdict over all studies."""
    claims = Claims()
    about = (
        "`tpbench claims` tests eight claims of the paper against all records ([every reading](results/claims.md))."
        " In points of top-1, on CIFAR-10 and on digits, fine-tuned unless said otherwise:"
    )
    items = [f"- **{name}: {claims.verdicts[claim]}.** {text}" for claim, name, text in sentences(claims)]
    return "\n\n".join([filled(about), "\n".join(filled(item, indent="  ") for item in items)])


def filled(text: str, indent: str = "") -> str:
    """A paragraph in lines that fit an editor; links and words with hyphens stay whole."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def sentences(claims: Claims) -> Iterator[tuple[int, str, str]]:
    """(claim, its name, what was measured)."""
    yield (
        4,
        "Token Pooling beats `topk` (PoWER-BERT), importance, random tokens and convolution at equal cost",
        f"On CIFAR-10 it differs from them by {claims.against_rivals('wkmedoids')}, on digits by"
        f" {claims.against_rivals('wkmedoids', DIGITS)}. The paper does not say where its clustering starts. From a"
        f" grid (`init=grid`) instead of the most significant tokens, the differences on CIFAR-10 are"
        f" {claims.against_rivals('wkmedoids(init=grid)')}.",
    )
    hull, cheaper = (claims.row(3, start) for start in ("bases of several widths", "a cheaper base"))
    saved = re.search(r"at (\d+ %) fewer", cheaper["test"])[1]
    yield (
        3,
        "Equal accuracy at 42 % fewer multiply-adds",
        f"The pooled model differs from its base by {claims.points(3, 'one base: wkmedoids at')} on CIFAR-10"
        f" ({claims.points(3, 'one base: wkmedoids(init=grid) at')} from a grid), by"
        f" {claims.points(3, 'one base: wkmedoids at', DIGITS)} on digits. The best pooled model on bases of three"
        f" widths ({hull['schedule']}) differs from the largest base by"
        f" {in_points(hull)}. A narrower base without any reduction, at {saved} fewer"
        f" multiply-adds, differs from it by {in_points(cheaper)}.",
    )
    weighted = ("wkmedoids minus kmedoids", "wkmeans minus kmeans")
    natural, digits = (
        " and ".join(claims.points(5, f"equal MACs: {pair}", study) for pair in weighted) for study in (NATURAL, DIGITS)
    )
    yield (
        5,
        "Weighting the clusters helps a little",
        f"K-Medoids and K-Means: {natural} on CIFAR-10, {digits} on digits.",
    )
    yield (
        7,
        "Robust to initialisation, converged within 5 iterations",
        f"On CIFAR-10 `init=grid` gains {claims.points(7, 'accuracy, init=grid minus the default')}; five iterations"
        " are enough.",
    )
    yield (
        8,
        "Works without fine-tuning",
        f"Off the shelf at 42 % fewer multiply-adds: {claims.points(8, 'off the shelf: ')} on CIFAR-10,"
        f" {claims.points(8, 'off the shelf: ', DIGITS)} on digits. A loss of up to 10 points counts as working.",
    )
    gains = [claims.row(2, "gain of low over high", study)["value"] for study in (NATURAL, DIGITS)]
    yield (
        2,
        "Attention is a low-pass filter",
        f"It passes low frequencies {gains[0]:.2f} times as strongly as high ones on CIFAR-10, {gains[1]:.2f} times on"
        " digits.",
    )
    dense, pooling = claims.row(1, "DeiT-Ti at 224"), claims.row(6, "K-Medoids over the rest of DeiT-S at 2.53")
    share, cost = f"{dense['value']:.0f} % of DeiT-Ti at 224 pixels", f"{pooling['value']:.1f} % of the rest of DeiT-S"
    yield 1, "Fully connected layers take more than 80 % of the computation", f"They take {share}, by counting."
    yield 6, "The cost of clustering is small", f"K-Medoids takes {cost}, by counting."
