"""`trials`: a blind page that asks a person which image belongs, one HTML file, and the score of their answers."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.compute import Compute
from vizrobust.features.pictures import png_bytes
from vizrobust.report.viewer import environment
from vizrobust.requests import ParameterError
from vizrobust.requests.study import TrialsRequest
from vizrobust.results import Event, Note, Result, Row, Table, percent
from vizrobust.rng import Streams
from vizrobust.runs import write_text
from vizrobust.session import Session
from vizrobust.study.human_answers import Agreement, Correlation, PeopleScore, ShareRight, read_answers, score_people, write_key
from vizrobust.study.human_trials import SIDES, Trial, TrialSet, choose, data_of
from vizrobust.study.report import StudyReport


@dataclass(frozen=True, repr=False)
class TrialPage(Result):
    """A page that was made, and the file with its right answers."""

    row: Row

    def rows(self) -> list[Row]:
        return [self.row]

    def lines(self) -> list[str]:
        """What a person reads of it."""
        return [f"page: {self.row['page']}"]

    def __repr__(self) -> str:
        return f"TrialPage({self.row['page']!r}, {self.row['trials']} questions, {self.row['catch']} catch trials)"


@dataclass(frozen=True, repr=False)
class TrialScore(Result):
    """People's answers: the share right for each checkpoint, how far they agree, and each metric's rank correlation with them."""

    people: PeopleScore

    def rows(self) -> list[Row]:
        agreement = self.people.agreement
        several = [{"person": one.total.name, "careful": one.careful, **asdict(one.total)} for one in self.people.people]
        return [
            *(several if len(several) > 1 else ()), *(asdict(one) for one in self._shares()),
            *([] if agreement is None else [asdict(agreement)]), *(asdict(one) for one in self.people.together.correlations),
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        header = ["pictures of", "right", "of", "share", "95 % interval", "confidence", "seconds"]
        note = "share right of two alternatives, chance 50 %; confidence from 1 (guessed) to 3 (sure), mean; seconds: median"
        people, agreement = self.people.people, self.people.agreement
        tables = []
        if len(people) > 1:
            rows = [[*_right_row(one.total), percent(one.catch.share) if one.catch else "-"] for one in people]
            said = "of people below 80 % of the catch trials nothing else is counted, where others are above"
            tables = [Table("each person", ["answers", *header[1:], "catch trials"], rows, said)]
        who = f"{people[0].total.name}" if len(people) == 1 else "all together"
        tables.append(Table(who, header, [_right_row(one) for one in self._shares()], note))
        if agreement is not None:
            tables.append(_agreement_table(agreement))
        header = ["metric", "judge", "control", "clearer is", "pairs", "rank correlation", "95 % interval", "p"]
        note = (
            "Spearman's, over (checkpoint, unit), of the machine's value with the person's share right; - where either does "
            "not vary; p is for each row alone, not corrected for their number"
        )
        rows = [_correlation_row(one) for one in self.people.together.correlations]
        return [*tables, Table("machine and people", header, rows, note)]

    def _shares(self) -> list[ShareRight]:
        together = self.people.together
        return [*together.checkpoints, *([together.catch] if together.catch else [])]

    def __repr__(self) -> str:
        shares = ", ".join(f"{one.name} {percent(one.share)}" for one in self._shares())
        return f"TrialScore({shares})"


def trials(request: TrialsRequest, session: Session) -> Generator[Event, None, TrialPage | TrialScore]:
    """Make a page, or score the answers to one."""
    if request.answers:
        return (yield from _scored(request))
    return (yield from _made(request, session))


def _made(request: TrialsRequest, session: Session) -> Generator[Event, None, TrialPage]:
    out = str(request.out)
    if not out.endswith(".html"):
        raise ParameterError("{out} %r must end in .html: it is a page for a browser", out)
    report = StudyReport.read(request.run)
    code = session.code[0] if session.code else None
    made = choose(
        request.run, report, data_of(report, session.download), Compute(session.device), list(request.checkpoints),
        request.trials, request.recipe, request.layer, request.seed, code,
    )  # fmt: skip
    key = write_key(request.run, made)
    page = write_trials(out, request.run, made)
    catch, each = sum(trial.catch for trial in made.trials), made.about["references"]
    row: Row = {
        "page": str(page), "key": str(key), "trials": len(made.trials) - catch, "catch": catch, "token": made.token,
        "checkpoints": list(made.about["checkpoints"]), "references": each,
    }  # fmt: skip
    yield row
    shown = f"{each} picture{'s' * (each != 1)} on each side"
    yield Note(f"{row['trials']} questions and {catch} catch trials with {shown}; right answers: {key}")
    if each == 1:
        yield Note("note: the study has one picture of each unit here; trials usually show nine, from different seeds")
    if not catch:
        yield Note("note: the study has no natural exemplars, so there are no catch trials")
    answers = f"answers-{made.token}.json"
    yield Note(f"open the page in a browser and answer, or send it to others; at its end it saves {answers}, to be brought here")
    yield Note(f"next: vizrobust trials {shlex.quote(str(request.run))} --answers {answers}")
    return TrialPage(row)


def _scored(request: TrialsRequest) -> Generator[Event, None, TrialScore]:
    report = StudyReport.read(request.run)
    names = [Path(file).stem for file in request.answers]
    if len(set(names)) < len(names):
        names = list(request.answers)
    given = {name: read_answers(file, request.run) for name, file in zip(names, request.answers, strict=True)}
    found = TrialScore(score_people(given, report))
    yield from found.rows()
    for person in found.people.people:
        if not person.careful:
            left = "read the rest with care" if len(found.people.people) == 1 else "left out where others are careful"
            yield Note(
                f"note: {person.total.name}: fewer than 80 % of the catch trials are right, which have an easy answer: {left}"
            )
    return found


def _agreement_table(found: Agreement) -> Table:
    alpha, ceiling = ("-" if value is None else f"{value:+.2f}" for value in (found.alpha, found.ceiling))
    interval = "-" if found.ci_low is None else f"{found.ci_low:+.2f} to {found.ci_high:+.2f}"
    note = (
        "alpha: Krippendorff's, of the chosen sides (1: always the same, 0: by chance), interval over trials; ceiling: mean rank "
        "correlation of one person's share right with that of the others over (checkpoint, unit), which a machine's can reach"
    )
    header = ["people", "trials answered by several", "alpha", "95 % interval", "ceiling"]
    return Table("people among themselves", header, [[str(found.people), str(found.trials), alpha, interval, ceiling]], note)


def _right_row(one: ShareRight) -> list[str]:
    interval = f"{100 * one.ci_low:.1f} to {100 * one.ci_high:.1f}"
    return [one.name, str(one.right), str(one.n), percent(one.share), interval, f"{one.confidence:.2f}", f"{one.seconds:.1f}"]


def _correlation_row(one: Correlation) -> list[str]:
    interval = "-" if one.ci_low is None or one.ci_high is None else f"{one.ci_low:+.2f} to {one.ci_high:+.2f}"
    rho, p = ("-" if one.rho is None else f"{one.rho:+.2f}"), ("-" if one.p is None else f"{one.p:.3f}")
    clearer = "larger" if one.direction > 0 else "smaller"
    return [one.metric, one.judge or "-", one.control or "-", clearer, str(one.n), rho, interval, p]


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
