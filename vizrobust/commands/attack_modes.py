"""Modes of `attack` beside one eps: each image's smallest (`--minimal`, `--curve`), and images kept (`--save`, `--from`)."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.attacks import Attack, Ball, ball_of, configured, epsilon, is_minimum_norm, parse_attack, perturbation_norm
from vizrobust.attacks.gradient import PGD
from vizrobust.commands.targets import Target, attacks_for
from vizrobust.data import DataSet, load
from vizrobust.intervals import share, wilson
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.results import Event, Note, Row, Table, interval_text, percent
from vizrobust.robustness import RobustAccuracy
from vizrobust.robustness.evaluation_runs import AdversarialImages, adversarial_images, eight_bit, outside, predicted
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


# So many images outside the ball are named in a line.
NAMED = 10


def made(request: AttackRequest, session: Session, target: Target, result: RobustAccuracy) -> AdversarialImages:
    """The adversarial images behind a result, made again from the same random streams, with the network's classes for them."""
    compute, net = session.compute(request.precision), target.net()
    adv = adversarial_images(net, result, target.images, compute, request.seed, target.batch_size)
    clean = compute.images(target.images.take(result.indices)).cpu().float()
    about = {
        "attack": repr(result.attack), "checkpoint": target.name, "checkpoint_id": target.checkpoint.id,
        "data": target.data.name, "split": request.split, "seed": request.seed,
    }  # fmt: skip
    return AdversarialImages(
        clean, adv.float(), target.images.labels[result.indices], predicted(net, adv, compute, request.seed, target.batch_size),
        perturbation_norm(result.attack, adv.float() - clean), result.indices, target.data.classes, about,
    )  # fmt: skip


def keep(
    request: AttackRequest, session: Session, target: Target, result: RobustAccuracy
) -> Generator[Event, None, tuple[int, int] | None]:
    """Write what the request keeps; of the 8-bit images how many are classified correctly, and how many there are."""
    images, compute = made(request, session, target, result), session.compute(request.precision)
    main, counted = compute.processes.main, None
    if request.save and main:
        images.save(request.save)
        yield Note(f"saved: {request.save}, {len(images.labels)} images")
    if request.save_png:
        written = eight_bit(target.net(), result.attack, images, compute, request.seed, target.batch_size)
        right = result.correct & (written.predictions == written.labels)
        counted = int(right.sum()), len(right)
        if main:
            written.save_png(request.save_png)
            yield Note(f"saved: {request.save_png}/CLASS/INDEX.png, {len(right)} images in 8 bits")
    return counted


@dataclass(frozen=True)
class Judged:
    """Each checkpoint's accuracy on images that somebody changed, where only changes inside the ball count."""

    file: str
    ball: Ball
    found: tuple[tuple[Target, Row], ...]
    evaluations: tuple[tuple[Target, RobustAccuracy], ...] = ()

    def rows(self) -> list[Row]:
        return [row for _, row in self.found]

    def tables(self) -> list[Table]:
        rows = [
            [
                row["checkpoint"], percent(row["clean"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"]),
                str(row["n"]), str(len(row["outside"])), f"{row['max_norm']:.4g}",
            ]
            for row in self.rows()
        ]  # fmt: skip
        header = ["checkpoint", "clean", "accuracy", "95 % interval", "images", "outside", "largest"]
        note = f"an image outside {self.ball} breaks nothing; largest: norm of a change"
        return [Table(f"accuracy on the images of {self.file}", header, rows, note)]

    def figure(self) -> Any:
        from vizrobust.report.robustness_figures import accuracy_under_attacks

        return accuracy_under_attacks([(row["checkpoint"], [{**row, "attack": row["file"]}]) for row in self.rows()])


def judged(request: AttackRequest, session: Session, targets: Sequence[Target]) -> Generator[Event, None, Judged]:
    """Judge the images of a file on every checkpoint, and name those that leave the ball around the data set's own."""
    assert request.from_file is not None
    found, (x, labels, indices, about) = [], _read(request.from_file)
    for target in targets:
        ball = _ball(request, target, about)
        compute, net = session.compute(request.precision), target.checkpoint.net()
        clean, own = _originals(request, session, target, x, labels, indices)
        left, norms = outside(ball, clean, x), ball.norm(x - clean)
        before, after = (predicted(net, one, compute, request.seed, target.batch_size) == own for one in (clean, x))
        right = before & (after | left)
        low, high = wilson(int(right.sum()), len(right))
        if bool(left.any()):
            named = ", ".join(str(index) for index in indices[left][:NAMED].tolist())
            more = f" and {int(left.sum()) - NAMED} more" if int(left.sum()) > NAMED else ""
            yield Note(f"note: {int(left.sum())} of {len(left)} images leave {ball}: {named}{more}")
        row = {
            "checkpoint": target.name, "data": target.data.name, "split": request.split, "file": request.from_file,
            "ball": repr(ball), "n": len(right), "clean": share(before), "accuracy": share(right), "ci_low": low, "ci_high": high,
            "outside": indices[left].tolist(), "max_norm": float(norms.max()),
        }  # fmt: skip
        yield row
        found.append((target, row))
    return Judged(request.from_file, ball, tuple(found))


def _originals(
    request: AttackRequest, session: Session, target: Target, x: Tensor, labels: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """The data set's own images and labels at the places of those in the file; ``ValueError`` where they cannot be the same."""
    images, of = target.data.split(request.split), f"{target.data.name} {request.split}"
    if int(indices.max()) >= len(images) or int(indices.min()) < 0:
        raise ValueError(f"{request.from_file!r} holds image {int(indices.max())}; {of} has {len(images)} images")
    clean, own = session.compute(request.precision).images(images.take(indices)).cpu().float(), images.labels[indices]
    if clean.shape != x.shape:
        raise ValueError(f"{request.from_file!r} has images of {tuple(x.shape[1:])}; {of} has {tuple(clean.shape[1:])}")
    if not torch.equal(own, labels):
        wrong = int((own != labels).sum())
        raise ValueError(
            f"{request.from_file!r} has other labels than {of} for {wrong} of {len(own)} images; "
            "it must hold that split's first images in their order, or their places as `indices`"
        )
    return clean, own


def _read(file: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Images (n, C, H, W) in [0, 1], labels and places in the split (n,), and what a file of `--save` says of itself."""
    split = load(f"npz:{file}").test
    with np.load(Path(file).expanduser(), allow_pickle=False) as arrays:
        places = torch.from_numpy(arrays["indices"].astype(np.int64)) if "indices" in arrays else torch.arange(len(split))
        about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    if places.shape != (len(split),):
        raise ValueError(f"{file!r}: indices has shape {tuple(places.shape)}; expected one for each of {len(split)} images")
    x = split.take(torch.arange(len(split)))
    return (x.float() / 255 if x.dtype == torch.uint8 else x.float()), split.labels, places, about


def _ball(request: AttackRequest, target: Target, about: dict[str, Any]) -> Ball:
    """The ball asked for, else that of the attack that the file names, else the data set's."""
    named = ball_of(parse_attack(about["attack"])) if "attack" in about else None
    ball = ball_of(configured(PGD() if named is None else PGD(ball=named), target.data.eps, request.norm, eps=request.eps))
    assert ball is not None
    epsilon(ball)
    return ball
