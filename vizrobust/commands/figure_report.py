"""The answer of a command that draws one figure: its tables and the figure, as a notebook shows them."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from tempfile import TemporaryDirectory

from PIL import Image

from vizrobust.results import Table, tables_html


class FigureReport:
    """A report with `tables` and `draw`, which writes its figure to a file."""

    def tables(self) -> list[Table]:
        raise NotImplementedError

    def draw(self, path: str, command: str = "") -> None:
        raise NotImplementedError

    def figure(self) -> Image.Image:
        """The figure; a notebook shows it."""
        with TemporaryDirectory() as folder:
            self.draw(f"{folder}/figure.png")
            with Image.open(f"{folder}/figure.png") as image:
                image.load()
                return image

    def _repr_html_(self) -> str:
        buffer = BytesIO()
        self.figure().save(buffer, "PNG")
        picture = b64encode(buffer.getvalue()).decode()
        return f'{tables_html(self.tables())}<img src="data:image/png;base64,{picture}" style="max-width: 100%">'
