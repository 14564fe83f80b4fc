"""The clarity of a checkpoint's pictures: every metric, under every judge, with its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vizrobust import clarity
from vizrobust.clarity import Judge, JudgeOutput, NaturalScale, QueryRanking
from vizrobust.compute import Compute, full_batches
from vizrobust.features import Logit, Objective, RenderJob, Scorer
from vizrobust.features.render import even
from vizrobust.models import ActivationReader, Checkpoint, evaluating
from vizrobust.runs import Row
from vizrobust.study.contrasts import DECIMALS
from vizrobust.study.stimuli import QuerySet

CONTRAST, BLUR, EQUAL, MATCHED = "contrast", "blur", "equal-excitation", "matched"
PICTURE_CONTROLS = (CONTRAST, BLUR)


@dataclass(frozen=True)
class PictureSet:
    """Pictures of several units: `images` (units, R, C, H, W), one for each image seed; `units` are their numbers.

    `others` are pictures that do not belong to a unit, in the same shape: of the negated unit for hidden units. None for
    class units, where all other units' pictures take that part.
    """

    units: tuple[int, ...]
    images: Tensor
    others: Tensor | None = None

    @property
    def of_class(self) -> bool:
        return self.others is None


def metric_rows(
    pictures: PictureSet,
    questions: QuerySet,
    orders: Sequence[QueryRanking],
    own: Sequence[QueryRanking],
    controls: Sequence[str] = PICTURE_CONTROLS,
) -> Iterator[Row]:
    """Rows ``metric, judge, control, units, values`` of all metrics, measured on finished pictures.

    docs/measuring-clarity.md, "Metrics and their roles", lists them.
    `orders` are the rankings of queries that all checkpoints share (for hidden units the checkpoint's own), `own` those
    by the checkpoint's own activation. Under each of `controls` only the primary metrics are measured. Distances to
    natural images are distances to the queries, so that exemplars can be measured too.
    """
    natural = questions.queries
    changed = {control: _changed(pictures, questions, control) for control in controls}
    for control, version in changed.items():
        yield from primary_rows(version, questions, orders, control)
    for judge, output, rows in _primary(pictures, questions, orders, None):
        yield from rows
        queries = questions.queries.outputs[judge.name]
        if judge not in questions.encoders:
            continue
        if pictures.of_class:
            yield _row("forced_choice_own", judge.name, None, pictures, _choices(output, queries, own))
        yield _row("forced_choice_easy", judge.name, None, pictures, _choices(output, queries, orders, easy=True))
        features = list(output.features)
        found = clarity.identification([queries.features[order.queries()] for order in orders], features)
        yield _row("identification", judge.name, None, pictures, found.top1.tolist())
        yield _row("reciprocal_rank", judge.name, None, pictures, found.reciprocal_rank.tolist())
        yield _row("seed_agreement", judge.name, None, pictures, clarity.cross_seed_similarity(features).tolist())
        near = [float(clarity.nearest_neighbour_distance(one, natural.outputs[judge.name].features).mean()) for one in features]
        yield _row("nearest_natural", judge.name, None, pictures, near)
        # KID compares distributions: one number for the pictures of all units together.
        far = clarity.kid(output.features.flatten(0, 1), natural.outputs[judge.name].features)
        yield _row("kernel_distance", judge.name, None, pictures, [far] * len(pictures.units))
    # At once: the natural images' own spectra are the same for every unit.
    spectra = clarity.spectrum_distance(pictures.images.flatten(0, 1), natural.images)
    for name, values in (
        ("spectrum_distance", spectra.reshape(pictures.images.shape[:2]).mean(1).tolist()),
        ("high_frequency_share", [float(clarity.high_frequency_share(one).mean()) for one in pictures.images]),
        ("nyquist_ratio", [float(clarity.nyquist_ratio(one).mean()) for one in pictures.images]),
    ):
        yield _row(name, None, None, pictures, values)


def primary_rows(pictures: PictureSet, questions: QuerySet, orders: Sequence[QueryRanking], control: str | None) -> Iterator[Row]:
    """The primary metrics alone, for controls that have pictures of their own."""
    for _judge, _output, rows in _primary(pictures, questions, orders, control):
        yield from rows


def mean_two_afc(pictures: PictureSet, questions: QuerySet, orders: Sequence[QueryRanking]) -> dict[str, float]:
    """Judge -> the mean hard 2AFC AUC of the frames of an optimization path, for the clarity-distance curve."""
    found = {}
    for judge in questions.representatives:
        values = _choices(Views.of(judge, pictures, questions), questions.queries.outputs[judge.name], orders)
        there = [value for value in values if value is not None]
        found[judge.name] = sum(there) / len(there)
    return found


@dataclass(frozen=True)
class Views:
    """A judge's view of pictures: `logits` and `log_odds` (units, R, classes), `features` and `others` (units, R, d)."""

    logits: Tensor
    log_odds: Tensor
    features: Tensor
    others: Tensor | None

    @staticmethod
    def of(judge: Judge, pictures: PictureSet, questions: QuerySet) -> Views:
        count, seeds = pictures.images.shape[:2]

        def seen(images: Tensor) -> JudgeOutput:
            return questions.seen(judge, images.flatten(0, 1))

        output = seen(pictures.images)
        others = None if pictures.others is None else seen(pictures.others).features.reshape(count, seeds, -1)
        logits, odds, features = (one.reshape(count, seeds, -1) for one in (output.logits, output.log_odds, output.features))
        return Views(logits, odds, features, others)


def _primary(
    pictures: PictureSet, questions: QuerySet, orders: Sequence[QueryRanking], control: str | None
) -> Iterator[tuple[Judge, Views, list[Row]]]:
    """Each network that looks at the pictures, what it sees, and its rows of the primary metrics.

    Judges tell the class, encoders answer the 2AFC; without an encoder of the study's own each judge does both.
    """
    asked = dict.fromkeys((*questions.judges, *questions.encoders)) if pictures.of_class else questions.encoders
    for one in asked:
        views, rows = Views.of(one, pictures, questions), list[Row]()
        if pictures.of_class and one in questions.judges:
            rows += _class_rows(pictures, views, one.name, control, questions.scales.get(one.name))
        if one in questions.encoders:
            values = _choices(views, questions.queries.outputs[one.name], orders)
            rows.append(_row("forced_choice", one.name, control, pictures, values))
        yield one, views, rows


def _class_rows(pictures: PictureSet, views: Views, judge: str, control: str | None, scale: NaturalScale | None) -> Iterator[Row]:
    intended = [torch.full((views.logits.shape[1],), unit) for unit in pictures.units]
    carried = [float(one[:, unit].mean()) for one, unit in zip(views.log_odds, pictures.units, strict=True)]
    named = [float(clarity.judge_top1(one, unit).float().mean()) for one, unit in zip(views.logits, intended, strict=True)]
    yield _row("transfer", judge, control, pictures, carried)
    yield _row("recognised", judge, control, pictures, named)
    if scale is not None:
        # The mean over classes is read off the scale: one number for all units together.
        clear = scale.clarity([round(value, DECIMALS) for value in carried], pictures.units)
        yield _row("natural_equivalent", judge, control, pictures, [clear] * len(pictures.units))


def _choices(views: Views, queries: JudgeOutput, orders: Sequence[QueryRanking], easy: bool = False) -> list[float | None]:
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
        exciting, distractors = order.questions("easy" if easy else "hard")
        values.append(clarity.two_afc(views.features[place], other, queries.features[exciting], queries.features[distractors]))
    return values


def _changed(pictures: PictureSet, questions: QuerySet, control: str) -> PictureSet:
    """The same pictures with the natural images' contrast, or blurred by a pixel."""

    def change(images: Tensor) -> Tensor:
        flat = images.flatten(0, 1)
        new = clarity.contrast_matched(flat, questions.exemplars.images) if control == CONTRAST else clarity.blurred(flat)
        return new.reshape(images.shape)

    others = None if pictures.others is None else change(pictures.others)
    return PictureSet(pictures.units, change(pictures.images), others)


def _row(metric: str, judge: str | None, control: str | None, pictures: PictureSet, values: Sequence[float | None]) -> Row:
    rounded = [None if value is None else round(float(value), DECIMALS) for value in values]
    return {"metric": metric, "judge": judge, "control": control, "units": list(pictures.units), "values": rounded}


# Path similarity at the last hidden layer: honest MNIST networks have .45 to .93, the fooling circuit on one .07.
FLAGGED_BELOW = 0.25
# Fields whose keys in the rows of the run folder are older than their names.
KEYS = {"checkpoint": "name", "activation_reached": "reached"}


@dataclass(frozen=True)
class LayerScores:
    """A checkpoint's scores under one recipe, at one layer: `clarity` rows (see `metric_rows`) and more.

    `start` are the clarity rows of the images before optimization, `natural` those of the checkpoint's own exemplars for
    hidden units. `distance` is the clarity-distance curve. `path` is the path similarity of class pictures at the study's
    hidden layer. `ratio` is the mean of the pictures' activation over the largest natural one. `activation_reached` is the
    share of pictures that reach the latter, and `radius` the mean L2 distance at which they do.
    """

    checkpoint: str
    recipe: str
    layer: str
    clarity: list[Row]
    start: list[Row]
    natural: list[Row]
    distance: list[Row]
    path: Row | None
    ratio: float | None
    radius: float | None
    activation_reached: float | None

    def row(self) -> Row:
        """A row of the scores' run folder, without its key, which names the checkpoint by its weights."""
        values = asdict(self)
        return {KEYS.get(name, name): values[name] for name in values if name not in ("recipe", "layer")}

    def labelled(self, row: Row) -> Row:
        """A row of `clarity` in the report."""
        return {"checkpoint": self.checkpoint, "recipe": self.recipe, "layer": self.layer, **row}

    def path_row(self) -> Row:
        """The row of `path_similarity` in the report."""
        return {"checkpoint": self.checkpoint, "recipe": self.recipe, **(self.path or {})}

    @staticmethod
    def read(row: Mapping[str, Any]) -> LayerScores:
        """The scores in a row of the run folder."""
        return LayerScores(**{field.name: row[KEYS.get(field.name, field.name)] for field in fields(LayerScores)})


def score_layer(
    checkpoint: Checkpoint,
    job: RenderJob,
    images: Mapping[int, Tensor],
    negative: Mapping[int, Tensor] | None,
    ways: Mapping[int, Tensor] | None,
    questions: QuerySet,
    layer: str = "",
) -> LayerScores:
    """Score the pictures of a finished job: unit -> (R, C, H, W); `ways` unit -> (R, frames, C, H, W), the start first."""
    of_class = isinstance(job.objective, Logit)
    own = questions.own(checkpoint, job.objective, job.units)
    orders = questions.shared if of_class else own
    final = PictureSet(job.units, stacked(images, job.units), None if negative is None else stacked(negative, job.units))
    clarity = list(metric_rows(final, questions, orders, own))
    natural = [] if of_class else list(metric_rows(_exemplars(checkpoint, job, questions), questions, orders, own))
    path = _path(checkpoint, final, layer, questions) if of_class and layer else None
    largest = questions.largest(checkpoint, job.objective, job.units)
    excited = activations(checkpoint, job.objective, final.images, job.units, questions.compute)
    ratio = float((excited / largest[:, None].clamp(min=1e-6)).mean()) if bool((largest > 0).all()) else None
    start: list[Row] = []
    distance: list[Row] = []
    radius = activation_reached = None
    if ways is not None:
        frames = stacked(ways, job.units)  # (units, R, F, C, H, W)
        start = list(metric_rows(PictureSet(job.units, frames[:, :, 0]), questions, orders, own, controls=()))
        away = (frames - frames[:, :, :1]).flatten(3).norm(dim=3)  # (units, R, F)
        for place, step in enumerate(sorted(even(frames.shape[2], job.recipe.steps + 1))):
            at = PictureSet(job.units, frames[:, :, place])
            mean = round(float(away[:, :, place].mean()), 5)
            for judge, value in mean_two_afc(at, questions, orders).items():
                distance.append({"judge": judge, "step": step, "distance": mean, "value": round(value, 6)})
        grown = torch.stack(
            [
                activations(checkpoint, job.objective, frames[:, :, f], job.units, questions.compute)
                for f in range(frames.shape[2])
            ],
            dim=2,
        )
        there, radii = first_reach(grown, away, largest)
        equal = PictureSet(job.units, torch.stack([_picked(one, at) for one, at in zip(frames, there, strict=True)]))
        clarity += list(primary_rows(equal, questions, orders, EQUAL))
        known = radii[radii.isfinite()]
        radius = round(float(known.mean()), 5) if len(known) else None
        activation_reached = round(float(radii.isfinite().float().mean()), 5)
    ratio = None if ratio is None else round(ratio, 5)
    about = (checkpoint.name, job.recipe.name, job.layer)
    return LayerScores(*about, clarity, start, natural, distance, path, ratio, radius, activation_reached)


def _exemplars(checkpoint: Checkpoint, job: RenderJob, questions: QuerySet) -> PictureSet:
    """For hidden units, the exemplars that excite them most in place of pictures, and those that excite them least."""
    orders, count = questions.own(checkpoint, job.objective, job.units, of_queries=False), len(job.seeds)
    images = questions.exemplars.images
    most, least = (torch.stack([images[ends(order.index)] for order in orders]) for ends in _ends(count))
    return PictureSet(job.units, most, least)


def _ends(count: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return (lambda index: index[:count]), (lambda index: index[-count:])


def _path(checkpoint: Checkpoint, pictures: PictureSet, layer: str, questions: QuerySet) -> Row:
    """The path similarity of class pictures and exemplars at one hidden layer."""
    exemplars, count = questions.exemplars, pictures.images.shape[1]
    index = [order.index[:count] for order in questions.shared_exemplar_rankings]
    natural = _at_layer(checkpoint, torch.stack([exemplars.images[one] for one in index]), layer, questions.compute)
    shown = _at_layer(checkpoint, pictures.images, layer, questions.compute)
    found = clarity.path_similarity(list(natural), list(shown))
    value = None if found.similarity is None else round(found.similarity, 5)
    flagged = value is not None and value < FLAGGED_BELOW
    return {"layer": layer, "value": value, "why": found.why, "flagged": flagged}


def _at_layer(checkpoint: Checkpoint, images: Tensor, layer: str, compute: Compute) -> Tensor:
    """(units, R, D): flattened activations of one layer."""
    net = compute.place(checkpoint.net())
    reading = ActivationReader.of(net, checkpoint.info.input_shape, (layer,))
    flat, found = images.flatten(0, 1), []
    with evaluating(net), torch.no_grad():
        for index, real in full_batches(len(flat), 100):
            found.append(reading(net, compute.images(flat[index]))[layer][:real].flatten(1).float().cpu())
    return torch.cat(found).reshape(*images.shape[:2], -1)


def activations(checkpoint: Checkpoint, objective: Objective, images: Tensor, units: Sequence[int], compute: Compute) -> Tensor:
    """(units, R): how much each unit's own pictures (units, R, C, H, W) excite it, without transforms."""
    count, seeds = images.shape[:2]
    flat = images.flatten(0, 1)
    wanted = torch.tensor(list(units)).repeat_interleave(seeds)
    net = compute.place(checkpoint.net())
    scorer = Scorer.of(net, objective, checkpoint.info.input_shape, compute)
    found = []
    with evaluating(net), torch.no_grad():
        for index, real in full_batches(len(flat), 100):
            x = compute.images(flat[index])
            found.append(scorer(x, wanted[index].to(compute.device))[:real].float().cpu())
    return torch.cat(found).reshape(count, seeds)


def first_reach(grown: Tensor, away: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Where pictures first excite their unit as much as the largest natural activation does.

    `grown` and `away` (units, R, F) are activation and L2 distance along the way, `largest` (units,). Gives the frame
    nearest behind that point, (units, R), the last one where it is never reached, and the distance there, linear
    between frames, inf where it is never reached.

    >>> first_reach(torch.tensor([[[0.0, 2.0, 4.0]]]), torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([3.0]))
    (tensor([[2]]), tensor([[2.]]))
    """
    over = grown >= largest[:, None, None]
    frames = grown.shape[2]
    at = torch.where(over.any(2), over.int().argmax(2), frames - 1)
    before = (at - 1).clamp(min=0)

    def taken(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(2, index[:, :, None])[:, :, 0]

    low, high = taken(grown, before), taken(grown, at)
    share = ((largest[:, None] - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    radius = taken(away, before) + share * (taken(away, at) - taken(away, before))
    return at, radius.masked_fill(~over.any(2), torch.inf)


def _picked(frames: Tensor, at: Tensor) -> Tensor:
    """(R, F, C, H, W), (R,) -> (R, C, H, W)."""
    return frames[torch.arange(len(frames)), at]


def stacked(pictures: Mapping[int, Tensor], units: Sequence[int]) -> Tensor:
    """unit -> (R, ...) as (units, R, ...)."""
    return torch.stack([pictures[unit] for unit in units])
