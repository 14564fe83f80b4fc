"""What training begins from: fresh weights, or those of a checkpoint, with a new head and layers that stay."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from vizrobust.data import DataSet
from vizrobust.models import Checkpoint, Normalized, architecture, load_checkpoint
from vizrobust.models.architectures import ARCHS
from vizrobust.models.checkpoints import load_strictly
from vizrobust.models.forward import choose_memory_format
from vizrobust.models.references import is_user_code
from vizrobust.requests import ParameterError
from vizrobust.training.recipe import TrainingRecipe

SHOWN = 12  # layers that a refusal names


def origin_of(recipe: TrainingRecipe) -> Checkpoint | None:
    """The checkpoint that the recipe starts from; ``ValueError`` where its weights are not those that the recipe names."""
    if not recipe.start:
        return None
    checkpoint = load_checkpoint(recipe.start, recipe.arch if is_user_code(recipe.arch) else None)
    if recipe.start_sha256 not in ("", checkpoint.sha256):
        raise ParameterError(
            "{start} %s has other weights (sha256 %s…) than this training began from (%s…); give {out} another folder",
            recipe.start, checkpoint.sha256[:8], recipe.start_sha256[:8],
        )  # fmt: skip
    return checkpoint


def first_network(recipe: TrainingRecipe, data: DataSet, seed: int) -> Normalized:
    """The network before it has learnt anything here, normalized as its origin is, else by the data's moments.

    Of an origin whose classes are others, the layers that depend on their number are new. Raises ``ValueError`` where its
    weights do not fit the images, or a pattern of layers that stay fits none.
    """
    origin = origin_of(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = architecture(recipe.arch, data.shape, len(data.classes))()
        if origin is not None:
            _take(body, origin, recipe, data)
    _freeze(body, recipe.freeze)
    about = data if origin is None else origin.info
    net = Normalized(body, about.mean, about.std)
    if recipe.arch not in ARCHS:
        choose_memory_format(net, data.shape)
    return net


def _take(body: nn.Module, origin: Checkpoint, recipe: TrainingRecipe, data: DataSet) -> None:
    """Copy the origin's weights into a network; those of its head stay new where the classes are others."""
    info = origin.info
    if info.input_shape[0] != data.shape[0]:
        raise ParameterError(
            "{start} %s takes images of %s channels, %s has %s; write {data} with @rgb or @grey behind it",
            origin.name, info.input_shape[0], data.name, data.shape[0],
        )  # fmt: skip
    state: Mapping[str, Tensor] = origin.state
    if info.classes != data.classes:
        new = body.state_dict()
        head = _head(recipe.arch, data)
        if not head and len(info.classes) != len(data.classes):
            raise ParameterError(
                "{arch} %s does not take a number of classes, so it has no head for the %s of %s", recipe.arch, len(data.classes),
                data.name,
            )  # fmt: skip
        state = {key: new[key] if key in head else value for key, value in state.items()}
    try:
        load_strictly(body, state, f"images of {data.name} in {recipe.arch}")
    except ValueError as error:
        if info.input_shape == data.shape:
            raise
        (_, here, there), (_, height, width) = data.shape, info.input_shape
        raise ParameterError(
            "%s; {start} %s takes images of %s x %s, these have %s x %s: give {data} of that size, such as imagefolder:DIR@%s",
            error, origin.name, height, width, here, there, height,
        ) from error  # fmt: skip


def _head(arch: str, data: DataSet) -> set[str]:
    """The weights whose shape depends on the number of classes."""
    few, more = (architecture(arch, data.shape, len(data.classes) + extra)().state_dict() for extra in (0, 1))
    return {key for key in few if key not in more or few[key].shape != more[key].shape}


def _freeze(body: nn.Module, patterns: tuple[str, ...]) -> None:
    """Layers whose name fits a pattern, and those inside them, do not learn; see `train_mode` for their statistics."""
    names = [name for name, _ in body.named_parameters()]
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            there = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
            raise ParameterError("{freeze} %r fits no layer; there are: %s%s", pattern, ", ".join(there[:SHOWN]), more)
    kept = [name for name in names if not any(_fits(name, pattern) for pattern in patterns)]
    if not kept:
        raise ParameterError("{freeze} %s leaves no layer that learns; leave one of them out", ", ".join(patterns))
    for name, weight in body.named_parameters():
        weight.requires_grad_(name in kept)


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")
