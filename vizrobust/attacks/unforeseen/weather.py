"""Fog and Snow: unforeseen attacks that look like weather."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.threat_models import TINY, per_image
from vizrobust.attacks.unforeseen.unforeseen_attack import Params, UnforeseenAttack, between, clip, opacity
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Fog(UnforeseenAttack):
    """Adds white fog of strength `eps`: x' = (x + eps fog) / (1 + eps) (Kang et al. 2019).

    The fog of each image is a landscape in [0, 1], made by midpoint displacement (diamond-square). ``z`` (N, size² - 1)
    holds its displacements, in [0, 1]; steps are sign steps. Published eps are in 0 … 255: divide them by 255. The
    reference divides by the channel's maximum plus eps instead of 1 + eps, which would brighten a dim image at eps 0
    too; where a channel reaches 1 both are the same. Nothing needs clipping.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Fog(eps=1, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    range = 0.5

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        return {"z": streams.child("displacements").uniform(4 ** scales(x) - 1).to(x)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        eps = self.epsilon
        height, width = x.shape[-2:]
        fog = landscape(2 * params["z"] - 1, scales(x))
        top, left = (fog.shape[1] - height) // 2, (fog.shape[2] - width) // 2
        low, high = fog.amin((1, 2), keepdim=True), fog.amax((1, 2), keepdim=True)
        fog = (fog - low) / (high - low + TINY)
        return (x + eps * fog[:, None, top : top + height, left : left + width]) / (1 + eps)

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(0, 1)


def scales(x: Tensor) -> int:
    """The landscape is 2^scales on a side: the power of two above the longer side, 256 for 224 pixels, 64 for 32."""
    return max(x.shape[-2:]).bit_length()


def landscape(displacements: Tensor, count: int) -> Tensor:
    """(N, 4^count - 1) in [-1, 1] -> (N, 2^count, 2^count), periodic in both directions (Fournier et al. 1982).

    At each scale the middles of the squares, then those of their upper and left edges, are the mean of their four
    neighbours plus a displacement; displacements halve from scale to scale.
    """
    n = len(displacements)
    ground = displacements.new_zeros(n, 1, 1)
    used = 0
    for scale in range(count):
        size = 2**scale
        here = displacements[:, used : used + 3 * size**2].reshape(n, 3, size, size) / size
        used += 3 * size**2
        below = ground.roll(-1, 1)
        middle = (ground + below + ground.roll(-1, 2) + below.roll(-1, 2)) / 4 + here[:, 0]
        # The neighbours of an edge are the middles on its two sides, one place apart (the first version rolled by two).
        upper = (ground + ground.roll(-1, 2) + middle + middle.roll(1, 1)) / 4 + here[:, 1]
        left = (ground + below + middle + middle.roll(1, 2)) / 4 + here[:, 2]
        rows = torch.stack((torch.stack((ground, upper), dim=3), torch.stack((left, middle), dim=3)), dim=2)
        ground = rows.reshape(n, 2 * size, 2 * size)
    return ground


# (row, column) at which each of seven grids of flakes starts; each has a flake in every fourth row and column.
GRIDS = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0))
SPACING = 4
BUDGET = 0.2
REGION = 8
# Keeps the gradient of the fourth power from underflowing, which would keep a flake at 0 for ever.
FAINTEST = 1e-6
DISCOLOUR = 0.25
SMALLEST_EPS = 0.0625


@spec
@dataclass(frozen=True)
class Snow(UnforeseenAttack):
    """Adds flakes, multiplied by `eps`, to a paler image, the same in all channels (Kang et al. 2019).

    ``z`` (N, 7, H/4, W/4) holds the intensities of the flakes, in (0, 1], with a mean of at most 0.2 in every region of
    about 8 x 8 of them. A step is proportional to the gradient, its largest entry `alpha`. Sign steps, which
    ``signs=True`` takes as the reference does, raise all flakes alike, so that the projection then lowers the bright ones
    (on the built-in mnist-k0 the loss ends lower than it started). Each image has its own streaks, 13 pixels long at
    side 224 and 5 at 32. Published eps are in [0, 1] pixels already, unlike those of Fog and Gabor. Below eps 0.0625,
    the smallest of them, the paleness fades with eps.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Snow(eps=0.25, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    signs: bool = False

    range = 1.0

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        rows, columns = (-(-length // SPACING) for length in x.shape[-2:])
        # exp(-u / 0.2) has the mean 0.2: few flakes are bright.
        flakes = torch.exp(-streams.child("flakes").uniform(len(GRIDS), rows, columns).to(x) / BUDGET)
        return {"z": self.project({"z": flakes}), "streaks": streaks(streams.child("streaks"), round(between(x, 2, 6))).to(x)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        eps = self.epsilon
        pale = torch.maximum(x, 1.5 * brightness(x) + 0.5)
        snow = fallen(params["z"], params["streaks"], x)[:, None]
        return clip(x + opacity(eps, SMALLEST_EPS) * DISCOLOUR * (pale - x) + eps * snow)

    def step(self, params: Params, grad: Tensor, alpha: float) -> Tensor:
        largest = grad.abs().flatten(1).amax(1)
        return params["z"] + alpha * (grad.sign() if self.signs else grad / per_image(largest + (largest == 0), grad))

    def project(self, params: Params) -> Tensor:
        z = params["z"].clamp(FAINTEST, 1)
        return z * (BUDGET / region_means(z).clamp_min(BUDGET))


def brightness(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 1, H, W): luminance (ITU-R BT.709) of three channels, the mean of any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return 0.2126 * x[:, 0:1] + 0.7152 * x[:, 1:2] + 0.0722 * x[:, 2:3]


def fallen(flakes: Tensor, kernels: Tensor, x: Tensor) -> Tensor:
    """Intensities (N, 7, rows, columns) and streaks (N, 7, k, k) -> (N, H, W): each flake's fourth power as its streak."""
    n, (height, width) = len(x), x.shape[-2:]
    sky = x.new_zeros(n, len(GRIDS), height, width)
    power = flakes**4
    for number, (row, column) in enumerate(GRIDS):
        rows, columns = len(range(row, height, SPACING)), len(range(column, width, SPACING))
        sky[:, number, row::SPACING, column::SPACING] = power[:, number, :rows, :columns]
    # Every streak by itself: one convolution that sums the seven takes up to 20 times as long on a CPU.
    each = kernels.flatten(0, 1)[:, None]
    streaked = F.conv2d(sky.reshape(1, -1, height, width), each, padding=kernels.shape[-1] // 2, groups=len(each))
    return streaked.reshape(sky.shape).sum(1)


def streaks(streams: Streams, reach: int) -> Tensor:
    """(N, 7, 2 reach + 1, 2 reach + 1): seven soft lines for each image, through the middle, all with one wind."""
    count = len(GRIDS)
    place = torch.arange(-reach, reach + 1, dtype=torch.float32)
    down, across = place[:, None], place[None, :]

    def each(shape: Tensor) -> Tensor:
        return shape[:, :, None, None]

    shortest = max(1, reach // 3)
    end_down = each(shortest + streams.integers(reach - shortest + 1, count))
    end_across = each(shortest + streams.integers(reach - shortest + 1, count))
    thick = streams.uniform(count)
    # Lines of weight 1, 3 and 5 with chances .6, .3 and .1, thinner in proportion where streaks are short.
    width = each(1 + 2.0 * (thick >= 0.6) + 2.0 * (thick >= 0.9)) * reach / 6
    softness = each(0.41 + 0.19 * streams.uniform(count))
    wind = torch.where(streams.uniform() < 0.5, -1.0, 1.0)[:, None, None, None]
    length = torch.sqrt((end_down**2 + end_across**2).float())
    along = (down * end_down + wind * across * end_across) / length
    aside = (wind * across * end_down - down * end_across).abs() / length
    line = (1 + 0.3 * width - aside).clamp(0, 1) * (length + 0.5 - along.abs()).clamp(0, 1)
    edge = torch.exp(-1 / (2 * softness**2))
    padded = F.pad(line, (1, 1, 1, 1))
    blurred = (edge * padded[..., :-2, :] + padded[..., 1:-1, :] + edge * padded[..., 2:, :]) / (1 + 2 * edge)
    return (edge * blurred[..., :-2] + blurred[..., 1:-1] + edge * blurred[..., 2:]) / (1 + 2 * edge)


def region_means(z: Tensor) -> Tensor:
    """(N, 7, rows, columns), in each place the mean of its region: nearly equal rectangles of about 8 x 8 places."""
    high, wide = (-(-length // max(1, round(length / REGION))) for length in z.shape[-2:])
    rows, columns = (-(-length // size) for length, size in zip(z.shape[-2:], (high, wide), strict=True))
    missing = (0, columns * wide - z.shape[-1], 0, rows * high - z.shape[-2])

    def total(values: Tensor) -> Tensor:
        return F.pad(values, missing).reshape(*values.shape[:-2], rows, high, columns, wide).sum((-3, -1))

    means = total(z) / total(torch.ones_like(z[0, 0]))
    return means.repeat_interleave(high, -2).repeat_interleave(wide, -1)[..., : z.shape[-2], : z.shape[-1]]
