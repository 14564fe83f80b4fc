"""A strided convolution of few channels as one without a stride over blocks of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Kernels work on this many channels at a time, so fewer cost as much.
LANES = 16
# The kernel grows to whole blocks; beyond this growth of its area nothing is gained.
GROWTH = 1.5


def pays(module: nn.Module) -> bool:
    """Whether a `SpaceToDepthConv` in this module's place makes the gradient of the images cheaper.

    >>> pays(nn.Conv2d(3, 8, 7, 2)), pays(nn.Conv2d(3, 8, 3, 2)), pays(nn.Conv2d(3, 8, 4, 4)), pays(nn.Conv2d(64, 8, 7, 2))
    (True, False, False, False)
    """
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        return False
    (kernel, *kernels), (step, *steps) = set(module.kernel_size), set(module.stride)
    # Patches that do not overlap, as vision transformers have them, gained nothing.
    if kernels or steps or not 1 < step < kernel or isinstance(module.padding, str) or 2 * module.in_channels > LANES:
        return False
    return (-(-kernel // step) * step) ** 2 <= GROWTH * kernel**2


class SpaceToDepthConv(nn.Module):
    """The function of a convolution of (N, C, H, W) with stride s, from blocks of s x s pixels as C s^2 channels.

    Kernels for three channels waste most of their vector lanes, above all in the gradient of the images. This one fills
    them. TResNet trains such a first layer (Ridnik et al. 2021, "space to depth"); here the weights are those that exist.

    >>> plain = nn.Conv2d(3, 4, 7, 2, padding=3)
    >>> x = torch.rand(2, 3, 9, 12)
    >>> torch.allclose(SpaceToDepthConv.of(plain)(x), plain(x), atol=1e-5)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, step: int, padding: tuple[int, int], kernel: int) -> None:
        super().__init__()
        self.step, self.padding, self.kernel = step, padding, kernel
        short = -kernel % step
        self.weight = nn.Parameter(F.pixel_unshuffle(F.pad(weight, (0, short, 0, short)), step))
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    @classmethod
    def of(cls, module: nn.Module) -> SpaceToDepthConv:
        """One with the weights of a convolution for which `pays` is true."""
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        bias = None if module.bias is None else module.bias.detach()
        return cls(module.weight.detach(), bias, module.stride[0], (module.padding[0], module.padding[1]), module.kernel_size[0])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), H' and W' as the convolution has them, in the memory format of x."""
        edges: list[int] = []
        for side, pad in ((x.shape[3], self.padding[1]), (x.shape[2], self.padding[0])):
            out = (side + 2 * pad - self.kernel) // self.step + 1
            edges += [pad, (out - 1 + self.weight.shape[2]) * self.step - side - pad]
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        blocks = F.pixel_unshuffle(F.pad(x, edges), self.step)
        if last:
            blocks = blocks.contiguous(memory_format=torch.channels_last)
        return F.conv2d(blocks, self.weight, self.bias)
