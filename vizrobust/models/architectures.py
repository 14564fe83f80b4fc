"""The architectures of the package itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.plugins import Catalogue
from vizrobust.spec import named


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


Shape = tuple[int, int, int]

# Four stages from this image size on, so that the last feature map is 8 px wide at 64 px as well as at 32 px.
FOUR_STAGES_FROM = 48


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers: the 166,406-parameter network of Wong et al. 2020 at 28 px."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, 4, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(32 * (height // 4) * (width // 4), 100)
        self.relu3 = nn.ReLU()
        self.linear2 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        x = self.relu3(self.linear1(self.flatten(x)))
        return self.linear2(x)


class Block(nn.Module):
    """A pre-activation residual block (He et al. 2016); `halve` shrinks its input without aliasing."""

    def __init__(self, inner: int, outer: int, halve: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.pool = BlurPool() if halve else nn.Identity()
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.pool(self.relu1(self.bn1(x)))
        skip = self.shortcut(active) if isinstance(self.shortcut, nn.Conv2d) else self.pool(x)
        return skip + self.conv2(self.relu2(self.bn2(self.conv1(active))))


class ResNetSmall(nn.Module):
    """A pre-activation residual network with anti-aliased downsampling, the stem included.

    308,266 parameters below 48 px (three stages), 490,042 from there on (four stages behind a halving stem),
    for three channels and ten classes.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        large = min(shape[1:]) >= FOUR_STAGES_FROM
        widths = (16, 48, 96, 144) if large else (32, 64, 128)
        same = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.stem = BlurredConv(shape[0], widths[0]) if large else same
        self.stages: list[str] = []
        inner = widths[0]
        for number, width in enumerate(widths, start=1):
            self.add_module(f"stage{number}", Block(inner, width, halve=number > 1))
            self.stages.append(f"stage{number}")
            inner = width
        self.bn = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        x = self.relu(self.bn(x)).mean((2, 3))
        return self.linear(x)


class VGGSmall(nn.Module):
    """A plain convolutional network after VGG (Simonyan & Zisserman 2015), with BatchNorm and anti-aliased pooling.

    Without residual connections, activated after each convolution: for judges of networks of the other families.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        large = min(shape[1:]) >= FOUR_STAGES_FROM
        widths = (32, 64, 96, 128) if large else (16, 32, 64)
        inner = shape[0]
        layers: list[nn.Module] = []
        for number, width in enumerate(widths):
            for depth in range(2):
                halving = large and number == depth == 0
                conv = BlurredConv(inner, width) if halving else nn.Conv2d(inner, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                inner = width
            if number < len(widths) - 1:
                layers.append(BlurPool())
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Two strided convolutions (`conv1`, `conv2`) and two linear layers (`linear1`, `linear2`)."""
    return SmallCNN(shape, classes)


def resnet_small(shape: Shape, classes: int) -> nn.Module:
    """Pre-activation residual network with anti-aliased downsampling (`stem`, `stage1` … `linear`)."""
    return ResNetSmall(shape, classes)


def vgg_small(shape: Shape, classes: int) -> nn.Module:
    """Plain convolutions with BatchNorm and anti-aliased pooling (`features.0` … `linear`), for judges."""
    return VGGSmall(shape, classes)


ARCHS: Catalogue[Callable[[Shape, int], nn.Module]] = Catalogue(named(small_cnn, resnet_small, vgg_small), "architectures")


Build = Callable[[], nn.Module]


def called(make: Callable[..., object], ref: str, shape: Shape, classes: int) -> nn.Module:
    """The network that ``make(classes)``, ``make(shape, classes)`` or ``make()`` returns, whichever it takes."""
    from inspect import Parameter, signature

    required = [
        parameter
        for parameter in signature(make).parameters.values()
        if parameter.default is Parameter.empty and parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    arguments = {0: (), 1: (classes,), 2: (shape, classes)}.get(len(required))
    if arguments is None:
        raise ValueError(f"{ref} needs {len(required)} arguments; it may take none, (classes) or (shape, classes)")
    net = make(*arguments)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{ref} returned {type(net).__name__}, not a torch.nn.Module")
    return net
