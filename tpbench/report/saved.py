"""Figures as files: a small PNG for the screen and a PDF for print."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.record import replace_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def save(figure: Figure, path: Path, print_too: bool = False) -> None:
    """Save a figure atomically as a PNG of 256 colours, a third of the full size. Equal figures give equal bytes.

    print_too: also save a PDF beside it, with the same layout.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep this layout; otherwise every drawing computes it again
    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    # MAXCOVERAGE keeps colours that are rare, so that a small marker keeps its family's colour.
    few = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture = BytesIO()
    few.save(picture, format="png", optimize=True)
    replace_bytes(path, picture.getvalue())
    if print_too:
        page = BytesIO()
        figure.savefig(page, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        replace_bytes(path.with_suffix(".pdf"), page.getvalue())
