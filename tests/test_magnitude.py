"""Phases under a fixed magnitude spectrum, and where the spectrum comes from, against numpy."""

import numpy as np
import pytest
import torch

from vizrobust.data import ArraySplit, DataSet
from vizrobust.features import MACO
from vizrobust.features.parametrizations import IMAGENET_COLORS, mixing
from vizrobust.features.parametrizations.maco import magnitudes, resampled
from vizrobust.rng import Streams

SIZES = [(8, 6), (9, 6), (8, 7), (9, 13)]
UNIFORM = np.pi / np.sqrt(3)


def begun(shape, n=3, **fields):
    """z far from its start, in float64."""
    z = MACO(**fields).init(shape, Streams(0, range(n))).to(torch.float64)
    return z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def planes_of(image, colors=None):
    """Back through the sigmoid and the colours."""
    matrix = mixing(colors, image.shape[1]).double().numpy()
    return np.einsum("cr,nrhw->nchw", np.linalg.inv(matrix), np.log(image / (1 - image)))


def slowly(z, magnitude):
    """The image of one plane z (H, W) coefficient by coefficient."""
    height, width = z.shape
    phase, own = np.zeros((height, width)), np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            mirror = (-y % height, -x % width)
            own[y, x] = mirror == (y, x)
            phase[y, x] = z[y, x] if own[y, x] else (z[y, x] - z[mirror]) / 2
    half = phase[:, : width // 2 + 1]
    phase *= UNIFORM / np.sqrt((half**2).mean())
    spectrum = magnitude * np.where(own, np.cos(phase), np.exp(1j * phase))
    planes = np.fft.ifft2(spectrum, norm="ortho")
    assert np.abs(planes.imag).max() < 1e-12
    return planes.real


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_is_what_the_definition_says(height, width):
    z = begun((1, height, width))
    magnitude = magnitudes(None, None, 1, height, width)[0].numpy()
    image = MACO(contrast=0.7)(z).numpy()
    expected = np.stack([slowly(one[0].numpy(), 0.7 * magnitude) for one in z])
    assert np.allclose(image[:, 0], 1 / (1 + np.exp(-expected)), atol=1e-7)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_image_has_the_fixed_magnitudes(height, width):
    image = MACO()(begun((3, height, width))).numpy()
    found = np.abs(np.fft.fft2(planes_of(image), norm="ortho"))
    expected = magnitudes(None, None, 3, height, width).numpy()
    y, x = np.arange(height)[:, None], np.arange(width)
    own = (2 * y % height == 0) & (2 * x % width == 0)
    assert np.allclose(found[..., ~own], np.broadcast_to(expected, found.shape)[..., ~own], atol=1e-5)
    assert (found[..., own] <= np.broadcast_to(expected, found.shape)[..., own] + 1e-5).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_what_is_the_same_at_f_and_minus_f_changes_nothing(height, width):
    z = begun((3, height, width))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = noise[:, :, (-torch.arange(height)) % height][..., (-torch.arange(width)) % width]
    redundant, rest = noise + turned, noise - turned
    y, x = torch.arange(height)[:, None], torch.arange(width)
    own = (2 * y % height == 0) & (2 * x % width == 0)
    redundant[..., own] = 0
    param = MACO()
    assert (param(z + redundant) - param(z)).abs().max() < 1e-12
    assert (param(z + rest) - param(z)).abs().max() > 0.05
    # Where a frequency is its own mirror, z is all there is.
    only = torch.zeros_like(z)
    only[..., own] = 1.0
    assert (param(z + only) - param(z)).abs().max() > 0.01


def test_phases_start_evenly_over_the_circle_and_no_place_is_special():
    image = MACO()(MACO().init((1, 12, 15), Streams(0, range(400)))).double().numpy()
    planes = planes_of(image)
    phases = np.angle(np.fft.fft2(planes))[:, 0, 1:6, 1:7].ravel()
    counts = np.histogram(phases, bins=8, range=(-np.pi, np.pi))[0]
    assert counts.min() > 0.9 * counts.mean()
    # Phases near 0 would put all energy into the corner. That theirs has one deviation makes it a little quieter instead.
    spread = planes[:, 0].std(0) / planes[:, 0].std()
    assert 0.6 < spread[0, 0] < 1
    assert spread.ravel()[1:].min() > 0.85
    assert spread.max() < 1.2


@pytest.mark.parametrize("size", [28, 33, 64, 128])
@pytest.mark.parametrize("contrast", [1.0, 2.0])
def test_contrast_is_the_same_at_any_size(size, contrast):
    planes = planes_of(MACO(contrast=contrast)(begun((3, size, size), n=2)).numpy())
    assert np.sqrt(planes.var((2, 3)).mean(1)) == pytest.approx([contrast] * 2, rel=0.02)


def test_a_contrast_of_nothing_is_refused():
    with pytest.raises(ValueError, match="MACO: contrast must be above 0, got 0"):
        MACO(contrast=0.0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_s_phases_are_kept_when_it_is_the_start(height, width):
    """The way back gives up the magnitudes and nothing else."""
    rng = np.random.default_rng(3)
    planes = rng.normal(size=(40, 1, height, width))
    image = torch.from_numpy(1 / (1 + np.exp(-planes)))
    phases = np.angle(np.fft.fft2(planes))
    own_size = magnitudes(None, None, 1, height, width).numpy() * np.exp(1j * phases)
    expected = np.fft.ifft2(own_size, norm="ortho").real
    found = planes_of(MACO()(MACO().invert(image)).numpy())
    for one, two in zip(found, expected, strict=True):
        # The few phases of a small image have not exactly the deviation of a uniform angle.
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97


# Where the spectrum comes from


@pytest.fixture
def photographs(tmp_path):
    """An .npz data set of oblong colour images that are not white noise, and its training images (n, 3, H, W) in [0, 1]."""
    rng = np.random.default_rng(0)
    height, width = 10, 13
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)).clip(1 / 13)
    planes = np.fft.ifft2(np.fft.fft2(rng.normal(size=(60, 3, height, width))) / f).real * [[[0.3]], [[0.1]], [[0.03]]] / 3
    colors = np.array(IMAGENET_COLORS).reshape(3, 3)
    images = (0.5 + np.einsum("rc,nchw->nhwr", colors, planes)).clip(0, 1)
    pixels, labels = (images * 255).round().astype(np.uint8), np.arange(60) % 3
    file = tmp_path / "photographs.npz"
    np.savez(file, x_train=pixels, y_train=labels, x_val=pixels[:5], y_val=labels[:5], x_test=pixels[:4], y_test=labels[:4])
    return f"npz:{file}", pixels.transpose(0, 3, 1, 2).astype(np.float64) / 255


def unit(magnitude):
    """Brought to a mean square of 1 over pixels and planes, means left out, and compared without them."""
    found = magnitude.copy()
    found[:, 0, 0] = 0
    return found * np.sqrt(found.size / (found**2).sum())


def without_mean(found):
    found = found.numpy().copy()
    found[:, 0, 0] = 0
    return found


def test_a_data_set_s_spectrum_is_the_mean_of_decorrelated_magnitudes(photographs):
    reference, x = photographs
    colors = IMAGENET_COLORS
    inverse = np.linalg.inv(mixing(colors, 3).double().numpy())
    expected = np.abs(np.fft.fft2(np.einsum("cr,nrhw->nchw", inverse, x))).mean(0)
    found = without_mean(magnitudes(reference, colors, 3, 10, 13))
    assert np.allclose(found, unit(expected), rtol=1e-6)
    # The other order, as elsewhere: magnitudes of the channels, decorrelated afterwards.
    wrong = np.einsum("cr,rhw->chw", inverse, np.abs(np.fft.fft2(x)).mean(0))
    assert not np.allclose(found, unit(wrong), rtol=0.1)


def test_the_constant_term_goes_on_where_the_lowest_frequencies_are(photographs):
    reference, _ = photographs
    for source in (None, reference):
        found = magnitudes(source, IMAGENET_COLORS, 3, 10, 13)
        lowest = torch.stack((found[:, 0, 1], found[:, 1, 0]), 1)
        assert (found[:, 0, 0] < 2.5 * lowest.amax(1)).all()
        assert (found[:, 0, 0] > 0.4 * lowest.amin(1)).all()


def test_a_data_set_at_another_size_keeps_its_contrast_and_its_fall(photographs):
    reference, _ = photographs
    small, large = (magnitudes(reference, IMAGENET_COLORS, 3, *size) for size in ((10, 13), (40, 52)))
    for found in (small, large):
        assert (without_mean(found) ** 2).mean() == pytest.approx(1)
    # Of the same frequencies in cycles per pixel, the same shares of each plane.
    there = large[:, ::4, ::4]
    ratio = (there / small)[:, 1:, 1:]
    assert ratio.max() / ratio.min() == pytest.approx(1, abs=1e-6)
    assert large[0].mean() > 3 * large[2].mean()


@pytest.mark.parametrize(("height", "width"), [(10, 12), (9, 9), (10, 10), (6, 11)])
def test_horama_s_file_is_read_as_rfft2_wrote_it(tmp_path, height, width):
    x = np.random.default_rng(0).random((20, 3, height, width))
    half = np.abs(np.fft.rfft2(x)).mean(0).astype(np.float32)
    np.save(tmp_path / "spectrum_decorrelated.npy", half)
    found = magnitudes(str(tmp_path / "spectrum_decorrelated.npy"), None, 3, height, width)
    if width % 2 == 0 or height == width:
        assert np.allclose(without_mean(found), unit(np.abs(np.fft.fft2(x)).mean(0)), rtol=1e-5)
    # An odd width that is not the height is taken for even; the picture is of the right kind all the same.
    image = MACO(spectrum=str(tmp_path / "spectrum_decorrelated.npy"))(begun((3, 17, 21)))
    assert image.shape == (3, 3, 17, 21)
    assert image.std() > 0.05


def test_a_file_and_the_data_it_was_made_of_give_one_picture(photographs, tmp_path):
    x = photographs[1]
    inverse = np.linalg.inv(mixing(IMAGENET_COLORS, 3).double().numpy())
    # Square, so that the file tells an odd width.
    x = x[:, :, :, :10]
    half = np.abs(np.fft.rfft2(np.einsum("cr,nrhw->nchw", inverse, x))).mean(0)
    np.save(tmp_path / "own.npy", half)
    file = tmp_path / "square.npz"
    pixels, labels = (x.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8), np.arange(60) % 3
    np.savez(file, x_train=pixels, y_train=labels, x_val=pixels[:5], y_val=labels[:5], x_test=pixels[:4], y_test=labels[:4])
    z = begun((3, 15, 16))
    one = MACO(spectrum=str(tmp_path / "own.npy"), colors=IMAGENET_COLORS)(z)
    two = MACO(spectrum=f"npz:{file}", colors=IMAGENET_COLORS)(z)
    assert torch.allclose(one, two, atol=1e-5)
    assert not torch.allclose(one, MACO(colors=IMAGENET_COLORS)(z), atol=1e-2)


def test_resampling_is_linear_periodic_and_symmetric():
    rng = np.random.default_rng(0)
    for length, new in ((10, 10), (10, 15), (9, 16), (12, 5), (7, 7), (5, 8)):
        values = rng.random(length)
        at = np.fft.fftfreq(new) * length
        expected = np.interp(at, np.arange(-length, 2 * length), np.tile(values, 3))
        column = resampled(torch.from_numpy(values)[None, :, None], new, 1)[0, :, 0]
        row = resampled(torch.from_numpy(values)[None, None], 1, new)[0, 0]
        assert np.allclose(column, expected)
        assert np.allclose(row, expected)
    spectrum = torch.from_numpy(np.abs(np.fft.fft2(rng.random((2, 10, 9)))))
    assert torch.equal(resampled(spectrum, 10, 9), spectrum)
    found = resampled(spectrum, 14, 11)
    turned = found[:, (-torch.arange(14)) % 14][..., (-torch.arange(11)) % 11]
    assert torch.allclose(found, turned)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((3, 4)), r"must hold magnitudes shaped \(channels, H, W//2 \+ 1\)"),
        (np.ones((3, 4, 3), complex), "must hold magnitudes shaped"),
        (-np.ones((3, 4, 3)), "holds negative or infinite magnitudes"),
        (np.full((3, 4, 3), np.nan), "holds negative or infinite magnitudes"),
        (np.ones((1, 4, 3)), "has 1 channels, the image 3; name another"),
    ],
)
def test_a_file_that_is_no_spectrum_gets_one_sentence(tmp_path, array, sentence):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=sentence):
        MACO(spectrum=str(tmp_path / "bad.npy"))(begun((3, 6, 5)))


def test_a_source_that_is_not_there_gets_one_sentence(tmp_path, photographs):
    with pytest.raises(FileNotFoundError, match=r"no file '.*nothing\.npy' \(the spectrum of MACO\)"):
        MACO(spectrum=str(tmp_path / "nothing.npy"))(begun((1, 6, 5)))
    with pytest.raises(ValueError, match="no data set 'imagenot'"):
        MACO(spectrum="imagenot")(begun((1, 6, 5)))
    with pytest.raises(ValueError, match=r"the spectrum 'npz:.*' has 3 channels, the image 1; name another"):
        MACO(spectrum=photographs[0])(begun((1, 6, 5)))


def test_data_know_their_magnitudes_plane_by_plane():
    pixels = torch.randint(0, 256, (4500, 2, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = ArraySplit(pixels, torch.arange(4500) % 2)
    data = DataSet("made", ("a", "b"), (2, 3, 4), split, split, split, 0.1)
    planes = torch.tensor([[1.0, 0.0], [0.5, -2.0], [1.0, 1.0]])
    # At most 2,000 images at even distances.
    x = pixels[::3].numpy() / 255
    expected = np.abs(np.fft.fft2(np.einsum("pc,nchw->nphw", planes, x), norm="ortho")).mean(0)
    assert np.allclose(data.magnitude(planes), expected, atol=1e-6)
