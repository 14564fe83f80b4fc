"""Pictures as answers: rows, tables and files of a command; `rerender` and `gallery`, which take finished pictures."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vizrobust.features import PixelDifference, Provenance
from vizrobust.features import rerender as rendered_again
from vizrobust.features.pictures import in_tiles, png_bytes, to_uint8
from vizrobust.models import Checkpoint, load_checkpoint
from vizrobust.report import write_gallery
from vizrobust.report.style import sheet_figure
from vizrobust.requests import MissingFileError, Request
from vizrobust.requests.pictures import GalleryRequest, RerenderRequest
from vizrobust.results import Event, Note, Result, Row, Table
from vizrobust.runs import write_png
from vizrobust.session import Session

if TYPE_CHECKING:
    from vizrobust.features import FeatureImage, Recipe


@dataclass(frozen=True, repr=False)
class PictureReport(Result):
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

    def rows(self) -> list[Row]:
        return list(self.found)

    def tables(self) -> list[Table]:
        return list(self.shown)

    def lines(self) -> list[str]:
        """Where the pages and sheets are."""
        return [f"{kind}: {path}" for kind, path in self.pages]

    def image(self) -> Image.Image | None:
        """The sheet of all pictures; None where there is none."""
        if self.sheet is None:
            return None
        with Image.open(self.sheet) as image:
            image.load()
            return image

    def figure(self) -> Any:
        """The sheet of all pictures as a matplotlib figure, pixel by pixel; None where there is none."""
        from vizrobust.report.style import sheet_figure

        sheet = self.image()
        return None if sheet is None else sheet_figure(sheet)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.found)} rows of {self.request!r})"

    def _picture_html(self) -> str:
        if self.sheet is None:
            return ""
        source = b64encode(self.sheet.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{source}" style="max-width: 100%" alt="{html.escape(repr(self))}">'


@dataclass(frozen=True)
class Picture:
    """One feature image with its `status`: ok, dead (no gradient) or saturated."""

    feature_image: FeatureImage
    status: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feature_image, name)

    def _repr_png_(self) -> bytes:
        return self.feature_image._repr_png_()


@dataclass(frozen=True, repr=False)
class Pictures(Sequence[Picture]):
    """Feature images of one checkpoint, in the order of units and seeds; notebooks show them side by side."""

    pictures: tuple[Picture, ...]
    checkpoint: str
    layer: str
    recipe: Recipe
    classes: Sequence[str] = ()  # of the network, where the layer is its output

    def title(self, one: Picture) -> str:
        """The class of a class unit where it has a name, else ``unit 3``."""
        name = self.classes[one.unit] if one.unit < len(self.classes) else ""
        return name if name.strip("0123456789") else f"unit {one.unit}"

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        return self.pictures[index]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def __repr__(self) -> str:
        units = ", ".join(dict.fromkeys(str(one.unit) for one in self.pictures))
        where = f"units {units} of {self.layer} in {self.checkpoint}"
        return f"{len(self)} pictures of {where}, recipe {self.recipe.name} with {self.recipe.steps} steps"

    def rows(self) -> list[dict[str, Any]]:
        """Unit, seed, score and status of each picture."""
        return [{"unit": one.unit, "seed": one.seed, "score": one.score, "status": one.status} for one in self.pictures]

    def figure(self) -> Any:
        """All pictures as a matplotlib figure: a row for each seed, under the names of the units and above their scores."""
        from vizrobust.report.style import picture_grid

        rows: dict[int, list[Any]] = {}
        for one in self.pictures:
            rows.setdefault(one.seed, []).append((self.title(one), one.pixels(opaque=True), f"{one.score:.3g}"))
        return picture_grid(list(rows.values()))

    def image(self) -> Image.Image:
        """All pictures side by side, a row for each unit, small ones enlarged by a whole number."""
        from vizrobust.report.canvas import side_by_side

        rows: dict[int, list[Any]] = {}
        for one in self.pictures:
            rows.setdefault(one.unit, []).append(one.pixels(opaque=True))
        return side_by_side(list(rows.values()))

    def _repr_html_(self) -> str:
        def tile(one: Picture) -> str:
            source = b64encode(one._repr_png_()).decode()
            style = "image-rendering: pixelated; width: 160px"
            text = f"{self.title(one)} of {self.layer} in {self.checkpoint}, score {one.score:.2f}, {one.status}"
            return f'<img src="data:image/png;base64,{source}" style="{style}" title="{text}" alt="{text}">'

        return "".join(tile(one) for one in self.pictures)


@dataclass(frozen=True, repr=False)
class Rerendered(Result):
    """A picture made again: how it differs from the first one. `ok` is False where a pixel differs."""

    row: Row
    difference: PixelDifference
    image: Image.Image

    @property
    def ok(self) -> bool:
        return not self.difference

    def rows(self) -> list[Row]:
        return [self.row]

    def lines(self) -> list[str]:
        return [str(self.difference)]

    def figure(self) -> Any:
        """The new picture as a matplotlib figure."""
        return sheet_figure(self.image)

    def _repr_png_(self) -> bytes:
        return png_bytes(np.asarray(self.image))

    def __repr__(self) -> str:
        return f"Rerendered({self.row['file']!r}: {self.difference})"


def rerender(request: RerenderRequest, session: Session) -> Generator[Event, None, Rerendered]:
    """Render a picture again from what its PNG says, and compare the pixels."""
    made = Provenance.read(request.file)
    checkpoint = _checkpoint(made, request.model, session)
    device = None if session.device == "auto" else session.device
    notes = made.differences(device)
    yield from (Note(f"note: {note}") for note in notes)
    done = rendered_again(made, checkpoint, device)
    pixels = to_uint8(in_tiles(done.image, checkpoint.info.input_shape[0]))
    if request.save is not None:
        write_png(request.save, pixels, made.texts(done, device, session.argv, checkpoint))
        yield Note(f"written: {request.save}")
    difference = PixelDifference.between(made.pixels, pixels)
    row = {
        "file": request.file, "checkpoint": checkpoint.name, "weights_sha256": checkpoint.sha256, "same": not difference,
        **asdict(difference), "score": round(done.score, 5), "score_then": made.row.get("score"), "notes": notes,
        "out": request.save,
    }  # fmt: skip
    yield row
    return Rerendered(row, difference, Image.fromarray(pixels))


def _checkpoint(made: Provenance, model: object, session: Session) -> Checkpoint:
    """The one that the picture names, or the request's."""
    try:
        # A picture's own words name no code to run.
        own = load_checkpoint(made.reference, session.code, session.download) if model is None else None
        return own or session.checkpoint(model)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        if model is not None:
            raise
        weights = made.weights_sha256[:8]
        raise MissingFileError("%s; name the checkpoint with the weights %s as {model}", error, weights) from error


def gallery(request: GalleryRequest, _session: Session | None = None) -> Generator[Event, None, PictureReport]:
    """Join the pictures of finished runs into one page and one contact sheet."""
    runs: Sequence[Path] = [Path(run) for run in request.runs]
    page = write_gallery(Path(request.folder), runs, title=request.title)
    yield from ()
    return PictureReport(request, (), (), [("gallery", page)], page.parent / "contact-sheet.png", page.parent)
