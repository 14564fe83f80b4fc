"""Scores of several checkpoints' pictures of the same units by one judge, with the queries and controls they are asked about."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vizrobust.clarity.judges import Judge, JudgeOutput
from vizrobust.clarity.metrics import judge_top1, two_afc
from vizrobust.clarity.natural_scale import NaturalClarity, NaturalScale, natural_scale, recorded_scale
from vizrobust.compute import Compute, full_batches, versions
from vizrobust.data import DataSet, Split, content_of, head
from vizrobust.features import Logit, Objective, RenderJob, Scorer, images_of, main_term
from vizrobust.features.picture_runs import image_hashes
from vizrobust.models import Checkpoint, evaluating
from vizrobust.runs import Row, RunFolder, read_rows, write_rows

BATCH_SIZE = 100
QUERIES = 20
# Hard distractors come from this part of the activation order, neither the top nor the bottom
# (docs/measuring-clarity.md, "Two-alternative forced choice").
HARD = (0.10, 0.50)


@dataclass(frozen=True)
class QueryRanking:
    """Natural images in falling activation of one unit: `index` (n,) into the split.

    Queries must not be exemplars, or the natural reference would be asked about itself. The caller keeps them apart, for
    example by taking two splits.

    >>> ranking = QueryRanking(torch.arange(100))
    >>> len(ranking.queries()), ranking.distractors()[[0, -1]].tolist()
    (20, [10, 49])
    """

    index: Tensor

    def queries(self, count: int = QUERIES) -> Tensor:
        """The images that excite the unit most."""
        return self.index[:count]

    def distractors(self) -> Tensor:
        """Hard distractors: the images at ranks 10 to 50 %."""
        first, last = (round(share * len(self.index)) for share in HARD)
        return self.index[first:last]

    def easy(self, count: int = QUERIES) -> Tensor:
        """Easy distractors: the images that excite the unit least."""
        return self.index[max(0, len(self.index) - count) :]

    def questions(self, variant: Literal["hard", "easy"] = "hard", count: int = QUERIES) -> tuple[Tensor, Tensor]:
        """(queries, distractors) without a common image. Raises ``ValueError`` where there are too few images for that.

        >>> [part.tolist() for part in QueryRanking(torch.arange(10)).questions("easy", count=2)]
        [[0, 1], [8, 9]]
        """
        hard = variant == "hard"
        queries, others = self.queries(count), self.distractors() if hard else self.easy(count)
        needed = round(count / HARD[0]) if hard else 2 * count
        if len(self.index) < needed:
            raise ValueError(f"the {variant} 2AFC needs at least {needed} images for {count} queries, got {len(self.index)}")
        return queries, others


def excitations(net: nn.Module, objective: Objective, units: Sequence[int], images: Split, compute: Compute) -> Tensor:
    """(units, n): how much each of n natural images excites each unit; penalties of an objective are left out.

    >>> from vizrobust.data import head, load
    >>> from vizrobust.features import Logit
    >>> from vizrobust.models import load_checkpoint
    >>> net, images = load_checkpoint("mnist-k8").net(), head(load("mnist5k").test, 3)
    >>> excitations(net, Logit(), [0, 1], images, Compute("cpu")).shape
    torch.Size([2, 3])
    """
    compute.place(net)
    channels, height, width = images.take(torch.tensor([0])).shape[1:]
    scorer = Scorer.of(net, main_term(objective), (channels, height, width), compute)
    wanted = torch.tensor(list(units), device=compute.device)
    columns = []
    with evaluating(net), torch.no_grad():
        for index, count in full_batches(len(images), BATCH_SIZE):
            x = compute.images(images.take(index))
            seen = scorer.activations(x)
            scores = [scorer.objective(seen, x, unit.expand(len(x))) for unit in wanted]
            columns.append(torch.stack(scores)[:, :count].float().cpu())
    return torch.cat(columns, dim=1)


def shared_rankings(excited: Sequence[Tensor]) -> list[QueryRanking]:
    """For each unit, the ranking by mean rank over several networks' excitations (units, n), which all of them share.

    >>> one, other = torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[3.0, 9.0, 8.0]])
    >>> [ranking.index.tolist() for ranking in shared_rankings([one, other])]
    [[1, 2, 0]]
    """
    from scipy.stats import rankdata

    ranks = sum(torch.from_numpy(rankdata(one.numpy(), axis=1)) for one in excited)
    return [QueryRanking(row.argsort(descending=True, stable=True)) for row in torch.as_tensor(ranks)]


def contrast_matched(images: Tensor, reference: Tensor) -> Tensor:
    """Images with the natural images' mean and deviation, clipped: (N, C, H, W), (n, C, H', W') -> (N, C, H, W) in [0, 1].

    Mean and deviation are taken over all pixels and channels of an image, so that hues keep their order. Clipping comes last
    and reduces both a little. An image without contrast stays without. Raises ``ValueError`` without natural images.

    >>> flat, natural = torch.full((1, 1, 2, 2), 0.9), torch.tensor([0.2, 0.4]).expand(1, 1, 2, 2)
    >>> contrast_matched(torch.eye(2)[None, None], natural)
    tensor([[[[0.4000, 0.2000],
              [0.2000, 0.4000]]]])
    >>> contrast_matched(flat, natural).unique()
    tensor([0.3000])
    """
    if len(reference) == 0:
        raise ValueError("contrast is matched to natural images, got none; give at least one")
    mean, deviation = (value.mean() for value in _moments(reference))
    own_mean, own_deviation = _moments(images)
    scale = torch.where(own_deviation > 1e-6, deviation / own_deviation.clamp(min=1e-6), 0.0)
    centred = images.to(torch.float64) - own_mean[:, None, None, None]
    return (mean + scale[:, None, None, None] * centred).clamp(0, 1).to(images.dtype)


def blurred(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Images (N, C, H, W) after a Gaussian blur of `sigma` pixels, mirrored at the edges; channel means stay.

    Raises ``ValueError`` for a negative or infinite `sigma`.

    >>> blurred(torch.eye(3)[None, None], sigma=0.0)[0, 0].diagonal()
    tensor([1., 1., 1.])
    """
    from scipy.ndimage import gaussian_filter

    if not 0 <= sigma < float("inf"):
        raise ValueError(f"a blur needs a deviation of at least 0 pixels, got {sigma:g}")
    return torch.from_numpy(gaussian_filter(images.cpu().numpy(), sigma, mode="reflect", axes=(2, 3))).to(images)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N,), (N,) float64: mean and deviation of each image."""
    flat = images.to(torch.float64).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


QUERY_IMAGES = 1000
SCORES, SCALES = "scores.jsonl", "scales.jsonl"
NATURAL_IMAGES = "natural images"
RANDOM_NETWORK = "random network"

Pictures = Mapping[int, Tensor]  # unit -> (R, C, H, W), one picture for each seed


@dataclass(frozen=True)
class PictureScores:
    """One value per unit, in the order of the units; None where a metric is not defined. Fields are named by metric ids.

    `transfer` (log-odds) and `recognised` (share of pictures) exist for class units alone; `forced_choice` is an AUC.
    """

    transfer: tuple[float | None, ...]
    recognised: tuple[float | None, ...]
    forced_choice: tuple[float | None, ...]


@dataclass(frozen=True)
class Clarity:
    """The clarity of several checkpoints' pictures: `scores` by judge and checkpoint, the judges' `scales`, and `natural`.

    `natural` maps checkpoints to their natural-equivalent clarity, for class units and judges that have a scale.
    """

    scores: Mapping[str, Mapping[str, PictureScores]]
    scales: Mapping[str, NaturalScale]
    natural: Mapping[str, NaturalClarity]

    @property
    def first(self) -> str:
        """The judge whose scores stand beside each unit."""
        return next(iter(self.scores))


def scoring_jobs(checkpoints: Sequence[Checkpoint], request: RenderJob) -> list[tuple[Checkpoint, RenderJob]]:
    """The pictures that `score_run` needs: those of the job and, for hidden units, those of the negated units."""
    asked = [(checkpoint, request) for checkpoint in checkpoints]
    if isinstance(main_term(request.objective), Logit):
        return asked
    return [*asked, *((checkpoint, replace(request, sign=-request.sign)) for checkpoint in checkpoints)]


def score_run(
    run: RunFolder, checkpoints: Sequence[Checkpoint], request: RenderJob, judge: Judge, data: DataSet | None, compute: Compute,
    references: Sequence[Checkpoint] = (), query_images: int = QUERY_IMAGES,
) -> dict[str, PictureScores]:  # fmt: skip
    """`score_pictures` for the finished pictures of a run folder.

    The scores stay in the folder's scores.jsonl, under the hash of all that they depend on, and are computed once.
    """
    everyone = [*checkpoints, *references]
    opposite = replace(request, sign=-request.sign)
    of_class = isinstance(main_term(request.objective), Logit)
    key = ""
    if run.writes and judge.network_sha256:
        about = [
            [judge.network_sha256, judge.classes, judge.columns, judge.input_shape],
            None if data is None else [data.name, data.shape, content_of(data, "val", "test"), query_images],
            [repr(request.objective), request.units, request.seeds, len(checkpoints)],
            [[one.name, one.network_sha256, image_hashes(run, one, request)] for one in everyone],
            [] if of_class else [image_hashes(run, one, opposite) for one in everyone],
            [compute.precision, compute.device.type, versions()],
        ]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        if (known := _known_scores(run, key)) is not None:
            return known
    pictures = {one.name: images_of(run, one, request) for one in everyone}
    negatives = {} if of_class else {one.name: images_of(run, one, opposite) for one in everyone}
    scores = score_pictures(
        checkpoints, pictures, negatives, request.objective, request.units, judge, data, compute, references, query_images
    )
    if key:
        row = {"key": key, "judge": judge.name, "scores": {name: asdict(one) for name, one in scores.items()}}
        write_rows(run.folder / SCORES, [*_score_rows(run), row])
    return scores


def scale_for(run: RunFolder, judge: Judge, data: DataSet | None) -> NaturalScale | None:
    """The natural scale of a judge: the package's, that of the run folder, or one measured now on held-out images of `data`.

    What is measured stays in the folder's scales.jsonl. None without images or labels.
    """
    if (known := recorded_scale(judge)) is not None:
        return known
    if data is None or not judge.network_sha256:
        return None
    try:
        images = content_of(data, "test")
    except ValueError:  # no test images
        return None
    rows = read_rows(run.folder, SCALES)
    for row in rows:
        same = (row["images_sha256"], row["network_sha256"]) == (images, judge.network_sha256)
        if same and tuple(row["classes"]) == judge.classes:
            return NaturalScale.read(row)
    try:
        scale = natural_scale(judge, data.test, data.name)
    except ValueError as error:  # a class with too few images
        warnings.warn(str(error), stacklevel=2)
        return None
    if run.writes:
        write_rows(run.folder / SCALES, [*rows, {**scale.row(), "images_sha256": images}])
    return scale


def _known_scores(run: RunFolder, key: str) -> dict[str, PictureScores] | None:
    for row in _score_rows(run):
        if row["key"] == key:
            return {
                name: PictureScores(**{metric: tuple(values) for metric, values in one.items()})
                for name, one in row["scores"].items()
            }
    return None


def _score_rows(run: RunFolder) -> list[Row]:
    """The rows of scores.jsonl; none where it is damaged, because its numbers can be computed again."""
    metrics = {field.name for field in fields(PictureScores)}
    with contextlib.suppress(ValueError, AttributeError):
        rows = read_rows(run.folder, SCORES)
        if all(isinstance(row.get("key"), str) and all(set(one) == metrics for one in row["scores"].values()) for row in rows):
            return rows
    return []


def score_pictures(
    checkpoints: Sequence[Checkpoint], pictures: Mapping[str, Pictures], negatives: Mapping[str, Pictures], objective: Objective,
    units: Sequence[int], judge: Judge, data: DataSet | None, compute: Compute, references: Sequence[Checkpoint] = (),
    query_images: int = QUERY_IMAGES,
) -> dict[str, PictureScores]:  # fmt: skip
    """Scores by checkpoint name, with ``natural images`` as a reference under the same queries.

    `pictures` and `negatives` map checkpoint names to each unit's pictures, (R, C, H, W) in [0, 1]. For class units the
    queries are among the first `query_images` held-out images, ranked by mean rank over all compared `checkpoints`, and the
    contrast of a unit's pictures is those of all other units. For hidden units the queries of each checkpoint are the
    images that excite its own unit, the contrast is pictures of the negated unit, and there is one natural reference for
    each checkpoint. `references` (a random network) are scored but do not influence the queries. Without `data` there are
    no queries: `forced_choice` is None for all, and there is no natural reference.
    """
    everyone = [*checkpoints, *references]
    of_class = isinstance(main_term(objective), Logit)
    if data is None:
        outputs = {one.name: _judged(judge, pictures[one.name], units) for one in everyone}
        return {name: _scores_without_queries(own, units, of_class) for name, own in outputs.items()}
    held_out, exemplars = head(data.test, query_images), head(data.val, query_images)
    asked = _orders(everyone, len(checkpoints), objective, units, held_out, compute)
    shown = _orders(everyone, len(checkpoints), objective, units, exemplars, compute)
    seen, examples = judge(_all(held_out)), judge(_all(exemplars))
    scores: dict[str, PictureScores] = {}
    for checkpoint in everyone:
        name = checkpoint.name
        own = _judged(judge, pictures[name], units)
        if of_class:
            other = {unit: _joined([own[u] for u in units if u != unit]) for unit in units}
        else:
            other = {unit: judge(negatives[name][unit]) if unit in negatives.get(name, {}) else None for unit in units}
        scores[name] = _scores(own, other, units, asked[name], seen, of_class)
    for checkpoint in checkpoints[: 1 if of_class else None]:
        name = checkpoint.name
        count = len(next(iter(pictures[name].values())))
        best = {u: examples.of(order.index[:count]) for u, order in zip(units, shown[name], strict=True)}
        if of_class:
            other = {unit: _joined([best[u] for u in units if u != unit]) for unit in units}
        else:
            other = {u: examples.of(order.index[-count:]) for u, order in zip(units, shown[name], strict=True)}
        label = NATURAL_IMAGES if of_class else f"{NATURAL_IMAGES}, {name}"
        scores[label] = _scores(best, other, units, asked[name], seen, of_class)
    return scores


def _orders(
    everyone: Sequence[Checkpoint], compared: int, objective: Objective, units: Sequence[int], images: Split, compute: Compute
) -> dict[str, list[QueryRanking]]:
    """By checkpoint name, each unit's ranking of the images: shared for class units, its own for hidden units."""
    if isinstance(main_term(objective), Logit):
        excited = [excitations(one.net(), objective, units, images, compute) for one in everyone[:compared]]
        common = shared_rankings(excited)
        return {one.name: common for one in everyone}
    return {one.name: shared_rankings([excitations(one.net(), objective, units, images, compute)]) for one in everyone}


def _scores(
    own: Mapping[int, JudgeOutput],
    other: Mapping[int, JudgeOutput | None],
    units: Sequence[int],
    orders: Sequence[QueryRanking],
    seen: JudgeOutput,
    of_class: bool,
) -> PictureScores:
    chosen: list[float | None] = []
    for unit, order in zip(units, orders, strict=True):
        views, rest = own[unit], other[unit]
        if rest is None:
            chosen.append(None)
            continue
        queries, distractors = seen.features[order.queries()], seen.features[order.distractors()]
        chosen.append(two_afc(views.features, rest.features, queries, distractors))
    return replace(_scores_without_queries(own, units, of_class), forced_choice=tuple(chosen))


def _scores_without_queries(own: Mapping[int, JudgeOutput], units: Sequence[int], of_class: bool) -> PictureScores:
    """The scores that need no queries."""
    none: tuple[float | None, ...] = (None,) * len(units)
    if not of_class:
        return PictureScores(none, none, none)
    intended = [torch.full((len(own[unit].logits),), unit) for unit in units]
    carried = (float(own[unit].log_odds[:, unit].mean()) for unit in units)
    named = (float(judge_top1(own[unit].logits, one).float().mean()) for unit, one in zip(units, intended, strict=True))
    return PictureScores(tuple(carried), tuple(named), none)


def _judged(judge: Judge, pictures: Pictures, units: Sequence[int]) -> dict[int, JudgeOutput]:
    """The judge's output for each unit's pictures, computed for all at once to fill its batches."""
    output = judge(torch.cat([pictures[unit] for unit in units]))
    parts = torch.split(torch.arange(len(output.logits)), [len(pictures[unit]) for unit in units])
    return {unit: output.of(part) for unit, part in zip(units, parts, strict=True)}


def _all(images: Split) -> Tensor:
    return images.take(torch.arange(len(images)))


def _joined(outputs: list[JudgeOutput]) -> JudgeOutput | None:
    if not outputs:
        return None
    parts = ([getattr(one, name) for one in outputs] for name in ("logits", "features", "log_odds"))
    return JudgeOutput(*map(torch.cat, parts))
