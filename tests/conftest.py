"""What several tests share: tiny networks whose axes all differ, a CPU, and the folder of real data."""

from __future__ import annotations

import atexit
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from vizrobust.compute import Compute
from vizrobust.models import Description, Normalized, architecture, save_checkpoint
from vizrobust.models.checkpoints import body_state

SHAPE = (3, 20, 16)  # channels, height and width differ from each other and from every batch size used
CLASSES = 7


@pytest.fixture(scope="session")
def compute() -> Compute:
    return Compute("cpu")


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Five images of SHAPE with labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, *SHAPE, generator=generator), torch.tensor([0, 3, 6, 2, 1])


def make_net(arch: str = "small_cnn", shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Normalized(architecture(arch, shape, classes)(), [0.4] * shape[0], [0.3] * shape[0]).eval()


_FOLDER = tempfile.TemporaryDirectory(prefix="vizrobust-tests-")
atexit.register(_FOLDER.cleanup)


@cache
def net_file(shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, seed: int = 1) -> str:
    """A checkpoint file that holds `make_net`'s small network; a name, so that attacks can be written down with it."""
    path = Path(_FOLDER.name, f"{'x'.join(map(str, shape))}-{classes}-{seed}.safetensors")
    names = tuple(f"class {k}" for k in range(classes))
    about = Description("small_cnn", shape, names, (0.4,) * shape[0], (0.3,) * shape[0])
    save_checkpoint(path, body_state(make_net("small_cnn", shape, classes, seed)), about)
    return str(path)


@pytest.fixture
def net() -> nn.Module:
    return make_net()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and checkpoints, beside the project or where VIZROBUST_SHARED says."""
    folder = Path(os.environ.get("VIZROBUST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "checkpoints").is_dir():
        pytest.skip("the shared data and checkpoints are not on this machine")
    return folder
