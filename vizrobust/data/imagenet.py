"""ImageNet's 1,000 classes, by name and by WordNet id, and where the classes of one list stand in another."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order of logits, as torchvision has them.

    >>> imagenet_classes()[0], len(imagenet_classes())
    ('tench', 1000)
    """
    package = find_spec("torchvision")
    assert package is not None
    assert package.origin is not None
    # The list alone: importing torchvision.models takes a second.
    names = runpy.run_path(str(Path(package.origin).parent / "models" / "_meta.py"))["_IMAGENET_CATEGORIES"]
    return tuple(names)


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, the names of its folders; their order is that of the logits.

    >>> imagenet_ids()[0], len(imagenet_ids())
    ('n01440764', 1000)
    """
    return tuple((Path(__file__).parent / "imagenet_wordnet.txt").read_text(encoding="ascii").split())


def of_imagenet(classes: Sequence[str]) -> bool:
    """Whether all class names are names (in any case) or WordNet ids of ImageNet classes.

    >>> of_imagenet(("tench", "Golf ball")), of_imagenet(("n01440764", "n03445777")), of_imagenet(("airplane", "automobile"))
    (True, True, False)
    """
    known = {name.casefold() for name in imagenet_classes()} | set(imagenet_ids())
    return len(classes) > 1 and all(name.strip().casefold() in known for name in classes)


def class_places(own: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, ...]]:
    """The positions in `own` of each class of `wanted`: none where it has no such class, several where a name is not unique.

    Names are compared in any case. An ImageNet class is found by its name or its WordNet id, whichever the lists use.

    >>> class_places(["Tench", "crane", "crane"], ["crane", "n01440764", "dog"])
    [(1, 2), (0,), ()]
    >>> class_places(imagenet_classes(), ["n02012849", "tench"])
    [(134,), (0,)]
    """
    theirs, names = ([name.strip().casefold() for name in side] for side in (own, wanted))
    english = {}
    if any(name[:1] == "n" and name[1:].isdigit() for name in (*theirs, *names)):
        english = dict(zip(imagenet_ids(), (name.casefold() for name in imagenet_classes()), strict=True))
    whole = bool(english) and theirs == list(english.values())
    places: dict[str, list[int]] = {}
    for place, name in enumerate(theirs):
        for key in {name, imagenet_ids()[place] if whole else english.get(name, name)}:
            places.setdefault(key, []).append(place)
    return [tuple(places.get(name) or places.get(english.get(name, name)) or ()) for name in names]
