"""A tiny finished study on `digits`: untrained networks, pictures whose pixels say whose they are, a report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import make_net
from vizrobust.data import load
from vizrobust.features.pictures import to_uint8
from vizrobust.models import CheckpointInfo, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.runs import RunFolder, write_json, write_png

SHAPE = (1, 8, 8)
CHECKPOINTS = {"k0-s0": ("k0", 0), "k8-s0": ("k8", 8), "k8-s1": ("k8", 8)}
UNITS, SEEDS, HIDDEN = (0, 1, 2, 3), (0, 1, 2, 3), (5, 7, 11)
RECIPE = "plain(steps=3)"


def pixels(checkpoint: str, unit: int, seed: int, sign: int = 1) -> np.ndarray:
    """8 x 8 grey whose corner names checkpoint, unit, seed and sign."""
    image = np.full(SHAPE[1:], 100, np.uint8)
    image[0, :4] = [list(CHECKPOINTS).index(checkpoint), unit, seed, sign + 1]
    return image


def whose(image: np.ndarray) -> tuple[str, int, int, int]:
    """The inverse of `pixels`."""
    checkpoint, unit, seed, sign = image[0, :4].tolist()
    return list(CHECKPOINTS)[checkpoint], unit, seed, sign - 1


def make_study(folder: Path, hidden: bool = True, one_seed: bool = False) -> Path:
    """The study's folder. With `one_seed` only what report.json lists is there, as in a committed gallery."""
    data = load("digits")
    report: dict[str, Any] = {
        "format": 1, "data": {"name": "digits", "classes": list(data.classes), "shape": list(SHAPE), "eps": 0.3},
        "checkpoints": [], "pictures": [], "exemplars": [], "clarity": [], "rows_sha256": "d" * 64,
        "metrics": [{"name": "transfer", "title": "Transfer", "role": "primary", "direction": 1, "chance": None},
                    {"name": "near", "title": "Distance", "role": "secondary", "direction": -1, "chance": None}],
    }  # fmt: skip
    for number, (name, (group, k)) in enumerate(CHECKPOINTS.items()):
        about = CheckpointInfo("small_cnn", SHAPE, data.classes, (0.3,), (0.4,), data="digits")
        save_checkpoint(folder / f"checkpoints/{name}.safetensors", body_state(make_net("small_cnn", SHAPE, 10, number)), about)
        ref = f"checkpoints/{name}.safetensors"
        report["checkpoints"].append({
            "name": name, "label": name, "role": "dose", "group": group, "k": k, "seed": int(name[-1]), "ref": ref,
            "weights_sha256": load_checkpoint(str(folder / ref)).sha256,
        })  # fmt: skip
        _pictures(folder, report, name, "logits", "Logit()", UNITS, (1,), one_seed)
        if hidden:
            _pictures(folder, report, name, "linear1", 'Channel(layer="linear1")', HIDDEN, (1, -1), one_seed)
        for metric in ("transfer", "near"):
            values = [None if unit == 3 else 10.0 * number + unit for unit in UNITS]
            report["clarity"] += [
                {"checkpoint": name, "recipe": recipe, "metric": metric, "judge": "judge" if metric == "transfer" else None,
                 "control": None, "layer": layer, "units": list(UNITS),
                 "values": values if (recipe, layer) == ("plain", "logits") else [float(-number)] * len(UNITS)}
                for recipe in ("plain", "fourier") for layer in ("logits", "linear1")
            ]  # fmt: skip
    for unit in range(10):
        places = (data.val.labels == unit).nonzero()[:5, 0]
        images = [to_uint8(image) for image in data.val.take(places)]
        if unit == 0:
            images[0] = to_uint8(data.test.take(torch.tensor([17]))[0])  # an exemplar that is a test image too
        names = [f"exemplars/{unit}-{place}.png" for place in range(len(images))]
        for name, image in zip(names, images, strict=True):
            write_png(folder / name, image, {"secret": f"exemplar of {unit}"})
        report["exemplars"].append({"layer": "logits", "unit": unit, "images": names})
    write_json(folder / "report.json", report)
    return folder


def _pictures(
    folder: Path, report: dict[str, Any], checkpoint: str, layer: str, objective: str, units: tuple[int, ...],
    signs: tuple[int, ...], one_seed: bool,
) -> None:  # fmt: skip
    run = RunFolder(folder / f"pictures/plain-{layer}", "neurons", {"recipe": RECIPE})
    for unit in units:
        for sign in signs:
            for seed in SEEDS:
                dead = (checkpoint, unit, seed, sign) == ("k0-s0", 2, 3, 1) and layer == "logits"
                row = {
                    "checkpoint": f"{checkpoint}-12345678", "recipe": "plain", "recipe_text": RECIPE, "objective": objective,
                    "unit": unit, "seed": seed, "sign": sign, "layer": layer, "status": "dead" if dead else "ok",
                }  # fmt: skip
                name = f"images/{checkpoint}/{unit}{'-neg' if sign < 0 else ''}-s{seed}.png"
                if seed == 0 or not one_seed:
                    run.add_image(row, pixels(checkpoint, unit, seed, sign), name)
                if seed == 0 and sign == 1:
                    image = f"pictures/plain-{layer}/{name}"
                    report["pictures"].append({
                        "checkpoint": checkpoint, "recipe": "plain", "layer": layer, "unit": unit, "unit_name": f"unit {unit}",
                        "seed": 0, "image": image, "status": "ok",
                    })  # fmt: skip
