"""The corruptions against slower, plainer versions of themselves, scikit-image, scipy and Pillow."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import poisson
from skimage.filters import gaussian
from skimage.transform import AffineTransform, warp
from skimage.util import random_noise
from torch import Tensor

from tests.contracts.test_corruptions import photographs, pictures
from vizrobust.rng import Streams
from vizrobust.robustness.corruptions import CORRUPTIONS
from vizrobust.robustness.corruptions.corruption import constants_for, eight_bit, ice, plasma

# Of the smallest set, not square.
SHAPE = (2, 3, 32, 37)


def corrupted(name: str, x: Tensor, severity: int) -> np.ndarray:
    return CORRUPTIONS[name](x, severity, Streams(0, range(len(x)))).numpy()


def streams(name: str, n: int) -> Streams:
    return Streams(0, range(n)).child(name)


def levels_apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference in levels of 8 bit, the expected image rounded to them."""
    return float(np.abs(found * 255 - np.rint(np.clip(expected, 0, 1) * 255)).max())


class TestNoise:
    @pytest.mark.parametrize(("side", "deviations"), [(32, (0.04, 0.1)), (64, (0.04, 0.18)), (224, (0.08, 0.38))])
    def test_gaussian_noise_has_the_published_deviation(self, side: int, deviations: tuple[float, float]) -> None:
        x = torch.full((2, 3, side, side), 128 / 255)
        for severity, deviation in zip((1, 5), deviations, strict=True):
            noise = Streams(0, range(2)).child("gaussian_noise").normal(3, side, side).numpy()
            assert noise.std() == pytest.approx(1, rel=0.05)
            assert levels_apart(corrupted("gaussian_noise", x, severity), 128 / 255 + deviation * noise) <= 1

    def test_shot_noise_counts_photons(self) -> None:
        x = pictures(SHAPE)
        u = streams("shot_noise", 2).uniform(*SHAPE[1:]).numpy().astype(np.float64)
        for severity, photons in ((1, 500), (3, 100), (5, 50)):
            expected = np.maximum(poisson.ppf(u, x.numpy().astype(np.float64) * photons), 0) / photons
            assert levels_apart(corrupted("shot_noise", x, severity), expected) == 0
        black = torch.zeros(1, 1, 28, 28)
        assert not corrupted("shot_noise", black, 5).any(), "no light, no photons"

    def test_impulse_noise_is_salt_and_pepper(self) -> None:
        x = torch.full((1, 3, 100, 120), 0.4) * 255
        x = x.round() / 255
        for severity, share in ((1, 0.01), (5, 0.14)):
            out = corrupted("impulse_noise", x, severity)
            peer = random_noise(x[0].numpy(), mode="s&p", amount=share, rng=0)
            for value in (0, 1):
                mine, theirs = (out == value).mean(), (peer == value).mean()
                assert mine == pytest.approx(share / 2, abs=4 * math.sqrt(share / 2 / out.size))
                assert mine == pytest.approx(theirs, abs=6 * math.sqrt(share / 2 / out.size))
            assert ((out == 0) | (out == 1) | (out == x.numpy())).all()

    def test_speckle_noise_is_in_proportion(self) -> None:
        x = pictures(SHAPE)
        noise = streams("speckle_noise", 2).normal(*SHAPE[1:]).numpy()
        assert levels_apart(corrupted("speckle_noise", x, 5), x.numpy() * (1 + 0.2 * noise)) <= 1


class TestBlur:
    @pytest.mark.parametrize(("severity", "radius", "softness"), [(1, 0.3, 0.4), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)])
    def test_defocus_is_a_softened_disk(self, severity: int, radius: float, softness: float) -> None:
        self.check_defocus(pictures(SHAPE), severity, radius, softness, taps=1)

    def test_defocus_of_a_large_image(self) -> None:
        self.check_defocus(pictures((1, 1, 224, 225)), 5, 10, 0.5, taps=2)

    def check_defocus(self, x: Tensor, severity: int, radius: float, softness: float, taps: int) -> None:
        reach = math.ceil(radius) + (taps == 1)
        inside = np.array([[i * i + j * j <= radius**2 for j in range(-reach, reach + 1)] for i in range(-reach, reach + 1)])
        narrow = np.array([math.exp(-(k**2) / (2 * softness**2)) for k in range(-taps, taps + 1)])
        soft = ndimage.correlate(inside.astype(float), np.outer(narrow, narrow) / narrow.sum() ** 2, mode="mirror")
        expected = np.stack(
            [[ndimage.correlate(c, soft / soft.sum(), mode="mirror") for c in image] for image in x.double().numpy()]
        )
        assert levels_apart(corrupted("defocus_blur", x, severity), expected) == 0

    @pytest.mark.parametrize("shape", [SHAPE, (2, 3, 64, 67), (2, 1, 33, 45)], ids=str)
    @pytest.mark.parametrize("severity", [1, 4, 5])
    def test_glass_blur_is_the_published_loop(self, shape: tuple[int, ...], severity: int) -> None:
        x = pictures(shape)
        sigma, reach, rounds = {
            32: {1: (0.05, 1, 1), 4: (0.25, 1, 2), 5: (0.4, 1, 2)},
            64: {1: (0.1, 1, 1), 4: (0.7, 2, 1), 5: (0.9, 2, 2)},
        }[64 if shape[2] == 64 else 32][severity]
        sigma *= min(shape[2:]) / (64 if shape[2] == 64 else 32)
        height, width = shape[2:]
        source, expected = streams("glass_blur", len(x)), []
        offsets = [source.integers(2 * reach, 2, height - 2 * reach, width - 2 * reach).numpy() - reach for _ in range(rounds)]
        for n, image in enumerate(x.numpy()):
            pixels = eight_bit(gaussian(image.transpose(1, 2, 0), sigma=sigma, channel_axis=2))
            for drawn in offsets:
                for h in range(height - reach, reach, -1):
                    for w in range(width - reach, reach, -1):
                        dy, dx = drawn[n, :, h - reach - 1, w - reach - 1]
                        # What looks like an exchange is a copy, because the right side holds views.
                        pixels[h, w], pixels[h + dy, w + dx] = pixels[h + dy, w + dx], pixels[h, w]
            expected.append(gaussian(pixels / np.float32(255), sigma=sigma, channel_axis=2).transpose(2, 0, 1))
        assert levels_apart(corrupted("glass_blur", x, severity), np.stack(expected)) <= 1e-3

    @pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 6, 1), (5, 9, 2.5)])
    def test_motion_blur_follows_a_line(self, severity: int, radius: int, sigma: float) -> None:
        x = pictures(SHAPE)
        angles = 90 * streams("motion_blur", 2).uniform().numpy() - 45
        assert (np.abs(angles) <= 45).all()
        expected = np.stack([self.smeared(image, radius, sigma, angle) for image, angle in zip(x.numpy(), angles, strict=True)])
        assert levels_apart(corrupted("motion_blur", x, severity), expected) <= 1

    @staticmethod
    def smeared(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
        weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(2 * radius + 1)]
        height, width = image.shape[1:]
        out = np.zeros_like(image, dtype=np.float64)
        for k, weight in enumerate(weights):
            dy = math.ceil(k * math.sin(math.radians(angle)) - 0.5)
            dx = math.ceil(k * math.cos(math.radians(angle)) - 0.5)
            rows, columns = np.arange(height) + dy, np.arange(width) + dx
            out += weight / sum(weights) * image[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)]
        return out

    def test_zoom_blur_is_scipys_zoom(self) -> None:
        x = pictures(SHAPE)
        for severity, end, count in ((1, 1.06, 7), (3, 1.16, 16), (5, 1.26, 26)):
            factors = np.arange(1, end, 0.01)
            assert len(factors) == count
            total = x.double().numpy() + sum(clipped_zoom(x.double().numpy(), factor) for factor in factors)
            assert levels_apart(corrupted("zoom_blur", x, severity), total / (count + 1)) <= 1

    def test_gaussian_blur_is_scikit_images(self) -> None:
        x = pictures((2, 3, 64, 70))
        for severity, sigma in ((1, 0.5), (5, 1.5)):
            expected = np.stack([gaussian(image, sigma=sigma, channel_axis=0) for image in x.numpy()])
            assert levels_apart(corrupted("gaussian_blur", x, severity), expected) == 0


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of (N, C, H, W) enlarged, cut to the size of the image: scipy does the interpolation."""
    parts = []
    for size in x.shape[2:]:
        kept = math.ceil(size / factor)
        parts.append(slice((size - kept) // 2, (size - kept) // 2 + kept))
    big = ndimage.zoom(x[:, :, parts[0], parts[1]], (1, 1, factor, factor), order=1)
    top, left = (big.shape[2] - x.shape[2]) // 2, (big.shape[3] - x.shape[3]) // 2
    return big[:, :, top : top + x.shape[2], left : left + x.shape[3]]


class TestWeather:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_snow(self, channels: int) -> None:
        x = pictures((2, channels, 32, 37))
        drawn = streams("snow", 2)
        flakes, angles = 0.25 + 0.3 * drawn.normal(1, 32, 37).numpy(), -90 * drawn.uniform().numpy() - 45
        flakes = clipped_zoom(flakes.astype(np.float64), 2.25)
        flakes = eight_bit(np.where(flakes < 0.6, 0, flakes)) / 255
        layer = np.stack([TestBlur.smeared(f, 12, 6, angle) for f, angle in zip(flakes, angles, strict=True)])
        image = x.double().numpy()
        grey = image if channels == 1 else np.einsum("nchw,c->nhw", image, [0.299, 0.587, 0.114])[:, None]
        whitened = 0.85 * image + 0.15 * np.maximum(image, grey * 1.5 + 0.5)
        assert levels_apart(corrupted("snow", x, 4), whitened + layer + np.rot90(layer, 2, (2, 3))) <= 1

    def test_frost_adds_ice(self) -> None:
        x = pictures(SHAPE)
        sheet = ice(SHAPE, streams("frost", 2))
        assert sheet.min() > 0
        assert sheet.max() < 1
        assert 0.3 < sheet.mean() < 0.6
        assert levels_apart(corrupted("frost", x, 4), 0.85 * x.numpy() + 0.4 * sheet) <= 1

    def test_fog_is_a_plasma_fractal(self) -> None:
        x = pictures((2, 3, 32, 30))
        x[1] = (x[1] * 150).round() / 255  # each image keeps a brightest value of its own
        cloud = np.stack([self.plasma(u, 2.5) for u in streams("fog", 2).uniform(32, 32).double().numpy()])[:, None, :, :30]
        assert np.abs(plasma((2, 3, 32, 30), streams("fog", 2), 2.5) - cloud).max() < 1e-9
        brightest = x.numpy().reshape(2, -1).max(1)[:, None, None, None]
        assert levels_apart(corrupted("fog", x, 3), (x.numpy() + 0.75 * cloud) * brightest / (brightest + 0.75)) <= 1

    @staticmethod
    def plasma(u: np.ndarray, decay: float) -> np.ndarray:
        """Diamond-square, point by point, on a torus."""
        size = len(u)
        field, noise, step, loudness = np.zeros((size, size)), 2 * u - 1, size, 1.0
        while step >= 2:
            half = step // 2
            for i in range(half, size, step):
                for j in range(half, size, step):
                    around = [field[(i + a) % size, (j + b) % size] for a in (-half, half) for b in (-half, half)]
                    field[i, j] = sum(around) / 4 + loudness * noise[i, j]
            for i in range(0, size, half):
                for j in range(half if i % step == 0 else 0, size, step):
                    around = [field[(i + a) % size, (j + b) % size] for a, b in ((-half, 0), (half, 0), (0, -half), (0, half))]
                    field[i, j] = sum(around) / 4 + loudness * noise[i, j]
            step, loudness = half, loudness / decay**2
        return (field - field.min()) / (field.max() - field.min())

    def test_fog_leaves_black_images_black(self) -> None:
        assert not corrupted("fog", torch.zeros(1, 1, 28, 28), 5).any()

    def test_mud_covers_and_water_shines(self) -> None:
        grey = torch.full((2, 3, 64, 64), 0.5).mul(255).round() / 255
        for severity in (1, 2, 3):
            assert (corrupted("spatter", grey, severity) >= grey.numpy()).all()
        mud = corrupted("spatter", grey, 5)
        covered = np.abs(mud - np.array([63, 42, 20])[None, :, None, None] / 255).max(1) < 0.15
        assert 0.02 < covered.mean() < 0.5
        assert (mud <= grey.numpy()).all()
        luma = (0.299 * 63 + 0.587 * 42 + 0.114 * 20) / 255
        assert np.abs(corrupted("spatter", grey[:, :1], 5).min() - luma) < 0.02


class TestColour:
    @pytest.mark.parametrize("name", ["brightness", "saturate"])
    def test_hue_saturation_and_value_are_pythons(self, name: str) -> None:
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
        x[0, :, 0, :4] = torch.tensor([0.0, 0.2, 0.4, 1.0]) * 255 // 1 / 255  # black, greys, white
        changes: dict[str, dict[int, Callable]] = {
            "brightness": {1: lambda h, s, v: (h, s, min(v + 0.1, 1)), 5: lambda h, s, v: (h, s, min(v + 0.5, 1))},
            "saturate": {2: lambda h, s, v: (h, 0.1 * s, v), 5: lambda h, s, v: (h, min(30 * s + 0.2, 1), v)},
        }
        for severity, change in changes[name].items():
            out = corrupted(name, x, severity)
            for i, j in [(0, k) for k in range(4)] + [(k, (7 * k) % 64) for k in range(1, 64)]:
                pixel = x[0, :, i, j].double().numpy()
                expected = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
                assert levels_apart(out[0, :, i, j], np.array(expected)) <= 1

    def test_brightness_of_grey_images_is_that_of_grey_pixels(self) -> None:
        x = pictures((2, 1, 32, 34))
        in_colour = corrupted("brightness", x.expand(-1, 3, -1, -1), 4)
        assert np.array_equal(in_colour, corrupted("brightness", x, 4).repeat(3, 1))

    def test_contrast_keeps_the_mean(self) -> None:
        x = pictures(SHAPE)
        mean = x.numpy().mean((2, 3), keepdims=True, dtype=np.float64)
        assert levels_apart(corrupted("contrast", x, 5), 0.15 * (x.numpy() - mean) + mean) <= 1


class TestDigital:
    def test_elastic_at_severity_1_is_affine(self) -> None:
        x = photographs(32)
        moves = 0.08 * 32 * (2 * streams("elastic_transform", 4).child("corners").uniform(3, 2).numpy() - 1)
        before = 16 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])
        expected = []
        for image, move in zip(x.double().numpy(), moves, strict=True):
            # scikit-image's points are (x, y).
            matrix = AffineTransform.from_estimate(before[:, ::-1], (before + move)[:, ::-1])
            expected.append([warp(channel, matrix.inverse, order=1, mode="reflect") for channel in image])
        assert levels_apart(corrupted("elastic_transform", x, 1), np.array(expected)) <= 1

    def test_elastic_at_severity_5_moves_by_a_smooth_field(self) -> None:
        x = photographs(32)[:1]
        drawn = streams("elastic_transform", 1)
        move = 0.03 * 32 * (2 * drawn.child("corners").uniform(3, 2).numpy()[0] - 1)
        field = 2 * drawn.child("field").uniform(2, 32, 32).numpy()[0] - 1
        shift = [0.1 * 32 * gaussian(part, 0.03 * 32, mode="reflect", truncate=3) for part in field]
        before = 16 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])
        matrix = AffineTransform.from_estimate(before[:, ::-1], (before + move)[:, ::-1])
        places = np.mgrid[:32, :32] + np.array(shift)
        affine = [warp(channel, matrix.inverse, order=1, mode="reflect") for channel in x[0].double().numpy()]
        expected = np.array([ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in affine])
        assert levels_apart(corrupted("elastic_transform", x, 5)[0], expected) <= 1

    def test_a_smoothing_as_wide_as_the_image(self) -> None:
        """At 224 px the field of severity 1 is almost the same everywhere: the picture turns and shears, no more."""
        x = photographs(224)[:1]
        out = CORRUPTIONS["elastic_transform"](x, 1, Streams(0, [0]))
        assert not torch.equal(out, x)
        assert abs(float(out.mean() - x.mean())) < 0.1

    def test_pixelate_is_the_mean_of_blocks(self) -> None:
        x = pictures((2, 3, 64, 70))
        means = x.numpy().reshape(2, 3, 32, 2, 35, 2).mean((3, 5)).repeat(2, 2).repeat(2, 3)
        # Pillow rounds once for each axis.
        assert np.abs(corrupted("pixelate", x, 5) - means).max() < 1.01 / 255

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_jpeg_is_pillows(self, channels: int, mode: str) -> None:
        x = pictures((2, channels, 30, 37))
        out = corrupted("jpeg_compression", x, 5)
        for image, found in zip(x.mul(255).round().byte().numpy(), out, strict=True):
            file = BytesIO()
            Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0).copy(), mode).save(file, "JPEG", quality=40)
            stored = np.asarray(Image.open(file))
            assert np.array_equal(np.rint(found * 255), stored[None] if channels == 1 else stored.transpose(2, 0, 1))


def test_lengths_grow_with_the_image_from_the_published_side() -> None:
    """A picture twice as large, blurred, is the blurred picture twice as large."""
    tables = {32: [(1, 0.5)] * 5, 64: [(2, 0.5)] * 5, 224: [(3, 0.5)] * 5}
    found = {side: constants_for(side, 1, tables, (0,)) for side in (28, 32, 63, 64, 128, 223, 224, 448)}
    assert found[28] == found[32] == (1, 0.5)
    assert found[63] == (63 / 32, 0.5)
    assert (found[64], found[128]) == ((2, 0.5), (4, 0.5))
    assert found[223] == (2 * 223 / 64, 0.5)
    assert (found[224], found[448]) == ((3, 0.5), (6, 0.5))


def test_a_large_batch_is_treated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures((5, 3, 32, 32))
    whole = corrupted("gaussian_noise", x, 3)
    monkeypatch.setattr("vizrobust.robustness.corruptions.corruption.PART", 2 * x[0].numel())
    assert np.array_equal(corrupted("gaussian_noise", x, 3), whole)
