"""A finished checkpoint stored in half precision, with the accuracies of the file that results."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet, content_of
from vizrobust.models import Checkpoint, CheckpointInfo, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state, read_checkpoint, to_half
from vizrobust.models.object_code import own_sources
from vizrobust.models.references import CHECKPOINT_FILE, code_sha256
from vizrobust.requests import ParameterError
from vizrobust.robustness import reference_accuracies
from vizrobust.robustness.evaluation_runs import REFERENCE_IMAGES
from vizrobust.robustness.evaluation_runs import REFERENCE_IMAGES as TESTED_IMAGES
from vizrobust.robustness.evaluation_runs import REFERENCE_STEPS as TESTED_STEPS
from vizrobust.runs import RunFolder, read_run, write_atomic, write_rows
from vizrobust.spec import unknown
from vizrobust.training.examples import MultiAttack, attacks_of
from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.recipe import TrainingRecipe, origin_of

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


STATE_FILE = "state.pt"
# The state within an epoch; `STATE_FILE` stays as it was before it, for an epoch that is to be taken back.
PART_FILE = "part.pt"
METRICS_FILE = "metrics.jsonl"


def recorded_threads(folder: Path | str) -> int | None:
    """The thread count of an earlier start of this run: going on with it makes the weights the same bit for bit."""
    info = read_run(folder)
    return info.get("threads") if info else None


def train(
    recipe: TrainingRecipe, data: DataSet, compute: Compute, folder: Path | str, argv: str = "", measure: bool = True,
    checkpoint_every: int | None = None, wait: bool = False,
) -> Iterator[Progress | dict[str, Any]]:  # fmt: skip
    """Train in a folder, or go on where an earlier process stopped; yields batches as `Progress` and epochs as rows.

    After each epoch ``state.pt`` and ``metrics.jsonl`` are written, and ``part.pt`` after every `checkpoint_every`
    batches; at the end ``checkpoint.safetensors``, with clean accuracy and accuracy under PGD-50 on the first 1,000 test
    images in its description (without them where `measure` is false, for whoever measures the stored weights). An epoch
    that is taken back after a collapse yields a row with ``roll_back``, what was done about it. A finished run yields
    nothing. A folder that another process writes raises `Taken`, or with `wait` is waited for. Raises ``ValueError`` if
    the folder holds a run with another recipe, and where the recipe and `compute` differ in precision: the recipe is what
    is recorded.
    """
    if compute.precision != recipe.precision:
        raise ValueError(f"the recipe says precision {recipe.precision!r}, compute {compute.precision!r}; give both the same")
    processes = compute.processes
    finished = processes.broadcast((Path(folder) / CHECKPOINT_FILE).is_file())
    if not finished:
        # A network that cannot be built, or an attack that does not fit it, leaves no folder behind.
        trainer = Trainer(recipe, data, compute)
        trainer.dry_run()
    if not finished:
        _check_count(Path(folder), compute)
    record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
    if processes.size > 1:
        record["processes"] = processes.size
    run = RunFolder(
        folder, "train", {"training": repr(recipe), **own_content(data, recipe.arch, recipe)}, record, processes, wait=wait
    )
    if finished:
        run.close()
        return
    with closing(run):
        yield from _trained(trainer, run, checkpoint_every)
        info = replace(_description(trainer), metrics=_measured(trainer) if measure else {})
        if run.writes:
            save_checkpoint(run.folder / CHECKPOINT_FILE, body_state(trainer.outcome()), info)
        processes.barrier()


def _check_count(folder: Path, compute: Compute) -> None:
    """``ValueError`` where a run was begun with another number of processes: sums in another order are other weights."""
    said = ""
    if compute.processes.main and (folder / STATE_FILE).is_file():
        begun = (read_run(folder) or {}).get("processes", 1)
        if begun != compute.processes.size:
            said = (
                f"{str(folder)!r} was begun with {begun} process{'es' if begun > 1 else ''}, now there are "
                f"{compute.processes.size}: gradients summed in another order make other weights; go on with {begun}"
            )
    said = compute.processes.broadcast(said)
    if said:
        raise ValueError(said)


def _trained(trainer: Trainer, run: RunFolder, checkpoint_every: int | None) -> Iterator[Progress | dict[str, Any]]:
    recipe, files = trainer.recipe, _Files(run.folder, trainer)
    files.take_up()
    while not trainer.finished:
        began = time.monotonic()
        for progress in trainer.run_epoch():
            if checkpoint_every and progress.batch % checkpoint_every == 0 and progress.batch < progress.batches:
                files.keep_part()
            yield progress
        row = trainer.metrics[-1]
        if recipe.on_collapse != "warn" and "collapse" in row:
            before = files.state()
            # A first epoch has nothing to fall from.
            assert before is not None
            row = {**row, "retreat": trainer.roll_back(before)}
        files.keep()
        run.remember("seconds", {str(row["epoch"]): round(time.monotonic() - began, 2)})
        yield row


@dataclass(frozen=True)
class _Files:
    """The states of a trainer on disk."""

    folder: Path
    trainer: Trainer

    def state(self, name: str = STATE_FILE) -> dict[str, Any] | None:
        """What the file holds, from the main process for all; None where there is none."""
        compute, path = self.trainer.compute, self.folder / name
        held, said = None, ""
        if compute.processes.main and path.is_file():
            try:
                held = _read_state(path)
            except ValueError as error:
                said = str(error)
        held, said = compute.processes.broadcast((held, said))
        if said:
            raise ValueError(said)
        return held

    def take_up(self) -> None:
        trainer = self.trainer
        whole, part = self.state(), self.state(PART_FILE)
        if whole is not None:
            trainer.restore(whole)
            # A process killed between the two files leaves the metrics one epoch behind.
            self._write_metrics()
        # One that was killed before it could remove the part of an epoch that is done, or taken back, leaves that.
        if part is not None and (len(part["metrics"]), part["retries"]) == (trainer.epoch, trainer.retries):
            trainer.restore(part)

    def keep_part(self) -> None:
        self._write_state(PART_FILE)

    def keep(self) -> None:
        self._write_state(STATE_FILE)
        self._write_metrics()
        if self.trainer.compute.processes.main:
            (self.folder / PART_FILE).unlink(missing_ok=True)

    def _write_state(self, name: str) -> None:
        state = self.trainer.state()
        if self.trainer.compute.processes.main:
            write_atomic(self.folder / name, lambda file: torch.save(state, file))

    def _write_metrics(self) -> None:
        if self.trainer.compute.processes.main:
            write_rows(self.folder / METRICS_FILE, self.trainer.metrics)


def _read_state(path: Path) -> dict[str, Any]:
    """The state in a file; ``ValueError`` where it is damaged, or holds a number that is not finite."""
    begin = "the last whole epoch" if path.name == PART_FILE else "the start"
    remedy = f"remove {str(path)!r} and run the same command again, which then goes on from {begin}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice about files that it did not write is to run what is in them
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError | MemoryError):
            raise
        raise ValueError(f"{str(path)!r} is damaged and holds no state of a training run; {remedy}") from error
    if not (isinstance(state, dict) and {"net", "optimizer", "schedule", "metrics", "tally", "round"} <= set(state)):
        raise ValueError(f"{str(path)!r} holds no state of a training run; {remedy}")
    if name := _not_finite(state):
        raise ValueError(f"{str(path)!r} holds NaN or infinity in {name}; {remedy}")
    return state


def _not_finite(value: Any, name: str = "") -> str:
    """The dotted name of a tensor in nested dicts and lists that holds a number that is not finite, or ""."""
    if isinstance(value, torch.Tensor):
        return name if not value.isfinite().all() else ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((found for key, one in items if (found := _not_finite(one, f"{name}.{key}" if name else str(key)))), "")


def trained_checkpoint(folder: Path | str, arch: str | None = None) -> Checkpoint:
    """The checkpoint of a finished training run."""
    return load_checkpoint(str(folder), arch)


def own_content(data: DataSet, arch: str, *specs: Any) -> dict[str, str]:
    """Hashes of a person's own data and code, of the network and of `specs`, for the identity of a run; none of packages.

    >>> from vizrobust.data import load
    >>> own_content(load("digits"), "small_cnn")
    {}
    """
    found = {"content": content_of(data), "code": code_sha256(arch), "specs": own_sources(specs)}
    return {key: sha256 for key, sha256 in found.items() if sha256}


def _description(trainer: Trainer) -> CheckpointInfo:
    recipe, data = trainer.recipe, trainer.data
    origin = origin_of(recipe)
    normalization = data if origin is None else origin.info
    # Several attacks have no one radius; `attacks_seen` reads each from the recipe.
    threats = list(dict.fromkeys(attack.threat_model() for attack in attacks_of(recipe.attack)))
    norm, eps = threats[0] if len(threats) == 1 else (" + ".join(dict.fromkeys(name for name, _ in threats)), None)
    return CheckpointInfo(
        arch=recipe.arch,
        input_shape=data.shape,
        classes=data.classes,
        mean=normalization.mean,
        std=normalization.std,
        data=recipe.data,
        training=repr(recipe),
        attack_steps=recipe.attack_steps,
        eps=eps,
        norm=norm,
        versions=versions(),
        arch_sha256=code_sha256(recipe.arch),
    )


def _measured(trainer: Trainer) -> dict[str, Any]:
    """Accuracies on the first 1,000 test images: clean, under one step, and under PGD-50 (``robust``)."""
    return reference_accuracies(trainer.outcome(), trainer.data, trainer.compute, images=TESTED_IMAGES, steps=TESTED_STEPS)


def sweep_runs(
    recipe: Callable[[int | None, int], TrainingRecipe], steps: Sequence[int | None], seeds: Sequence[int]
) -> dict[str, TrainingRecipe]:
    """The training runs by name, seed by seed; `recipe` gives the recipe for K (None: the attack's own) and a training seed.

    >>> of = lambda k, seed: TrainingRecipe(arch="small_cnn", data="digits", seed=seed)
    >>> list(sweep_runs(of, [0, 8], [0, 1]))
    ['k0-s0', 'k8-s0', 'k0-s1', 'k8-s1']
    """
    return {_name(recipe(k, seed), k): recipe(k, seed) for seed in seeds for k in steps}


def select_run(runs: dict[str, TrainingRecipe], which: str) -> str:
    """The name of one training run, from its name or its number (a job array's, from 0 on); ``ValueError`` without one.

    >>> of = lambda k, seed: TrainingRecipe(arch="small_cnn", data="digits", seed=seed)
    >>> select_run(sweep_runs(of, [0, 8], [0, 1]), "2")
    'k0-s1'
    """
    names = list(runs)
    if which.isdecimal():
        if int(which) >= len(names):
            last = len(names) - 1
            raise ValueError(f"no training run {which}; there are {len(names)}, from 0 ({names[0]}) to {last} ({names[-1]})")
        return names[int(which)]
    if which not in runs:
        raise ValueError(unknown(which, names, "training run"))
    return which


def _name(recipe: TrainingRecipe, k: int | None) -> str:
    """Such as ``k8-s0``; it names the run's folder."""
    how = [] if recipe.method is None else [type(recipe.method).__name__.lower()]
    if k is not None:
        how.append(f"k{k}")
    elif recipe.method is None:
        # Folders of sweeps over several attacks have always been called mix.
        several = isinstance(recipe.attack, MultiAttack)
        how.append("mix" if several else "k0" if recipe.attack is None else type(recipe.attack).__name__.lower())
    return "-".join([*how, f"s{recipe.seed}"])
