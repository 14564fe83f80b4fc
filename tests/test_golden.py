"""Recorded results that a change of names or layout must not move: streams, pictures, verdicts, training steps.

``python -m tests.test_golden`` records them anew. Digests are compared on the kind of processor that recorded them;
the coarse values beside them hold on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_training import RECIPE, tiny
from tests.test_training_methods import EVERY
from vizrobust.attacks import parse_attack
from vizrobust.compute import Compute, versions
from vizrobust.data import load
from vizrobust.features import Logit, parse_recipe, render
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.training import train

FILE = Path(__file__).with_name("golden.json")
PICTURES = {
    "mnist-k8 plain": ("plain(steps=12)", "mnist-k8"),
    "mnist-k0 plain": ("plain(steps=12)", "mnist-k0"),
    "mnist-k8 fourier": ("fourier(steps=12)", "mnist-k8"),
    "mnist-k8 maco": ("maco(steps=12)", "mnist-k8"),
    "imagenette-k8 lucid": ("lucid(steps=4)", "imagenette-k8"),
    "imagenette-k8 gradient": ("gradient", "imagenette-k8"),
}
ATTACKS = (
    "PGD(steps=7, restarts=2, ball=Linf(eps=0.3))",
    "APGD(steps=8, ball=Linf(eps=0.3))",
    "FAB(steps=6, ball=L2(eps=1.5))",
    "Square(queries=60, ball=Linf(eps=0.3))",
)


def digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@cache
def streams() -> dict[str, Any]:
    """Draws of the streams that attacks, renders and training use, named as they name them."""
    purposes = ("attack", "render", "train", "order", "restart 1", "start", "transforms", "wavelet")
    found = {purpose: digest(Streams(3, ["0/1", 7], purpose).normal(5)) for purpose in purposes}
    return {**found, "child": digest(Streams(0, [4, 9], "attack").child("restart 1").uniform(2, 3))}


@cache
def picture(name: str) -> tuple[str, list[float]]:
    text, ref = PICTURES[name]
    checkpoint = load_checkpoint(ref)
    recipe = parse_recipe(text)
    if "maco" in name:
        from vizrobust.features import with_data_statistics

        recipe = with_data_statistics(recipe, load("mnist5k"))
    done = list(render(checkpoint, Logit(), [1, 3], recipe, compute=Compute("cpu", threads=1), batch_size=2))
    image = torch.stack([one.image for one in done])
    return digest((image * 255).round().to(torch.uint8)), [round(value, 2) for value in image.flatten(1).mean(1).tolist()]


@cache
def verdicts(text: str) -> tuple[str, float]:
    split = load("mnist5k").split("test")
    net = load_checkpoint("mnist-k8").net()
    parts = evaluate(net, parse_attack(text), split, Compute("cpu", threads=1), 5, 10, indices=range(30))
    result = merge_results(parse_attack(text), list(parts))
    return digest(result.first_success_step), float(result.robust.float().mean())


@cache
def training_step(name: str, folder: Path) -> tuple[str, float]:
    """The weights after one epoch of one batch, and its loss."""
    method, attack = EVERY.get(name, (None, EVERY["TRADES"][1]))
    recipe = replace(RECIPE, method=method, attack=attack, eps_ramp=0, epochs=1, batch_size=20)
    rows = [row for row in train(recipe, tiny(), Compute("cpu", threads=1), folder / name) if isinstance(row, dict)]
    state = torch.load(folder / name / "state.pt", weights_only=True)
    weights = next(value for value in state.values() if isinstance(value, dict) and any("weight" in key for key in value))
    return digest(*(weights[key] for key in sorted(weights))), round(rows[-1]["loss"], 2)


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def machine() -> str:
    return "{processor}, torch {torch}".format(**versions())


def compare(kind: str, name: str, exact: str, coarse: Any) -> None:
    record = recorded()
    assert coarse == pytest.approx(record["everywhere"][kind][name], abs=0.03)
    known = record["exact"].get(machine())
    if known is not None:
        assert exact == known[kind][name]


def test_streams_draw_the_same_numbers_everywhere():
    assert streams() == recorded()["streams"]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_stay(name):
    compare("pictures", name, *picture(name))


@pytest.mark.parametrize("text", ATTACKS)
def test_verdicts_stay(text):
    compare("verdicts", text, *verdicts(text))


@pytest.mark.parametrize("name", ["Adversarial", *EVERY])
def test_training_steps_stay(name, tmp_path):
    compare("training", name, *training_step(name, tmp_path))


def record(folder: Path) -> None:
    """Write the file anew, keeping the digests of other machines."""
    every: dict[str, tuple[Any, Callable[[Any], tuple[str, Any]]]] = {
        "pictures": (PICTURES, picture),
        "verdicts": (ATTACKS, verdicts),
        "training": (("Adversarial", *EVERY), lambda name: training_step(name, folder)),
    }
    made = {kind: {name: made(name) for name in names} for kind, (names, made) in every.items()}
    before = recorded()["exact"] if FILE.is_file() else {}
    exact = {kind: {name: one for name, (one, _) in rows.items()} for kind, rows in made.items()}
    coarse = {kind: {name: one for name, (_, one) in rows.items()} for kind, rows in made.items()}
    text = {"streams": streams(), "everywhere": coarse, "exact": {**before, machine(): exact}}
    FILE.write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder))
