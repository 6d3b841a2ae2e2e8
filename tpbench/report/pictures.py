"""Pictures of tokens: which patches of an image each method keeps, drops and merges, block by block.

As in figure 1c of the Token Pooling paper, kept patches are shown as they are, and merged ones outlined in their mean
colour. Dropped patches fade into blue. A dot marks a patch whose token represents its cluster unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tpbench.record import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PATCH_PIXELS = 16  # minimum width of a patch, so that outlines are thin beside it
FAINT = 0.15  # opacity of a dropped patch on DROPPED, a light blue that is rare in photographs and absent in digits
DROPPED = np.array([0.68, 0.82, 0.93])
LINE = "#111111"
NOTE = "Blue: dropped. Outlined: merged, in their mean colour. Dot: the patch whose own token represents its cluster."


class Stage(NamedTuple):
    """The patches and tokens of B images after one block, for M patches and N tokens.

    owner [B, M] int  the token that represents each patch, -1 if the patch was dropped
    patch [B, N] int  the patch that each token comes from, -1 if it is made of several patches
    exact             False for soft methods, where each patch is assigned to the token that it contributes most to
    """

    block: int
    grid: tuple[int, int]
    owner: np.ndarray
    patch: np.ndarray
    exact: bool

    def standing(self, image: int) -> int:
        """The number of tokens that represent at least one patch of an image."""
        owner = self.owner[image]
        return len(np.unique(owner[owner >= 0]))


Row = Sequence[Stage] | str  # the stages of a method, or why there are none


def draw(pixels: np.ndarray, rows: Mapping[str, Row], image: int, about: str, path: Path) -> Path:
    """Draw one image under every method as a PNG; return its path.

    pixels: [H, W, 3] in 0..1; rows: by method; image: the index of the image in the stages.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which keeps global state

    columns = 1 + max([len(row) for row in rows.values() if not isinstance(row, str)], default=1)
    with rc_context({"font.family": "DejaVu Sans", "font.size": 8, "text.parse_math": False}):
        figure = Figure(figsize=(1.0 + 1.9 * columns, 0.8 + 2.15 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), columns, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        _photograph(panels[0][0], pixels)
        for line, (name, row) in zip(panels, rows.items()):
            _label(line[1], name, row)
            _fill(line[1:], pixels, row=row, image=image)
        figure.suptitle(about, fontsize=9)
        figure.supxlabel(fill(NOTE, 40 * columns), fontsize=7)
        _save(figure, path)
    return path


def _photograph(panel: Axes, pixels: np.ndarray) -> None:
    panel.imshow(pixels, interpolation="nearest")
    panel.set_title("input")


def _label(panel: Axes, name: str, row: Row) -> None:
    """Write the method's name to the left of its pictures, with a note for soft methods."""
    soft = not isinstance(row, str) and any(not stage.exact for stage in row)
    text = fill(name, 22) + ("\n(strongest part\nof each patch)" if soft else "")
    panel.text(-0.04, 0.5, text, transform=panel.transAxes, ha="right", va="center", rotation=90, color=LINE)


def _fill(panels: Sequence[Axes], pixels: np.ndarray, row: Row, image: int) -> None:
    if isinstance(row, str):
        panels[0].text(0, 0.5, fill(row, 34), transform=panels[0].transAxes, va="center", color="#777777")
        return
    for panel, stage in zip(panels, row):
        _stage(panel, pixels, stage=stage, image=image)


def _stage(panel: Axes, pixels: np.ndarray, stage: Stage, image: int) -> None:
    from matplotlib.collections import LineCollection

    owner = stage.owner[image].reshape(stage.grid)
    painted = paint(pixels, owner)
    panel.imshow(painted, interpolation="nearest")
    side = np.array(painted.shape[:2]) / stage.grid
    lines = [[(x * side[1] - 0.5, y * side[0] - 0.5) for x, y in line] for line in outlines(owner)]
    panel.add_collection(LineCollection(lines, colors=LINE, linewidths=0.6, capstyle="projecting"))
    dots = np.array([divmod(patch, stage.grid[1]) for patch in medoids(stage, image)], dtype=float).reshape(-1, 2)
    panel.plot(
        (dots[:, 1] + 0.5) * side[1] - 0.5,
        (dots[:, 0] + 0.5) * side[0] - 0.5,
        linestyle="none",
        marker="o",
        markersize=2.2,
        markerfacecolor="white",
        markeredgecolor=LINE,
        markeredgewidth=0.5,
    )
    panel.set_title(f"block {stage.block}: {stage.standing(image)} tokens")


def paint(pixels: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The image in the colours of its tokens. pixels: [H, W, 3]; owner: [rows, columns], the token of each patch."""
    pixels = enlarged(pixels, owner.shape)
    height = pixels.shape[0] // owner.shape[0]
    width = pixels.shape[1] // owner.shape[1]
    region = owner.repeat(height, axis=0).repeat(width, axis=1)
    painted = np.where((region < 0)[:, :, None], FAINT * pixels + (1 - FAINT) * DROPPED, pixels)
    for token in clusters(owner):
        painted[region == token] = pixels[region == token].mean(axis=0)
    return painted


def enlarged(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The image with every pixel repeated so that a patch of the grid is at least PATCH_PIXELS wide.

    Pixels beyond the last complete patch are cut off.
    """
    height = pixels.shape[0] // grid[0]
    width = pixels.shape[1] // grid[1]
    times = max(1, -(-PATCH_PIXELS // min(height, width)))
    cropped = pixels[: height * grid[0], : width * grid[1]]
    return cropped.repeat(times, axis=0).repeat(times, axis=1)


def clusters(owner: np.ndarray) -> np.ndarray:
    """The tokens that represent more than one patch."""
    tokens, members = np.unique(owner[owner >= 0], return_counts=True)
    return tokens[members > 1]


def outlines(owner: np.ndarray) -> list[list[tuple[int, int]]]:
    """The edges between patches of different tokens, at least one of which is a cluster: (x, y) pairs in patches."""
    merged = np.isin(owner, clusters(owner))
    across = (owner[:, 1:] != owner[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    down = (owner[1:] != owner[:-1]) & (merged[1:] | merged[:-1])
    upright = [[(x + 1, y), (x + 1, y + 1)] for y, x in np.argwhere(across)]
    level = [[(x, y + 1), (x + 1, y + 1)] for y, x in np.argwhere(down)]
    return upright + level


def medoids(stage: Stage, image: int) -> list[int]:
    """The patches whose unchanged token represents a cluster."""
    several = set(clusters(stage.owner[image]).tolist())
    return [int(patch) for token, patch in enumerate(stage.patch[image]) if patch >= 0 and token in several]


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    replace_bytes(path, drawn.getvalue())
