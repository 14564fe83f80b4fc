"""`attack --minimal` and `attack --curve eps`: each image's smallest eps under each attack, and accuracy over eps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vizrobust.attacks import Attack, is_minimum_norm
from vizrobust.commands.targets import Target, attacks_for
from vizrobust.data import DataSet
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.results import Event, Row, Table, interval_text, percent
from vizrobust.robustness import RobustAccuracy
from vizrobust.robustness.smallest_eps import SmallestEps, even_radii, median, optimality, smallest_eps
from vizrobust.session import Session
from vizrobust.spec import lookup

# How often the range of radii is halved: 63 radii for each image's minimal perturbation, 15 for a curve.
BISECTION_STEPS = {"minimal": 6, "curve": 4}
# Without eps the largest radius tried, in units of the data set's own.
LARGEST = 2.0
# Without attacks of the request's own: those of each norm that together come nearest for their time (`make bench`).
SMALLEST = {
    "Linf": ("FMN(steps=50, steepest=True)", "FMN(steps=50)"),
    "L2": ("ALMA(steps=400)", "ALMA(steps=250, lr=0.3)", "FMN(steepest=True)"),
    "L1": ("ALMA(steps=250, lr=0.03)", "FMN(steps=150, steepest=True, alpha=0.3)"),
    "L0": ("SigmaZero(steps=150, lr=0.3, threshold=0.1)", "SigmaZero(steps=150)", "FMN(steepest=True)"),
}
# AttackBench compares attacks of at most so many passes, forward and gradient.
MOST_PASSES = 2000


@dataclass(frozen=True)
class MinimalPerturbations:
    """Each image's smallest eps under each attack of a request: medians, or accuracy over eps."""

    request: AttackRequest
    found: tuple[tuple[Target, tuple[SmallestEps, ...]], ...]
    evaluations: tuple[tuple[Target, RobustAccuracy], ...] = ()

    def rows(self) -> list[Row]:
        return [row for target, mine in self.found for one in mine for row in _rows(self.request, target, one, mine)]

    def tables(self) -> list[Table]:
        return [self._medians()] if self.request.minimal else [self._accuracies(*one) for one in self._each()]

    def figure(self) -> Any:
        from vizrobust.report import robustness_figures

        norms = {one.attack.threat_model()[0] for _, one in self._each()}
        if len(norms) > 1:
            raise ParameterError("eps of different norms (%s) have no common axis; give one {norm}", ", ".join(sorted(norms)))
        (norm,) = norms
        infos = [target.checkpoint.info for target, _ in self.found]
        same = all(info.norm in ("", norm) for info in infos)
        marked = [info.eps for info in infos if same and info.eps is not None]
        several = any(len(mine) > 1 for _, mine in self.found)
        labelled = [(f"{t.name}, {type(one.attack).__name__}" if several else t.name, one) for t, one in self._each()]
        if self.request.minimal:
            series = [(label, one.eps.tolist()) for label, one in labelled]
            return robustness_figures.minimal_perturbations(series, training_eps=marked)
        curves = [(label, one.curve(_radii_of(one))) for label, one in labelled]
        return robustness_figures.accuracy_over_eps(curves, training_eps=marked, axis=f"eps ({norm})")

    def _each(self) -> list[tuple[Target, SmallestEps]]:
        return [(target, one) for target, mine in self.found for one in mine]

    def _names(self) -> str:
        return ", ".join(dict.fromkeys(f"{target.data.name} {self.request.split}" for target, _ in self.found))

    def _medians(self) -> Table:
        rows, several = [], any(_comparable(mine) for _, mine in self.found)
        for target, mine in self.found:
            for one in mine:
                row = _row(one, mine)
                rows.append([
                    target.name, row["attack"], _eps(row["median"]), f"{_eps(row['ci_low'])} to {_eps(row['ci_high'])}",
                    str(row["unbroken"]), str(row["n"]), f"{row['gradient_passes']:g}", f"{row['seconds']:.1f}",
                    *([_optimality(row)] if several else []),
                ])  # fmt: skip
            if _comparable(mine):
                smallest = smallest_of_all(mine)
                middle, low, high = median(smallest)
                rows.append([
                    target.name, "the smallest of them", _eps(middle), f"{_eps(low)} to {_eps(high)}",
                    str(int(smallest.isinf().sum())), str(len(smallest)), "", "", *([""] if several else []),
                ])  # fmt: skip
        header = ["checkpoint", "attack", "median eps", "95 % interval", "not broken", "images", "gradient", "seconds"]
        note = "0 for an image that is wrong unchanged; gradient: passes per image"
        if several:
            header.append("optimality")
            note += "; optimality: 1 where an attack is the smallest at every image (AttackBench, equation 5)"
        if radii := next((one.radii for _, one in self._each() if one.radii), None):
            note += f"; eps tried: {len(radii)} up to {_eps(radii[-1])}, by bisection"
        return Table(f"minimal perturbations, first images of {self._names()}", header, rows, note)

    def _accuracies(self, target: Target, one: SmallestEps) -> Table:
        rows = [
            [_eps(row["eps"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"])]
            for row in one.curve(_radii_of(one))
        ]
        title = f"{target.name}, {one.attack}: first {len(one.eps)} images of {self._names()}"
        note = f"{one.attacks_per_image:.1f} attacks for each image: one that succeeds settles all larger eps"
        return Table(title, ["eps", "accuracy", "95 % interval"], rows, note)


def minimal_perturbations(
    request: AttackRequest, session: Session, targets: Sequence[Target]
) -> Generator[Event, None, MinimalPerturbations]:
    """Find each image's smallest eps under each attack, for medians (``minimal``) or a curve over eps."""
    found = []
    default = lookup(SMALLEST, request.norm or "Linf", "norm") if request.minimal else ("pgd",)
    steps = BISECTION_STEPS["minimal" if request.minimal else "curve"]
    for target in targets:
        mine = []
        for one in (yield from attacks_for(request, target.data, default, unbounded=True)):
            norm, own = one.threat_model()
            if not is_minimum_norm(one) and own is None and request.eps is None and norm != "Linf":
                raise ParameterError("%s with %s needs {eps}, the largest radius to try", one, norm)
            radii = () if is_minimum_norm(one) else _radii(one, target.data, request.eps, steps)
            mine.append(smallest_eps(one, partial(target.evaluated, request, session), radii))
        # Not before: a row says how its attack compares with the others.
        yield from (row for one in mine for row in _rows(request, target, one, mine))
        found.append((target, tuple(mine)))
    return MinimalPerturbations(request, tuple(found))


def smallest_of_all(found: Sequence[SmallestEps]) -> torch.Tensor:
    """(n,) the smallest eps that any of the attacks needs, of one norm and on the same images."""
    return torch.stack([one.eps for one in found]).amin(0)


def _comparable(found: Sequence[SmallestEps]) -> bool:
    """Whether there are several attacks, and all in one norm."""
    return len(found) > 1 and len({one.attack.threat_model()[0] for one in found}) == 1


def _row(one: SmallestEps, beside: Sequence[SmallestEps]) -> Row:
    """The attack's row, with its optimality among those `beside` it if they are several."""
    row = one.row()
    if not _comparable(beside):
        return row
    compared = row["forward_passes"] + row["gradient_passes"] <= MOST_PASSES
    found = optimality(one.eps, smallest_of_all(beside)) if compared else None
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return {**row, **dict(zip(("optimality", "optimality_ci_low", "optimality_ci_high"), values, strict=True))}


def _optimality(row: Row) -> str:
    if row.get("optimality") is None:
        return "-"
    return f"{row['optimality']:.3f} ({row['optimality_ci_low']:.3f} to {row['optimality_ci_high']:.3f})"


def _rows(request: AttackRequest, target: Target, one: SmallestEps, beside: Sequence[SmallestEps]) -> list[Row]:
    about = {"checkpoint": target.name, "data": target.data.name}
    if request.minimal:
        eps = [value if value < float("inf") else None for value in one.eps.tolist()]
        return [{**about, **_row(one, beside), "smallest_eps": eps}]
    return [{**about, "attack": repr(one.attack), "curve": "eps", **row} for row in one.curve(_radii_of(one))]


def _radii(attack: Attack, data: DataSet, eps: float | None, bisection_steps: int) -> tuple[float, ...]:
    """Evenly spaced radii up to `eps`, the attack's own eps, or twice the data set's."""
    own = attack.threat_model()[1]
    if eps is not None or own is not None:
        return even_radii(float(eps if eps is not None else own or 0), bisection_steps)
    if data.eps is None:
        raise ParameterError("%s has no usual eps; give {eps}, the largest radius to try", data.name)
    return even_radii(min(LARGEST * data.eps, 1.0), bisection_steps)


def _radii_of(one: SmallestEps) -> tuple[float, ...]:
    """The radii of a curve: those tried, else as many up to where nine of ten images are misclassified."""
    if one.radii:
        return one.radii
    found = one.eps[one.eps.isfinite()]
    if not len(found) or float(found.max()) <= 0:
        return (1.0,)
    return even_radii(float(found.quantile(0.9)), BISECTION_STEPS["curve"])


def _eps(value: float | None) -> str:
    return "-" if value is None or value == float("inf") else f"{value:.4g}"
