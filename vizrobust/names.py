"""The names of the catalogues as plain data, so that a misspelt one is refused before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from vizrobust.legacy import NAMES as OLD_NAMES
from vizrobust.plugins import Catalogue
from vizrobust.spec import unknown

# A test compares each with its catalogue.
DATA = (
    "mnist5k", "digits", "mnist", "mnist55k", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagenette", "imagenette64",
    "imagenette64-rest", "npz:FILE", "imagefolder:DIR[@SIZE]", "skip-broken:imagefolder:DIR", "shuffled:REF", "held-out:REF",
)  # fmt: skip
ATTACKS = (
    "Linf", "L2", "L1", "L0", "FGSM", "BIM", "PGD", "APGD", "AutoAttack", "FAB", "DeepFool", "CW", "FMN", "DDN", "ALMA",
    "SigmaZero", "Square", "HopSkipJump", "Noise", "Transfer", "EOT",
    "standard", "plus", "rand", "fast",
    "Elastic", "JPEG", "Fog", "Snow", "Gabor", "Pixel", "Glitch", "Kaleidoscope", "Wood", "eps",
)  # fmt: skip
RECIPES = ("gradient", "plain", "direct", "fourier", "lucid", "maco", "Recipe")


def builtin_names() -> list[str]:
    """The checkpoints that come with the package, in the order of their attack steps."""
    folder = files("vizrobust").joinpath("models", "builtin")
    names = [item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors")]
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts k2 before k16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def split_code(ref: str) -> tuple[str, str]:
    """A reference to a checkpoint, and the code that it names for its network alone.

    >>> split_code("mine.safetensors::arch=nets.py:Wide"), split_code("mnist-k8")
    (('mine.safetensors', 'nets.py:Wide'), ('mnist-k8', ''))
    """
    ref, _, code = ref.partition("::arch=")
    return ref, code


def no_data_set(ref: str) -> str:
    """The sentence about a reference that is no data set's; a path alone lacks its prefix.

    >>> no_data_set("mnist5kk"), no_data_set("mine.npz")
    ("no data set 'mnist5kk'; did you mean mnist5k or mnist55k or mnist?", "no data set 'mine.npz'; did you mean npz:mine.npz?")
    """
    path = Path(ref.rpartition(":")[2]).expanduser()
    meant = f"npz:{path}" if path.suffix == ".npz" else f"imagefolder:{ref}" if ref and path.is_dir() else None
    return f"no data set {ref!r}; did you mean {meant}?" if meant else unknown(ref, DATA, "data set")


def no_model(ref: str) -> str:
    """The sentence about a name that no checkpoint of the package has."""
    return unknown(ref, builtin_names(), "model") + " (or give a file, a run folder or torchvision:NAME)"


def check_names(request: Any) -> None:
    """Refuse the misspelt names of a request, as the commands would; ``ValueError`` with the nearest ones.

    Only texts are looked at, and only names alone: what follows a colon, files and other packages' things are left to
    those who load them.
    """
    checks = {"data": _check_data, "model": _check_model, "attack": _check_attack, "recipe": _check_recipe}
    for field in fields(request):
        check, value = checks.get(field.metadata["kind"]), getattr(request, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if check is not None and isinstance(one, str) and one:
                check(one)


def _check_data(ref: str) -> None:
    name = ref
    for suffix in ("@rgb", "@grey"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    while name.lower().startswith(("shuffled:", "held-out:")):
        name = name.partition(":")[2]
    if ":" not in name and name.partition("@")[0].lower() not in _lower(DATA, "data"):
        raise ValueError(no_data_set(name))


def _check_model(ref: str) -> None:
    ref, _ = split_code(ref)
    name = ref.removesuffix("@random")
    if ":" in name or "/" in name or Path(name).suffix or Path(ref).exists() or Path(name).exists():
        return
    if name not in builtin_names() and name.lower() not in _lower((), "judges"):
        raise ValueError(no_model(name))


def _check_attack(text: str) -> None:
    found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(\(.*)?", text, re.DOTALL)
    if found and found.group(1).lower() not in {*_lower((*ATTACKS, *OLD_NAMES), "attacks"), "none"}:
        raise ValueError(unknown(found.group(1), ATTACKS, "attack"))


def _check_recipe(text: str) -> None:
    name = text.strip().partition("(")[0].strip()
    if name.lower() not in _lower(RECIPES):
        raise ValueError(unknown(name, RECIPES, "recipe"))


def _lower(names: Iterable[str], *groups: str) -> set[str]:
    """Names in lower case, with those that installed packages add."""
    return {name.lower() for name in (*names, *Catalogue({}, *groups).installed())}
