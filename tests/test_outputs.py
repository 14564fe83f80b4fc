"""What a network may return and how it may read its images: one rule for logits, and code that needs contiguous images."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import make_net
from vizrobust.attacks import PGD, Linf
from vizrobust.compute import Compute
from vizrobust.models import Checkpoint, CheckpointInfo, Normalized
from vizrobust.models.forward import NoLogits, choose_memory_format, logits_of

SHAPE, CLASSES = (3, 12, 8), 7
LOGITS, OTHER = torch.rand(2, CLASSES), torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "out": OTHER},
        {"features": OTHER, "out": LOGITS},
        (LOGITS, OTHER),
        [LOGITS],
        SimpleNamespace(logits=LOGITS),
        torch.return_types.max((LOGITS, LOGITS.long())),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found_by_one_rule(output: object) -> None:
    assert torch.equal(logits_of(output), LOGITS)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (OTHER, r"\(2, 3, 4, 4\)"),
        ({"features": LOGITS}, "dict"),
        ((), "tuple"),
        ((OTHER, LOGITS), r"\(2, 3, 4, 4\)"),
        (None, "NoneType"),
        (LOGITS[0], r"\(7,\)"),
    ],
    ids=["map", "dict", "empty", "map first", "nothing", "one row"],
)
def test_what_holds_no_logits_is_refused(output: object, kind: str) -> None:
    with pytest.raises(NoLogits, match=rf"must return logits \(N, classes\) for N images, it returned {kind}; return a tensor"):
        logits_of(output)


class ByView(nn.Module):
    """As much old code: the features are laid side by side with view."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        self.conv, self.linear, self.output = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 96, CLASSES), output

    def forward(self, x: Tensor) -> object:
        found = self.linear(self.conv(x).view(x.size(0), -1))
        return found if self.output == "tensor" else {"logits": found, "features": x}


def checkpoint(build, arch: str = "nets.py:make") -> Checkpoint:
    info = CheckpointInfo(arch, SHAPE, tuple("abcdefg"), (0.4,) * 3, (0.3,) * 3)
    return Checkpoint("mine", info, build().state_dict(), build)


def test_one_logit_is_refused_with_the_way_to_two() -> None:
    """sigmoid(z) is the softmax of (0, z): the suggested network has the same answers, and is taken."""
    x, y = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(ValueError, match=r"returns one logit z for an image.*torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"):
        vr.robust_accuracy(net, (x, y), attack="fgsm", eps=0.1)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.net(x)
            return torch.cat([torch.zeros_like(z), z], 1)

    found = vr.robust_accuracy(Two(), (x, y), attack="fgsm", eps=0.1)
    assert found.clean == pytest.approx(float(((net(x)[:, 0] > 0) == y).float().mean()))


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_a_network_with_view_gets_contiguous_images_and_says_so_once(output: str) -> None:
    made = checkpoint(lambda: ByView(output))
    with pytest.warns(UserWarning, match="^mine fails on channels-last images, so it gets contiguous ones$"):
        net = made.net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = made.net()
    compute, x = Compute("cpu"), torch.rand(5, *SHAPE)
    with pytest.raises(RuntimeError, match="view"):
        ByView()(compute.images(x))
    for one in (compute.place(net), compute.place(again)):
        assert torch.allclose(one(compute.images(x)), one(x), atol=1e-6)
    found = PGD(steps=2, ball=Linf(0.1))(net, compute.images(x), torch.zeros(5, dtype=torch.long))
    assert found.x.isfinite().all()


def test_a_network_that_bears_channels_last_keeps_them() -> None:
    net = make_net("resnet_small")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not choose_memory_format(net.train(), SHAPE)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    placed = Compute("cpu").place(net)
    assert placed.net.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_fails_both_ways_is_left_as_it_is() -> None:
    net = Normalized(nn.Linear(3, 4), [0.0] * 3, [1.0] * 3)
    assert not choose_memory_format(net, SHAPE)
    assert not net.contiguous


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(288, CLASSES))

    made = checkpoint(build, arch="linear")
    made.state["1.weight"][2, 5] = value
    with pytest.raises(ValueError, match=r"^1\.weight in mine \(linear\) is NaN or infinite in 1 of 2016 places; use an earlier"):
        made.net()
