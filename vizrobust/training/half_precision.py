"""A finished checkpoint stored in half precision, with the accuracies of the file that results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.models import Checkpoint, save_checkpoint
from vizrobust.models.checkpoints import read_checkpoint, to_half
from vizrobust.models.references import CHECKPOINT_FILE
from vizrobust.requests import ParameterError
from vizrobust.robustness import reference_accuracies
from vizrobust.robustness.evaluation_runs import REFERENCE_IMAGES

SUFFIX = ".safetensors"


def check_target(out: Path | str, source: str) -> Path:
    """`out` as a path; ``ValueError`` if it does not end in .safetensors or is the checkpoint's own file."""
    path, own = Path(out), Path(source)
    own = own / CHECKPOINT_FILE if own.is_dir() else own
    if path.suffix != SUFFIX:
        raise ParameterError("{out} %r must end in %s, the format of a checkpoint", str(out), SUFFIX)
    if path.exists() and own.is_file() and path.samefile(own):
        raise ParameterError("{out} %r is the checkpoint itself; give another name", str(out))
    return path


def store_half(
    checkpoint: Checkpoint,
    data: DataSet,
    compute: Compute,
    out: Path | str,
    eps: float | None = None,
    other_data: str = "",
    images: int = REFERENCE_IMAGES,
) -> Checkpoint:
    """Write `checkpoint` to `out` in half precision and give back what the file holds.

    Clean, FGSM and PGD-50 accuracy are measured anew with the rounded weights (`reference_accuracies`), on the first
    test `images` of `data` at `eps` (None: the data set's). `other_data` is its reference where it is not the data set of
    the checkpoint; the metrics then name it. The file is written when that is done.
    """
    path = check_target(out, checkpoint.reference)
    rounded = {key: tensor.to(checkpoint.state[key].dtype) for key, tensor in to_half(checkpoint.state).items()}
    metrics = reference_accuracies(replace(checkpoint, state=rounded).net(), data, compute, eps, images)
    if other_data not in ("", checkpoint.info.data):
        metrics["data"] = other_data
    save_checkpoint(path, rounded, replace(checkpoint.info, metrics=metrics), half=True)
    info, state = read_checkpoint(path)
    return Checkpoint(str(path), info, state, checkpoint.build, code=checkpoint.code)
