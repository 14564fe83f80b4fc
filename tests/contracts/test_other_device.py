"""Contract: on another device than the CPU every attack and command gives what it gives on the CPU.

The device is pretended (`tests/other_device.py`): no GPU is needed to find a tensor that was left behind.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SHAPE, make_net
from tests.contracts.test_attacks import EVERY
from tests.contracts.test_used_folders import CASES, ON, answer, images, save
from tests.other_device import DEVICE, pretended
from vizrobust.compute import Compute
from vizrobust.rng import Streams

TRAIN = ["train", "--data", "npz:mine.npz", "--arch", "nets.py:Net", "--eps", "0.1", "--epochs", "1", "--batch-size", "40"]
NET = ["net.safetensors", *ON]
COMMANDS = {
    **CASES,
    "standard": ["attack", *NET, "--attack", "standard", "--images", "6", "--eps", "0.1"],
    "unforeseen": ["attack", *NET, "--suite", "unforeseen", "--images", "4"],
    "smoothing": ["certify", *NET, "--images", "3", "--method", "smoothing"],
    "lucid": ["neurons", *NET, "--units", "0:2", "--steps", "4", "--recipe", "lucid", "--layer", "conv", "--movie"],
    "maco": ["neurons", *NET, "--units", "0:2", "--steps", "4", "--recipe", "maco"],
    "train": [*TRAIN, "--steps", "2"],
    "TRADES": [*TRAIN, "--steps", "2", "--method", "TRADES()", "--awp", "0.01", "--ema", "0.9"],
    "GradAlign": [*TRAIN, "--method", "GradAlign()", "--augment", "crop+flip"],
    "Free": [*TRAIN, "--method", "Free(replays=2)"],
}
# In the default suite; the others are slow tests.
QUICK = ("neurons", "attack", "accentuate", "train", "certify")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """Everything is computed on the pretended device."""
    own = Compute.__init__

    def there(self: Compute, *args: Any, **how: Any) -> None:
        own(self, *args, **how)
        self.device = DEVICE

    with pretended():
        monkeypatch.setattr(Compute, "__init__", there)
        yield
        monkeypatch.undo()


def test_the_pretended_device_is_as_strict_as_a_gpu():
    with pretended() as compute:
        x = torch.rand(3, 2).to(compute.device)
        assert torch.equal((x + 1).cpu(), x.cpu() + 1)
        assert x[torch.tensor([0, 2])].shape == (2, 2)  # indices may come from the CPU
        assert torch.zeros(2, device=compute.device).device == DEVICE
        for wrong in (
            lambda: x + torch.ones(3, 2),
            lambda: torch.where(x > 0, x, torch.ones(3, 2)),
            lambda: torch.ones(3)[x[:, 0].long()],
        ):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                wrong()
        with pytest.raises(TypeError, match="no float64"):
            x.double()


FIRST = {name.partition("-")[0]: name for _, name in reversed(EVERY)}


@pytest.mark.parametrize(
    "attack",
    [pytest.param(one, id=name, marks=() if name in FIRST.values() else pytest.mark.slow) for one, name in EVERY],
)
def test_every_attack_finds_the_same_elsewhere(attack):
    net, x, y = make_net().eval(), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    expected = attack(copy.deepcopy(net), x, y, streams=Streams(0, range(3), "attack"))
    with pretended() as compute:
        net = compute.place(net)
        found = attack(net, compute.images(x), y.to(compute.device), streams=Streams(0, range(3), "attack"))
        assert found.best.device == DEVICE
        best, robust = found.best.cpu(), found.robust.cpu()
    # Rounding may decide which of two equally good points a search takes.
    alike = (best - expected.best).abs().flatten(1).amax(1) < 1e-4
    assert alike.float().mean() >= 2 / 3
    assert torch.equal(robust[alike], expected.robust[alike])


def assert_alike(one: Any, other: Any, where: str = "") -> None:
    """Equal but for rounding: sums are of float32 where a device has no float64."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{where}[{number}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4, nan_ok=True), where
    else:
        assert one == other, where


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS])
def test_every_command_answers_the_same_elsewhere(name: str, tmp_path: Path, monkeypatch, request) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(56, dtype=np.uint8).reshape(8, 7) * 4).save("image.png")
    images(0)
    save("net.safetensors", "ReLU")
    save("other.safetensors", "ReLU", seed=1)
    here = answer(COMMANDS[name], "run-1")
    request.getfixturevalue("elsewhere")
    assert_alike(here, answer(COMMANDS[name], "run-2"))
