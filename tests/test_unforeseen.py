"""Unforeseen attacks against slower, plainer versions of what they do: elastic, JPEG, fog, snow, Gabor, and the climb."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from tests.conftest import make_net
from vizrobust.attacks import JPEG, PGD, Elastic, Fog, Gabor, Linf, Snow, family, parse_attack, strengths, with_default_eps
from vizrobust.attacks.unforeseen import source
from vizrobust.attacks.unforeseen.distortions import CHROMA, LUMA, coefficients, decoded, smooth
from vizrobust.attacks.unforeseen.patterns import evened, wavelets
from vizrobust.attacks.unforeseen.unforeseen_attack import PRESETS
from vizrobust.attacks.unforeseen.weather import GRIDS, fallen, landscape, region_means, scales
from vizrobust.rng import Streams

SHAPE = (3, 29, 38)


def images(n: int = 2, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def streams(n: int) -> Streams:
    return Streams(0, range(n), "attack")


class TestElastic:
    @pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28), (3, 64, 41)], ids=str)
    def test_it_is_scipys_interpolation_at_a_flow_blurred_by_a_gaussian(self, shape: tuple[int, int, int]) -> None:
        x = images(2, shape)
        attack = Elastic(eps=4.0)
        v = attack.init(x, streams(2))
        found = attack.apply(x, v).numpy()
        sigma = 3 * min(shape[1:]) / 224
        radius = max(2, math.ceil(4 * sigma))
        place = np.arange(-radius, radius + 1)
        kernel = np.exp(-(place[:, None] ** 2 + place**2) / (2 * sigma**2))
        down, across = np.mgrid[: shape[1], : shape[2]]
        for k in range(2):
            right, below = (ndimage.correlate(plane, kernel / kernel.sum(), mode="mirror") for plane in v["z"][k].numpy())
            for channel in range(shape[0]):
                plane = ndimage.map_coordinates(x[k, channel].numpy(), [down + below, across + right], order=1, mode="mirror")
                assert np.abs(found[k, channel] - plane).max() < 1e-9

    def test_the_gaussian_has_the_published_widths(self) -> None:
        for side, taps in ((224, 25), (32, 5)):
            spike = torch.zeros(1, 2, 51, 51, dtype=torch.float64)
            spike[:, :, 25, 25] = 1
            assert int((smooth(spike, 3 * side / 224)[0, 0, 25] > 0).sum()) == taps

    def test_the_flow_moves_by_at_most_eps(self) -> None:
        ramp = torch.arange(40.0).expand(1, 1, 30, 40) / 40
        attack = Elastic(eps=2.0)
        moved = (attack.apply(ramp, attack.init(ramp, streams(1))) - ramp).abs() * 40
        assert 0.1 < moved.max() <= 2 + 1e-4


class TestJPEG:
    def test_its_tables_are_those_of_quality_50(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "jpeg", quality=50)
        tables = Image.open(file).quantization  # type: ignore[attr-defined]
        assert [list(np.ravel(table)) for table in (LUMA, CHROMA)] == [tables[0], tables[1]]

    @pytest.mark.parametrize("shape", [SHAPE, (1, 29, 38), (3, 32, 48)], ids=str)
    def test_it_is_what_a_change_of_the_stored_coefficients_does_to_the_decoded_image(self, shape: tuple[int, int, int]) -> None:
        x = images(2, shape)
        z = JPEG(eps=3.0).init(x, streams(2))["z"]
        change = decoded(z / 2, x).numpy()
        assert z.shape[1] == coefficients(x)
        for k in range(2):
            plain = plain_jpeg(x[k].numpy(), z[k].numpy()) - plain_jpeg(x[k].numpy(), 0 * z[k].numpy())
            assert np.abs(change[k] - plain).max() < 1e-9

    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.7), ("l2", 9.0), ("l1", 41.0)])
    def test_the_variable_stays_in_its_ball(self, norm: str, eps: float) -> None:
        x = images(3, (1, 28, 28))
        attack = JPEG(eps=eps, norm=norm, steps=9)
        (walk,) = attack.runs(nn.Identity(), x)
        net = make_net(shape=(1, 28, 28)).double()
        state = walk.start(net, x, torch.arange(3), streams(3))
        size = {"linf": lambda z: z.abs().amax(1), "l2": lambda z: z.norm(dim=1), "l1": lambda z: z.abs().sum(1)}[norm]
        for _ in range(9):
            assert (size(state["params.z"]) <= eps * (1 + 1e-9)).all()
            assert (state["params.z"].abs() <= 2).all()
            walk.step(net, state)
        assert (size(state["params.z"]) > 0.5 * eps).all(), "the steps use what they may"

    def test_its_frank_wolfe_steps_go_towards_the_best_corner(self) -> None:
        attack = JPEG(eps=5.0, norm="l1")
        grad = torch.tensor([[1.0, -5.0, 3.0, 0.5, -2.0], [0.0, 0.0, 7.0, 1.0, 0.0]])
        z = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.0, 0.0, 1.0]])
        corner = torch.tensor([[0.0, -2.0, 2.0, 0.0, -1.0], [0.0, 0.0, 2.0, 2.0, 0.0]])
        # Images of one batch are at different steps.
        moved = attack.step({"z": z, "step": torch.tensor([1, 4])}, grad, 0.0)
        assert torch.allclose(moved[0], corner[0])
        assert torch.allclose(moved[1], z[1] + (corner[1] - z[1]) / 4)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('JPEG(norm="l3")', "norm must be one of linf, l2, l1, got 'l3'"),
            ('JPEG(norm="l1", alpha=1)', "Frank-Wolfe steps, which have no alpha"),
            ("JPEG(eps=-1)", "eps must be finite and not negative"),
            ("Fog(steps=-1)", "steps must be finite and not negative"),
            ("Elastic(eps=inf)", "eps must be finite"),
            ('Snow(loss="no")', "no loss 'no'"),
        ],
    )
    def test_what_cannot_be_is_said(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            parse_attack(text)

    def test_other_numbers_of_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
            JPEG(eps=1.0).init(torch.rand(1, 4, 32, 32), streams(1))


def plain_jpeg(image: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(C, H, W) through JPEG without rounding, its stored coefficients changed by z/2; padded with the border's pixels."""
    channels, height, width = image.shape
    unit = 16 if channels == 3 else 8
    padded = 255 * np.pad(image, ((0, 0), (0, -height % unit), (0, -width % unit)), mode="edge")
    if channels == 3:
        to_ycc = np.linalg.inv([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
        planes = list(np.tensordot(to_ycc, padded, 1))
        planes[1:] = [(c[::2, ::2] + c[1::2, ::2] + c[::2, 1::2] + c[1::2, 1::2]) / 4 for c in planes[1:]]
    else:
        planes = [padded[0]]
    used = 0
    for plane, table in zip(planes, (LUMA, CHROMA, CHROMA), strict=False):
        for i in range(0, plane.shape[0], 8):
            for j in range(0, plane.shape[1], 8):
                stored = dctn(plane[i : i + 8, j : j + 8] - 128, norm="ortho") / np.array(table)
                stored += z[used : used + 64].reshape(8, 8) / 2
                plane[i : i + 8, j : j + 8] = idctn(stored * np.array(table), norm="ortho") + 128
                used += 64
    assert used == len(z)
    if channels == 3:
        planes[1:] = [np.kron(c, np.ones((2, 2))) for c in planes[1:]]
        planes = list(np.tensordot(np.linalg.inv(to_ycc), np.stack(planes), 1))
    return np.stack(planes)[:, :height, :width] / 255


class TestFog:
    def test_it_is_a_landscape_of_midpoints(self) -> None:
        count = 4
        z = torch.rand(2, 4**count - 1, dtype=torch.float64) * 2 - 1
        found = landscape(z, count).numpy()
        for k in range(2):
            assert np.abs(found[k] - plain_landscape(z[k].numpy(), count)).max() < 1e-12

    @pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 64), ((3, 224, 224), 256), ((1, 28, 28), 32), ((3, 30, 65), 128)])
    def test_the_landscape_is_larger_than_the_image(self, shape: tuple[int, int, int], size: int) -> None:
        assert 2 ** scales(torch.empty(1, *shape)) == size

    def test_it_lies_over_the_image_and_its_whole_landscape_goes_from_none_to_full(self) -> None:
        x = images(3)
        attack = Fog(eps=0.8)
        v = attack.init(x, streams(3))
        found = attack.apply(x, v)
        for k in range(3):
            ground = plain_landscape(2 * v["z"][k].numpy() - 1, scales(x))
            fog = (ground - ground.min()) / (ground.max() - ground.min())
            fog = fog[(64 - 29) // 2 :, (64 - 38) // 2 :][:29, :38]
            assert np.abs(found[k].numpy() - (x[k].numpy() + 0.8 * fog) / 1.8).max() < 1e-9


def plain_landscape(z: np.ndarray, count: int) -> np.ndarray:
    """Diamond-square point by point on a map that goes on around its edges."""
    size = 2**count
    ground = np.zeros((size, size))
    step, used, swing = size, 0, 1.0
    while step >= 2:
        half = step // 2
        for down, across in ((half, half), (0, half), (half, 0)):
            for i in range(down, size, step):
                for j in range(across, size, step):
                    ways = [(-half, -half), (-half, half), (half, -half), (half, half)]
                    if (down, across) != (half, half):
                        ways = [(-half, 0), (half, 0), (0, -half), (0, half)]
                    around = [ground[(i + a) % size, (j + b) % size] for a, b in ways]
                    ground[i, j] = sum(around) / 4 + swing * z[used]
                    used += 1
        step, swing = half, swing / 2
    assert used == len(z)
    return ground


class TestSnow:
    @pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28), (3, 64, 50)], ids=str)
    def test_every_flake_falls_as_its_streak(self, shape: tuple[int, int, int]) -> None:
        x = images(2, shape)
        v = Snow(eps=1.0).init(x, streams(2))
        found = fallen(v["z"], v["streaks"], x).numpy()
        size = v["streaks"].shape[-1]
        for k in range(2):
            sky = np.zeros((shape[1] + 2 * size, shape[2] + 2 * size))
            for grid, (row, column) in enumerate(GRIDS):
                for i in range(row, shape[1], 4):
                    for j in range(column, shape[2], 4):
                        flake = float(v["z"][k, grid, (i - row) // 4, (j - column) // 4]) ** 4
                        top, left = i + size - size // 2, j + size - size // 2
                        sky[top : top + size, left : left + size] += flake * v["streaks"][k, grid].numpy()
            assert np.abs(found[k] - sky[size:-size, size:-size]).max() < 1e-6

    def test_streaks_are_soft_lines_along_one_wind_and_no_two_images_share_them(self) -> None:
        x = images(20, (3, 224, 224))[:, :, :224]
        kernels = Snow(eps=1.0).init(x, streams(20))["streaks"]
        assert kernels.shape == (20, 7, 13, 13)
        assert torch.allclose(kernels, kernels.flip(2, 3), atol=1e-6), "through the middle"
        assert (kernels.amax((2, 3)) > 0.5).all()
        falling = kernels[..., torch.arange(13), torch.arange(13)].sum((1, 2)) > kernels.flip(3)[
            ..., torch.arange(13), torch.arange(13)
        ].sum((1, 2))
        assert 0 < falling.sum() < 20, "the wind blows to either side"
        assert not torch.equal(kernels[0], kernels[1])
        for shape, size in (((3, 32, 32), 5), ((1, 28, 28), 5), ((3, 64, 64), 7)):
            assert Snow(eps=1.0).init(images(1, shape), streams(1))["streaks"].shape[-1] == size

    def test_after_every_step_no_region_has_more_than_its_budget(self) -> None:
        x = images(2, (3, 64, 80))
        net = make_net(shape=(3, 64, 80)).double()
        for signs in (False, True):
            (walk,) = Snow(eps=0.5, steps=4, signs=signs).runs(net, x)
            state = walk.start(net, x, torch.arange(2), streams(2))
            for _ in range(4):
                walk.step(net, state)
                z = state["params.z"]
                assert z.shape == (2, 7, 16, 20)
                assert z.min() > 0
                assert z.max() <= 1
                for down in (0, 8):
                    # 20 columns in regions of at most 10.
                    for across in (0, 10):
                        assert (z[:, :, down : down + 8, across : across + 10].mean((2, 3)) <= 0.2 + 1e-9).all()

    def test_regions_are_nearly_equal_and_cover_everything(self) -> None:
        for rows, columns in ((7, 7), (8, 10), (9, 25), (36, 56)):
            z = torch.rand(1, 7, rows, columns, dtype=torch.float64)
            means = region_means(z)
            assert means.shape == z.shape
            assert torch.isclose(region_means(means), means, atol=1e-12).all()
            values, sizes = means[0, 0].unique(return_counts=True)
            assert len(values) == max(1, round(rows / 8)) * max(1, round(columns / 8))
            for value, size in zip(values, sizes, strict=True):
                assert torch.isclose(z[0, 0][means[0, 0] == value].mean(), value)
                assert 20 <= size <= 170

    def test_the_image_underneath_is_paler(self) -> None:
        x = images(1)
        v = Snow(eps=0.5).init(x, streams(1))
        luminance = 0.2126 * x[:, 0] + 0.7152 * x[:, 1] + 0.0722 * x[:, 2]
        pale = 0.75 * x + 0.25 * torch.maximum(x, 1.5 * luminance[:, None] + 0.5)
        v["z"] = torch.zeros_like(v["z"])
        assert torch.allclose(Snow(eps=0.5).apply(x, v), pale.clamp(0, 1))
        assert torch.allclose(Snow(eps=0.03125).apply(x, v), (x + pale).clamp(0, 2) / 2, atol=0.02)


class TestGabor:
    def test_its_wavelet_is_the_formulas(self) -> None:
        found = wavelets(torch.tensor([3.0, 1.0]), torch.tensor([0.2, 0.35]), torch.tensor([4.0, 5.5]), torch.tensor([0.7, 2.0]))
        for k, (sides, sigma, cycles, angle) in enumerate(((3, 0.2, 4.0, 0.7), (1, 0.35, 5.5, 2.0))):
            for i in range(23):
                for j in range(23):
                    y, x = i / 22 - 0.5, j / 22 - 0.5
                    value = 0.0
                    for side in range(sides):
                        turned = angle + math.pi * side / sides
                        u = x * math.cos(turned) + y * math.sin(turned)
                        w = -x * math.sin(turned) + y * math.cos(turned)
                        value += math.exp(-(u**2 + w**2) / (2 * (sigma + 1e-3) ** 2)) * math.cos(2 * math.pi * cycles * u)
                    assert abs(float(found[k, i, j]) - value) < 1e-5

    def test_the_noise_is_each_images_own_convolution_brought_to_0_and_1(self) -> None:
        x = torch.zeros(3, *SHAPE, dtype=torch.float64)
        attack = Gabor(eps=0.5)
        v = attack.init(x, streams(3))
        found = attack.apply(x, v).numpy() / 0.5
        for k in range(3):
            plain = ndimage.convolve(v["z"][k].numpy(), v["wavelet"][k].numpy(), mode="constant")
            noise = evened(torch.from_numpy(plain)[None])[0].numpy()
            assert np.abs(found[k] - noise).max() < 1e-6
            assert noise.min() == 0
            assert noise.max() == pytest.approx(1)
            # Evened out, nearly every value is as far from the mean as any other.
            sign = np.sign(plain - plain.mean())
            assert np.corrcoef(sign.ravel(), noise.ravel())[0, 1] > 0.99
        assert not torch.equal(v["wavelet"][0], v["wavelet"][1])

    def test_a_fourteenth_of_the_places_has_weights_and_only_they_move(self) -> None:
        x = images(4, (1, 64, 64))
        attack = Gabor(eps=0.5)
        v = attack.init(x, streams(4))
        assert abs(float((v["z"] != 0).double().mean()) - 1 / 14) < 0.01
        moved = attack.project({**v, "z": attack.step(v, torch.ones_like(v["z"]), 0.1)})
        assert torch.equal(moved != v["z"], v["places"].bool())
        assert moved.abs().max() <= 1


class TestTheClimb:
    def test_a_step_is_a_share_of_the_reach(self) -> None:
        x, net = images(2), make_net(shape=SHAPE).double()
        for attack in (Elastic(eps=3.0, steps=9), Fog(eps=1.0, steps=9), Elastic(eps=3.0, steps=9, alpha=0.25)):
            (walk,) = attack.runs(net, x)
            alpha = attack.range / 3 if attack.alpha is None else attack.alpha
            state = walk.start(net, x, torch.tensor([0, 1]), streams(2))
            before = state["params.z"]
            walk.step(net, state)
            assert float((state["params.z"] - before).abs().max()) == pytest.approx(alpha)

    def test_targeted_it_goes_towards_the_classes_that_pgd_draws(self) -> None:
        x, net = images(4), make_net(shape=SHAPE).double()
        y = torch.arange(4)
        (ours,) = Fog(eps=2.0, steps=20, targeted=True).runs(net, x)
        (theirs,) = PGD(ball=Linf(0.1), targeted=True).runs(net, x)
        state = ours.start(net, x, y, streams=streams(4))
        assert torch.equal(state["target"], theirs.start(net, x, y, streams=streams(4))["target"])
        assert (state["target"] != y).all()

        def chance() -> Tensor:
            return net(state["adv"]).softmax(1).gather(1, state["target"][:, None])[:, 0].detach()

        before = chance()
        for _ in range(20):
            ours.step(net, state)
        assert (chance() > before).all()

    def test_an_image_is_not_brightened_by_the_others(self) -> None:
        x = images(2)
        lone = Fog(eps=1.0).apply(x[:1], {"z": Fog(eps=1.0).init(x[:1], streams(1))["z"]})
        flat = torch.full((2, 4 ** scales(x) - 1), 0.5, dtype=torch.float64)
        flat[0] = Fog(eps=1.0).init(x[:1], streams(1))["z"][0]
        flat[1, 0] = 0.51
        assert torch.equal(Fog(eps=1.0).apply(x, {"z": flat})[0], lone[0])


class TestStrengths:
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)], ids=str)
    @pytest.mark.parametrize("name", list(PRESETS))
    def test_they_grow_and_say_where_they_are_from(self, name: str, shape: tuple[int, int, int]) -> None:
        low, medium, high = strengths(name, shape)
        assert 0 < low < medium < high
        assert len(source(name, shape)) > 10

    def test_an_attack_without_eps_gets_the_strength_of_a_level(self) -> None:
        for attack in (Elastic(), JPEG(norm="l2"), Fog(steps=3)):
            three = strengths(family(attack), (3, 224, 224))
            levels = [with_default_eps(attack, (3, 224, 224), level).eps for level in ("low", "medium", "high")]
            assert tuple(levels) == three
        with pytest.raises(ValueError, match="no strength 'hgih'; did you mean high"):
            with_default_eps(Fog(), (3, 32, 32), "hgih")
        with pytest.raises(ValueError, match="no unforeseen attack 'Fogg'; did you mean Fog"):
            strengths("Fogg", (3, 32, 32))
