"""What the pages of `microscope` say beside the pictures, as files of its run folder: computed once, read by the site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.attacks import PGD, configured
from vizrobust.attribution import IntegratedGradients
from vizrobust.clarity import NATURAL_IMAGES, Judge
from vizrobust.commands.masking import MaskingDiagnosis
from vizrobust.commands.unit_pictures import UnitRun
from vizrobust.commands.unit_tables import WordLabels
from vizrobust.compute import Compute
from vizrobust.data import DataSet, content_of
from vizrobust.features import Logit, RenderJob
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.features.pictures import in_tiles, to_uint8
from vizrobust.features.unit_facts import class_aucs, class_effects, heat_maps, histogram, sparsity, unit_activations
from vizrobust.models import ActivationReader, Checkpoint, evaluating, layers
from vizrobust.report.microscope import FACTS, read_facts
from vizrobust.rng import Streams
from vizrobust.runs import Row, RunFolder, digest, slug, write_atomic, write_json, write_png
from vizrobust.study.stimuli import match_units

ACTIVATIONS = "activations"
EFFECT_IMAGES = 64
MOST_CLASSES = 100  # with more the gradients of all of them take too long
SLICES = (0.25, 0.5, 0.75, 0.9)  # of the distribution, beside its two ends
HEAT_COLOUR, HEAT_OPACITY = (224, 102, 47), 200
MOST_MATCHED = 4096
ATTRIBUTION, ATTRIBUTED = IntegratedGradients(steps=16), 3  # of a unit's activation, on so many of its exemplars
STEPS, ATTACKED = 40, 32  # of the adversarial examples: steps, and images at once


def network_facts(run: RunFolder, checkpoint: Checkpoint) -> None:
    """The layers of a network in the order in which they run."""
    name = f"network-{checkpoint.id}.json"
    if not read_facts(run.folder, name):
        found = layers(checkpoint.net(), checkpoint.info.input_shape)
        listed = [{"name": one.name, "kind": one.kind, "shape": list(one.shape), "units": one.units} for one in found]
        write_json(run.folder / FACTS / name, {"checkpoint": checkpoint.id, "layers": listed})


def layer_facts(
    run: RunFolder, checkpoint: Checkpoint, job: RenderJob, source: ImageSource, exemplars: Sequence[Row], compute: Compute,
    progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Activations, sparsity, classes and heat maps of a layer's units."""
    name = f"layer-{checkpoint.id}-{slug(job.layer)}.json"
    shown = [row["images"] for row in exemplars]
    about = {"source": source.identity, "units": list(job.units), "images": shown, "of classes": "auc"}
    key = digest(about)
    if read_facts(run.folder, name).get("key") == key:
        return
    net, shape = checkpoint.net(), checkpoint.info.input_shape
    excited = _activations(run, checkpoint, job.layer, source, compute, progress)
    effects = None
    if len(checkpoint.info.classes) <= MOST_CLASSES:
        some = source.images.take(torch.linspace(0, len(source.images) - 1, min(EFFECT_IMAGES, len(source.images))).long())
        effects = class_effects(net, job.layer, some, shape=shape, compute=compute)
    most = {row["unit"]: [image["index"] for image in row["images"]] for row in exemplars if row["sign"] > 0}
    heat = heat_maps(net, job.layer, most, source.whole, shape=shape, compute=compute)
    labels = source.whole.labels[source.index]
    classes, outputs = source.data.classes, checkpoint.info.classes
    of_outputs = len(classes) == len(outputs) <= MOST_CLASSES  # images of other data may have other classes
    aucs = class_aucs(excited, labels, len(classes))
    sparse, order = sparsity(excited), excited.argsort(0)
    units: dict[str, Any] = {}
    for unit in job.units:
        values = excited[:, unit]
        low, high, counts = histogram(values)
        entry: dict[str, Any] = {
            "low": low, "high": high, "counts": counts, "active": round(float((values > 0).float().mean()), 4),
            "sparsity": None if torch.isnan(sparse[unit]) else round(float(sparse[unit]), 4),
            "aucs": [None if torch.isnan(one) else round(float(one), 4) for one in aucs[unit]] if of_outputs else [],
            "slices": [
                _slice(run, source, int(order[round(share * (len(values) - 1)), unit]), share, values) for share in SLICES
            ],
        }  # fmt: skip
        if effects is not None:
            entry["effects"] = [float(f"{one:.4g}") for one in effects.values[unit].tolist()]
        if unit in heat:
            entry["heat"] = f"images/heat/{checkpoint.id}/{slug(job.layer)}/{unit}.png"
            write_png(run.folder / entry["heat"], _heat_strip(heat[unit]), {})
        units[str(unit)] = entry
    write_json(run.folder / FACTS / name, {
        "key": key, "checkpoint": checkpoint.id, "layer": job.layer, "n": len(source.images), "data": source.data.name,
        "split": source.split, "linear": None if effects is None else effects.linear, "classes": list(outputs),
        "images": [int((labels == one).sum()) for one in range(len(classes))], "units": units,
    })  # fmt: skip


def word_facts(
    run: RunFolder, checkpoint: Checkpoint, job: RenderJob, source: ImageSource, words: WordLabels, compute: Compute
) -> None:
    """A word for each of a layer's units, where one predicts it on images held out."""
    name = f"words-{checkpoint.id}-{slug(job.layer)}.json"
    key = digest([source.identity, list(job.units), words.key, words.seed])
    if read_facts(run.folder, name).get("key") == key:
        return
    excited = _activations(run, checkpoint, job.layer, source, compute, lambda _count: None)[:, list(job.units)]
    found = words.of(run, source.images, digest(source.identity), excited)
    units = {str(unit): asdict(one) for unit, one in zip(job.units, found, strict=True) if one and one.label}
    write_json(run.folder / FACTS / name, {"key": key, "by": words.encoder.name, "units": units})


class UnitScores(nn.Module):
    """A network whose outputs (N, units) are how much each image excites each unit of a layer: its mean over the map."""

    def __init__(self, net: nn.Module, layer: str, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net, self.layer, self.reading = net, layer, ActivationReader.of(net, shape, [layer])

    def forward(self, x: Tensor) -> Tensor:
        maps = self.reading(self.net, x)[self.layer].float()
        return maps if maps.dim() == 2 else maps.flatten(2).mean(2)


def attribution_facts(
    run: RunFolder, checkpoint: Checkpoint, job: RenderJob, source: ImageSource, exemplars: Sequence[Row], compute: Compute
) -> None:
    """Which pixels of each unit's first exemplars its activation comes from; nothing where captum is not installed."""
    if find_spec("captum") is None:
        return
    name = f"attribution-{checkpoint.id}-{slug(job.layer)}.json"
    most = {row["unit"]: [image["index"] for image in row["images"]][:ATTRIBUTED] for row in exemplars if row["sign"] > 0}
    key = digest([source.identity, sorted(most.items()), repr(ATTRIBUTION)])
    if read_facts(run.folder, name).get("key") == key:
        return
    scores = UnitScores(compute.place(checkpoint.net()), job.layer, checkpoint.info.input_shape)
    background, units = torch.tensor(checkpoint.info.mean), {}
    for unit, some in most.items():
        x = compute.images(source.whole.take(torch.tensor(some)))
        wanted = torch.full((len(x),), unit, device=x.device)
        with evaluating(scores):
            found = ATTRIBUTION.pixels(ATTRIBUTION(scores, x, wanted, background, Streams(0, some, "attribution"))).clamp_min(0)
        strip = f"images/attribution/{checkpoint.id}/{slug(job.layer)}/{unit}.png"
        write_png(run.folder / strip, _heat_strip((found / found.amax((1, 2), keepdim=True).clamp_min(1e-12)).cpu()), {})
        units[str(unit)] = {"pixels": strip, "of": len(some)}
    write_json(run.folder / FACTS / name, {"key": key, "layer": job.layer, "method": repr(ATTRIBUTION), "units": units})


def masking_facts(run: RunFolder, checkpoint: Checkpoint, found: MaskingDiagnosis) -> None:
    """The verdict on a checkpoint's gradients."""
    told = {"verdict": found.verdict.name, "sentence": found.verdict.sentence, "n": found.n}
    write_json(run.folder / FACTS / f"masking-{checkpoint.id}.json", {"checkpoint": checkpoint.id, **told})


def _slice(run: RunFolder, source: ImageSource, at: int, share: float, values: Tensor) -> dict[str, Any]:
    """The image at a share of the distribution of a unit's activations."""
    index = int(source.index[at])
    name = f"images/exemplars/{source.split}-{source.identity['sha256'][:8]}/{index}.png"
    _save(run, name, source.whole.take(torch.tensor([index]))[0])
    label = source.data.classes[int(source.whole.labels[index])]
    return {"share": share, "image": name, "label": label, "value": round(float(values[at]), 5)}


def _save(run: RunFolder, name: str, image: Tensor) -> None:
    if not (run.folder / name).is_file():
        write_png(run.folder / name, to_uint8(in_tiles(image, len(image))), {})


def _heat_strip(heat: Tensor) -> np.ndarray[Any, Any]:
    """(k, side, side) in [0, 1] -> (side, k * side, 4) uint8: one colour, as opaque as it is hot."""
    opacity = torch.cat(list(heat), 1)
    colour = torch.tensor(HEAT_COLOUR, dtype=torch.float32).expand(*opacity.shape, 3)
    return torch.cat([colour, HEAT_OPACITY * opacity[..., None]], -1).round().to(torch.uint8).numpy()


def _activations(
    run: RunFolder, checkpoint: Checkpoint, layer: str, source: ImageSource, compute: Compute, progress: Callable[[int], object]
) -> Tensor:
    path = run.folder / ACTIVATIONS / slug(layer) / digest(source.identity) / f"{checkpoint.id}.npy"
    if path.is_file():
        return _read(path)
    found = unit_activations(
        checkpoint.net(), layer, source.images, shape=checkpoint.info.input_shape, compute=compute, progress=progress
    )
    write_atomic(path, partial(np.save, arr=found.half().numpy(), allow_pickle=False))
    return found.half().float()


def _read(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False)).float()


def matching_facts(run: RunFolder, layer: str) -> None:
    """Which unit of a layer matches which, between every two checkpoints whose activations on the same images are there."""
    found: dict[str, Any] = {}
    for folder in sorted((run.folder / ACTIVATIONS / slug(layer)).glob("*")):
        there = {path.stem: _read(path).T for path in sorted(folder.glob("*.npy"))}
        for one, other in permutations(there, 2):
            if max(len(there[one]), len(there[other])) <= MOST_MATCHED:
                matching = match_units(there[one], there[other])
                pairs = {a: [b, round(value, 3)] for (a, b), value in zip(matching.pairs, matching.correlations, strict=True)}
                found[f"{one} {other}"] = {"pairs": pairs, "chance": round(matching.chance, 3)}
    write_json(run.folder / FACTS / f"matching-{slug(layer)}.json", {"layer": layer, "found": found})


def clarity_facts(
    pictured: UnitRun, checkpoints: Sequence[Checkpoint], data: DataSet, judges: Sequence[Judge], query_images: int
) -> None:
    """Clarity of every unit by the first judge, and what natural images reach under the same questions."""
    run, job = pictured.run, pictured.job
    clarity = pictured.clarity(checkpoints, data, judges[:1], query_images)
    scores = clarity.scores[clarity.first]
    name = f"clarity-{slug(job.layer)}.json"
    known = read_facts(run.folder, name).get("units", {})
    for checkpoint in checkpoints:
        own = scores[checkpoint.name]
        natural = scores.get(NATURAL_IMAGES if isinstance(job.objective, Logit) else f"{NATURAL_IMAGES}, {checkpoint.name}")
        for place, unit in enumerate(job.units):
            values = {metric: getattr(own, metric)[place] for metric in ("forced_choice", "transfer", "recognised")}
            values |= {"natural": None if natural is None else natural.forced_choice[place]}
            known.setdefault(checkpoint.id, {})[str(unit)] = {key: one and round(one, 4) for key, one in values.items()}
    write_json(run.folder / FACTS / name, {"layer": job.layer, "judge": clarity.first, "units": known})


def class_facts(
    run: RunFolder, checkpoint: Checkpoint, data: DataSet, count: int, seed: int, compute: Compute,
    progress: Callable[[int, int], object],
) -> None:  # fmt: skip
    """`count` test images of each class, and what PGD makes of them at the data set's eps."""
    if data.eps is None or len(data.classes) > MOST_CLASSES:
        return
    attack, name = configured(PGD(steps=STEPS), data.eps), f"classes-{checkpoint.id}.json"
    content = content_of(data, "test")
    key = digest([data.name, repr(attack), count, seed, list(data.classes), *([content] if content else [])])
    if read_facts(run.folder, name).get("key") == key:
        return
    net, found = compute.place(checkpoint.net()), []
    chosen = torch.cat([(data.test.labels == one).nonzero()[:count, 0] for one in range(len(data.classes))])
    for index in torch.split(chosen, ATTACKED):
        x, y = compute.images(data.test.take(index)), data.test.labels[index].to(compute.device)
        with evaluating(net):
            adversarial = attack(net, x, y, streams=Streams(seed, index.tolist(), "attack")).x
            with torch.no_grad():
                before, after = net(x).softmax(1).max(1), net(adversarial).softmax(1).max(1)
        for place, at in enumerate(index.tolist()):
            clean, changed = (
                f"images/classes/{slug(f'{data.name}-{content}')}/{at}.png",
                f"images/adversarial/{checkpoint.id}/{at}.png",
            )
            _save(run, clean, x[place].cpu())
            write_png(run.folder / changed, to_uint8(in_tiles(adversarial[place].cpu(), x.shape[1])), {})
            found.append({
                "class": int(y[place]), "label": data.classes[int(y[place])], "index": at, "clean": clean, "adversarial": changed,
                "before": [data.classes[int(before.indices[place])], round(float(before.values[place]), 3)],
                "after": [data.classes[int(after.indices[place])], round(float(after.values[place]), 3)],
            })  # fmt: skip
        progress(len(found), len(chosen))
    write_json(run.folder / FACTS / name, {"key": key, "checkpoint": checkpoint.id, "attack": repr(attack), "examples": found})
