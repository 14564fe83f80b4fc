"""Write the page of blind trials: one HTML file that asks, stores the answers and saves them as JSON."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.features.pictures import png_bytes
from vizrobust.report.viewer import environment
from vizrobust.rng import Streams
from vizrobust.runs import write_text
from vizrobust.study.human_trials import SIDES, Trial, TrialSet

LARGE = 96  # pictures up to this side are shown with square pixels


def write_trials(path: Path | str, folder: Path | str, trials: TrialSet) -> Path:
    """Write the page for a study's `folder`; it holds pixels and the names of trials, but of the practice trial alone the answer.

    Every picture is encoded anew from its pixels, so the page holds no metadata of a file, and the pictures are in random
    order.
    """
    content = page_data(Path(folder), trials)
    side = max(max(image.shape[:2]) for image in trials.natural.values())
    page = environment().get_template("trials.html.j2").render(
        content=content, count=len(trials.trials), token=trials.token, practice=trials.practice is not None, crisp=side <= LARGE
    )  # fmt: skip
    write_text(path, page)
    return Path(path)


def page_data(folder: Path, trials: TrialSet) -> dict[str, Any]:
    """What the page's script reads: pictures as data URIs, and trials that refer to them by index.

    Of each trial: ``id``, the pictures on the ``left`` and on the ``right``, the side that shows the unit (``unit``),
    and two ``queries`` from left to right. The ``practice`` trial, if any, has the side that ``belongs`` too.
    """
    practice = trials.practice
    shown = [*trials.trials, *([practice] if practice else [])]
    names = list(dict.fromkeys(name for trial in shown for name in (*trial.exciting, *trial.other)))
    sources: list[str | int] = [*names, *trials.natural]
    order = Streams(0, [trials.token], "pictures of the page").permutation(len(sources))[0].tolist()
    places = {sources[old]: new for new, old in enumerate(order)}
    images = [_pixels(folder / source) if isinstance(source, str) else trials.natural[source] for source in sources]
    return {
        "token": trials.token,
        "images": [_uri(images[old]) for old in order],
        "practice": {**_shown(practice, places), "belongs": practice.answer} if practice else None,
        "trials": [_shown(trial, places) for trial in trials.trials],
    }


def _shown(trial: Trial, places: dict[str | int, int]) -> dict[str, Any]:
    sides = [trial.exciting, trial.other]
    left, right = sides if trial.exciting_side == SIDES[0] else sides[::-1]
    queries = [trial.query, trial.distractor] if trial.answer == SIDES[0] else [trial.distractor, trial.query]
    return {
        "id": trial.id,
        "unit": trial.exciting_side,
        "left": [places[name] for name in left],
        "right": [places[name] for name in right],
        "queries": [places[place] for place in queries],
    }


def _pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB"))


def _uri(pixels: np.ndarray[Any, Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()
