"""`trials`: a blind page that asks a person which image belongs, and the score of their answers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from vizrobust.compute import Compute
from vizrobust.report.trials_page import write_trials
from vizrobust.requests import ParameterError
from vizrobust.requests.study import TrialsRequest
from vizrobust.results import Event, Note, Row, Table, percent, tables_html
from vizrobust.session import Session
from vizrobust.study.human_answers import Correlation, Score, ShareRight, read_answers, score, write_key
from vizrobust.study.human_trials import choose, data_of
from vizrobust.study.report import StudyReport


@dataclass(frozen=True, repr=False)
class TrialPage:
    """A page that was made, and the file with its right answers."""

    row: Row
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return [self.row]

    def tables(self) -> list[Table]:
        return []

    def lines(self) -> list[str]:
        """What a person reads of it."""
        return [f"page: {self.row['page']}"]

    def __repr__(self) -> str:
        return f"TrialPage({self.row['page']!r}, {self.row['trials']} questions, {self.row['catch']} catch trials)"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>"


@dataclass(frozen=True, repr=False)
class TrialScore:
    """A person's answers: the share right for each checkpoint, and each metric's rank correlation with it."""

    score: Score
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return [*(one.row() for one in self._shares()), *(one.row() for one in self.score.correlations)]

    def tables(self) -> list[Table]:
        header = ["pictures of", "right", "of", "share", "95 % interval", "confidence", "seconds"]
        note = "share right of two alternatives, chance 50 %; confidence from 1 (guessed) to 3 (sure), mean; seconds: median"
        person = Table("one person", header, [_right_row(one) for one in self._shares()], note)
        header = ["metric", "judge", "control", "clearer is", "pairs", "rank correlation", "95 % interval", "p"]
        note = (
            "Spearman's, over (checkpoint, unit), of the machine's value with the person's share right; - where either does "
            "not vary; p is for each row alone, not corrected for their number"
        )
        rows = [_correlation_row(one) for one in self.score.correlations]
        return [person, Table("machine and person", header, rows, note)]

    def _shares(self) -> list[ShareRight]:
        return [*self.score.checkpoints, *([self.score.catch] if self.score.catch else [])]

    def __repr__(self) -> str:
        shares = ", ".join(f"{one.name} {percent(one.share)}" for one in self._shares())
        return f"TrialScore({shares})"

    def _repr_html_(self) -> str:
        return tables_html(self.tables())


def trials(request: TrialsRequest, session: Session) -> Generator[Event, None, TrialPage | TrialScore]:
    """Make a page, or score the answers to one."""
    if request.answers is not None:
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
    yield Note(f"next: open it, answer, and vizrobust trials {request.run} --answers answers-{made.token}.json")
    return TrialPage(row)


def _scored(request: TrialsRequest) -> Generator[Event, None, TrialScore]:
    report = StudyReport.read(request.run)
    key, answers = read_answers(str(request.answers), request.run)
    found = TrialScore(score(key, answers, report))
    yield from found.rows()
    if not found.score.careful:
        yield Note("note: fewer than 80 % of the catch trials are right, which have an easy answer: read the rest with care")
    return found


def _right_row(one: ShareRight) -> list[str]:
    interval = f"{100 * one.ci_low:.1f} to {100 * one.ci_high:.1f}"
    return [one.name, str(one.right), str(one.n), percent(one.share), interval, f"{one.confidence:.2f}", f"{one.seconds:.1f}"]


def _correlation_row(one: Correlation) -> list[str]:
    interval = "-" if one.ci_low is None or one.ci_high is None else f"{one.ci_low:+.2f} to {one.ci_high:+.2f}"
    rho, p = ("-" if one.rho is None else f"{one.rho:+.2f}"), ("-" if one.p is None else f"{one.p:.3f}")
    clearer = "larger" if one.direction > 0 else "smaller"
    return [one.metric, one.judge or "-", one.control or "-", clearer, str(one.n), rho, interval, p]
