"""People's answers to trials: the share of correct ones, how far people agree, and how well each metric ranks the same units."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import norm, spearmanr

from vizrobust.intervals import CONFIDENCE, wilson
from vizrobust.runs import write_json
from vizrobust.spec import unknown
from vizrobust.study.human_trials import SIDES, TrialSet

KEY_FILE = "trials-key.json"
FORMAT = 1
CONFIDENCES = (1, 2, 3)
AGAIN = "download the answers again from the page"
# A careful person gets nearly all of the easy trials; below this the rest says little (Borowski et al. 2021 exclude them).
CAREFUL = 0.8
RESAMPLES = 1000

Counts = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """One answer: the chosen side, how sure the person was (1 guessed, 3 sure), and how long it took."""

    trial: str
    choice: str
    confidence: int
    seconds: float


@dataclass(frozen=True)
class ShareRight:
    """How many of `n` answers about one checkpoint were right, with Wilson's 95 % interval; seconds are the median."""

    name: str
    right: int
    n: int
    share: float
    ci_low: float
    ci_high: float
    confidence: float
    seconds: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a machine metric with the person's share right, over `n` (checkpoint, unit) pairs.

    The interval is Bonett & Wright's (Psychometrika 65, 2000); `p` is two-sided. Where either side does not vary or
    there are fewer than four pairs, all three are None. `direction` -1: smaller values of the metric are clearer.
    """

    metric: str
    judge: str | None
    control: str | None
    direction: int
    n: int
    rho: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None


@dataclass(frozen=True)
class Score:
    """What the answers to one page say; `catch` is None where it had no catch trials."""

    checkpoints: tuple[ShareRight, ...]
    catch: ShareRight | None
    correlations: tuple[Correlation, ...]


@dataclass(frozen=True)
class Person:
    """One file of answers: its share right, catch trials left out, and theirs (None without any)."""

    total: ShareRight
    catch: ShareRight | None

    @property
    def careful(self) -> bool:
        """Whether the catch trials, where there are some, were answered as a careful person does."""
        return self.catch is None or self.catch.share >= CAREFUL


@dataclass(frozen=True)
class Agreement:
    """How far `people` agree on the `trials` that two or more of them answered.

    `alpha` is Krippendorff's for the chosen sides (1: always the same, 0: as by chance; Krippendorff 2004, nominal data) with
    a bootstrap interval over trials; None where all answers are one side. `ceiling` is the mean rank correlation of one
    person's share right with that of the others over (checkpoint, unit): what a machine's rank correlation can reach.
    """

    people: int
    trials: int
    alpha: float | None
    ci_low: float | None
    ci_high: float | None
    ceiling: float | None


@dataclass(frozen=True)
class PeopleScore:
    """What several files of answers say: `together` and `agreement` are of the careful people, of all where nobody is careful."""

    people: tuple[Person, ...]
    together: Score
    agreement: Agreement | None

    @property
    def careful(self) -> bool:
        """Whether everybody answered the catch trials as a careful person does."""
        return all(person.careful for person in self.people)


def write_key(folder: Path | str, trials: TrialSet) -> Path:
    """Add the right answers of a page to the study folder's trials-key.json, beside those of other pages."""
    path = Path(folder) / KEY_FILE
    pages = _pages(path) if path.is_file() else {}
    write_json(path, {"format": FORMAT, "pages": {**pages, trials.token: trials.key()}})
    return path


def read_answers(file: Path | str, folder: Path | str) -> tuple[dict[str, Any], list[Answer]]:
    """The key of the page that was answered, from the study's `folder`, and the answers in the order of the key.

    Raises ``FileNotFoundError``, or ``ValueError`` in one sentence for what is not a complete set of answers to a
    page that was made from this study.
    """
    key_path = Path(folder) / KEY_FILE
    if not key_path.is_file():
        made = f"vizrobust trials {shlex.quote(str(folder))} --out trials.html"
        raise FileNotFoundError(f"no {KEY_FILE} in {str(folder)!r}, so the right answers are unknown; make a page first: {made}")
    pages, given = _pages(key_path), _answers_json(Path(file))
    token = given.get("trials")
    if token not in pages:
        made = ", ".join(pages) or "none"
        raise ValueError(
            f"{str(file)!r} answers page {token!r}, which was not made from this study (its pages: {made}); give its own study"
        )
    key = pages[token]
    answers = [_answer(row, file) for row in given["answers"]]
    order = [trial["id"] for trial in key["trials"]]
    names = [answer.trial for answer in answers]
    strange = next((name for name in names if name not in order), None)
    if strange is not None:
        raise ValueError(f"{str(file)!r} answers trial {strange!r}, which page {token} does not have; {AGAIN}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{str(file)!r} answers trial {twice!r} more than once; {AGAIN}")
    if len(answers) < len(order):
        raise ValueError(
            f"{str(file)!r} answers {len(answers)} of {len(order)} trials; finish the page, which resumes where it stopped"
        )
    return key, sorted(answers, key=lambda answer: order.index(answer.trial))


def score(key: Mapping[str, Any], answers: Sequence[Answer], report: Mapping[str, Any]) -> Score:
    """Shares right for each checkpoint of a page and for its catch trials, and the rank correlations.

    Only rows of the report with the page's recipe and layer are correlated, each metric, judge and control by itself.
    """
    return _score(_asked(key, answers), key, report)


Asked = list[tuple[Mapping[str, Any], Answer]]


def score_people(given: Mapping[str, tuple[Mapping[str, Any], Sequence[Answer]]], report: Mapping[str, Any]) -> PeopleScore:
    """The score of several people; `given` maps their names to the key of the page that they answered and their answers.

    People whose catch trials say that they did not look are left out where others did. Raises ``ValueError`` where pages ask
    about different recipes or layers.
    """
    asked = {name: _asked(key, answers) for name, (key, answers) in given.items()}
    keys = [key for key, _ in given.values()]
    about = {(key["recipe"], key["layer"]) for key in keys}
    if len(about) > 1:
        shown = " and ".join(f"{recipe}, {layer}" for recipe, layer in sorted(about))
        raise ValueError(f"these answers are about different pictures ({shown}); score them one after the other")
    people = {name: _person(name, pairs) for name, pairs in asked.items()}
    counted = [name for name, person in people.items() if person.careful] or list(people)
    names = list(dict.fromkeys(name for key in keys for name in key["checkpoints"]))
    together = [pair for name in counted for pair in asked[name]]
    found = _score(together, {**keys[0], "checkpoints": names}, report)
    agreement = _agreement([asked[name] for name in counted]) if len(counted) > 1 else None
    return PeopleScore(tuple(people.values()), found, agreement)


def _person(name: str, asked: Asked) -> Person:
    catch = [pair for pair in asked if not pair[0]["checkpoint"]]
    total = _right(name, [pair for pair in asked if pair[0]["checkpoint"]])
    return Person(total, _right("catch trials", catch) if catch else None)


def _asked(key: Mapping[str, Any], answers: Sequence[Answer]) -> Asked:
    trials = {trial["id"]: trial for trial in key["trials"]}
    return [(trials[answer.trial], answer) for answer in answers]


def _agreement(asked: Sequence[Asked]) -> Agreement:
    sides: dict[str, list[str]] = {}
    for pairs in asked:
        for trial, answer in pairs:
            if trial["checkpoint"]:
                sides.setdefault(trial["id"], []).append(answer.choice)
    shared = [choices for choices in sides.values() if len(choices) > 1]
    counts = np.array([[choices.count(side) for side in SIDES] for choices in shared]).reshape(-1, len(SIDES))
    draws = np.random.default_rng(0).integers(0, max(len(counts), 1), (RESAMPLES, len(counts)))
    again = [value for draw in draws if (value := krippendorff_alpha(counts[draw])) is not None]
    edges = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = (float(bound) for bound in np.quantile(again, edges)) if len(again) > RESAMPLES / 2 else (None, None)
    shares, rhos = [_shares(pairs) for pairs in asked], []
    for place, own in enumerate(shares):
        others = _mean_shares([one for other, one in enumerate(shares) if other != place])
        both = [pair for pair in own if pair in others]
        found = rank_correlation([own[pair] for pair in both], [others[pair] for pair in both])
        rhos += [] if found is None else [found[0]]
    return Agreement(len(asked), len(shared), krippendorff_alpha(counts), low, high, fmean(rhos) if rhos else None)


def _mean_shares(people: Sequence[Mapping[tuple[str, int], float]]) -> dict[tuple[str, int], float]:
    pairs = dict.fromkeys(pair for one in people for pair in one)
    return {pair: fmean(one[pair] for one in people if pair in one) for pair in pairs}


def krippendorff_alpha(counts: Counts) -> float | None:
    """Krippendorff's alpha of nominal data: (trials, kinds), how many people gave each kind; trials of one answer do not count.

    None where all answers are of one kind, or there are none.

    >>> round(krippendorff_alpha(np.array([[2, 0], [0, 2], [1, 1]])), 3)
    0.444
    """
    counts = counts[counts.sum(1) > 1]
    each, of_kind = counts.sum(1), counts.sum(0)
    n = int(of_kind.sum())
    expected = n * n - int((of_kind**2).sum())
    if not expected:
        return None
    observed = float(((each**2 - (counts**2).sum(1)) / (each - 1)).sum())
    return 1 - (n - 1) * observed / expected


def _score(asked: Asked, key: Mapping[str, Any], report: Mapping[str, Any]) -> Score:
    names = list(key["checkpoints"])
    found = {name: [pair for pair in asked if pair[0]["checkpoint"] == name] for name in names}
    catch = [pair for pair in asked if not pair[0]["checkpoint"]]
    return Score(
        tuple(_right(name, pairs) for name, pairs in found.items() if pairs),
        _right("catch trials", catch) if catch else None,
        tuple(_correlations(_shares(asked), key, report)),
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None, float | None, float] | None:
    """Spearman's rho with a 95 % interval and a two-sided p; None where it is not defined.

    >>> rho, low, high, p = rank_correlation([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    >>> round(rho, 3), round(low, 3), round(high, 3), round(p, 3)
    (0.829, -0.127, 0.986, 0.042)
    """
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    found = spearmanr(a, b)
    rho = float(found.statistic)
    if abs(rho) > 1 - 1e-12:
        return round(rho), None, None, float(found.pvalue)
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(a) - 3))
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), float(found.pvalue)


def _shares(asked: Sequence[tuple[Mapping[str, Any], Answer]]) -> dict[tuple[str, int], float]:
    """(checkpoint, unit) -> the share of its trials that were right; catch trials left out."""
    hits: dict[tuple[str, int], list[bool]] = {}
    for trial, answer in asked:
        if trial["checkpoint"]:
            hits.setdefault((trial["checkpoint"], trial["unit"]), []).append(answer.choice == trial["answer"])
    return {pair: fmean(these) for pair, these in hits.items()}


def _correlations(
    shares: Mapping[tuple[str, int], float], key: Mapping[str, Any], report: Mapping[str, Any]
) -> list[Correlation]:
    directions = {metric["name"]: metric["direction"] for metric in report["metrics"]}
    values: dict[tuple[str, str | None, str | None], dict[tuple[str, int], float]] = {}
    for row in report["clarity"]:
        if row["recipe"] == key["recipe"] and row["layer"] == key["layer"]:
            known = values.setdefault((row["metric"], row["judge"], row["control"]), {})
            known |= {
                (row["checkpoint"], unit): value
                for unit, value in zip(row["units"], row["values"], strict=True)
                if value is not None
            }
    found = []
    for (metric, judge, control), known in sorted(values.items(), key=lambda item: item[0][2] is not None):  # controls last
        pairs = [(value, shares[pair]) for pair, value in known.items() if pair in shares]
        machine, person = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        rho, low, high, p = rank_correlation(machine, person) or (None, None, None, None)
        found.append(Correlation(metric, judge, control, directions.get(metric, 1), len(pairs), rho, low, high, p))
    return found


def _right(name: str, pairs: Sequence[tuple[Mapping[str, Any], Answer]]) -> ShareRight:
    right, n = sum(answer.choice == trial["answer"] for trial, answer in pairs), len(pairs)
    answers = [answer for _, answer in pairs]
    sure, seconds = fmean(answer.confidence for answer in answers), median(answer.seconds for answer in answers)
    return ShareRight(name, right, n, right / n, *wilson(right, n), round(sure, 2), round(seconds, 2))


def _pages(path: Path) -> dict[str, Any]:
    try:
        pages = json.loads(path.read_text(encoding="utf-8"))["pages"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not readable ({error}); bring it back, or delete it and make the page again"
        ) from error
    return dict(pages)


def _answers_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(path)!r}; answer the page of trials and give the JSON file that it saves, often among the downloads"
        )
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is truncated or not JSON ({error}); {AGAIN}") from error
    if not isinstance(given, dict) or given.get("format") != FORMAT or not isinstance(given.get("answers"), list):
        raise ValueError(f"{str(path)!r} holds no answers to trials; give the JSON file that the page lets you download")
    return given


def _answer(row: Any, file: Path | str) -> Answer:
    try:
        answer = Answer(str(row["trial"]), str(row["choice"]), int(row["confidence"]), float(row["seconds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} has an answer without trial, choice, confidence or seconds; {AGAIN}") from error
    if answer.choice not in SIDES:
        raise ValueError(f"{str(file)!r}, trial {answer.trial}: {unknown(answer.choice, SIDES, 'side')}")
    if answer.confidence not in CONFIDENCES or not answer.seconds >= 0:
        got = f"{answer.confidence} and {answer.seconds:g}"
        raise ValueError(
            f"{str(file)!r}, trial {answer.trial}: confidence must be 1, 2 or 3 and seconds not negative, got {got}; {AGAIN}"
        )
    return answer
