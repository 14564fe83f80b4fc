"""Usual strengths of unforeseen attacks: three for each attack and size of image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vizrobust.attacks.attack import Attack, ball_of
from vizrobust.spec import lookup

Three = tuple[float, float, float]

# The strengths that UAR calibrates to L-inf 2, 4 and 8 of 255, which are what the later paper calls low, medium and high.
SOURCES = {
    "uar-cifar": "Kang et al. 2019, CIFAR-10 calibration, matched to L-inf 2, 4 and 8/255",
    "uar-imagenet": "Kang et al. 2019, ImageNet-100 calibration, matched to L-inf 2, 4 and 8/255",
    "ua-cifar": "Kaufmann et al. 2023, CIFAR-10",
    "ua-imagenet": "Kaufmann et al. 2023, ImageNet",
    "by-eye": "chosen here by eye on 64 pixels: objects stay recognisable; nothing is published for this attack at this size",
    # Of mnist-k0's 99.5 % right at first, these leave 71 to 94, 30 to 70 and 0 to 17 at low, medium and high.
    "measured": "measured here with: vizrobust attack mnist-k0 mnist-k8 --images 200 --attack 'NAME(eps=…)'; none is published",
    "weak": "Kaufmann et al. 2023, CIFAR-10; on digits they break almost nothing, and larger ones neither (measured on mnist-k0)",
}
# By the size of images: "digits" have one channel and no side above 32 pixels, else "small" ones a side below 96.
SIZES = ("digits", "small", "large")
TABLE = """
Elastic      | 0.125 0.25 0.5 measured | 0.25 0.5 1 uar-cifar        | 0.5 2 4 uar-imagenet
JPEG-Linf    | 0.5 1 2 measured        | 0.0625 0.125 0.25 uar-cifar | 0.125 0.25 0.5 uar-imagenet
JPEG-L2      | 16 32 64 measured       | 0.5 1 2 uar-cifar           | 16 32 64 uar-imagenet
JPEG-L1      | 256 512 1024 measured   | 8 64 256 uar-cifar          | 1024 4096 16384 uar-imagenet
Fog          | 0.125 0.25 0.5 measured | 0.5 1 2 by-eye              | 256/255 512/255 2048/255 uar-imagenet
Snow         | 0.125 0.25 0.5 measured | 0.125 0.25 0.5 by-eye       | 0.125 0.25 2 uar-imagenet
Gabor        | 0.1 0.2 0.4 measured    | 0.05 0.1 0.2 by-eye         | 12.5/255 25/255 400/255 uar-imagenet
Pixel        | 0.5 1 2 measured        | 1 5 10 ua-cifar             | 3 5 10 ua-imagenet
Glitch       | 0.05 0.1 0.2 measured   | 0.03 0.05 0.1 ua-cifar      | 0.03 0.05 0.07 ua-imagenet
Kaleidoscope | 0.05 0.1 0.15 ua-cifar  | 0.05 0.1 0.15 ua-cifar      | 0.05 0.1 0.15 ua-imagenet
Wood         | 0.03 0.05 0.1 weak      | 0.03 0.05 0.1 ua-cifar      | 0.03 0.05 0.1 ua-imagenet
"""


def _number(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _read(cell: str) -> tuple[Three, str]:
    low, medium, high, source = cell.split()
    return (_number(low), _number(medium), _number(high)), SOURCES[source]


PRESETS: dict[str, dict[str, tuple[Three, str]]] = {
    name.strip(): dict(zip(SIZES, map(_read, cells), strict=True))
    for name, *cells in (line.split("|") for line in TABLE.strip().splitlines())
}
LEVELS = ("low", "medium", "high")


def family(attack: Attack) -> str:
    """The name under which strengths and calibrations list an attack: its ball's, else its own, with JPEG's norm.

    >>> from vizrobust.attacks import JPEG, PGD, Fog, L2
    >>> family(Fog()), family(JPEG(norm="l1")), family(PGD(ball=L2(eps=1)))
    ('Fog', 'JPEG-L1', 'L2')
    """
    ball = ball_of(attack)
    name = type(ball or attack).__name__
    norm = getattr(attack, "norm", None)
    return f"{name}-{norm.capitalize()}" if isinstance(norm, str) and ball is None else name


def strengths(name: str, shape: tuple[int, int, int]) -> Three:
    """Low, medium and high eps of the attack listed as `name` (see `family`) on images of shape (C, H, W).

    They are those of published work where there is any (see `source`); low to high is a different ratio for each attack.
    Raises ``ValueError`` for a name that is not listed.

    >>> strengths("Elastic", (3, 32, 32)), strengths("Pixel", (3, 224, 224))
    ((0.25, 0.5, 1.0), (3.0, 5.0, 10.0))
    """
    return _preset(name, shape)[0]


def source(name: str, shape: tuple[int, int, int]) -> str:
    """Where these strengths come from, as a sentence.

    >>> source("Pixel", (3, 224, 224))
    'Kaufmann et al. 2023, ImageNet'
    """
    return _preset(name, shape)[1]


def with_default_eps(attack: Any, shape: tuple[int, int, int], level: str = "medium") -> Any:
    """The attack with the eps of that level for images of shape (C, H, W), if it has none itself.

    >>> from vizrobust.attacks import Wood
    >>> with_default_eps(Wood(steps=10), (3, 32, 32)), with_default_eps(Wood(eps=0.3), (3, 32, 32))
    (Wood(eps=0.05, steps=10), Wood(eps=0.3))
    """
    if attack.eps is not None:
        return attack
    three = dict(zip(LEVELS, strengths(family(attack), shape), strict=True))
    return replace(attack, eps=lookup(three, level, "strength"))


def _preset(name: str, shape: tuple[int, int, int]) -> tuple[Three, str]:
    channels, height, width = shape
    digits = channels == 1 and max(height, width) <= 32
    size = "digits" if digits else "small" if min(height, width) < 96 else "large"
    return lookup(PRESETS, name, "unforeseen attack")[size]
