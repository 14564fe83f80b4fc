"""An outside judge: a frozen network that none of the compared checkpoints has anything to do with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from vizrobust.clarity.class_columns import class_columns
from vizrobust.clarity.encoder import Judge, Kind, Opinion, fitted, last_linear
from vizrobust.clarity.overlap import shares_images, taken_from_imagenet
from vizrobust.compute import Compute
from vizrobust.models import Checkpoint, builtin_names, load_checkpoint

__all__ = ["BUILTIN", "Judge", "Opinion", "fitted", "judge_for", "judges_for", "last_linear"]

KINDS: tuple[Kind, ...] = ("standard", "robust", "heavy")
# By data set, in the order of KINDS; of another architecture than the compared sweep, trained on images outside of it.
BUILTIN = {
    "mnist5k": ("mnist-judge-standard", "mnist-judge-robust", "mnist-judge-heavy"),
    "imagenette64": ("imagenette-judge-standard", "imagenette-judge-robust", "imagenette-judge-heavy"),
}


def judge_for(data: str, compared: Sequence[Checkpoint], compute: Compute, ref: str | None = None) -> Judge | None:
    """The one judge of `neurons` and `compare`: `ref`, or the built-in one for a data set (heavy augmentation first).

    None where there is none. Raises ``ValueError`` where the judge is one of the compared checkpoints, lacks one of
    their classes or takes other channels, and warns where it was trained on images of theirs: such a judge saturates.
    """
    there = builtin_names()
    own = [name for name in reversed(BUILTIN.get(data.lower(), ())) if name in there]
    chosen = [ref] if ref else own
    if not chosen:
        return None
    kind = _kind(data, chosen[0])
    judge, checkpoint = _judge(chosen[0], compared, compute, kind)
    for other in compared:
        if shares_images(checkpoint.about.data, other.about.data):
            warnings.warn(_seen(judge, checkpoint, other, other.about.data), stacklevel=2)
    return judge


def judges_for(
    data_name: str, compared: Sequence[Checkpoint], compute: Compute, refs: Sequence[str] = (), *, builtin: bool = True
) -> list[Judge]:
    """All judges of a study on a data set: its built-in ones that are there, in the order of `KINDS`, and then `refs`.

    A network named twice judges once; without `builtin` only `refs` judge. Their opinions are in the order of the
    compared checkpoints' classes, of images of any size, grey or in colour. Raises ``ValueError`` where a judge is one
    of the compared checkpoints, was trained on images that one of them was trained on (on `data_name`, where a
    checkpoint does not say), lacks one of their classes, or takes other channels. Warns of a judge trained on ImageNet
    for checkpoints trained on Imagenette, whose images are taken from there.
    """
    there = builtin_names()
    own = [name for name in BUILTIN.get(data_name.lower(), ()) if builtin and name in there]
    judges: dict[str, Judge] = {}
    for ref in (*own, *refs):
        judge, checkpoint = _judge(ref, compared, compute, _kind(data_name, ref))
        for other in compared:
            trained_on = other.about.data or data_name
            if shares_images(checkpoint.about.data, trained_on):
                raise ValueError(f"{_seen(judge, checkpoint, other, trained_on)}; name a --judge trained on other images")
        if any(taken_from_imagenet(checkpoint.about.data, other.about.data or data_name) for other in compared):
            warnings.warn(f"the judge {ref!r} was trained on ImageNet, from which Imagenette's images are taken", stacklevel=2)
        judges.setdefault(judge.sha256, judge)
    return list(judges.values())


def _judge(ref: str, compared: Sequence[Checkpoint], compute: Compute, kind: Kind) -> tuple[Judge, Checkpoint]:
    """The judge with its checkpoint, if it can judge the compared ones."""
    checkpoint = load_checkpoint(ref)
    about = checkpoint.about
    columns: set[tuple[int, ...] | None] = set()
    for other in compared:
        if checkpoint.sha256 == other.sha256:
            raise ValueError(f"the judge {ref!r} is one of the compared checkpoints ({other.name}); name another --judge")
        channels = other.about.input_shape[0]
        if channels != about.input_shape[0] and 1 not in (channels, about.input_shape[0]):
            takes = f"takes images of {about.input_shape[0]} channels, {other.name} of {channels}"
            raise ValueError(f"the judge {ref!r} {takes}; name another --judge")
        columns.add(class_columns(ref, about.classes, other.about.classes))
    if len(columns) > 1:
        raise ValueError("the compared checkpoints have their classes in different orders; compare those with the same classes")
    chosen = next(iter(columns), None)
    names = about.classes if chosen is None else compared[0].about.classes
    net = checkpoint.net()
    try:
        last_linear(net)
    except ValueError as error:
        raise ValueError(f"{ref!r} cannot judge: {error}") from error
    clean = about.metrics.get("clean")
    judge = Judge(ref, net, names, compute, kind, about.input_shape, chosen, clean, checkpoint.sha256)
    return judge, checkpoint


def _kind(data: str, ref: str) -> Kind:
    return dict(zip(BUILTIN.get(data.lower(), ()), KINDS, strict=False)).get(ref, "given")


def _seen(judge: Judge, checkpoint: Checkpoint, other: Checkpoint, trained_on: str) -> str:
    where = checkpoint.about.data
    same = where == trained_on
    return (
        f"the judge {judge.name!r} was trained on {where}, {'as' if same else 'which shares images with that of'} {other.name}"
        + (" was" if same else f" ({trained_on})")
    )
