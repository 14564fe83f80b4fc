"""Which data sets have training images in common."""

from __future__ import annotations

import re

# Data sets that are made of the same published images: any two overlap, but for those known to be apart.
FAMILIES = (("mnist", "mnist5k", "mnist55k"), ("imagenette", "imagenette64", "imagenette64-rest"))
APART = (
    {"mnist5k", "mnist55k"},
    {"imagenette64", "imagenette64-rest"},
    # The rest are published validation images, which imagenette does not train on either.
    {"imagenette", "imagenette64-rest"},
)


def shares_images(a: str, b: str) -> bool:
    """Whether networks trained on the data references `a` and `b` have seen some of the same images.

    References of the same files at another size (``imagenette@96``, ``imagefolder:DIR@64``) are the same images; a
    reference that is not known ("") shares none. Shuffled labels do not make other images.

    >>> shares_images("mnist", "mnist5k"), shares_images("mnist55k", "mnist5k"), shares_images("npz:a.npz", "npz:a.npz")
    (True, False, True)
    """
    one, other = _sizeless(a), _sizeless(b)
    if not one or not other:
        return False
    if one == other:
        return True
    related = any(one in family and other in family for family in FAMILIES)
    return related and {one, other} not in APART


def taken_from_imagenet(a: str, b: str) -> bool:
    """Whether `a` is ImageNet and `b` a selection of its images, as Imagenette is: an overlap that cannot be told apart.

    >>> taken_from_imagenet("imagenet", "imagenette64"), taken_from_imagenet("imagenet", "cifar10")
    (True, False)
    """
    return _sizeless(a) == "imagenet" and _sizeless(b) in FAMILIES[1]


def _sizeless(ref: str) -> str:
    """The reference without the size behind it; names of published data sets in small letters."""
    bare = re.sub(r"@\d+$", "", ref.strip().removeprefix("shuffled:"))
    return bare if ":" in bare else bare.lower()
