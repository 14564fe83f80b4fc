"""Contract: every corruption keeps shape, type and range, keeps images apart, and does more at a higher severity."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from vizrobust.data import load
from vizrobust.rng import Streams
from vizrobust.robustness.corruptions import COMMON, CORRUPTIONS, EXTRA, SEVERITIES

SHAPES = [(3, 1, 28, 28), (2, 3, 41, 30), (2, 3, 64, 75)]
# Where the mean change need not grow, by the published constants themselves: glass and elastic trade one effect for
# another, frost darkens what it covers, fog's last steps change its grain, saturation is first taken and then added,
# water is followed by mud.
UNORDERED = {"glass_blur", "elastic_transform", "frost", "fog", "saturate", "spatter"}

every_type = pytest.mark.parametrize("name", list(CORRUPTIONS))
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pictures(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of 8 bit, smooth enough to be like real ones, with black and white parts."""
    rough = torch.rand(*shape[:2], 6, 5, generator=torch.Generator().manual_seed(0), dtype=dtype) * 1.4 - 0.2
    return F.interpolate(rough, size=shape[2:], mode="bilinear").clamp(0, 1).mul(255).round() / 255


def photographs(side: int) -> Tensor:
    """(4, 3, side, side): parts of the two photographs that scikit-learn carries."""
    found = []
    for image in load_sample_images().images:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        found += [
            F.interpolate(whole[:, :, r : r + 224, c : c + 224], size=(side, side), mode="area") for r, c in ((0, 60), (200, 410))
        ]
    return torch.cat(found).mul(255).round() / 255


@every_type
@every_shape
class TestWhatComesBack:
    def test_shape_type_and_range(self, name: str, shape: tuple[int, ...]) -> None:
        for dtype in (torch.float32, torch.float64):
            x = pictures(shape, dtype)
            before = x.clone()
            streams = Streams(0, range(len(x)))
            for severity in (1, 5):
                out = CORRUPTIONS[name](x, severity, streams)
                assert (out.shape, out.dtype) == (x.shape, dtype)
                assert out.min() >= 0
                assert out.max() <= 1
                assert torch.equal(out, (out * 255).round() / 255), "8 bit"
                if not (name == "saturate" and shape[1] == 1):
                    assert not torch.equal(out, x)
            assert torch.equal(x, before)
            assert streams.drawn == 0

    def test_an_image_is_its_own_and_its_streams_alone(self, name: str, shape: tuple[int, ...]) -> None:
        x = pictures((4, *shape[1:]))
        corrupt = CORRUPTIONS[name]
        for severity in (2, 5):
            together = corrupt(x, severity, Streams(0, range(4)))
            assert torch.equal(together, corrupt(x, severity, Streams(0, range(4))))
            alone = torch.cat([corrupt(x[k : k + 1], severity, Streams(0, [k])) for k in range(4)])
            assert torch.equal(alone, together)
            order = [2, 0, 3, 1]
            assert torch.equal(corrupt(x[order], severity, Streams(0, order)), together[order])
            others = corrupt(torch.cat((x[:1], 1 - x[1:])), severity, Streams(0, [0, 7, 8, 9]))
            assert torch.equal(others[0], together[0])


@every_type
def test_memory_layout_and_gradients_do_not_matter(name: str) -> None:
    x = pictures((2, 3, 32, 35))
    expected = CORRUPTIONS[name](x, 3, Streams(0, range(2)))
    layouts = x.contiguous(memory_format=torch.channels_last), x.clone().requires_grad_()
    for other in layouts:
        assert torch.equal(CORRUPTIONS[name](other, 3, Streams(0, range(2))), expected)
    assert CORRUPTIONS[name](x[:0], 3, Streams(0, [])).shape == (0, 3, 32, 35)


@every_type
@pytest.mark.parametrize("side", [28, 32, 64, 224])
def test_the_change_grows_with_severity_on_real_images(name: str, side: int) -> None:
    x = load("mnist5k").test.take(torch.arange(0, 400, 20)) if side == 28 else photographs(side)
    x = x[:1] if side == 224 else x
    if name == "saturate" and x.shape[1] == 1:
        assert torch.equal(CORRUPTIONS[name](x, 5, Streams(0, range(len(x)))), x), "one channel has no colour"
        return
    steps = [float((CORRUPTIONS[name](x, severity, Streams(0, range(len(x)))) - x).abs().mean()) for severity in SEVERITIES]
    assert steps[0] > 5e-4
    if name not in UNORDERED:
        # On MNIST motion blur's third and fourth severity differ in their reach alone, which shows little.
        assert all(later > earlier - 2e-4 for earlier, later in pairwise(steps)), steps
    if name != "elastic_transform":
        assert steps[4] > steps[0]


@every_type
def test_what_cannot_be_corrupted_is_said(name: str) -> None:
    corrupt = CORRUPTIONS[name]
    x = torch.rand(2, 3, 28, 30)
    with pytest.raises(ValueError, match=r"1 or 3 channels, got \(2, 4, 28, 30\)"):
        corrupt(torch.rand(2, 4, 28, 30), 1, Streams(0, range(2)))
    with pytest.raises(ValueError, match="at least 28 px, got 30x27"):
        corrupt(torch.rand(2, 3, 30, 27), 1, Streams(0, range(2)))
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"no severity {severity}; there are: 1, 2, 3, 4, 5"):
            corrupt(x, severity, Streams(0, range(2)))
    with pytest.raises(ValueError, match="2 images need as many streams, got 1"):
        corrupt(x, 1, Streams(0, [0]))


def test_the_catalogue_is_the_papers() -> None:
    assert (len(COMMON), len(EXTRA), len(CORRUPTIONS)) == (15, 4, 19)
    for name, corrupt in CORRUPTIONS.items():
        assert corrupt.__name__ == name
        assert corrupt.__doc__
