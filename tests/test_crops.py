"""Random crops: as large as asked, never outside, each image's and each crop's own."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.test_transforms import Fixed, drawn, smooth
from vizrobust.features.transforms import Crops, Jitter, Noise, transformed
from vizrobust.rng import Streams


def ramp(n, height, width):
    """Images whose two channels are each pixel's own row and column, and a third its image."""
    rows, columns = torch.arange(height).float()[:, None].expand(height, width), torch.arange(width).float().expand(height, width)
    return torch.stack([torch.stack((rows, columns, torch.full((height, width), float(i)))) for i in range(n)])


@pytest.mark.parametrize(("height", "width", "pixels"), [(60, 44, None), (45, 70, 90)])
def test_crops_have_the_size_that_is_asked_and_stay_inside(height, width, pixels):
    n, crops = 30, Crops(count=7, low=0.2, high=0.25, pixels=pixels)
    out = crops(ramp(n, height, width), Streams(0, range(n)))
    assert out.shape == (7 * n, 3, pixels or height, round((pixels or height) * width / height))
    # Crop by crop: row j * n + i is of image i.
    assert torch.allclose(out[:, 2].amax((1, 2)).reshape(7, n), torch.arange(n).float().expand(7, n), atol=1e-4)
    for channel, side in ((0, height), (1, width)):
        line = out[:, channel, :, 0] if channel == 0 else out[:, channel, 0]
        # Away from the rim, where an image's outermost half pixel is mirrored.
        rim = line.shape[1] // 8
        pitch = (line[:, -1 - rim] - line[:, rim]) / (line.shape[1] - 1 - 2 * rim)
        low, share = line[:, rim] - (rim + 0.5) * pitch + 0.5, pitch * line.shape[1] / side
        spreads = share.numpy()
        assert spreads.min() > 0.2 - 1e-4
        assert spreads.max() < 0.25 + 1e-4
        assert spreads.mean() == pytest.approx(0.225, abs=0.005)
        assert low.min() > -1e-3
        assert (low + share * side).max() < side + 1e-3
        place = (low / (side - share * side)).numpy()
        assert np.abs(np.histogram(place, bins=4, range=(0, 1))[0] / len(place) - 0.25).max() < 0.1


def test_crops_are_drawn_apart():
    """Sizes, rows and columns of one image's crops, and of two images' crops, have nothing to do with each other."""
    maps = drawn(Crops(count=3, low=0.1, high=0.9), n=1500).reshape(3, 1500, 3, 3)
    side = maps[:, :, 0, 0]
    y, x = maps[:, :, 1, 2] / (1 - side), maps[:, :, 0, 2] / (1 - side)
    assert np.abs(np.corrcoef(np.concatenate((side, y, x))) - np.eye(9)).max() < 0.1
    assert abs(np.corrcoef(side[0, :-1], side[0, 1:])[0, 1]) < 0.1


def test_a_crop_is_scipy_s():
    image = smooth(40, 28)
    crops = Crops(count=1, low=0.4, high=0.6, pixels=20)
    out = crops(image[None], Fixed(0.5, 0.25, 0.75))[0].numpy()
    expected = np.stack([
        ndimage.affine_transform(
            plane, [1.0, 1.0], [0.25 * 20 + 0.5 - 0.5, 0.75 * 14 + 0.5 - 0.5], output_shape=(20, 14), order=1, mode="mirror"
        )
        for plane in image.numpy().astype(np.float64)
    ])  # fmt: skip
    assert np.abs(out - expected).max() < 1e-4


def test_behind_crops_every_crop_is_drawn_for_itself():
    image = torch.rand(3, 1, 20, 24)
    streams = Streams(0, range(3))
    out = transformed(image, (Crops(count=4, low=1.0, high=1.0), Jitter(size=0.2)), streams).reshape(4, 3, 1, 20, 24)
    again = transformed(image, (Crops(count=4, low=1.0, high=1.0), Jitter(size=0.2)), streams).reshape(4, 3, 1, 20, 24)
    rows = [*out.flatten(0, 1), *again.flatten(0, 1)]
    assert sum(torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i]) <= 2
    noisy = transformed(image, (Crops(count=4, low=1.0, high=1.0), Noise()), Streams(0, range(3))).reshape(4, 3, 1, 20, 24)
    for i in range(3):
        assert len({float(noisy[j, i].sum()) for j in range(4)}) == 4
