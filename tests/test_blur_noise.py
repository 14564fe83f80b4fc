"""Blur and noise on the way to the network, against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from vizrobust.features.transforms import Blur, Noise
from vizrobust.rng import Streams


@pytest.mark.parametrize(("height", "width"), [(20, 33), (25, 16)])
@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_blur_is_scipy_s_and_grows_with_the_image(height, width, sigma):
    image = torch.rand(2, 3, height, width)
    out = Blur(sigma=sigma)(image, Streams(0, range(2)))
    deviation = sigma * min(height, width)
    expected = ndimage.gaussian_filter(image.numpy().astype(np.float64), (0, 0, deviation, deviation), mode="mirror", truncate=5)
    assert np.abs(out.numpy() - expected).max() < 1e-3


def test_noise_is_normal_and_its_own_for_every_image_and_step():
    image, streams = torch.rand(4, 3, 40, 50), Streams(0, range(4))
    noise = torch.cat([(Noise(deviation=0.1)(image, streams) - image) / 0.1 for _ in range(2)]).flatten(1)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(noise) - torch.eye(8)).abs().max() < 0.06
    state = torch.get_rng_state()
    Noise()(image, streams)
    assert torch.equal(torch.get_rng_state(), state)
