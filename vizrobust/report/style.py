"""The look that all pictures share: fonts, colours, and how a figure is saved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from vizrobust.runs import replacing

INK, QUIET, FAINT, PAPER = "#1a1c1f", "#5f6670", "#d9dce0", "#ffffff"
MARK = "#e0662f"
# Paul Tol's "bright" scheme, reordered: told apart by people with any kind of colour vision.
COLORS = ("#33658f", "#d1495b", "#2f8f5b", "#c08a1e", "#8a4f9e", "#3aa6b9", "#6b6f76")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_FAMILIES = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans")
_EAST_ASIAN = ("Noto Sans CJK JP", "Noto Sans CJK SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "WenQuanYi Micro Hei")


@cache
def font_families() -> list[str]:
    """A quiet sans-serif that is installed; behind it DejaVu, which matplotlib brings and which knows most scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return [
        *[name for name in _FAMILIES if name in installed][:1],
        "DejaVu Sans",
        *[name for name in _EAST_ASIAN if name in installed],
    ]


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib in the house style: text is never read as formulas, and a sign no font has is not an error."""
    settings: Any = {
        "font.family": font_families(),
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": "#e6e8eb",
        "grid.linewidth": 0.8,
        "svg.hashsalt": "vizrobust",
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def format_of(path: Path | str) -> str:
    """The format that a file name asks for. Raises ``ValueError`` for any but PNG, SVG and PDF."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"cannot draw {str(path)!r}: a figure ends in {', '.join(FORMATS)}, so give it one of these endings")
    return FORMATS[suffix]


def png_texts(command: str) -> dict[str, str]:
    """The text chunks of a PNG."""
    return {"Software": "vizrobust", **({"Command": command} if command else {})}


def save_figure(figure: Figure, path: Path | str, command: str = "") -> Path:
    """Write a figure whole or not at all, with the command that made it in the file's metadata and no date."""
    kind = format_of(path)
    if kind == "png":
        metadata: dict[str, str | None] = {**png_texts(command)}
    elif kind == "svg":
        metadata = {"Creator": "vizrobust", "Date": None, "Description": command or None}
    else:
        metadata = {"Creator": "vizrobust", "CreationDate": None, "Subject": command or None}
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=figure.dpi, metadata=metadata)
    return Path(path)
