"""The answer of a command that makes pictures: rows, tables, and the files that hold the pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vizrobust.requests import Request
from vizrobust.results import Row, Table, tables_html


@dataclass(frozen=True, repr=False)
class PictureReport:
    """Rows and tables of a command, the `pages` or sheets that it wrote by kind, and what `figure` shows.

    `folder` holds the pictures; where nobody named one it is a temporary folder, which goes with the last reference to
    the report.
    """

    request: Request
    found: Sequence[Row] = ()
    shown: Sequence[Table] = ()
    pages: Sequence[tuple[str, Path]] = ()
    sheet: Path | None = None
    folder: Path | None = None
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return list(self.found)

    def tables(self) -> list[Table]:
        return list(self.shown)

    def lines(self) -> list[str]:
        """Where the pages and sheets are."""
        return [f"{kind}: {path}" for kind, path in self.pages]

    def figure(self) -> Image.Image | None:
        """The sheet of all pictures; a notebook shows it."""
        if self.sheet is None:
            return None
        with Image.open(self.sheet) as image:
            image.load()
            return image

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.found)} rows of {self.request!r})"

    def _repr_html_(self) -> str:
        picture = ""
        if self.sheet is not None:
            source = b64encode(self.sheet.read_bytes()).decode()
            picture = f'<img src="data:image/png;base64,{source}" style="max-width: 100%">'
        return tables_html(self.tables()) + picture
