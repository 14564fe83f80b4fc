"""The networks of a study: trained by it, or brought by the user."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from vizrobust.attacks import FGSM, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head, shuffled_labels
from vizrobust.models import Checkpoint, architecture, load_checkpoint
from vizrobust.models.references import CHECKPOINT_FILE
from vizrobust.parallel import Processes
from vizrobust.runs import Row, RunFolder, read_rows, read_run, write_atomic
from vizrobust.study.evaluations import robust_accuracy
from vizrobust.study.protocol import EpsChoice, Plan, TrainingRun, eps_rule, training_runs
from vizrobust.training import METRICS_FILE, Progress, Training, seen, store_half, train, trained

SWEEP, BASELINE, CONTROL, UNTRAINED = "dose", "arm", "control", "random"


@dataclass(frozen=True)
class StudyCheckpoint:
    """A checkpoint in its place: `group` is the same for all training seeds, `k` the dose (None outside the slope)."""

    checkpoint: Checkpoint
    group: str
    role: str
    k: int | None
    seed: int
    label: str
    history: tuple[Row, ...] = ()

    def row(self, reference: str, masked: dict[str, str] | None) -> dict[str, Any]:
        """Its row of the report; `reference` loads it again."""
        about = self.checkpoint.info
        last = self.history[-1] if self.history else {}
        eps = last.get("eps")
        passes = [one.get("gradient_passes", _passes(about.training)) for one in self.history]
        return {
            "name": self.checkpoint.name,
            "label": self.label,
            "role": self.role,
            "group": self.group,
            "k": self.k,
            "seed": self.seed,
            "ref": reference,
            "weights_sha256": self.checkpoint.sha256,
            "training": about.training,
            "clean": about.metrics.get("clean"),
            "delta_linf": last["delta_linf"] / eps if eps and last.get("delta_linf") is not None else None,
            "delta_l2": last.get("delta_l2"),
            "gradient_passes": sum(passes) if passes else None,
            "epochs": len(self.history) or None,
            "masked": masked,
        }


def _passes(training: str) -> int:
    """Gradient passes per image and epoch of runs that did not yet count them: K for the attack, one for the weights."""
    return 1 + sum(getattr(attack, "steps", int(isinstance(attack, FGSM))) for attack in seen(training))


def of_training_run(cell: TrainingRun, checkpoint: Checkpoint, history: Sequence[Row]) -> StudyCheckpoint:
    """A trained cell under its own name."""
    named = replace(checkpoint, name=cell.name)
    return StudyCheckpoint(named, cell.group, cell.role, cell.k, cell.seed, cell.label, tuple(history))


def provided_checkpoints(checkpoints: Sequence[Checkpoint], data: DataSet) -> list[StudyCheckpoint]:
    """Checkpoints that somebody brings, by what their descriptions say of their training.

    A random start and the usual step make a dose, FGSM an arm; where the training is not known, the number of attack
    steps decides. Two checkpoints of one dose are two training seeds. Raises ``ValueError`` where they take other
    images or classes than `data`, or where there are not two doses.
    """
    found: list[StudyCheckpoint] = []
    for checkpoint in checkpoints:
        _fits(checkpoint, data)
        group, role, k = _place(checkpoint)
        seed = sum(one.group == group for one in found)
        label = f"{checkpoint.name} (K = {k})" if role == SWEEP else checkpoint.name
        found.append(StudyCheckpoint(checkpoint, group, role, k, seed, label))
    doses = {one.k for one in found if one.role == SWEEP}
    if len(doses) < 2:
        have = f"K = {', '.join(map(str, sorted(k for k in doses if k is not None)))}" if doses else "none"
        raise ValueError(f"a study compares two or more K, got {have}; name checkpoints of other numbers of attack steps")
    return found


def _place(checkpoint: Checkpoint) -> tuple[str, str, int | None]:
    about = checkpoint.info
    try:
        attacks = seen(about.training) if about.training.startswith(Training.__name__) else None
    except ValueError:
        attacks = None
    if attacks is None:
        k = about.attack_steps
        return (f"k{k}", SWEEP, k) if k is not None else (checkpoint.name, "given", None)
    if about.data.startswith("shuffled:"):
        return checkpoint.name, CONTROL, None
    if not attacks:
        return "k0", SWEEP, 0
    (attack, *others) = attacks
    if isinstance(attack, PGD) and not others and attack.random_start and attack.alpha is None:
        return f"k{attack.steps}", SWEEP, attack.steps
    if isinstance(attack, FGSM) and not others:
        return "fgsm", BASELINE, None
    return checkpoint.name, "given", None


def _fits(checkpoint: Checkpoint, data: DataSet) -> None:
    about = checkpoint.info
    if about.input_shape != data.shape or len(about.classes) != len(data.classes):
        takes = f"{about.input_shape} and {len(about.classes)} classes"
        raise ValueError(
            f"{checkpoint.name} takes {takes}, {data.name} has {data.shape} and {len(data.classes)}: a study compares "
            "checkpoints of one data set; leave it out, or give its --data"
        )
    for number, (own, theirs) in enumerate(zip(about.classes, data.classes, strict=True)):
        if own.lower() != theirs.lower():
            raise ValueError(
                f"class {number} is {own!r} for {checkpoint.name} and {theirs!r} in {data.name}: a study compares "
                "checkpoints with one order of classes; leave it out"
            )
    if about.data and about.data.removeprefix("shuffled:") != data.name:
        raise ValueError(
            f"{checkpoint.name} was trained on {about.data}, the others on {data.name}: a study compares checkpoints of one "
            "data set; leave it out"
        )


# A cell's file says what it is worth on so many images; the report's accuracies are on all of them.
QUICK_IMAGES = 200
# Test images that decide about eps.
EPS_RULE_IMAGES = 1000

# What is being done, and the gradient passes that it has taken.
Doing = tuple[str, float]


class Trainings:
    """All cells of a study in its folder.

    Each is trained whole by one process, so that its weights do not depend on how many there are, bit for bit, and
    another number of them can go on. Only the main one need see the folder: what another process has learnt where that
    one does not see it is sent there, and whoever does not see the folder trains in one of the same name.
    """

    def __init__(self, folder: Path, plan: Plan, data: DataSet, compute: Compute, argv: str) -> None:
        self.folder, self.plan, self.data, self.compute, self.argv = folder, plan, data, compute, argv
        self.histories: dict[str, list[Row]] = {}

    def choose_eps(self, attacks: RunFolder) -> Generator[Doing, None, EpsChoice]:
        """The radius that the plan gives or its rule finds; each answer decides the next question, so one process trains."""
        if self.plan.eps is not None or not self.plan.radii:
            return EpsChoice(self.plan.eps or self.data.eps, (), "given" if self.plan.eps else "the data set's usual one")
        asking, answer = eps_rule(self.plan.radii, self.data.eps), None
        while True:
            try:
                question = next(asking) if answer is None else asking.send(answer)
            except StopIteration as done:
                chosen: EpsChoice = done.value
                return chosen
            answer = yield from self._tried(*question, attacks)

    def _tried(self, who: str, eps: float, attacks: RunFolder) -> Generator[Doing, None, float]:
        """Train the first seed's fgsm arm or K = 8 at one eps, where a sweep at that eps will find it again."""
        plan = replace(self.plan, seeds=1, arms=("fgsm",), controls=(), steps=(0, 8))
        wanted = next(cell for cell in training_runs(plan, eps) if cell.group == ("fgsm" if who == "fgsm" else "k8"))
        training, processes = wanted.training, self.compute.processes
        folder = self._folder(wanted, training, f"{wanted.name}-eps{eps:g}")
        if processes.main:
            yield from self._trained_in(folder, training, f"choosing eps: {wanted.group} at {eps:.3g}")
        attack = PGD(steps=self.plan.pgd_steps, ball=Linf(eps=eps))
        # What everything else depends on is asked of many images, also where the study itself attacks few.
        images = head(self.data.test, self.plan.images if self.plan.quick else max(EPS_RULE_IMAGES, self.plan.images))
        found = on_all(lambda: trained(folder, training.arch), training.arch, processes)
        return robust_accuracy(attack, found, images, self.compute.in_fp32(), attacks)

    def learn(self, sweep: Sequence[TrainingRun], eps: float) -> Generator[Doing, None, list[StudyCheckpoint]]:
        """Train the cells and measure what is stored of them at `eps`, or read those that are there."""
        processes = self.compute.processes
        mine = self._mine(sweep)
        for cell in mine:
            yield from self._learn(cell, eps)
        if processes.size > 1:
            yield "waiting for what the other processes train", 0.0
            processes.barrier()
            yield from self._meet(sweep, mine)
        return [self._outcome(cell) for cell in sweep]

    def _mine(self, sweep: Sequence[TrainingRun]) -> list[TrainingRun]:
        """This process's cells, in the order of the sweep; the main one has those that are trained already."""
        processes = self.compute.processes
        if processes.main:
            for cell in sweep:
                if cell.until in ("", *self.histories) and (self._place(cell) / CHECKPOINT_FILE).is_file():
                    self.histories[cell.name] = self._history(cell)
        self.histories = processes.broadcast(self.histories)
        todo = [cell for cell in sweep if cell.name not in self.histories]
        shares = shared_out(todo, processes.size)
        if processes.main:
            shares[0] = [cell for cell in sweep if cell in shares[0] or cell.name in self.histories]
        return shares[processes.rank]

    def _learn(self, cell: TrainingRun, eps: float) -> Iterator[Doing]:
        training, folder, path = self._training(cell), self._place(cell), self._shipped(cell)
        yield from self._trained_in(folder, training, cell.label)
        self.histories[cell.name] = self._history(cell)
        if not path.is_file():
            yield f"{cell.label}: measuring the stored weights", 0.0
            whole, alone = trained(folder, training.arch), self.compute.alone().in_fp32()
            store_half(whole, self.data, alone, path, eps, images=min(QUICK_IMAGES, self.plan.images))

    def _meet(self, sweep: Sequence[TrainingRun], mine: Sequence[TrainingRun]) -> Iterator[Doing]:
        """Bring to the main process's folder what other processes trained where it does not see it."""
        processes = self.compute.processes
        lacking = processes.broadcast([cell.name for cell in sweep if not self._shipped(cell).is_file()])
        for name, files in processes.merged(self._packed(cell) for cell in mine if cell.name in lacking):
            if processes.main:
                for file, content in files.items():
                    write_atomic(self.folder / file, partial(_put, content))
            yield f"received: {name}", 0.0
        own = {cell.name for cell in mine}
        for cell in sweep:
            if cell.name not in own:
                yield f"trained by another process: {cell.label}", passes(cell.training, self.data)

    def _packed(self, cell: TrainingRun) -> tuple[str, dict[str, bytes]]:
        """A finished cell's files by their names in the study's folder, the one that says that it is finished last."""
        place = self._place(cell)
        paths = [place / "run.json", place / METRICS_FILE, place / CHECKPOINT_FILE, self._shipped(cell)]
        return cell.name, {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def _outcome(self, cell: TrainingRun) -> StudyCheckpoint:
        """A finished cell, which the main process reads for all."""
        processes, arch = self.compute.processes, cell.training.arch
        own = arch if ".py:" in arch else None
        found = on_all(lambda: load_checkpoint(str(self._shipped(cell)), own), arch, processes)
        self.histories[cell.name] = processes.broadcast(self._history(cell) if processes.main else [])
        return of_training_run(cell, found, self.histories[cell.name])

    def _training(self, cell: TrainingRun) -> Training:
        """How the cell is trained; it may end where another one has come to."""
        if not cell.until:
            return cell.training
        return replace(cell.training, until_clean=self.histories[cell.until][-1]["val_clean"])

    def _place(self, cell: TrainingRun) -> Path:
        return self._folder(cell, self._training(cell), cell.name)

    def _folder(self, cell: TrainingRun, training: Training, usual: str) -> Path:
        """Where a cell is trained: where the same training was begun already, be it to choose eps, else `usual`."""
        there = [self.folder / "cells" / cell.name, *sorted((self.folder / "cells").glob(f"{cell.name}-eps*"))]
        begun = ((folder, read_run(folder)) for folder in there)
        same = [folder for folder, run in begun if run is not None and run["identity"]["training"] == repr(training)]
        return same[0] if same else self.folder / "cells" / usual

    def _shipped(self, cell: TrainingRun) -> Path:
        return self.folder / "checkpoints" / f"{cell.name}.safetensors"

    def _history(self, cell: TrainingRun) -> list[Row]:
        return read_rows(self._place(cell), METRICS_FILE)

    def _trained_in(self, folder: Path, training: Training, label: str) -> Iterator[Doing]:
        if (folder / CHECKPOINT_FILE).is_file():
            yield f"trained already: {label}", passes(training, self.data)
            return
        data = self.data if training.data == self.data.name else shuffled_labels(self.data)
        for event in train(training, data, self.compute.alone(), folder, self.argv, measure=False):
            if isinstance(event, Progress):
                done = passes(training, self.data) / training.epochs / event.batches
                yield f"training {label}: epoch {event.epoch}/{training.epochs}", done


def passes(training: Training, data: DataSet) -> float:
    """Gradient passes of a whole training; an evaluation weighs what it takes."""
    return float(training.epochs * (training.attack_steps + 2) * len(data.train))


def shared_out(todo: Sequence[TrainingRun], size: int) -> list[list[TrainingRun]]:
    """Who of `size` processes trains which cells: the longest first, each by whoever has least to do.

    A cell that ends where another one has come to is trained by the same process, after that one.
    """
    of_one: dict[str, list[TrainingRun]] = {}
    for cell in todo:
        of_one.setdefault(cell.until or cell.name, []).append(cell)

    def length(some: Sequence[TrainingRun]) -> int:
        return sum(cell.training.epochs * (cell.training.attack_steps + 2) for cell in some)

    shares: list[list[TrainingRun]] = [[] for _ in range(size)]
    for some in sorted(of_one.values(), key=length, reverse=True):
        min(shares, key=length).extend(some)
    return [[cell for cell in todo if cell in share] for share in shares]


def _put(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def on_all(load: Callable[[], Checkpoint], arch: str, processes: Processes) -> Checkpoint:
    """The checkpoint that the main process loads, on every process; `arch` makes its network."""
    if processes.size == 1:
        return load()
    sent = None
    if processes.main:
        found = load()
        sent = found.name, found.info, dict(found.state), found.ref
    told = processes.broadcast(sent)
    assert told is not None
    name, about, state, ref = told
    return Checkpoint(name, about, state, architecture(arch, about.input_shape, len(about.classes)), ref)
