"""The metrics of clarity against slower, plainer versions, and on hand-made clear and unclear pictures."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vizrobust.clarity import (
    METRICS,
    QueryRanking,
    blurred,
    contrast_matched,
    cross_seed_similarity,
    excluded,
    high_frequency_share,
    identification,
    kid,
    nearest_neighbour_distance,
    nyquist_ratio,
    path_similarity,
    spectrum_distance,
)


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b) -> float:
    a, b = np.array(a.tolist()), np.array(b.tolist())
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def units_apart(seed: int, counts: tuple[int, ...], spread: float, shift: float) -> list[Tensor]:
    """Features of units, each around an axis of its own, all moved by `shift`: one pool of images."""
    axes = torch.eye(6, dtype=torch.float64)
    return [axes[k] + shift + spread * draws(seed + k, count, 6) for k, count in enumerate(counts)]


# 1.3 identification


def slow_identification(queries: list[Tensor], pictures: list[Tensor]) -> tuple[list[float], list[float]]:
    """One query at a time; the rank is that in a sorted list."""
    natural_mean = np.mean([row for pool in queries for row in pool.numpy()], axis=0)
    picture_mean = np.mean([row for pool in pictures for row in pool.numpy()], axis=0)
    top1, reciprocal = [], []
    for unit, pool in enumerate(queries):
        ranks = []
        for query in pool.numpy():
            scores = [np.mean([cosine(query - natural_mean, e - picture_mean) for e in shown.numpy()]) for shown in pictures]
            ranks.append(1 + sorted(scores, reverse=True).index(scores[unit]))
        top1.append(np.mean([rank == 1 for rank in ranks]))
        reciprocal.append(np.mean([1 / rank for rank in ranks]))
    return top1, reciprocal


def test_identification_is_the_share_of_queries_that_rank_their_own_unit_first():
    queries, pictures = units_apart(1, (7, 5, 6, 9), 0.6, 3.0), units_apart(20, (3, 2, 4, 3), 0.6, -2.0)
    got = identification(queries, pictures)
    top1, reciprocal = slow_identification(queries, pictures)
    assert got.top1.tolist() == pytest.approx(top1)
    assert got.reciprocal_rank.tolist() == pytest.approx(reciprocal)
    assert 0.25 < got.top1.mean() < 1


def test_identification_orders_clear_and_unclear_and_does_not_care_where_a_pool_lies():
    queries = units_apart(1, (7, 5, 6), 0.2, 0.0)
    clear = identification(queries, units_apart(9, (3, 3, 3), 0.1, 0.0))
    unclear = identification(queries, [draws(30 + k, 3, 6) for k in range(3)])
    assert clear.top1.tolist() == [1, 1, 1]
    assert unclear.top1.mean() < 0.8
    # Pictures are in another corner of feature space than photographs: without centring one unit takes all.
    far = [pool + torch.tensor([0.0, 50, 0, 0, 0, 0]) for pool in units_apart(9, (3, 3, 3), 0.1, 0.0)]
    torch.testing.assert_close(identification(queries, far).top1, clear.top1)


def test_pictures_that_say_nothing_are_identified_by_chance():
    """All units tie, so every order of them is as likely: the oracle goes through all orders."""
    queries = units_apart(1, (4, 2, 3, 5), 0.1, 0.0)
    # The same pictures, so that only the order of the sums tells one unit from another.
    same = [draws(5, 7, 6)[torch.randperm(7, generator=torch.Generator().manual_seed(k))] for k in range(4)]
    got = identification(queries, same)
    orders = list(permutations(range(4)))
    chance = np.mean([1 / (1 + order.index(0)) for order in orders])
    torch.testing.assert_close(got.top1, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(got.reciprocal_rank, torch.full((4,), chance, dtype=torch.float64))
    assert METRICS["identification"].chance_level(4, 10) == 0.25
    assert METRICS["reciprocal_rank"].chance_level(4, 10) == pytest.approx(chance)
    # A constant encoder: no direction is left once the mean is gone, also where the mean is not exact in binary.
    flat = identification([torch.full((3, 6), 0.1)] * 3, [torch.full((7, 6), 0.3)] * 3)
    torch.testing.assert_close(flat.top1, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_identification_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="at least two units"):
        identification([torch.eye(2)], [torch.eye(2)])
    with pytest.raises(ValueError, match="unit 1 of 2 has no natural images"):
        identification([torch.eye(2), torch.eye(2)[:0]], [torch.eye(2)] * 2)


# 1.4 cross-seed similarity


def test_seed_agreement_is_the_mean_cosine_of_pairs_within_minus_between():
    pools = units_apart(3, (4, 2, 3), 0.5, 0.3)
    expected = []
    for unit, pool in enumerate(pools):
        within = [cosine(a, b) for i, a in enumerate(pool) for j, b in enumerate(pool) if i < j]
        between = [cosine(a, b) for a in pool for other, rest in enumerate(pools) if other != unit for b in rest]
        expected.append(np.mean(within) - np.mean(between))
    assert cross_seed_similarity(pools).tolist() == pytest.approx(expected)


def test_seeds_that_agree_score_above_seeds_that_do_not():
    clear, unclear = units_apart(3, (3, 3, 3), 0.1, 0.0), [draws(40 + k, 3, 6) for k in range(3)]
    assert cross_seed_similarity(clear).min() > cross_seed_similarity(unclear).max() + 0.3
    # The same picture for every unit is no agreement about a unit.
    assert cross_seed_similarity([clear[0]] * 3).abs().max() < 0.05
    with pytest.raises(ValueError, match="two pictures"):
        cross_seed_similarity([torch.eye(3)[:1], torch.eye(3)])
    with pytest.raises(ValueError, match="got 1 units"):
        cross_seed_similarity([torch.eye(3)])


# 1.5 distance to natural images


def test_nearest_natural_is_the_smallest_cosine_distance():
    pictures, natural = draws(1, 4, 6), draws(2, 9, 6)
    expected = [min(1 - cosine(x, y) for y in natural) for x in pictures]
    assert nearest_neighbour_distance(pictures, natural).tolist() == pytest.approx(expected)
    clear = natural[:3] + 0.1 * draws(3, 3, 6)
    assert nearest_neighbour_distance(clear, natural).max() < nearest_neighbour_distance(pictures, natural).mean()
    with pytest.raises(ValueError, match="at least one natural image"):
        nearest_neighbour_distance(pictures, natural[:0])


def slow_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (np.dot(a, b) / len(a) + 1) ** 3

    def pairs(a):
        return np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])

    return pairs(x) + pairs(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_is_the_unbiased_polynomial_mmd():
    x, y = draws(1, 5, 4), draws(2, 8, 4) + 0.5
    assert kid(x, y) == pytest.approx(slow_kernel_distance(x.numpy(), y.numpy()))
    # Unbiased: draws from one distribution give 0 on average, also below 0; a shift is seen.
    same = [kid(draws(2 * k, 6, 4), draws(2 * k + 1, 9, 4)) for k in range(600)]
    assert abs(np.mean(same)) < 3 * stats.sem(same)
    assert min(same) < 0
    natural = draws(7, 40, 4)
    assert kid(draws(8, 9, 4) + 2, natural) > kid(draws(8, 9, 4) + 0.3, natural)
    with pytest.raises(ValueError, match="two images on either side"):
        kid(x[:1], y)


# 1.6 spectrum

SIZES = [(8, 6), (9, 6), (8, 7), (9, 11)]


def slow_power(image: np.ndarray) -> dict[tuple[float, float], float]:
    """Frequency -> mean over channels of the power, by the definition of the transform."""
    channels, height, width = image.shape
    rows, columns = np.mgrid[:height, :width]
    found = {}
    for k in range(height):
        for m in range(width):
            wave = np.exp(-2j * np.pi * (k * rows / height + m * columns / width)) / np.sqrt(height * width)
            frequency = (k / height if k <= height / 2 else k / height - 1, m / width if m <= width / 2 else m / width - 1)
            found[frequency] = np.mean([abs((wave * image[c]).sum()) ** 2 for c in range(channels)])
    return found


@pytest.mark.parametrize("size", SIZES)
def test_high_frequency_share_is_the_power_beyond_a_quarter_cycle(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = []
    for image in images.double().numpy():
        power = {f: p for f, p in slow_power(image).items() if f != (0, 0)}
        expected.append(sum(p for f, p in power.items() if math.hypot(*f) > 0.25 + 1e-12) / sum(power.values()))
    assert high_frequency_share(images).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES)
def test_spectrum_distance_is_the_deviation_of_ring_means_of_log_power(size):
    def profile(image: np.ndarray) -> np.ndarray:
        side = min(size)
        rings: dict[int, list[float]] = {ring: [] for ring in range(1, side // 2 + 1)}
        for frequency, power in slow_power(image).items():
            ring = math.floor(math.hypot(*frequency) * side + 0.5)
            if ring in rings:
                rings[ring].append(math.log10(power + 1 / 255**2 / 12))
        return np.array([np.mean(values) for values in rings.values()])

    generator = torch.Generator().manual_seed(0)
    images, natural = torch.rand(2, 3, *size, generator=generator), 0.3 * torch.rand(5, 1, *size, generator=generator)
    average = np.mean([profile(image) for image in natural.double().numpy()], axis=0)
    expected = [np.sqrt(np.mean((profile(image) - average) ** 2)) for image in images.double().numpy()]
    assert spectrum_distance(images, natural).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (8, 11)])
def test_nyquist_ratio_compares_the_last_lines_of_the_spectrum(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    expected = []
    for image in images[..., :height, :width].double().numpy():
        power = slow_power(image)
        noise = (height + width) / 255**2 / 12
        at = sum(p for f, p in power.items() if f[0] == 0.5) + sum(p for f, p in power.items() if f[1] == 0.5)
        below = sum(p for f, p in power.items() if math.isclose(f[0], 0.5 - 1 / height))
        below += sum(p for f, p in power.items() if math.isclose(f[1], 0.5 - 1 / width))
        expected.append((at + noise) / (below + noise))
    assert nyquist_ratio(images).tolist() == pytest.approx(expected)


def smooth(seed: int, count: int, size: tuple[int, int]) -> Tensor:
    """Something like photographs: noise whose amplitude falls with frequency."""
    generator = torch.Generator().manual_seed(seed)
    down, across = (torch.fft.fftfreq(side) for side in size)
    falling = 1 / torch.hypot(down[:, None], across).clamp(min=1 / max(size))
    waves = torch.fft.fft2(torch.randn(count, 3, *size, generator=generator)) * falling
    x = torch.fft.ifft2(waves).real
    return (0.5 + 0.15 * x / x.std((1, 2, 3), keepdim=True)).clamp(0, 1)


@pytest.mark.parametrize("size", [(24, 20), (25, 21)])
def test_spectra_order_natural_and_noisy_pictures(size):
    natural, clear = smooth(0, 12, size), smooth(1, 4, size)
    noisy = (clear + 0.15 * torch.randn(clear.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    assert spectrum_distance(clear, natural).max() < spectrum_distance(noisy, natural).min()
    assert high_frequency_share(clear).max() < high_frequency_share(noisy).min()
    # A two-pixel checkerboard, as faint as two grey levels, and gone with the blur that anti-aliasing applies.
    checks = (torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2
    gridded = clear + 0.05 * (checks - 0.5)
    assert nyquist_ratio(gridded).min() > 2 > nyquist_ratio(clear).max()
    assert nyquist_ratio(blurred(gridded)).max() < 2


def test_images_without_contrast_have_a_spectrum_too():
    grey = torch.full((2, 3, 9, 8), 0.3)
    assert torch.allclose(high_frequency_share(grey), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    torch.testing.assert_close(nyquist_ratio(grey), torch.ones(2, dtype=torch.float64))
    assert torch.isfinite(spectrum_distance(grey, smooth(0, 2, (9, 8)))).all()
    with pytest.raises(ValueError, match="same size"):
        spectrum_distance(grey, smooth(0, 2, (9, 9)))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        high_frequency_share(torch.rand(1, 1, 3, 9))


# 1.7 path similarity


def slow_path_similarity(natural: list[Tensor], pictures: list[Tensor]) -> float:
    def rho(a, b, different=False):
        return np.mean([
            stats.spearmanr(x, y).statistic for i, x in enumerate(a) for j, y in enumerate(b) if not different or i != j
        ])  # fmt: skip

    above, below = [], []
    for unit, own in enumerate(natural):
        rest = [row for other, pool in enumerate(natural) if other != unit for row in pool]
        above.append(rho(own, pictures[unit]) - rho(own, rest))
        below.append(rho(own, own, different=True) - rho(own, rest))
    return float(np.mean(above) / np.mean(below))


def paths(seed: int, counts: tuple[int, ...], noise: float) -> list[Tensor]:
    """Activations of units: a pattern of each unit's own under noise, rectified so that zeros tie."""
    return [
        (draws(100 + k, 12) + noise * draws(seed + k, count, 12)).clamp(min=0).float() for k, count in enumerate(counts)
    ]  # fmt: skip


def test_path_similarity_is_a_ratio_of_mean_rank_correlations():
    natural, pictures = paths(1, (4, 3, 5, 2), 0.4), paths(50, (2, 3, 2, 3), 0.9)
    got = path_similarity(natural, pictures)
    assert got.similarity == pytest.approx(slow_path_similarity(natural, pictures))
    assert got.why == ""
    assert got.denominator_low is not None
    interval = stats.ttest_1samp(got.denominators, 0).confidence_interval()
    assert (got.denominator_low, got.denominator_high) == pytest.approx((interval.low, interval.high))
    # The same in words of its own: the others given instead of taken from the other units, and maps not flattened yet.
    others = [torch.cat([pool for k, pool in enumerate(natural) if k != unit]) for unit in range(4)]
    maps = [pool.reshape(-1, 2, 3, 2) for pool in natural]
    assert path_similarity(maps, pictures, others).similarity == pytest.approx(got.similarity)


def test_pictures_on_a_path_of_their_own_score_below_pictures_on_the_natural_path():
    natural = paths(1, (4, 4, 4, 4), 0.5)
    honest = path_similarity(natural, paths(50, (3, 3, 3, 3), 0.5)).similarity
    detour = path_similarity(natural, [draws(70 + k, 3, 12).float() for k in range(4)]).similarity
    assert honest is not None
    assert detour is not None
    assert honest > 0.7 > 0.3 > detour


def test_a_layer_that_does_not_tell_classes_apart_gives_no_similarity():
    alike = [draws(k, 4, 12) for k in range(3)]
    assert path_similarity(alike, alike).similarity is None
    # Above .05 on average, but one unit of three alone: the interval holds 0.
    one_of_three = [paths(1, (4,), 0.1)[0].double(), draws(5, 4, 12), draws(6, 4, 12)]
    got = path_similarity(one_of_three, one_of_three)
    assert got.denominator > 0.05
    assert got.similarity is None
    assert "interval" in got.why
    # Above 0 for certain, but so little that a ratio means nothing.
    slight = [0.35 * one.double() + draws(60 + k, 60, 12) for k, one in enumerate(paths(1, (60,) * 9, 0.0))]
    faint = path_similarity(slight, slight)
    assert 0 < faint.denominator < 0.05
    assert faint.denominator_low > 0
    assert faint.similarity is None
    dead = path_similarity([torch.zeros(3, 12)] * 2, [torch.zeros(2, 12)] * 2)
    assert dead.similarity is None
    assert dead.denominator == 0
    single = path_similarity(natural := paths(1, (4,), 0.1), natural, [draws(9, 4, 12)])
    assert single.similarity is None
    assert "one unit" in single.why


def test_path_similarity_refuses_what_it_cannot_score():
    pools = paths(1, (3, 3), 0.1)
    with pytest.raises(ValueError, match="as many units"):
        path_similarity(pools, pools[:1])
    with pytest.raises(ValueError, match="two natural images of each unit, unit 1 has 1"):
        path_similarity([pools[0], pools[1][:1]], pools)
    with pytest.raises(ValueError, match="unit 0 lacks"):
        path_similarity(pools, [pools[0][:0], pools[1]])


# Controls


def test_contrast_matched_gives_each_image_the_natural_average():
    generator = torch.Generator().manual_seed(0)
    images, natural = torch.rand(4, 3, 7, 5, generator=generator), 0.4 + 0.1 * torch.rand(9, 3, 8, 6, generator=generator)
    got = contrast_matched(images, natural)
    mean, deviation = np.mean([x.mean() for x in natural.numpy()]), np.mean([x.std() for x in natural.numpy()])
    for before, after in zip(images.numpy(), got.numpy(), strict=True):
        np.testing.assert_allclose(after, (before - before.mean()) / before.std() * deviation + mean, atol=1e-5)
    assert got.dtype == images.dtype
    # Far more contrast than fits is clipped, and a picture without any stays flat.
    wide = contrast_matched(images, torch.eye(2)[None, None])
    assert float(wide.min()) == 0
    assert float(wide.max()) == 1
    assert contrast_matched(torch.full((1, 3, 4, 4), 0.7), natural).std() < 1e-6


@pytest.mark.parametrize("size", [(7, 5), (6, 8)])
def test_blurred_is_a_mirrored_gaussian_mean(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    offsets = np.arange(-4, 5)
    weights = np.exp(-(offsets**2) / 2)
    weights /= weights.sum()

    def mirrored(k: int, side: int) -> int:
        k %= 2 * side
        return k if k < side else 2 * side - 1 - k

    expected = np.zeros(images.shape)
    for y in range(size[0]):
        for x in range(size[1]):
            for dy, down in zip(offsets, weights, strict=True):
                for dx, across in zip(offsets, weights, strict=True):
                    value = images.numpy()[:, :, mirrored(y + dy, size[0]), mirrored(x + dx, size[1])]
                    expected[:, :, y, x] += down * across * value
    np.testing.assert_allclose(blurred(images).numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="at least 0"):
        blurred(images, -1)


# The choice of questions


def test_easy_questions_take_the_bottom_of_the_order():
    order = QueryRanking(torch.arange(300).flip(0))
    queries, hard = order.questions("hard")
    assert queries.tolist() == list(range(299, 279, -1))
    assert hard.tolist() == list(range(269, 149, -1))
    same, easy = order.questions("easy")
    assert torch.equal(same, queries)
    assert easy.tolist() == list(range(19, -1, -1))
    assert QueryRanking(torch.arange(5)).easy(0).tolist() == []


@pytest.mark.parametrize(("variant", "needed"), [("hard", 200), ("easy", 40)])
def test_too_few_images_for_questions_are_refused(variant, needed):
    queries, others = QueryRanking(torch.arange(needed)).questions(variant)
    assert set(queries.tolist()).isdisjoint(others.tolist())
    assert len(queries) == 20
    with pytest.raises(ValueError, match=f"at least {needed} images for 20 queries, got {needed - 1}"):
        QueryRanking(torch.arange(needed - 1)).questions(variant)


# The catalogue and the rule that reads it


def test_roles_directions_and_chances_are_those_of_the_protocol():
    by_role = {role: {name for name, metric in METRICS.items() if metric.role == role} for role in ("primary", "diagnostic")}
    assert by_role["primary"] == {"transfer", "forced_choice"}
    assert by_role["diagnostic"] == {"spectrum_distance", "high_frequency_share", "nyquist_ratio", "path_similarity"}
    assert {name for name, metric in METRICS.items() if metric.class_units} == {"transfer", "natural_equivalent", "recognised"}
    smaller = {"nearest_natural", "kernel_distance", "spectrum_distance", "high_frequency_share", "nyquist_ratio"}
    assert {name for name, metric in METRICS.items() if metric.direction == -1} == smaller
    assert METRICS["recognised"].chance_level(units=50, classes=10) == 0.1
    assert METRICS["forced_choice"].chance_level(units=50, classes=10) == 0.5
    assert all(name == metric.name and metric.title for name, metric in METRICS.items())
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


def test_a_judge_is_disqualified_by_ignorance_or_by_preferring_an_untrained_network():
    clear, noise = {"transfer": 3.0, "forced_choice": 0.95}, {"transfer": -2.0, "forced_choice": 0.5}
    assert excluded(0.2, 10, clear, noise) is None  # exactly twice chance is not below it
    assert "less than twice chance (20.0 %)" in str(excluded(0.199, 10, clear, noise))
    assert excluded(float("nan"), 10, clear, noise) is not None
    assert excluded(0.199, 20, clear, noise) is None
    preferring = excluded(0.9, 10, clear, {**noise, "forced_choice": 0.96})
    assert preferring is not None
    assert "random network" in preferring
    assert "0.96 against 0.95" in preferring
    assert excluded(0.9, 10, clear, clear) is None
    # Not defined on a side, or no primary metric: no say.
    assert excluded(0.9, 10, {**clear, "transfer": None}, {"transfer": 9.0, "spectrum_distance": 0.0}) is None
    assert excluded(0.9, 10, {"spectrum_distance": 0.4}, {"spectrum_distance": 0.2}) is None
    with pytest.raises(ValueError, match="at least two"):
        excluded(1.0, 1, clear, noise)
