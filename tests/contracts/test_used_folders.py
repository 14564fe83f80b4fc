"""A run folder that was used for another network or other images answers as an empty one does, or refuses: every command."""

from __future__ import annotations

import json
import re
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vizrobust.cli import main
from vizrobust.models import architecture
from vizrobust.models.checkpoints import CheckpointInfo, body_state, save_checkpoint
from vizrobust.models.references import code_sha256

CODE = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__()
        self.add_module("conv", nn.Conv2d(shape[0], 6, 3, padding=1))
        self.add_module("bend", nn.{bend}())
        self.add_module("flat", nn.Flatten())
        self.add_module("last", nn.Linear(6 * 8 * 7, classes))
"""
SHAPE = (1, 8, 7)
ON = ["--data", "npz:mine.npz", "--arch", "nets.py:Net", "--device", "cpu"]
CASES = {
    "neurons": ["neurons", "net.safetensors", *ON, "--units", "0:3", "--steps", "5", "--exemplars", "2"],
    "attack": ["attack", "net.safetensors", *ON, "--attack", "pgd(steps=3)", "--images", "30", "--eps", "0.1"],
    "minimal": ["attack", "net.safetensors", *ON, "--minimal", "--images", "6", "--norm", "L2"],
    "masking": ["masking", "net.safetensors", *ON, "--images", "20", "--eps", "0.1", "--trained-with", "none"],
    "spritemap": ["spritemap", "net.safetensors", *ON[2:], "--layer", "conv", "--steps", "5"],
    "compare": ["compare", "net.safetensors", "other.safetensors", *ON, "--units", "0:3", "--steps", "5", "--images", "20"],
    "atlas": ["atlas", "net.safetensors", *ON, "--layer", "conv", "--images", "30", "--grid", "2", "--steps", "5"],
    "invert": ["invert", "net.safetensors", "image.png", *ON[2:], "--layer", "conv", "--seeds", "2", "--steps", "5"],
    "caricature": ["caricature", "net.safetensors", "image.png", *ON[2:], "--layer", "conv", "--seeds", "2", "--steps", "5"],
    "accentuate": ["accentuate", "net.safetensors", "image.png", *ON[2:], "--near", "conv", "--units", "0:2", "--steps", "5"],
    "explain": ["explain", "net.safetensors", *ON, "--images", "4", "--method", "Saliency"],
    "intervene": ["intervene", "net.safetensors", *ON, "--layer", "bend", "--units", "0,2", "--images", "20"],
    "microscope": ["microscope", "net.safetensors", *ON, "--layers", "conv", "--steps", "5", "--exemplar-images", "20"],
    "certify": ["certify", "net.safetensors", *ON, "--images", "4", "--method", "ibp"],
}
DICTIONARY = ["intervene", "net.safetensors", *ON, "--layer", "bend:sae=features.safetensors", "--units", "0", "--images", "9"]
# In the default suite; the others are slow tests.
QUICK = {("neurons", "code"), ("attack", "code"), ("attack", "images"), ("explain", "code"), ("intervene", "images")}
# Other images are another run, whose folder must be another one: its pictures are made of them.
REFUSES = ("atlas", "invert", "caricature", "accentuate")
# What no result depends on: time, and where a file lies.
OWN = {"seconds", "name", "file", "page", "picture", "path", "fits_per_second"}


def save(path: str, bend: str, seed: int = 0) -> None:
    Path("nets.py").write_text(CODE.format(bend=bend))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = body_state(architecture("nets.py:Net", SHAPE, 3)())
    info = CheckpointInfo("nets.py:Net", SHAPE, ("a", "b", "c"), (0.3,), (0.4,), arch_sha256=code_sha256("nets.py:Net"))
    save_checkpoint(path, state, info)


def images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random((120, *SHAPE[1:])).astype("float32"), rng.integers(0, 3, 120)
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x[::-1], y_test=y, classes=np.array(["a", "b", "c"]))


def answer(asked: list[str], out: str) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, [*asked, "--out", out, "--json"])
    assert result.exit_code in (0, 3, 4), result.output
    text = re.sub(re.escape(out) + r"\b", "RUN", result.stdout)
    return [{key: value for key, value in json.loads(line).items() if key not in OWN} for line in text.splitlines()]


def assert_refused(name: str, out: str) -> None:
    kept = Path(out, "rows.jsonl").read_bytes()
    result = CliRunner().invoke(main, [*CASES[name], "--out", out])
    assert result.exit_code == 1
    assert f"folder '{out}' holds another run" in result.output
    assert "give --out another folder" in result.output
    assert Path(out, "rows.jsonl").read_bytes() == kept


@pytest.mark.parametrize(
    ("name", "changed"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in product(CASES, ("code", "images"))],
)
def test_a_used_folder_answers_as_an_empty_one(name: str, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(56, dtype=np.uint8).reshape(8, 7) * 4).save("image.png")
    images(0)
    save("net.safetensors", "ReLU")
    save("other.safetensors", "ReLU", seed=1)
    asked = CASES[name]
    before = answer(asked, "used")
    if changed == "code":
        Path("nets.py").write_text(CODE.format(bend="Tanh"))
    else:
        images(1)
        Image.fromarray(np.arange(56, dtype=np.uint8)[::-1].reshape(8, 7) * 4).save("image.png")
    if changed == "images" and name in REFUSES:
        assert_refused(name, "used")
        return
    after, fresh = answer(asked, "used"), answer(asked, "empty")
    assert after == fresh
    if not (changed == "images" and "npz:mine.npz" not in CASES[name] and "image.png" not in CASES[name]):
        assert after != before


def test_another_dictionary_under_the_same_name_is_another_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images(0)
    save("net.safetensors", "ReLU")

    def fit(method: str) -> None:
        Path("features.safetensors").unlink(missing_ok=True)
        asked = ["dictionary", "net.safetensors", *ON, "--layer", "bend", "--method", method, "--units", "2", "--images", "20"]
        result = CliRunner().invoke(main, [*asked, "--out", "features.safetensors"])
        assert result.exit_code == 0, result.output

    fit("pca")
    before = answer(DICTIONARY, "used")
    fit("nmf")
    assert answer(DICTIONARY, "used") == answer(DICTIONARY, "empty") != before
