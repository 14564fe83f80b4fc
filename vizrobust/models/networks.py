"""The built-in architectures: small networks whose layers have names a person can read."""

from __future__ import annotations

from torch import Tensor, nn

from vizrobust.models.blurs import BlurPool, BlurredConv
from vizrobust.spec import named

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


ARCHS = named(small_cnn, resnet_small, vgg_small)
