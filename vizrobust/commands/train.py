"""`train` and `judge`: networks trained with K attack steps, or as judges, in folders that the same command continues."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vizrobust.attacks import Attack, configured, parse_attack
from vizrobust.clarity import Judge, NaturalScale, judges_for, natural_scale
from vizrobust.commands.checkpoints import next_command
from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.data.sources import held_out
from vizrobust.intervals import wilson
from vizrobust.models import Checkpoint, load_checkpoint
from vizrobust.models.references import is_user_code
from vizrobust.requests import ParameterError
from vizrobust.requests.training import BASELINE_ATTACKS, RECIPE_FIELDS, JudgeRequest, TrainRequest
from vizrobust.results import Event, Note, Progress, Result, Row, Table, interval_text, percent
from vizrobust.runs import Taken, default_folder, read_rows, write_text
from vizrobust.session import Session
from vizrobust.spec import parse
from vizrobust.trackers import Tracker
from vizrobust.training import BASELINE_ATTACKS as NAMED
from vizrobust.training import METHODS, METRICS_FILE, Method, MultiAttack, TrainingRecipe, recorded_threads, trained_checkpoint
from vizrobust.training import Progress as Batch
from vizrobust.training import train as trained
from vizrobust.training.loop import MONITOR_STEPS, overfits_attack
from vizrobust.training.training_runs import select_run, sweep_runs


@dataclass(frozen=True, repr=False)
class TrainReport(Result):
    """What was trained: the checkpoint of each run, by folder, and the runs that other processes train."""

    request: TrainRequest
    checkpoints: Mapping[str, Checkpoint]
    of: int = 1
    taken: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of a single run; ``ValueError`` where there are several."""
        if len(self.checkpoints) != 1:
            raise ValueError(f"there are {len(self.checkpoints)} checkpoints; take one of .checkpoints")
        return next(iter(self.checkpoints.values()))

    def rows(self) -> list[Row]:
        return [_row(folder, checkpoint) for folder, checkpoint in self.checkpoints.items()]

    def tables(self) -> list[Table]:
        if not self.checkpoints:
            return []
        title = f"{len(self.checkpoints)} of the sweep's {self.of} training runs" if self.request.is_sweep else "trained"
        rows, note = [], ""
        for folder, checkpoint in self.checkpoints.items():
            info, measured = checkpoint.info, checkpoint.info.metrics
            clean, robust = percent(measured["clean"]), percent(measured["robust"])
            rows.append([folder, str(info.attack_steps), clean, robust, checkpoint.sha256[:8]])
            note = f"robust: {measured['attack']} on the first {measured['n']} test images"
        return [Table(title, ["run", "K", "clean", "robust", "weights"], rows, note)]

    def figure(self) -> Any:
        """The training curves of the first run, as a matplotlib figure."""
        from vizrobust.report.training_report import curves_figure

        return curves_figure(read_rows(next(iter(self.checkpoints)), METRICS_FILE))

    def __repr__(self) -> str:
        shown = "; ".join(
            f"{folder}: K = {one.info.attack_steps}, clean {percent(one.info.metrics.get('clean'))}, "
            f"robust {percent(one.info.metrics.get('robust'))}"
            for folder, one in self.checkpoints.items()
        )
        return f"TrainReport({shown})"


def train(request: TrainRequest, session: Session) -> Generator[Event, None, TrainReport]:
    """Train what the request asks for, or go on with it; rows are epochs, then the checkpoint."""
    if request.compile and session.compute(request.precision).device.type == "cpu":
        raise ParameterError("{compile} makes training slower on a CPU (docs/numbers.md); leave it out, or train on a GPU")
    data = session.dataset(request.data)
    runs = resolve(request, data, started(request, session))
    if not request.is_sweep:
        ((_, recipe),) = runs.items()
        folder = str(session.out or default_folder("train", {"training": repr(recipe)}))
        checkpoint = yield from train_one(request, session, data, recipe, folder)
        if checkpoint is None:
            return TrainReport(request, {})
        yield next_command("neurons", folder, recipe.arch)
        return TrainReport(request, {folder: checkpoint})
    root = Path(session.out or default_folder("train", {name: repr(one) for name, one in runs.items()}))
    wanted = [select_run(dict(runs), request.cell)] if request.cell is not None else list(runs)
    found: dict[str, Checkpoint] = {}
    taken = []
    for name in wanted:
        try:
            checkpoint = yield from train_one(request, session, data, runs[name], str(root / name))
        except Taken as error:
            yield Note(ParameterError("left out: %s", error))
            taken.append(name)
        else:
            if checkpoint is not None:
                found[str(root / name)] = checkpoint
    if taken:
        yield Note(
            f"{len(taken)} training runs are being trained elsewhere: {', '.join(taken)}; run this again when they are done"
        )
    return TrainReport(request, found, len(runs), tuple(taken))


def started(request: TrainRequest, session: Session) -> Mapping[str, Any]:
    """What the recipe says of the checkpoint that training begins from, and the architecture."""
    if request.start is None:
        return {"arch": request.arch}
    if not isinstance(request.start, str | Path | Checkpoint):
        raise ParameterError("{start} is a %s; give a reference or a checkpoint (vr.load)", type(request.start).__name__)
    code = (*session.code, *([request.arch] if request.arch else []))
    ref = request.start.reference if isinstance(request.start, Checkpoint) else str(request.start)
    origin = load_checkpoint(ref, code, session.download)
    if request.arch is not None and (not is_user_code(request.arch) or not is_user_code(origin.info.arch)):
        raise ParameterError("{arch} %s: {start} %s brings its own, %s; leave {arch} out", request.arch, ref, origin.info.arch)
    arch = request.arch or origin.info.arch
    return {"arch": arch, "start": ref, "start_sha256": origin.sha256, "freeze": request.freeze}


def resolve(request: TrainRequest, data: DataSet, begin: Mapping[str, Any] | None = None) -> dict[str, TrainingRecipe]:
    """The recipe of every training run that the request asks for, by name; `begin` is what `started` says."""
    method = _method(request.method)
    begin = {"arch": request.arch} if begin is None else begin

    def recipe(k: int | None, seed: int) -> TrainingRecipe:
        fields = {name: getattr(request, name) for name in RECIPE_FIELDS}
        named = request.data if isinstance(request.data, str) else data.name
        attack = _attack(request, method, k, data.usual_eps)
        return TrainingRecipe(data=named, attack=attack, method=method, seed=seed, **begin, **fields)

    return sweep_runs(recipe, request.steps or (None,), range(request.seed, request.seed + (request.seeds or 1)))


def _method(wanted: Any) -> Method | None:
    """The method of that name or spec; None for what needs no method."""
    if wanted is None or isinstance(wanted, Method):
        return wanted
    if wanted.lower() in BASELINE_ATTACKS:
        return None
    parsed = parse(wanted, METHODS, "method")
    found = parsed() if isinstance(parsed, type) else parsed
    assert isinstance(found, Method)
    return found


def _attack(request: TrainRequest, method: Method | None, steps: int | None, default_eps: float) -> Attack | MultiAttack | None:
    """What to train against; None is standard training."""
    eps, norm = request.eps, request.norm
    if request.method is not None and method is None:
        return configured(NAMED[request.method.lower()](default_eps if eps is None else eps), norm=norm, eps=eps)
    if not request.attacks and not steps:
        usual = None if method is None else method.default_attack
        return None if steps == 0 or usual is None else configured(usual, default_eps, norm, eps=eps)
    parsed = (parse_attack(one, typed=True) if isinstance(one, str) else one for one in request.attacks or ("PGD",))
    fitted = tuple(configured(one, default_eps, norm, eps=eps, steps=steps) for one in parsed)
    return fitted[0] if request.mix is None else MultiAttack(fitted, request.mix)


def train_one(
    request: TrainRequest, session: Session, data: DataSet, recipe: TrainingRecipe, folder: str
) -> Generator[Event, None, Checkpoint | None]:
    """Train one network, or go on with it; None in all processes but the main one."""
    from vizrobust.report.training_report import draw_curves, write_card

    compute = Compute(session.device, request.precision, recorded_threads(folder) or session.threads)
    yield from _train(request, session, data, recipe, folder, compute)
    if not compute.processes.main:
        return None
    checkpoint = trained_checkpoint(folder, recipe.arch)
    draw_curves(folder, session.argv)
    write_card(folder, checkpoint)
    if "constant_prediction" in checkpoint.info.metrics:
        yield Note(
            f"warning: the network in {folder} predicts class {checkpoint.info.metrics['constant_prediction']!r} for every "
            "test image: training collapsed to one class; try a lower lr or a longer eps_ramp"
        )
    yield _row(folder, checkpoint)
    return checkpoint


def _row(folder: str, checkpoint: Checkpoint) -> Row:
    return {"checkpoint": f"{folder}/checkpoint.safetensors", "weights_sha256": checkpoint.sha256, **checkpoint.info.metrics}


def _train(
    request: TrainRequest, session: Session, data: DataSet, recipe: TrainingRecipe, folder: str, compute: Compute
) -> Generator[Event, None, None]:
    from vizrobust.report.training_report import draw_curves

    began, overfitted, constant, seen = False, False, "", ""
    tracker = Tracker(
        request.track if compute.processes.main else None, Path(folder).name, Path(folder), {"training": repr(recipe)}
    )
    epochs = recipe.epochs * recipe.training_method.stages
    every = request.checkpoint_every
    events = trained(recipe, data, compute, folder, session.argv, checkpoint_every=every, wait=session.wait)
    with closing(tracker):
        for event in events:
            if isinstance(event, Batch):
                if not began:
                    yield Note(f"{recipe}\nin {folder}")
                    began = True
                done = (event.epoch - 1) * event.batches + event.batch
                note = f"epoch {event.epoch}/{epochs}  loss {event.loss:.3f}  {seen}"
                yield Progress("epochs", done, epochs * event.batches, note)
                continue
            tracker.log(event, event["epoch"])
            yield from _what_happened(event)
            if event["epoch"] > recipe.ramp and overfits_attack(event) and not overfitted:
                overfitted = True
                yield Note(
                    f"warning: in epoch {event['epoch']} the training attack leaves {percent(event['val_attack'])} of the "
                    f"watched images and {MONITOR_STEPS} steps leave {percent(event['val_robust'])}: the network has learnt "
                    "to fool its attack (vizrobust masking tells more)"
                )
            if event.get("constant_prediction", constant) != constant:
                constant = event["constant_prediction"]
                yield Note(
                    f"warning: in epoch {event['epoch']} the network predicts class {constant!r} for every watched image, "
                    "so its accuracies are the share of that class"
                )
            if compute.processes.main:
                draw_curves(folder, session.argv)
            one_class = " (one class)" if "constant_prediction" in event else ""
            seen = f"clean {percent(event['val_clean'])}{one_class}  robust {percent(event['val_robust'])}"
            yield event


def _what_happened(event: Row) -> Generator[Event, None, None]:
    """A collapse, and an early end, when they happen."""
    if "retreat" in event:
        yield Note(event["retreat"])
    elif "collapse" in event:
        fallen = event["collapse"]
        yield Note(
            f"warning: robust accuracy collapsed in epoch {fallen['epoch']}, from {percent(fallen['before'])} in epoch "
            f"{fallen['best_epoch']} to {percent(fallen['after'])}: catastrophic overfitting to the training attack; "
            "on_collapse stop or rollback would not have gone on"
        )
    if "ended" in event:
        yield Note(f"training ends after epoch {event['epoch']}: {event['ended']}")


# Name -> architecture and augmentation; each is of another family, and `robust` learns from attacked images.
KINDS = {"standard": ("resnet_small", "none"), "heavy": ("vgg_small", "heavy"), "robust": ("small_cnn", "none")}
BINS, WEIGHT_STEPS = 15, 1500
CARD = "README.md"


@dataclass(frozen=True, repr=False)
class JudgeReport(Result):
    """The trained judges: folder, accuracy and calibration on the test images, and the natural scale of each."""

    request: JudgeRequest
    folder: Path
    judged: tuple[Row, ...]
    scales: tuple[NaturalScale, ...]

    def rows(self) -> list[Row]:
        """One row for each judge."""
        return list(self.judged)

    def tables(self) -> list[Table]:
        rows = [
            [row["judge"], row["arch"], percent(row["accuracy"]), _interval(row), f"{row['calibration_error']:.3f}",
             f"{row['resolves_from']:.1f}", row["disqualified"] or "judges"]
            for row in self.judged
        ]  # fmt: skip
        header = ["judge", "architecture", "accuracy", "95 % interval", "calibration error", "tells from scrambled", "verdict"]
        note = "on the test images; calibration: expected error over 15 bins; tells from scrambled: the share of phases needed"
        return [Table("Judges", header, rows, note)]

    def figure(self) -> Any:
        """How each judge's scores rise with the share of phases that natural images keep."""
        from vizrobust.report.measurement_figures import natural_curves

        return natural_curves([(Path(one.judge).name, one.coherences, one.curve().tolist()) for one in self.scales])

    def __repr__(self) -> str:
        shown = ", ".join(f"{Path(row['judge']).name} {percent(row['accuracy'])}" for row in self.judged)
        return f"JudgeReport({shown}, {str(self.folder)!r})"


def judge(request: JudgeRequest, session: Session) -> Generator[Event, None, JudgeReport]:
    """Train the three judges, or go on with them, and measure what they see."""
    from vizrobust.study.protocol import training_attack  # scipy.stats stands behind it, which `train` need not wait for

    data = session.dataset(request.data)
    named = request.data if isinstance(request.data, str) else data.name
    seen, name = (held_out(data), f"held-out:{named}") if request.split == "val" else (data, named)
    folder = Path(session.out or default_folder("judge", {"request": repr(request)}))
    eps = data.usual_eps if request.eps is None else request.eps
    epochs = request.epochs or usual_epochs(len(seen.train))
    rows, scales = [], []
    for kind, (arch, augment) in KINDS.items():
        attack = training_attack(request.steps if kind == "robust" else 0, eps)
        usual = {field: getattr(TrainRequest(data=name, arch=arch, steps=(0,)), field) for field in RECIPE_FIELDS}
        own = {"epochs": epochs, "augment": augment, "precision": request.precision}
        recipe = TrainingRecipe(arch=arch, data=name, attack=attack, seed=request.seed, **{**usual, **own})
        asked = TrainRequest(data=name, arch=arch, steps=(0,), epochs=epochs, precision=request.precision)
        yield from train_one(asked, session, seen, recipe, str(folder / kind))
        (found,) = judges_for("", [], session.compute("fp32"), [str(folder / kind)], builtin=False, independent=True)
        scale = natural_scale(found, data.test, named)
        row = {"judge": str(folder / kind), "arch": arch, **measured(found, data), "resolves_from": scale.resolves_from}
        rows.append({**row, "disqualified": scale.disqualified})
        scales.append(scale)
        yield rows[-1]
    report = JudgeReport(request, folder, tuple(rows), tuple(scales))
    write_text(folder / CARD, card(report, session.argv))
    refs = " ".join(f"--judge {shlex.quote(row['judge'])}" for row in rows if not row["disqualified"])
    if refs:
        yield Note(f"score the pictures of your networks (neurons, compare, study) with {refs}")
    return report


def usual_epochs(images: int) -> int:
    """Passes over so many images that make about 1,500 weight steps, but at least 10.

    >>> usual_epochs(500), usual_epochs(50000)
    (300, 10)
    """
    return max(10, round(WEIGHT_STEPS * TrainRequest.batch_size / images))


def _interval(row: Row) -> str:
    return interval_text(*wilson(round(row["accuracy"] * row["n"]), row["n"]))


def measured(found: Judge, data: DataSet) -> dict[str, Any]:
    """Accuracy and expected calibration error (Naeini, Cooper & Hauskrecht 2015) on the test images."""
    images = data.test.take(torch.arange(len(data.test)))
    p = found(images).logits.softmax(1)
    sure, guess = p.max(1)
    right = (guess == data.test.labels).float()
    place = (sure * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for one in range(BINS):
        mine = place == one
        if mine.any():
            error += float(mine.float().mean()) * abs(float(right[mine].mean() - sure[mine].mean()))
    return {"accuracy": float(right.mean()), "calibration_error": error, "n": len(images)}


def card(report: JudgeReport, command: str) -> str:
    """The card of the judges as Markdown."""
    (table,) = report.tables()
    lines = ["# Judges of clarity", "", f"Made by `{command or report.request!r}`.", "", f"| {' | '.join(table.header)} |"]
    lines += ["|" + "---|" * len(table.header), *(f"| {' | '.join(map(str, row))} |" for row in table.rows), "", table.note, ""]
    for scale in report.scales:
        curve = ", ".join(f"{share:g}: {value:.2f}" for share, value in zip(scale.coherences, scale.curve(), strict=True))
        lines.append(f"- {Path(scale.judge).name}: mean log-odds by share of phases kept: {curve}")
    return "\n".join([*lines, ""])
