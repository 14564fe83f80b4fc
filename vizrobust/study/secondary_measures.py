"""What a study measures of its networks besides clarity: attribution maps, and the effective number of a layer's features."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial

from vizrobust.attribution import MEASURES, Attribution, captum, explained, passes
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, head
from vizrobust.features.dictionary_fits import effective_features
from vizrobust.models import Checkpoint, architecture
from vizrobust.models import layer as layer_of
from vizrobust.runs import Row, RunFolder
from vizrobust.study.contrasts import DECIMALS
from vizrobust.study.networks import StudyCheckpoint, Work
from vizrobust.study.protocol import Plan

EXPLAINED_TOGETHER = 20  # recorded: an image's map is the same bit for bit at one batch size
# Another draw than that of the study's untrained network.
RANDOM_SEED = 1


def refuse_unmeasurable(plan: Plan, data: DataSet, provided: Sequence[Checkpoint]) -> None:
    """``ValueError`` where the plan asks for what cannot be measured of its networks, before any is trained."""
    if plan.explain_images:
        captum("attr")
    if not (plan.explain_images or plan.feature_images):
        return
    shape = data.shape
    for net in [one.net() for one in provided] or [architecture(plan.training.arch, shape, len(data.classes))()]:
        for method in plan.explain_methods if plan.explain_images else ():
            method.prepared(net, shape)
        if plan.feature_images:
            layer_of(net, shape, plan.layer)


def measured_maps(
    plan: Plan, networks: Sequence[StudyCheckpoint], data: DataSet, compute: Compute, run: RunFolder
) -> Generator[Work, None, list[Row]]:
    """The rows of ``attribution`` in the report: of each network, method and measure a value for each image."""
    images, rows = head(data.test, plan.explain_images), list[Row]()
    for one in networks:
        for method in plan.explain_methods:
            what = f"explaining {one.label}: {method!r}"
            yield what, 0.0
            found = dict[int, Row]()
            for row in explained_images(one.checkpoint, method, images, data.mean, compute, run):
                found[row["image"]] = row
                yield what, passes(method)
            rows += attribution_rows(one.checkpoint.name, method, [found[index] for index in range(len(images))])
    return rows


def explained_images(
    checkpoint: Checkpoint, method: Attribution, images: Split, background: tuple[float, ...], compute: Compute, run: RunFolder
) -> Iterator[Row]:
    """A row for each image, with the measures of its map; those in the run folder are read."""
    about = {"checkpoint": checkpoint.id, "method": repr(method)}
    known = {row["image"]: row for row in run.rows() if about.items() <= row.items()}
    yield from known.values()
    if len(known) == len(images):
        return
    made = explained(
        checkpoint.net(), method, images, background, compute, random_net=checkpoint.random_net(RANDOM_SEED),
        batch_size=EXPLAINED_TOGETHER, known=known,
    )  # fmt: skip
    for one in made:
        yield run.add({**about, "image": one.index, "predicted": one.predicted, **one.measures})


def attribution_rows(name: str, method: Attribution, found: Sequence[Row]) -> Iterator[Row]:
    """The report's rows of one network and method, from those of its images."""
    for measure in MEASURES:
        values = [row[measure] for row in found]
        rounded = [None if value is None else round(value, DECIMALS) for value in values]
        yield {"checkpoint": name, "method": repr(method), "measure": measure, "values": rounded}


def counted_features(
    plan: Plan, networks: Sequence[StudyCheckpoint], data: DataSet, compute: Compute, run: RunFolder
) -> Generator[Work, None, list[Row]]:
    """The rows of ``effective_features`` in the report: of each network the effective number of its hidden layer's features."""
    rows = []
    for one in networks:
        yield f"counting features of {one.label}", plan.feature_images / 3
        measure = partial(_feature_row, plan, one.checkpoint, data, compute)
        found = run.cached({"checkpoint": one.checkpoint.id}, measure)
        rows.append({"checkpoint": one.checkpoint.name, "layer": plan.layer, "value": found["value"]})
    return rows


def _feature_row(plan: Plan, checkpoint: Checkpoint, data: DataSet, compute: Compute) -> Row:
    return {"value": feature_number(plan, checkpoint, data, compute)}


def feature_number(plan: Plan, checkpoint: Checkpoint, data: DataSet, compute: Compute) -> float | None:
    """The effective number of features of the plan's hidden layer, on the first test images."""
    images, shape = head(data.test, plan.feature_images), checkpoint.info.input_shape
    found = effective_features(checkpoint.net(), plan.layer, images, shape=shape, compute=compute)
    return None if found is None else round(found, DECIMALS)
