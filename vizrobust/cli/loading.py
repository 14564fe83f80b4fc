"""From references on the command line to checkpoints with their data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint


def load_all(refs: Sequence[str], arch: str | None, download: bool) -> list[Checkpoint]:
    """The checkpoints, each reference once. `arch` applies to those that need the user's code."""
    from vizrobust.models import load_checkpoint

    return [load_checkpoint(ref, arch, download) for ref in dict.fromkeys(refs)]


def data_of(checkpoint: Checkpoint, ref: str | None, download: bool, images_alone: bool = False) -> DataSet:
    """The data set `ref`, or the checkpoint's own; ``ValueError`` if shape or classes do not fit the network.

    With `images_alone` nothing depends on the labels, and the data set may have another number of classes.
    """
    from vizrobust.data import load

    about = checkpoint.info
    if ref is None and not about.data:
        raise click.UsageError(f"{checkpoint.name!r} does not say what it was trained on; give --data (vizrobust list data)")
    loaded = load(ref or about.data, download, typed=ref is not None)
    if loaded.shape != about.input_shape:
        has = f"{loaded.name} has {loaded.shape}"
        raise ValueError(f"{checkpoint.name!r} takes images of {about.input_shape}, {has}; give another --data")
    if len(loaded.classes) != len(about.classes):
        if images_alone:
            return loaded
        has = f"{loaded.name} has {len(loaded.classes)}"
        raise ValueError(f"{checkpoint.name!r} has {len(about.classes)} classes, {has}; give another --data")
    for number, (theirs, own) in enumerate(zip(loaded.classes, about.classes, strict=True)):
        if theirs.lower() in {name.lower() for name in about.classes} and theirs.lower() != own.lower():
            raise ValueError(
                f"class {number} is {own!r} for {checkpoint.name!r} and {theirs!r} in {loaded.name}: "
                "the labels mean other things; give another --data, or bring its classes into the checkpoint's order"
            )
    return loaded


def maybe_data_of(checkpoint: Checkpoint, ref: str | None, download: bool) -> DataSet | None:
    """As `data_of` for images alone, but None with a note where no reference is given and the data are not to be had."""
    from vizrobust.cli.output import say

    if ref is not None:
        return data_of(checkpoint, ref, download, images_alone=True)
    if not checkpoint.info.data:
        return None
    try:
        return data_of(checkpoint, None, download, images_alone=True)
    except (ValueError, FileNotFoundError) as error:
        say(f"note: going on without data: {error}")
        return None
