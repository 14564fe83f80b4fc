"""`attack --save`, `--save-png` and `--from`: adversarial images kept, and kept images judged on any checkpoint."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.attacks import Ball, ball_of, configured, epsilon, parse_attack, perturbation_norm
from vizrobust.attacks.gradient import PGD
from vizrobust.commands.targets import Target
from vizrobust.data import load
from vizrobust.intervals import share, wilson
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.results import Event, Note, Row, Table, interval_text, percent
from vizrobust.robustness import RobustAccuracy
from vizrobust.robustness.evaluation_runs import adversarial_images
from vizrobust.robustness.kept_images import AdversarialImages, eight_bit, outside, predicted
from vizrobust.session import Session

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
