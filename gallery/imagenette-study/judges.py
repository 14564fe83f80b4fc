"""ImageNet networks of other families than EfficientNet, which judge the pictures of this study.

Each takes colour images (N, 3, H, W) in [0, 1] of any size, resizes them to its own side and normalizes them itself. The
names of their parameters are those of the weight files that make.sh names.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resized(nn.Module):
    """Images resized to a square (bicubic, antialiased, kept in [0, 1]), minus `mean`, over `std`."""

    def __init__(self, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            larger = x.shape[-1] > self.side
            x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", align_corners=False, antialias=larger).clamp(0, 1)
        return (x - self.mean) / self.std


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class LimitedConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding whose output is limited to a range, as 8-bit networks limit it."""

    def __init__(self, channels: int, out: int, size: int, stride: int, groups: int) -> None:
        super().__init__(channels, out, size, stride, groups=groups)
        self.register_buffer("range", torch.tensor([0.0, 6.0]))

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] > 1:
            short = max((-(-x.shape[2] // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - x.shape[2], 0)
            x = F.pad(x, (short // 2, short - short // 2) * 2)
        return super().forward(x).clamp_(*self.range.tolist())


class MobileNetV1(nn.Sequential):
    """MobileNetV1 1.0 (Howard et al. 2017) at 224 px, from 8-bit weights; its class 0 of 1001 is the background."""

    WIDTHS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self) -> None:
        layers = [LimitedConv(3, 32, 3, 2, 1)]
        for (before, after), stride in zip(pairwise(self.WIDTHS), self.STRIDES, strict=True):
            layers += [LimitedConv(before, before, 3, stride, before), LimitedConv(before, after, 1, 1, 1)]
        layers.append(LimitedConv(1024, 1001, 1, 1, 1))
        super().__init__(*layers)
        self.resized = Resized(224, (0.5,) * 3, (0.5,) * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resized(x)
        *body, head = [layer for layer in self if isinstance(layer, LimitedConv)]
        for layer in body:
            x = layer(x)
        return head(x.mean((2, 3), keepdim=True)).flatten(1)[:, 1:]


class SqueezeNet(nn.Sequential):
    """SqueezeNet 1.1 (Iandola et al. 2016) at 224 px, without padding at the first convolution and with floored pooling."""

    # Squeezed and expanded channels of the eight fire modules, and after which of them there is a pooling.
    FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    POOLED = (1, 3)

    def __init__(self) -> None:
        layers, channels = [nn.Conv2d(3, 64, 3, 2)], 64
        for few, many in self.FIRES:
            layers += [nn.Conv2d(channels, few, 1), nn.Conv2d(few, many, 1), nn.Conv2d(few, many, 3, padding=1)]
            channels = 2 * many
        super().__init__(*layers, nn.Conv2d(channels, 1000, 1))
        self.resized = Resized(224, *IMAGENET)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest, head = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        x = F.max_pool2d(F.relu(first(self.resized(x))), 3, 2)
        for number in range(len(self.FIRES)):
            squeeze, one, three = rest[3 * number : 3 * number + 3]
            few = F.relu(squeeze(x))
            x = torch.cat((F.relu(one(few)), F.relu(three(few))), 1)
            if number in self.POOLED:
                x = F.max_pool2d(x, 3, 2)
        return F.relu(head(x)).mean((2, 3))


class ResNet50V2(nn.Module):
    """ResNet-50 v2 (He et al. 2016) at 128 px up to the end of its third stage: 1024 features in place of logits."""

    STAGES = ((1, 3, 64, 64), (2, 4, 128, 256), (3, 6, 256, 512))  # number, blocks, inner channels, channels that come in

    def __init__(self) -> None:
        super().__init__()
        self.resized = Resized(128, *IMAGENET)
        self._norm("batchnorm0", 3)
        self._conv("conv0", 64, 3, 7)
        self._norm("batchnorm1", 64)
        for number, blocks, inner, channels in self.STAGES:
            stage, conv, norm = f"stage{number}_", 0, 0
            for block in range(blocks):
                for place, width in enumerate((channels if block == 0 else 4 * inner, inner, inner)):
                    self._norm(f"{stage}batchnorm{norm + place}", width)
                self._conv(f"{stage}conv{conv}", inner, channels if block == 0 else 4 * inner, 1)
                self._conv(f"{stage}conv{conv + 1}", inner, inner, 3)
                self._conv(f"{stage}conv{conv + 2}", 4 * inner, inner, 1)
                if block == 0:
                    self._conv(f"{stage}conv{conv + 3}", 4 * inner, channels, 1)
                conv, norm = conv + (4 if block == 0 else 3), norm + 3
        self._norm("stage4_batchnorm0", 1024)

    def _conv(self, name: str, out: int, channels: int, size: int) -> None:
        self.register_parameter(f"{name}_weight", nn.Parameter(torch.zeros(out, channels, size, size)))

    def _norm(self, name: str, channels: int) -> None:
        for part in ("gamma", "beta", "running_mean", "running_var"):
            self.register_buffer(f"{name}_{part}", torch.ones(channels))

    def _normalized(self, x: Tensor, name: str) -> Tensor:
        mean, var, gamma, beta = (getattr(self, f"{name}_{part}") for part in ("running_mean", "running_var", "gamma", "beta"))
        return F.batch_norm(x, mean, var, gamma, beta, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self._normalized(self.resized(x), "batchnorm0"), self.conv0_weight, None, 2, 3)
        x = F.max_pool2d(F.relu(self._normalized(x, "batchnorm1")), 3, 2, 1)
        for number, blocks, _inner, _channels in self.STAGES:
            stage, conv, norm = f"stage{number}_", 0, 0
            for block in range(blocks):
                x = self._block(x, stage, conv, norm, 2 if block == 0 and number > 1 else 1, first=block == 0)
                conv, norm = conv + (4 if block == 0 else 3), norm + 3
        return F.relu(self._normalized(x, "stage4_batchnorm0")).mean((2, 3))

    def _block(self, x: Tensor, stage: str, conv: int, norm: int, stride: int, *, first: bool) -> Tensor:
        def weight(place: int) -> Tensor:
            return getattr(self, f"{stage}conv{conv + place}_weight")

        y = F.relu(self._normalized(x, f"{stage}batchnorm{norm}"))
        shortcut = F.conv2d(y, weight(3), None, stride) if first else x
        y = F.relu(self._normalized(F.conv2d(y, weight(0)), f"{stage}batchnorm{norm + 1}"))
        y = F.relu(self._normalized(F.conv2d(y, weight(1), None, stride, 1), f"{stage}batchnorm{norm + 2}"))
        return shortcut + F.conv2d(y, weight(2))


def mobilenet_v1() -> nn.Module:
    return MobileNetV1()


def squeezenet1_1() -> nn.Module:
    return SqueezeNet()


def resnet50_v2() -> nn.Module:
    return ResNet50V2()
