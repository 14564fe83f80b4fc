"""From an architecture reference to a function that builds the network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from vizrobust.models.networks import ARCHS, Shape
from vizrobust.runs import file_sha256
from vizrobust.spec import lookup, unknown

Build = Callable[[], nn.Module]


def architecture(ref: str, shape: Shape, classes: int) -> Build:
    """A function that builds the network `ref` names, for images of `shape` (C, H, W) and so many classes.

    `ref` is one of our architectures, ``torchvision:NAME``, ``timm:NAME`` or ``path/to/file.py:callable``: the
    user's own code, called as ``callable(classes)``, ``callable(shape, classes)`` or ``callable()``, whichever it
    takes. Raises ``ValueError`` or ``FileNotFoundError`` where there is no such thing.
    """
    kind, _, name = ref.partition(":")
    if kind == "torchvision":
        return _torchvision(name, shape, classes)
    if kind == "timm":
        return _timm(name, shape, classes)
    if is_user_code(ref):
        return _user_code(ref, shape, classes)
    make = lookup(ARCHS, ref, "architecture")
    return lambda: make(shape, classes)


def is_user_code(ref: str) -> bool:
    return ".py:" in ref


def code_sha256(ref: str) -> str:
    """The hash of the file behind a ``path.py:callable`` reference; empty for any other reference."""
    return file_sha256(ref.rpartition(":")[0]) if is_user_code(ref) else ""


def _torchvision(name: str, shape: Shape, classes: int) -> Build:
    import torchvision
    from torchvision.models import get_model, list_models

    classifiers = list_models(module=torchvision.models)
    if name not in classifiers:
        raise ValueError(unknown(name, classifiers, "torchvision model"))
    if shape[0] != 3:
        raise ValueError(f"torchvision:{name} takes 3 channels, these images have {shape[0]}; use small_cnn or resnet_small")
    return lambda: get_model(name, weights=None, num_classes=classes)


def _timm(name: str, shape: Shape, classes: int) -> Build:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs the timm package: pip install 'vizrobust[timm]'") from error
    if not timm.is_model(name):
        raise ValueError(unknown(name, timm.list_models(), "timm model"))
    return lambda: timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0])


def _user_code(ref: str, shape: Shape, classes: int) -> Build:
    path, _, name = ref.rpartition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r} (from --arch {ref})")
    module_spec = importlib.util.spec_from_file_location(f"vizrobust_user_{Path(path).stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(unknown(name, public, f"callable in {path}"))
    return lambda: _call(make, ref, shape, classes)


def _call(make: Callable[..., object], ref: str, shape: Shape, classes: int) -> nn.Module:
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
