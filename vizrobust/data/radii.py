"""The usual L-inf radius of adversarial examples, by the kind of images."""

from __future__ import annotations

# Madry et al. 2018 for MNIST, where pixels are nearly black or white, and for CIFAR-10; the RobustBench figure for ImageNet.
MNIST_EPS = 0.3
CIFAR_EPS = 8 / 255
IMAGENET_EPS = 4 / 255


def usual_eps(shape: tuple[int, int, int]) -> float:
    """For images of a data set that nobody has fixed a radius for, in [0, 1] pixels.

    One channel and no side above 32 pixels: 0.3, as for MNIST. Else a shorter side below 64: 8/255, as for
    CIFAR-10. Else 4/255, as for ImageNet.

    >>> usual_eps((1, 28, 28)), usual_eps((3, 32, 32)) == 8 / 255, usual_eps((3, 224, 224)) == 4 / 255
    (0.3, True, True)
    """
    channels, height, width = shape
    if channels == 1 and max(height, width) <= 32:
        return MNIST_EPS
    return CIFAR_EPS if min(height, width) < 64 else IMAGENET_EPS
