"""`certify`: each image's certified radius beside the smallest attack on the same network, by smoothing or interval bounds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks import Attack, is_minimum_norm, parse_attack, perturbation_norm
from vizrobust.commands.targets import Target, drawn, open_targets
from vizrobust.compute import full_batches
from vizrobust.intervals import wilson
from vizrobust.models import evaluating
from vizrobust.models.forward import predicted_classes
from vizrobust.requests import ParameterError
from vizrobust.requests.understanding import CertifyRequest
from vizrobust.results import Event, Result, Row, Table, interval_text, percent
from vizrobust.rng import Streams
from vizrobust.robustness.evaluation_runs import attack_key
from vizrobust.robustness.interval_bounds import certified_radius, in_float64
from vizrobust.robustness.smallest_eps import median
from vizrobust.robustness.smoothing import Certificate, certified, largest_radius, smallest_attack
from vizrobust.session import Session

NORMS = {"smoothing": "L2", "ibp": "Linf"}
ATTACKS = {"smoothing": "DDN(steps=40)", "ibp": "FMN(steps=50)"}
# Radii of the table without radii of the request's own, in units of sigma, and of the data set's eps.
RADII = {"smoothing": (0.5, 1.0, 2.0), "ibp": (1 / 64, 1 / 16, 1.0)}


@dataclass(frozen=True)
class Certified:
    """What is known of n images of one checkpoint: within `radius` (n,) nothing changes the answer, at `smallest` something does.

    `right` (n,) bool: the answer is the label. `radius` is 0 where the answer is wrong or `abstains` (n,) bool; `smallest`
    is 0 where it is wrong, inf where no attack succeeded, None where none was run. `undefined` counts the images some of whose
    noisy copies have outputs that are not finite.
    """

    target: Target
    right: Tensor
    abstains: Tensor
    radius: Tensor
    smallest: Tensor | None
    undefined: int = 0


@dataclass(frozen=True, repr=False)
class CertifyReport(Result):
    """The answer to a `CertifyRequest`; in a notebook it shows its tables."""

    request: CertifyRequest
    found: tuple[Certified, ...]
    row_list: tuple[Row, ...]

    def rows(self) -> list[Row]:
        return list(self.row_list)

    def tables(self) -> list[Table]:
        return [self._summary(), *(_at_radii(self.request, one) for one in self.found)]

    def figure(self) -> Any:
        """Each image's bracket from certified radius to smallest attack, a panel for each checkpoint."""
        from vizrobust.report.measurement_figures import brackets

        panels = [
            (one.target.name, one.radius.tolist(), None if one.smallest is None else one.smallest.tolist()) for one in self.found
        ]
        return brackets(panels, NORMS[self.request.method])

    def __repr__(self) -> str:
        return f"CertifyReport({len(self.row_list)} rows of {self.request!r})"

    def _summary(self) -> Table:
        request, rows = self.request, []
        for one in self.found:
            cells = [one.target.name, str(len(one.radius)), *_share(one.right & ~one.abstains), percent(_mean(one.abstains))]
            for radii in (one.radius, one.smallest):
                cells += ["-", "-"] if radii is None else [_eps(median(radii)[0]), " to ".join(map(_eps, median(radii)[1:]))]
            rows.append(cells)
        how = "interval bounds, certain"
        if request.method == "smoothing":
            most = largest_radius(request.noise, request.votes, request.alpha)
            how = (
                f"of the network under noise of {request.noise:g}; {request.votes} votes prove no radius above {most:.3g}, "
                f"each certificate is wrong with a probability of at most {request.alpha:g}"
            )
        header = [
            "checkpoint",
            "images",
            "right",
            "95 % interval",
            "abstains",
            "certified",
            "95 % interval",
            "attack",
            "95 % interval",
        ]
        remarks = [remark for one in self.found for remark in one.target.remarks]
        remarks += [
            f"{one.target.name}: outputs are not finite on noisy copies of {one.undefined} of {len(one.radius)} images; such "
            "copies count against the class, and an image whose radius is 0 because of them does not count as right"
            for one in self.found
            if one.undefined
        ]
        note = "\n".join((f"{how}. certified, attack: medians over images, 0 for one that is wrong", *remarks))
        return Table(f"{NORMS[request.method]} radii by {request.method}", header, rows, note)


def certify(request: CertifyRequest, session: Session) -> Generator[Event, None, CertifyReport]:
    """Certify every image under every checkpoint and attack the same network; what the run folder holds is read."""
    attack = _attack(request)
    targets = open_targets(request, session, "certify")
    found, rows = [], []
    for target in targets:
        session.remember(target.folder, target.checkpoint)
        mine = yield from (_smoothed if request.method == "smoothing" else _bounded)(request, session, target, attack)
        rows += mine
        found.append(_of_rows(target, mine, attack))
    report = CertifyReport(request, tuple(found), tuple(rows))
    yield from drawn(report, request, session)
    return report


def _attack(request: CertifyRequest) -> Attack | None:
    if request.attack == "none":
        return None
    given = request.attack or ATTACKS[request.method]
    attack = parse_attack(given, typed=True) if isinstance(given, str) else given
    norm = NORMS[request.method]
    if not is_minimum_norm(attack) or attack.threat_model()[0] != norm:
        raise ParameterError(
            "{attack} %s does not look for the smallest %s change, which {method} %s certifies; take %s, or none",
            repr(attack), norm, request.method, ATTACKS[request.method],
        )  # fmt: skip
    return attack


def _smoothed(
    request: CertifyRequest, session: Session, target: Target, attack: Attack | None
) -> Generator[Event, None, list[Row]]:
    """The rows of one checkpoint under noise, image by image."""
    how = {"sigma": request.noise, "samples": request.votes, "alpha": request.alpha}
    about = {"checkpoint": target.checkpoint.id, "method": "smoothing", **how}
    named = _named(attack)
    known, attacked = _known(target, about), _known(target, {**about, **named})
    compute, net = session.compute(request.precision), None
    rows: list[Row] = []
    for index, label in enumerate(target.images.labels.tolist()):
        streams = Streams(request.seed, [index], "certify")
        x = target.images.take(torch.tensor([index]))[0]
        if index not in known or index not in attacked:
            net = net or compute.place(_of_images_alone(target))
        if index not in known:
            assert net is not None
            one = certified(net, x, compute, sigma=request.noise, samples=request.votes, alpha=request.alpha, streams=streams)
            row = {**about, "image": index, "label": label, "predicted": one.predicted, "p_low": one.p_low, "radius": one.radius}
            row |= {"lost": one.lost} if one.lost else {}
            known[index] = target.folder.add(row)
        row = known[index]
        if attack is not None and row["predicted"] == label:
            if index not in attacked:
                assert net is not None
                one = Certificate(row["predicted"], row["p_low"], row["radius"])
                size = smallest_attack(
                    net, x, one, attack, compute, sigma=request.noise, samples=request.votes, alpha=request.alpha, streams=streams
                )
                attacked[index] = target.folder.add({**about, **named, "image": index, "smallest": size})
            row = {**row, **named, "smallest": attacked[index]["smallest"]}
        rows.append({**row, "name": target.name})
        session.progress(f"{target.name}  smoothing", index + 1, len(target.images))
        yield rows[-1]
    return rows


def _bounded(
    request: CertifyRequest, session: Session, target: Target, attack: Attack | None
) -> Generator[Event, None, list[Row]]:
    """The rows of one checkpoint by interval bounds, batch by batch."""
    about = {"checkpoint": target.checkpoint.id, "method": "ibp", **_named(attack)}
    known, compute = _known(target, about), session.compute(request.precision)
    net = compute.place(_of_images_alone(target))
    exact = in_float64(net)
    for index, count in full_batches(len(target.images), target.batch_size):
        numbers = index[:count].tolist()
        if any(number not in known for number in numbers):
            x, y = compute.images(target.images.take(index)), target.images.labels[index].to(compute.device)
            with evaluating(net), torch.no_grad():
                predicted = predicted_classes(net(x))
            try:
                radius = certified_radius(exact, x, y).cpu().where((predicted == y).cpu(), 0)
            except ValueError as error:
                raise ValueError(f"{target.name}: {error}") from error
            smallest = None if attack is None else _smallest(net, x, y, attack, Streams(request.seed, index.tolist(), "certify"))
            for place, number in enumerate(numbers):
                if number in known:
                    continue
                row = {
                    **about,
                    "image": number,
                    "label": int(y[place]),
                    "predicted": int(predicted[place]),
                    "radius": float(radius[place]),
                }
                if smallest is not None:
                    row["smallest"] = float(smallest[place]) if bool(smallest[place].isfinite()) else None
                known[number] = target.folder.add(row)
        session.progress(f"{target.name}  interval bounds", numbers[-1] + 1, len(target.images))
        yield from ({**known[number], "name": target.name} for number in numbers)
    return [{**known[number], "name": target.name} for number in range(len(target.images))]


def _smallest(net: torch.nn.Module, x: Tensor, y: Tensor, attack: Attack, streams: Streams) -> Tensor:
    """(N,): the size of the smallest change that makes the network wrong; inf where none was found."""
    result = attack(net, x, y, streams=streams)
    assert result.best is not None
    return perturbation_norm(attack, result.best - x).where(~result.robust, torch.inf)


def _named(attack: Attack | None) -> dict[str, str]:
    return {"attack": repr(None)} if attack is None else attack_key(attack)


def _of_images_alone(target: Target) -> nn.Module:
    """The network; ``ValueError`` where its outputs for an image depend on more than the image, of which nothing is certain."""
    net = target.checkpoint.net()
    if said := getattr(net, "depends_on", ""):
        raise ValueError(f"{target.name} cannot be certified: {said}")
    return net


def _known(target: Target, about: Row) -> dict[int, Row]:
    """The rows of the folder that hold these fields, by image; certificates by smoothing stand apart from attacks."""
    return {
        row["image"]: row
        for row in target.folder.rows()
        if about.items() <= row.items() and ("attack" in row) == ("attack" in about)
    }


def _of_rows(target: Target, rows: list[Row], attack: Attack | None) -> Certified:
    # An image of which some copies have no finite outputs, and for which nothing is proved, is neither right nor wrong.
    undefined = [row.get("lost", 0) > 0 and row["radius"] == 0 for row in rows]
    right = torch.tensor([row["predicted"] == row["label"] and not lost for row, lost in zip(rows, undefined, strict=True)])
    proved = torch.tensor([row["radius"] for row in rows], dtype=torch.float64)
    abstains = (proved == 0) if rows and rows[0]["method"] == "smoothing" else torch.zeros_like(right)
    sizes = [torch.inf if row.get("smallest") is None else row["smallest"] for row in rows]
    smallest = None if attack is None else torch.tensor(sizes, dtype=torch.float64).where(right, 0)
    target.saw(torch.tensor([row["predicted"] for row in rows]))
    return Certified(target, right, abstains, proved.where(right, 0), smallest, sum(row.get("lost", 0) > 0 for row in rows))


def _at_radii(request: CertifyRequest, one: Certified) -> Table:
    """How many images are right and certified, or have at least survived, at each radius."""
    unit = request.noise if request.method == "smoothing" else (one.target.data.eps or 8 / 255)
    rows = []
    for radius in request.radii or tuple(unit * share for share in RADII[request.method]):
        proved = (one.radius >= radius) & (one.radius > 0)
        cells = [_eps(radius), *_share(proved)]
        if one.smallest is None:
            cells += ["-", "-", "-"]
        else:
            alive = one.right & (one.smallest > radius)
            cells += [*_share(alive), percent(_mean(alive & ~proved))]
        rows.append(cells)
    header = ["radius", "certified", "95 % interval", "survives", "95 % interval", "undecided"]
    note = (
        "certified: right, and no change of this size matters; survives: right, and the attack found none; the truth is between"
    )
    return Table(f"{one.target.name}: accuracy at {NORMS[request.method]} radii", header, rows, note)


def _share(hits: Tensor) -> list[str]:
    return [percent(_mean(hits)), interval_text(*wilson(int(hits.sum()), len(hits)))]


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean())


def _eps(value: float) -> str:
    return "-" if value == float("inf") else f"{value:.3g}"
