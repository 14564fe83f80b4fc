"""Halving an image without aliasing: a [1, 2, 1] blur, alone and taken together with a convolution (Zhang 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def binomial(like: Tensor) -> Tensor:
    """(1, 1, 3, 3): the [1, 2, 1] blur in both directions, which is zero at the Nyquist frequency."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=like.dtype, device=like.device)
    return (line[:, None] * line)[None, None]


def _mirrored(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0, 1, 0), mode="reflect")


def _blurred(padded: Tensor) -> Tensor:
    """Every other pixel of the blur of each channel, without the edges: (N, C, h, w) becomes (N, C, (h-1)//2, (w-1)//2)."""
    channels = padded.shape[1]
    return F.conv2d(padded, binomial(padded).expand(channels, 1, 3, 3), stride=2, groups=channels)


class _Blurred(torch.autograd.Function):
    """`_blurred` with a backward pass of slices and sums: oneDNN's own takes 4 to 20 times as long in bfloat16 on CPU."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor) -> Tensor:
        ctx.shape = padded.shape
        return _blurred(padded)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        """Pixels at odd places were seen by one output with 1/2, those at even places by two with 1/4; summed in fp32."""
        height, width = (2 * size + 1 for size in slope.shape[2:])
        channels_last = slope.is_contiguous(memory_format=torch.channels_last)
        memory = torch.channels_last if channels_last else torch.contiguous_format
        found = torch.empty(ctx.shape, dtype=slope.dtype, memory_format=memory).zero_()
        around = F.pad(slope.float(), (1, 1, 1, 1))
        above, below = around[:, :, :-1], around[:, :, 1:]
        found[:, :, 1:height:2, 1:width:2] = slope / 4
        found[:, :, 1:height:2, :width:2] = (below[:, :, :-1, 1:] + below[:, :, :-1, :-1]) / 8
        found[:, :, :height:2, 1:width:2] = (below[..., 1:-1] + above[..., 1:-1]) / 8
        found[:, :, :height:2, :width:2] = (below[..., 1:] + below[..., :-1] + above[..., 1:] + above[..., :-1]) / 16
        return found


class BlurPool(nn.Module):
    """Halve the image after a [1, 2, 1] blur, which is zero at the Nyquist frequency (Zhang 2019).

    A strided convolution in its place leaves a two-pixel grid in every feature image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):  # it would pad in fp32
                return _Blurred.apply(_mirrored(x))
        return _blurred(_mirrored(x))


class BlurredConv(nn.Conv2d):
    """A 3 x 3 convolution and a [1, 2, 1] blur behind it, taken together as one 5 x 5 convolution of stride 2.

    The same function as convolving the zero-padded image everywhere and blurring, at a quarter of the cost; what is
    learned are the 3 x 3 weights.
    """

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, 3, stride=2, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outer, inner = self.weight.shape[:2]
        blurred = F.conv2d(self.weight.reshape(outer * inner, 1, 3, 3), binomial(x).to(self.weight), padding=2)
        return F.conv2d(x, blurred.reshape(outer, inner, 5, 5), stride=2, padding=2)
