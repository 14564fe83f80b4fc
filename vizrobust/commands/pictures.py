"""`rerender` and `gallery`: a finished picture made again and compared, and finished runs joined on one page."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.commands.picture_report import PictureReport
from vizrobust.features import PixelDifference, Provenance
from vizrobust.features import rerender as rendered_again
from vizrobust.features.pictures import in_tiles, png_bytes, to_uint8
from vizrobust.models import Checkpoint, load_checkpoint
from vizrobust.report import write_gallery
from vizrobust.report.style import sheet_figure
from vizrobust.requests import MissingFileError
from vizrobust.requests.pictures import GalleryRequest, RerenderRequest
from vizrobust.results import Event, Note, Result, Row
from vizrobust.runs import write_png
from vizrobust.session import Session


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
