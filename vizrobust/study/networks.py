"""The networks of a study: how eps is chosen, what is trained, and what is given."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from vizrobust.attacks import FGSM, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head, shuffled_labels
from vizrobust.models import Checkpoint, architecture, load_checkpoint
from vizrobust.models.references import CHECKPOINT_FILE
from vizrobust.parallel import Processes
from vizrobust.requests import ParameterError
from vizrobust.runs import Row, RunFolder, read_rows, read_run, write_atomic
from vizrobust.study.evaluations import robust_accuracy
from vizrobust.study.protocol import BASELINE, CONTROL, SWEEP, Plan, TrainingRun, training_runs
from vizrobust.training import (
    METRICS_FILE,
    Progress,
    TrainingRecipe,
    attacks_seen,
    is_recipe,
    store_half,
    train,
    trained_checkpoint,
)

# The rule asks for a radius at which the baseline fgsm keeps less than this part of the accuracy of K = 8 under PGD-50.
PART = 0.5


@dataclass(frozen=True)
class EpsTrial:
    """Accuracies at one eps; `strong` is None where K = 8 was not trained because it could not have twice that of `fgsm`."""

    eps: float
    fgsm: float
    strong: float | None
    fulfilled: bool


@dataclass(frozen=True)
class EpsChoice:
    """The chosen radius, the reason, and all trials of the rule."""

    eps: float
    tried: tuple[EpsTrial, ...]
    reason: str

    def row(self) -> dict[str, Any]:
        return {"eps": self.eps, "reason": self.reason, "tried": [asdict(one) for one in self.tried]}


# ("fgsm" or "strong", eps): whose accuracy under PGD-50 the rule asks for next.
EpsQuestion = tuple[str, float]


def eps_rule(radii: Sequence[float], usual: float) -> Generator[EpsQuestion, float, EpsChoice]:
    """The rule as a conversation: yields what it wants to know, is sent the accuracy, and returns its choice.

    It asks only for what can decide, because each answer is a training. Above the `usual` radius it first asks what K = 8
    keeps there, where the sweep would train it anyway: what it keeps at a larger radius is taken to be no more.
    """
    tried: list[EpsTrial] = []
    most: float | None = None
    for eps in sorted(radii):
        fgsm, strong = (yield "fgsm", eps), None
        if fgsm < PART and eps > usual and most is None:
            most = yield "strong", usual
        if fgsm < PART * (1 if most is None else most):
            strong = yield "strong", eps
        tried.append(EpsTrial(eps, fgsm, strong, strong is not None and fgsm < PART * strong))
        if tried[-1].fulfilled:
            return EpsChoice(
                eps, tuple(tried), "the smallest radius at which the fgsm arm keeps less than half of what K = 8 keeps"
            )
    reason = "no radius fulfils the rule, so the data set's usual one: one-step training did not fail"
    if most is not None and any(one.eps > usual and one.strong is None for one in tried):
        reason += f" (K = 8 keeps {most:.1%} at the usual radius, and is taken to keep no more at larger ones)"
    return EpsChoice(usual, tuple(tried), reason)


@dataclass(frozen=True)
class StudyCheckpoint:
    """A checkpoint and its place in the study: `group` is the same for all training seeds, `k` is None outside the sweep."""

    checkpoint: Checkpoint
    group: str
    role: str
    k: int | None
    seed: int
    label: str
    history: tuple[Row, ...] = ()

    def row(self, reference: str, masked: dict[str, str] | None) -> dict[str, Any]:
        """The row of `checkpoints` in the report; `reference` loads the checkpoint again."""
        about = self.checkpoint.info
        last = self.history[-1] if self.history else {}
        eps = last.get("eps")
        passes = [one.get("gradient_passes", _passes(about.training)) for one in self.history]
        return {
            "name": self.checkpoint.name, "label": self.label, "role": self.role, "group": self.group, "k": self.k,
            "seed": self.seed, "ref": reference, "weights_sha256": self.checkpoint.sha256, "training": about.training,
            "clean": about.metrics.get("clean"),
            "delta_linf": last["delta_linf"] / eps if eps and last.get("delta_linf") is not None else None,
            "delta_l2": last.get("delta_l2"),
            "gradient_passes": sum(passes) if passes else None,
            "eps": about.eps, "epochs": len(self.history) or None, "masked": masked,
        }  # fmt: skip


def _passes(training: str) -> int:
    """Gradient passes per image and epoch of runs too old to have counted them: K for the attack, one for the weights."""
    return 1 + sum(getattr(attack, "steps", int(isinstance(attack, FGSM))) for attack in attacks_seen(training))


def of_training_run(run: TrainingRun, checkpoint: Checkpoint, history: Sequence[Row]) -> StudyCheckpoint:
    """The checkpoint of a training run, under the run's name."""
    named = replace(checkpoint, name=run.name)
    return StudyCheckpoint(named, run.group, run.role, run.k, run.seed, run.label, tuple(history))


def provided_checkpoints(checkpoints: Sequence[Checkpoint], data: DataSet) -> list[StudyCheckpoint]:
    """The user's checkpoints, in the places that their descriptions of their training give them.

    PGD with a random start and the default step belongs to the sweep, FGSM is a baseline. Where the training is unknown,
    the number of attack steps decides. Two checkpoints of one K are two training seeds. Raises ``ValueError`` where they
    take other images or classes than `data`, or where there are not two K.
    """
    found: list[StudyCheckpoint] = []
    for checkpoint in checkpoints:
        _fits(checkpoint, data)
        group, role, k = _place(checkpoint)
        seed = sum(one.group == group for one in found)
        label = f"{checkpoint.name} (K = {k})" if role == SWEEP else checkpoint.name
        found.append(StudyCheckpoint(checkpoint, group, role, k, seed, label))
    steps = {one.k for one in found if one.role == SWEEP}
    if len(steps) < 2:
        have = f"K = {', '.join(map(str, sorted(k for k in steps if k is not None)))}" if steps else "none"
        raise ValueError(f"a study compares two or more K, got {have}; name checkpoints of other numbers of attack steps")
    return found


def _place(checkpoint: Checkpoint) -> tuple[str, str, int | None]:
    about = checkpoint.info
    try:
        attacks = attacks_seen(about.training) if is_recipe(about.training) else None
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
        raise ParameterError(
            "%s takes %s, %s has %s and %s: a study compares checkpoints of one data set; leave it out, or give its {data}",
            checkpoint.name, takes, data.name, data.shape, len(data.classes),
        )  # fmt: skip
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


# A network's file states accuracies on this many images; those of the report are on all images.
QUICK_IMAGES = 200

# What is being done, and how many gradient passes it took.
Work = tuple[str, float]


class StudyTrainings:
    """All training runs of a study, in its folder.

    One process trains a network from start to end. So weights do not depend on the number of processes, bit for bit, and a
    study can be resumed with another number. Only the main process must see the folder. Another process trains in a folder
    of the same name, and its networks are sent to the main one. Of `networks`, the folder of another study or what was kept
    of it, each network whose training is the same is copied instead of trained.
    """

    def __init__(
        self, folder: Path, plan: Plan, data: DataSet, compute: Compute, argv: str, networks: Path | None = None
    ) -> None:
        self.folder, self.plan, self.data, self.compute, self.argv = folder, plan, data, compute, argv
        self.networks = networks
        self.histories: dict[str, list[Row]] = {}

    def choose_eps(self, attacks: RunFolder) -> Generator[Work, None, EpsChoice]:
        """The radius of the plan or of its rule. Each accuracy decides what the rule asks next, so one process trains."""
        if self.plan.eps is not None or not self.plan.radii:
            return EpsChoice(self.plan.eps or self.data.usual_eps, (), "given" if self.plan.eps else "the data set's usual one")
        asking, answer = eps_rule(self.plan.radii, self.data.usual_eps), None
        while True:
            try:
                question = next(asking) if answer is None else asking.send(answer)
            except StopIteration as done:
                chosen: EpsChoice = done.value
                return chosen
            answer = yield from self._accuracy_at(*question, attacks)

    def _accuracy_at(self, who: str, eps: float, attacks: RunFolder) -> Generator[Work, None, float]:
        """Train the first seed's fgsm or K = 8 at one eps, in the folder where a sweep at that eps will look for it."""
        plan = replace(self.plan, seeds=1, arm_seeds=None, standard_seeds=None, arms=("fgsm",), controls=(), steps=(0, 8))
        wanted = next(run for run in training_runs(plan, eps) if run.group == ("fgsm" if who == "fgsm" else "k8"))
        training, processes = wanted.training, self.compute.processes
        folder = self._folder(wanted, training, f"{wanted.name}-eps{eps:g}")
        if processes.main:
            yield from self._trained_in(folder, training, f"choosing eps: {wanted.group} at {eps:.3g}")
        attack = PGD(steps=self.plan.pgd_steps, ball=Linf(eps=eps))
        # Everything else depends on eps, so it is chosen on many images even where the study attacks few.
        images = head(self.data.test, self.plan.images if self.plan.quick else max(self.plan.eps_rule_images, self.plan.images))
        found = on_all(lambda: trained_checkpoint(folder, training.arch), training.arch, processes)
        return robust_accuracy(attack, found, images, self.compute.in_fp32(), attacks)

    def train_all(self, runs: Sequence[TrainingRun], eps: float) -> Generator[Work, None, list[StudyCheckpoint]]:
        """Train the networks and evaluate the stored weights at `eps`, or read those that exist."""
        processes = self.compute.processes
        mine = self._own_share(runs)
        for run in mine:
            yield from self._train(run, eps)
        if processes.size > 1:
            yield "waiting for what the other processes train", 0.0
            processes.barrier()
            yield from self._collect(runs, mine)
        return [self._finished(run) for run in runs]

    def _own_share(self, runs: Sequence[TrainingRun]) -> list[TrainingRun]:
        """This process's runs, in the order of the protocol; the main process also takes those that are trained already."""
        processes = self.compute.processes
        if processes.main:
            for run in runs:
                if run.until in ("", *self.histories):
                    self._take(run)
                    if self._is_trained(run):
                        self.histories[run.name] = self._history(run)
        self.histories = processes.broadcast(self.histories)
        todo = [run for run in runs if run.name not in self.histories]
        shares = assign_runs(todo, processes.size)
        if processes.main:
            shares[0] = [run for run in runs if run in shares[0] or run.name in self.histories]
        return shares[processes.rank]

    def _take(self, run: TrainingRun) -> None:
        """Copy what another study kept of this network, unless there is one already."""
        if self.networks is None or self._is_trained(run):
            return
        other = StudyTrainings(self.networks, self.plan, self.data, self.compute, self.argv)
        other.histories = self.histories
        if other._is_trained(run) and other._weights_file(run).is_file():
            for name, content in other._packed(run)[1].items():
                write_atomic(self.folder / name, partial(_write_bytes, content))

    def _is_trained(self, run: TrainingRun) -> bool:
        """Whether a run has ended. Its stored weights, run.json and whole history are enough: those are kept of a network."""
        place, training = self._place(run), self._training(run)
        if (place / CHECKPOINT_FILE).is_file():
            return True
        began = read_run(place)
        same = began is not None and began["identity"]["training"] == repr(training)
        return same and self._weights_file(run).is_file() and len(self._history(run)) == training.epochs

    def _train(self, run: TrainingRun, eps: float) -> Iterator[Work]:
        training, folder, path = self._training(run), self._place(run), self._weights_file(run)
        if self._is_trained(run):
            yield f"trained already: {run.label}", passes(training, self.data)
        else:
            yield from self._trained_in(folder, training, run.label)
        self.histories[run.name] = self._history(run)
        if not path.is_file():
            yield f"{run.label}: measuring the stored weights", 0.0
            whole, alone = trained_checkpoint(folder, training.arch), self.compute.alone().in_fp32()
            store_half(whole, self.data, alone, path, eps, images=min(QUICK_IMAGES, self.plan.images))

    def _collect(self, runs: Sequence[TrainingRun], mine: Sequence[TrainingRun]) -> Iterator[Work]:
        """Send to the main process what other processes trained outside its folder."""
        processes = self.compute.processes
        lacking = processes.broadcast([run.name for run in runs if not self._weights_file(run).is_file()])
        for name, files in processes.interleave(self._packed(run) for run in mine if run.name in lacking):
            if processes.main:
                for file, content in files.items():
                    write_atomic(self.folder / file, partial(_write_bytes, content))
            yield f"received: {name}", 0.0
        own = {run.name for run in mine}
        for run in runs:
            if run.name not in own:
                yield f"trained by another process: {run.label}", passes(run.training, self.data)

    def _packed(self, run: TrainingRun) -> tuple[str, dict[str, bytes]]:
        """A finished run's files by their names in the study's folder; the last one marks the run as finished."""
        place = self._place(run)
        paths = [place / "run.json", place / METRICS_FILE, place / CHECKPOINT_FILE, self._weights_file(run)]
        return run.name, {str(path.relative_to(self.folder)): path.read_bytes() for path in paths if path.is_file()}

    def _finished(self, run: TrainingRun) -> StudyCheckpoint:
        """A finished run, which the main process reads for all."""
        processes, arch = self.compute.processes, run.training.arch
        own = arch if ".py:" in arch else None
        found = on_all(lambda: load_checkpoint(str(self._weights_file(run)), own), arch, processes)
        self.histories[run.name] = processes.broadcast(self._history(run) if processes.main else [])
        return of_training_run(run, found, self.histories[run.name])

    def _training(self, run: TrainingRun) -> TrainingRecipe:
        """The recipe of a run, with the clean accuracy at which it ends where another run sets that."""
        if not run.until:
            return run.training
        return replace(run.training, until_clean=self.histories[run.until][-1]["val_clean"])

    def _place(self, run: TrainingRun) -> Path:
        return self._folder(run, self._training(run), run.name)

    def _folder(self, run: TrainingRun, training: TrainingRecipe, usual: str) -> Path:
        """The folder of a run: one that the same training was begun in, also to choose eps, else `usual`."""
        there = [self.folder / "cells" / run.name, *sorted((self.folder / "cells").glob(f"{run.name}-eps*"))]
        begun = ((folder, read_run(folder)) for folder in there)
        same = [folder for folder, run in begun if run is not None and run["identity"]["training"] == repr(training)]
        return same[0] if same else self.folder / "cells" / usual

    def _weights_file(self, run: TrainingRun) -> Path:
        return self.folder / "checkpoints" / f"{run.name}.safetensors"

    def _history(self, run: TrainingRun) -> list[Row]:
        return read_rows(self._place(run), METRICS_FILE)

    def _trained_in(self, folder: Path, training: TrainingRecipe, label: str) -> Iterator[Work]:
        if (folder / CHECKPOINT_FILE).is_file():
            yield f"trained already: {label}", passes(training, self.data)
            return
        data = self.data if training.data == self.data.name else shuffled_labels(self.data)
        for event in train(training, data, self.compute.alone(), folder, self.argv, measure=False):
            if isinstance(event, Progress):
                done = passes(training, self.data) / training.epochs / event.batches
                yield f"training {label}: epoch {event.epoch}/{training.epochs}", done


def passes(training: TrainingRecipe, data: DataSet) -> float:
    """Gradient passes of a whole training, the evaluation after each epoch counted as one more."""
    return float(training.epochs * (training.attack_steps + 2) * len(data.train))


def assign_runs(todo: Sequence[TrainingRun], size: int) -> list[list[TrainingRun]]:
    """The runs of each of `size` processes: the longest run first, always to the process with the least work.

    A run that ends at the accuracy of another one is trained by the same process, after that one.
    """
    of_one: dict[str, list[TrainingRun]] = {}
    for run in todo:
        of_one.setdefault(run.until or run.name, []).append(run)

    def length(some: Sequence[TrainingRun]) -> int:
        return sum(run.training.epochs * (run.training.attack_steps + 2) for run in some)

    shares: list[list[TrainingRun]] = [[] for _ in range(size)]
    for some in sorted(of_one.values(), key=length, reverse=True):
        min(shares, key=length).extend(some)
    return [[run for run in todo if run in share] for share in shares]


def _write_bytes(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def on_all(load: Callable[[], Checkpoint], arch: str, processes: Processes) -> Checkpoint:
    """The checkpoint that the main process loads, on every process; `arch` builds its network."""
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
