"""`vizrobust attack --minimal` and `--curve eps`: the smallest eps that breaks each image, and accuracy over eps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vizrobust.attacks import Attack, is_minimum_norm, threat_model
from vizrobust.cli.attacking import Evaluations, fitted
from vizrobust.cli.output import command_line, json_row, percent, say, table
from vizrobust.robustness.smallest_eps import SmallestEps, even_radii, median, smallest_eps

if TYPE_CHECKING:
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint

# How often the range of radii is halved: 63 radii for each image's smallest eps, 15 for a curve.
BISECTION_STEPS = {"minimal": 6, "curve": 4}
# Without --eps the largest radius tried, in units of the data set's own.
LARGEST = 2.0
DEFAULTS = ("pgd", "fab")

Found = list[tuple["Checkpoint", list[SmallestEps]]]


def smallest_radii(
    checkpoints: Sequence[tuple[Checkpoint, DataSet]], images: Mapping[str, Split], open_: Callable[[DataSet], Evaluations],
    attacks: Sequence[str], split: str, minimal: bool, plot: str | None, as_json: bool,
    *, norm: str | None, eps: float | None, steps: int | None,
) -> None:  # fmt: skip
    """Find each image's smallest eps under each attack; print medians, or the accuracies of a curve, and draw them."""
    found: Found = []
    for checkpoint, loaded in checkpoints:
        how = open_(loaded)
        mine = []
        for attack in _attacks(attacks or (DEFAULTS if minimal else DEFAULTS[:1]), loaded, norm, steps, eps):
            evaluated = partial(how.of, checkpoint, images=images[checkpoint.id])
            radii = (
                () if is_minimum_norm(attack) else _radii(attack, loaded, eps, BISECTION_STEPS["minimal" if minimal else "curve"])
            )
            mine.append(smallest_eps(attack, lambda attack, e=evaluated, **kw: e(attack=attack, **kw), radii))
        found.append((checkpoint, mine))
        for one in mine if as_json else ():
            _json(checkpoint, loaded, one, minimal)
    names = ", ".join(dict.fromkeys(f"{loaded.name} {split}" for _, loaded in checkpoints))
    if not as_json:
        (_medians if minimal else _accuracies)(found, names)
    if plot:
        _draw(plot, found, minimal, [c.info.eps for c, _ in checkpoints if c.info.eps is not None])
        say(f"drawn: {plot}")


def smallest_of_all(found: Sequence[SmallestEps]) -> torch.Tensor:
    """(n,) the smallest eps that any of the attacks needs, of one norm and on the same images."""
    return torch.stack([one.eps for one in found]).amin(0)


def _attacks(texts: Sequence[str], data: DataSet, norm: str | None, steps: int | None, eps: float | None) -> list[Attack]:
    attacks = fitted(texts, data, norm=norm, steps=steps, unbounded=True)
    for attack in attacks:
        name, own = threat_model(attack)
        if not is_minimum_norm(attack) and own is None and eps is None and name != "Linf":
            raise ValueError(f"{attack} with {name} needs --eps, the largest radius to try")
    return attacks


def _radii(attack: Attack, data: DataSet, eps: float | None, bisection_steps: int) -> tuple[float, ...]:
    """Evenly spaced radii up to --eps, the attack's own eps, or twice the data set's."""
    own = threat_model(attack)[1]
    if eps is not None or own is not None:
        return even_radii(float(eps if eps is not None else own or 0), bisection_steps)
    if data.eps is None:
        raise ValueError(f"{data.name} has no eps of its own; give --eps, the largest radius to try")
    return even_radii(min(LARGEST * data.eps, 1.0), bisection_steps)


def _json(checkpoint: Checkpoint, data: DataSet, one: SmallestEps, minimal: bool) -> None:
    about = {"checkpoint": checkpoint.name, "data": data.name}
    if minimal:
        eps = [value if value < float("inf") else None for value in one.eps.tolist()]
        json_row({**about, **one.row(), "smallest_eps": eps})
        return
    for row in one.curve(_at(one)):
        json_row({**about, "attack": repr(one.attack), "curve": "eps", **row})


def _medians(found: Found, names: str) -> None:
    rows = []
    for checkpoint, mine in found:
        for one in mine:
            row = one.row()
            rows.append([
                checkpoint.name, row["attack"], _eps(row["median"]), f"{_eps(row['ci_low'])} to {_eps(row['ci_high'])}",
                str(row["unbroken"]), str(row["n"]), f"{row['gradient_passes']:g}", f"{row['seconds']:.1f}",
            ])  # fmt: skip
        if len(mine) > 1 and len({threat_model(one.attack)[0] for one in mine}) == 1:
            smallest = smallest_of_all(mine)
            middle, low, high = median(smallest)
            not_broken = int(smallest.isinf().sum())
            rows.append([checkpoint.name, "the smaller of them", _eps(middle), f"{_eps(low)} to {_eps(high)}", str(not_broken),
                         str(len(smallest)), "", ""])  # fmt: skip
    header = ["checkpoint", "attack", "median eps", "95 % interval", "unbroken", "images", "gradient", "seconds"]
    note = "0 for an image that is wrong unchanged; gradient: passes per image"
    if radii := next((one.radii for _, mine in found for one in mine if one.radii), None):
        note += f"; radii tried: {len(radii)} up to {_eps(radii[-1])}, by bisection"
    table(f"smallest eps that breaks an image, first images of {names}", header, rows, note)


def _accuracies(found: Found, names: str) -> None:
    for checkpoint, mine in found:
        for one in mine:
            rows = [
                [_eps(row["eps"]), percent(row["accuracy"]), f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}"]
                for row in one.curve(_at(one))
            ]
            note = f"{one.attacks_per_image:.1f} attacks for each image: one that breaks it settles all larger radii"
            table(
                f"{checkpoint.name}, {one.attack}: first {len(one.eps)} images of {names}",
                ["eps", "accuracy", "95 % interval"],
                rows,
                note,
            )


def _at(one: SmallestEps) -> tuple[float, ...]:
    """The radii of a curve: those tried, else as many up to where nine of ten images are broken."""
    if one.radii:
        return one.radii
    broken = one.eps[one.eps.isfinite()]
    return (
        even_radii(float(broken.quantile(0.9)), BISECTION_STEPS["curve"]) if len(broken) and float(broken.max()) > 0 else (1.0,)
    )


def _draw(plot: str, found: Found, minimal: bool, training_eps: Sequence[float]) -> None:
    from vizrobust.report import robustness_figures

    norms = {threat_model(one.attack)[0] for _, mine in found for one in mine}
    if len(norms) > 1:
        raise ValueError(f"radii of different norms ({', '.join(sorted(norms))}) have no common axis; give one --norm")
    (norm,) = norms
    marked = training_eps if all(checkpoint.info.norm in ("", norm) for checkpoint, _ in found) else ()
    several = any(len(mine) > 1 for _, mine in found)
    labelled = [(f"{c.name}, {type(one.attack).__name__}" if several else c.name, one) for c, mine in found for one in mine]
    if minimal:
        series = [(label, one.eps.tolist()) for label, one in labelled]
        robustness_figures.minimal_perturbations(plot, series, command_line(), training_eps=marked)
    else:
        curves: list[tuple[str, list[dict[str, Any]]]] = [(label, one.curve(_at(one))) for label, one in labelled]
        robustness_figures.accuracy_over_eps(plot, curves, command_line(), training_eps=marked, axis=f"eps ({norm})")


def _eps(value: float | None) -> str:
    return "-" if value is None or value == float("inf") else f"{value:.4g}"
