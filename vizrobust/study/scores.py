"""The clarity of one set of pictures: every metric, under every judge, with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.clarity import (
    Judge,
    Opinion,
    Order,
    blurred,
    contrast_matched,
    forced_choice,
    high_frequency_share,
    identification,
    kernel_distance,
    nearest_natural,
    nyquist_ratio,
    recognised,
    seed_agreement,
    spectrum_distance,
    transfer,
)
from vizrobust.runs import Row
from vizrobust.study.questions import Questions

CONTRAST, BLUR, EQUAL, MATCHED = "contrast", "blur", "equal-excitation", "matched"
CONTROLS = (CONTRAST, BLUR)


@dataclass(frozen=True)
class PictureSet:
    """Pictures of several units: `images` (units, R, C, H, W), one for each image seed; `units` are their numbers.

    `others` are the pictures that do not belong to a unit, in the same shape: of the negated unit for hidden units,
    None for class units, where they are those of all other units.
    """

    units: tuple[int, ...]
    images: Tensor
    others: Tensor | None = None

    @property
    def of_class(self) -> bool:
        return self.others is None


def scored(
    pictures: PictureSet, questions: Questions, orders: Sequence[Order], own: Sequence[Order], controls: Sequence[str] = CONTROLS
) -> Iterator[Row]:
    """Rows ``metric, judge, control, units, values`` for everything that is measured on finished pictures.

    docs/measuring-clarity.md, "Metrics and their roles", says what that is.
    `orders` are the queries of each unit that all checkpoints share (for hidden units the checkpoint's own), `own`
    those by the checkpoint's own activation. Under each of `controls` only the primary metrics are measured. Natural
    images to which pictures are near are the queries, so that exemplars too can be measured.
    """
    natural = questions.queries
    changed = {control: _changed(pictures, questions, control) for control in controls}
    for control, version in changed.items():
        yield from primary(version, questions, orders, control)
    for judge in questions.judges:
        opinion = Views.of(judge, pictures)
        asked = questions.queries.opinions[judge.name]
        yield from _primary(pictures, opinion, asked, orders, judge.name, None)
        if pictures.of_class:
            yield _row("forced_choice_own", judge.name, None, pictures, _choices(opinion, asked, own))
        yield _row("forced_choice_easy", judge.name, None, pictures, _choices(opinion, asked, orders, easy=True))
        features = list(opinion.features)
        found = identification([asked.features[order.queries()] for order in orders], features)
        yield _row("identification", judge.name, None, pictures, found.top1.tolist())
        yield _row("reciprocal_rank", judge.name, None, pictures, found.reciprocal_rank.tolist())
        yield _row("seed_agreement", judge.name, None, pictures, seed_agreement(features).tolist())
        near = [float(nearest_natural(one, natural.opinions[judge.name].features).mean()) for one in features]
        yield _row("nearest_natural", judge.name, None, pictures, near)
        # A distance of distributions: that of all units' pictures together, the same number for each.
        far = kernel_distance(opinion.features.flatten(0, 1), natural.opinions[judge.name].features)
        yield _row("kernel_distance", judge.name, None, pictures, [far] * len(pictures.units))
    for name, values in (
        ("spectrum_distance", [float(spectrum_distance(one, natural.images).mean()) for one in pictures.images]),
        ("high_frequency_share", [float(high_frequency_share(one).mean()) for one in pictures.images]),
        ("nyquist_ratio", [float(nyquist_ratio(one).mean()) for one in pictures.images]),
    ):
        yield _row(name, None, None, pictures, values)


def primary(pictures: PictureSet, questions: Questions, orders: Sequence[Order], control: str | None) -> Iterator[Row]:
    """The primary metrics alone, under every judge: for controls that are pictures of their own."""
    for judge in questions.judges:
        opinion = Views.of(judge, pictures)
        yield from _primary(pictures, opinion, questions.queries.opinions[judge.name], orders, judge.name, control)


def choice_at(pictures: PictureSet, questions: Questions, orders: Sequence[Order]) -> dict[str, float]:
    """Judge -> the mean hard two-alternative AUC of pictures on their way, for the clarity-distance curve."""
    found = {}
    for judge in questions.judges:
        values = _choices(Views.of(judge, pictures), questions.queries.opinions[judge.name], orders)
        there = [value for value in values if value is not None]
        found[judge.name] = sum(there) / len(there)
    return found


@dataclass(frozen=True)
class Views:
    """A judge's view of pictures: `logits` (units, R, classes), `features` and `others` (units, R, d)."""

    logits: Tensor
    features: Tensor
    others: Tensor | None

    @staticmethod
    def of(judge: Judge, pictures: PictureSet) -> Views:
        count, seeds = pictures.images.shape[:2]

        def seen(images: Tensor) -> Opinion:
            return judge(images.flatten(0, 1))

        opinion = seen(pictures.images)
        others = None if pictures.others is None else seen(pictures.others).features.reshape(count, seeds, -1)
        return Views(opinion.logits.reshape(count, seeds, -1), opinion.features.reshape(count, seeds, -1), others)


def _primary(
    pictures: PictureSet, views: Views, asked: Opinion, orders: Sequence[Order], judge: str, control: str | None
) -> Iterator[Row]:
    if pictures.of_class:
        intended = [torch.full((views.logits.shape[1],), unit) for unit in pictures.units]
        carried = [float(transfer(one, unit).mean()) for one, unit in zip(views.logits, intended, strict=True)]
        named = [float(recognised(one, unit).float().mean()) for one, unit in zip(views.logits, intended, strict=True)]
        yield _row("transfer", judge, control, pictures, carried)
        yield _row("recognised", judge, control, pictures, named)
    yield _row("forced_choice", judge, control, pictures, _choices(views, asked, orders))


def _choices(views: Views, asked: Opinion, orders: Sequence[Order], easy: bool = False) -> list[float | None]:
    values: list[float | None] = []
    for place, order in enumerate(orders):
        if views.others is None:
            rest = [one for other, one in enumerate(views.features) if other != place]
            if not rest:
                values.append(None)
                continue
            other = torch.cat(rest)
        else:
            other = views.others[place]
        queries, distractors = order.questions("easy" if easy else "hard")
        values.append(forced_choice(views.features[place], other, asked.features[queries], asked.features[distractors]))
    return values


def _changed(pictures: PictureSet, questions: Questions, control: str) -> PictureSet:
    """The same pictures with the natural images' contrast, or blurred by a pixel."""

    def change(images: Tensor) -> Tensor:
        flat = images.flatten(0, 1)
        new = contrast_matched(flat, questions.exemplars.images) if control == CONTRAST else blurred(flat)
        return new.reshape(images.shape)

    others = None if pictures.others is None else change(pictures.others)
    return PictureSet(pictures.units, change(pictures.images), others)


def _row(metric: str, judge: str | None, control: str | None, pictures: PictureSet, values: Sequence[float | None]) -> Row:
    rounded = [None if value is None else round(float(value), 6) for value in values]
    return {"metric": metric, "judge": judge, "control": control, "units": list(pictures.units), "values": rounded}
