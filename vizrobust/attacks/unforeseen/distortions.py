"""Distortions of the image itself: elastic, glitch, and JPEG's rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.threat_models import L1, L2
from vizrobust.attacks.unforeseen.unforeseen_attack import Params, UnforeseenAttack, between, clip, side
from vizrobust.rng import Streams
from vizrobust.spec import spec


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of images (N, C, H, W) at each pixel plus `flow` (N, 2, H, W): right and down, in pixels.

    Beyond its border an image continues as its mirror image. Without flow the image stays as it is, up to rounding:
    the corners of the sampling grid are the centres of the corner pixels (implementations with torch's other convention
    resample, and so blur, the image at flow 0).

    >>> x = torch.rand(1, 1, 4, 5)
    >>> bool(torch.allclose(warp(x, torch.zeros(1, 2, 4, 5)), x, atol=1e-6))
    True
    """
    height, width = x.shape[-2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device)
    down = torch.arange(height, dtype=x.dtype, device=x.device)
    columns = (across + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    rows = (down[:, None] + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack((columns, rows), dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


@spec
@dataclass(frozen=True)
class Elastic(UnforeseenAttack):
    """Takes each pixel from up to `eps` pixels away along a smoothed flow (Xiao et al. 2018; Kang et al. 2019).

    ``z`` (N, 2, H, W) is the flow in pixels, abs(z) <= eps, before a Gaussian of 3 pixels at side 224 and proportionally less
    at smaller sides; steps are sign steps. Values come from the image, so only rounding is clipped.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Elastic(eps=0.5, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        return {"z": (2 * streams.child("flow").uniform(2, *x.shape[-2:]).to(x) - 1) * self.epsilon}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        return clip(warp(x, smooth(params["z"], 3 * side(x) / 224)))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def smooth(flow: Tensor, sigma: float) -> Tensor:
    """(N, 2, H, W) blurred by a Gaussian cut at 4 sigma, but with at least 2 pixels to each side; the border mirrored.

    That is UAR's 25 taps for side 224 and 5 for side 32.
    """
    radius = max(2, math.ceil(4 * sigma))
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(flow)
    n, _, height, width = flow.shape
    planes = F.pad(flow.reshape(2 * n, 1, height, width), (radius,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(planes, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
    return blurred.reshape(n, 2, height, width)


@spec
@dataclass(frozen=True)
class Glitch(UnforeseenAttack):
    """Shifts each band of rows of each channel by up to `eps` half widths to the side (Kaufmann et al. 2023).

    eps 0.05 is 0.8 pixels of 32, or 5.6 of 224. ``z`` (N, C, bands) holds the shifts, abs(z) <= eps; steps are sign steps.
    Bands have 2 rows at side 32 and 4 at 224. Beyond its border the image continues as its mirror image.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Glitch(eps=0.05, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        bands = -(-x.shape[2] // _rows(x))
        return {"z": (2 * streams.child("shifts").uniform(x.shape[1], bands).to(x) - 1) * self.epsilon}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        n, channels, height, width = x.shape
        shift = params["z"].repeat_interleave(_rows(x), 2)[..., :height] * (width / 2)
        aside = shift.reshape(n * channels, height, 1).expand(-1, -1, width)
        flow = torch.stack((aside, torch.zeros_like(aside)), dim=1)
        return clip(warp(x.reshape(n * channels, 1, height, width), flow).reshape(x.shape))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def _rows(x: Tensor) -> int:
    """The height of a band."""
    return round(between(x, 2, 4))


# Annex K of T.81: the usual tables of quality 50, rows by vertical frequency.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# YCbCr to RGB, by rows R, G, B (JFIF 1.02).
COLOURS = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def coefficients(x: Tensor) -> int:
    """How many coefficients JPEG stores of an image of this shape (N, C, H, W).

    With three channels the two of colour have half the resolution (4:2:0), and the sides go up to the next multiple
    of 16; a single channel is brightness alone, and they go up to a multiple of 8.
    """
    down, across = _luma_blocks(x)
    return down * across * 64 * 3 // 2 if x.shape[1] == 3 else down * across * 64


def decoded(quantised: Tensor, x: Tensor) -> Tensor:
    """Coefficients (N, coefficients) in quantisation steps -> the change of images shaped like `x`, in [0, 1] pixels.

    What lies in the blocks beyond the right and lower border is cut off.
    """
    down, across = _luma_blocks(x)
    height, width = x.shape[-2:]
    cut = down * across * 64
    brightness = _pixels(quantised[:, :cut], LUMA, down, across)
    if x.shape[1] == 1:
        return brightness[:, None, :height, :width]
    blue, red = (
        _pixels(part, CHROMA, down // 2, across // 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
        for part in quantised[:, cut:].chunk(2, dim=1)
    )
    planes = [y * brightness + cb * blue + cr * red for y, cb, cr in COLOURS]
    return torch.stack(planes, dim=1)[..., :height, :width]


def cosines(like: Tensor) -> Tensor:
    """(8, 8): the orthonormal cosine transform, rows by frequency."""
    frequency = torch.arange(8, dtype=torch.float64)
    waves = torch.cos((2 * frequency + 1) * frequency[:, None] * (torch.pi / 16)) / 2
    waves[0] /= 2**0.5
    return waves.to(like)


def _luma_blocks(x: Tensor) -> tuple[int, int]:
    """Rows and columns of 8 x 8 blocks."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"JPEG takes images of 1 or 3 channels, got {x.shape[1]}")
    unit = 16 if x.shape[1] == 3 else 8
    down, across = (-(-length // unit) * unit // 8 for length in x.shape[-2:])
    return down, across


def _pixels(flat: Tensor, table: tuple[tuple[int, ...], ...], down: int, across: int) -> Tensor:
    """(N, down * across * 64) in quantisation steps -> (N, 8 down, 8 across) in [0, 1] pixels."""
    steps = torch.tensor(table, dtype=flat.dtype, device=flat.device) / 255
    waves = cosines(flat)
    blocks = waves.T @ (flat.reshape(-1, down, across, 8, 8) * steps) @ waves
    return blocks.transpose(2, 3).reshape(-1, 8 * down, 8 * across)


NORMS = ("linf", "l2", "l1")
# No coefficient moves by more than this in the L2 and L1 attacks (UAR's choice).
LARGEST = 2.0


@spec
@dataclass(frozen=True)
class JPEG(UnforeseenAttack):
    """Changes the coefficients that JPEG stores at quality 50; a change of 2 in ``z`` is one quantisation step.

    `eps` bounds the `norm` of ``z``: "linf", "l2" or "l1" (Kang et al. 2019). Linf takes sign steps, L2 steps along the
    gradient, L1 Frank-Wolfe steps of 1/t towards the best vertex, which have no `alpha`; in L2 and L1 no coefficient
    moves by more than 2. Nothing is rounded, so JPEG is linear, and the change is added to the image: the image itself
    does not pass through JPEG, whose chroma subsampling would blur it at eps 0 too. Raises ``ValueError`` for images with
    other than 1 or 3 channels.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> JPEG(eps=8, norm="l2", steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    norm: str = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"JPEG: norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.norm == "l1" and self.alpha is not None:
            raise ValueError(f"JPEG: norm='l1' takes Frank-Wolfe steps, which have no alpha; leave out alpha={self.alpha!r}")

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        streams, count = streams.child("coefficients"), coefficients(x)
        like, eps = x.new_empty(len(x), count), self.epsilon
        match self.norm:
            case "linf":
                z = (2 * streams.uniform(count).to(x) - 1) * eps
            case "l2":
                z = L2(eps).sample(like, streams)
            case _:
                z = L1(eps).sample(like, streams)
        return {"z": self.project({"z": z})}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        return clip(x + decoded(params["z"] / 2, x))

    def step(self, params: Params, grad: Tensor, alpha: float) -> Tensor:
        match self.norm:
            case "linf":
                return params["z"] + alpha * grad.sign()
            case "l2":
                return params["z"] + alpha * L2(1.0).steepest_direction(grad)
        # The vertex of the ball within the bounds: the coefficients with the largest gradient take all they may.
        order = grad.abs().argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(grad.shape[1], device=grad.device).expand_as(order))
        corner = grad.sign() * (self.epsilon - LARGEST * rank).clamp(0, LARGEST)
        return params["z"] + (corner - params["z"]) / params["step"].to(grad)[:, None]

    def project(self, params: Params) -> Tensor:
        eps, z = self.epsilon, params["z"]
        match self.norm:
            case "linf":
                return z.clamp(-eps, eps)
            case "l2":
                return L2(eps).project(z).clamp(-LARGEST, LARGEST)
        return L1(eps).project(z).clamp(-LARGEST, LARGEST)
