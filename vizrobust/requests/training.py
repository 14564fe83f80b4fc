"""Requests of the commands that make checkpoints: train, import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import ParameterError, Request, Seeded, param
from vizrobust.spec import spec

# Written out here, because asking training would make every --help slow; a test compares them with its own.
MIX_MODES = ("avg", "max", "random")
BASELINE_ATTACKS = ("fgsm", "fast", "noise")
SCHEDULES = ("one-cycle", "cosine", "piecewise", "constant")
ON_COLLAPSE = ("warn", "stop", "rollback")
TRACKERS = ("tensorboard", "wandb", "mlflow")
# The fields of a `TrainingRecipe` that a request states itself.
RECIPE_FIELDS = (
    "clean_weight", "label_smoothing", "awp", "epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "ema",
    "eps_ramp", "augment", "watch", "early_stopping", "on_collapse", "compile", "precision",
)  # fmt: skip


@spec
@dataclass(frozen=True, kw_only=True)
class TrainRequest(Seeded):
    """Train with K attack steps; the same command goes on where it stopped.

    With several attacks --steps sets each one's steps, and each SPEC names its own radius. Several K, or --seeds, are a
    sweep: every training run has a folder of its own inside --out, and several processes may work on it at once.

    \b
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --eps 0.3 --epochs 20 --out runs/k8
    vizrobust train --data mnist5k --arch small_cnn --steps 0 --out runs/k0          # standard training
    vizrobust train --data mnist5k --arch small_cnn --method fast --out runs/fast
    vizrobust train --data mnist5k --arch small_cnn --method 'TRADES(beta=1)' --steps 8 --out runs/trades
    vizrobust train --data mnist5k --arch small_cnn --steps 0,1,2,4,8 --seeds 3 --out runs/sweep
    vizrobust train --data mnist5k --from mnist-k0 --freeze conv1 --steps 8 --epochs 2 --out runs/tuned
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --mix max \\
        --attack 'PGD(ball=Linf(eps=0.3))' --attack 'PGD(ball=L2(eps=2.0))' --out runs/two
    """

    data: Any = param(help="Data set (vizrobust list data).", kind="data")
    arch: str | None = param(
        None,
        "Architecture (vizrobust list archs), or path/to/file.py:callable; --from brings its own.",
        metavar="REF",
    )
    start: Any = param(None, "Begin from a checkpoint's weights; other classes get a new head.", kind="model", flag="--from")
    freeze: tuple[str, ...] = param(
        (), "With --from: layers that stay as they are, with * and ?; several allowed.", metavar="PATTERN"
    )
    steps: tuple[int, ...] | None = param(
        None, "K: attack steps for each example; 0 is standard training.", kind="numbers", metavar="K[,K]"
    )
    attacks: tuple[Any, ...] = param(
        (), "The whole attack: FGSM() or 'PGD(steps=7, ball=L2(eps=1.0))'; several with --mix.",
        kind="attack", flag="--attack", metavar="SPEC",
    )  # fmt: skip
    mix: str | None = param(
        None, "With several attacks: learn from all, each image's worst, or one at random.", choices=MIX_MODES
    )
    method: Any = param(
        None, "TRADES(beta=6), Free(replays=8), NFGSM(), GradAlign(weight=0.2), Distillation(temperature=100), or for short "
        + ", ".join(BASELINE_ATTACKS) + ".", metavar="NAME|SPEC",
    )  # fmt: skip
    eps: float | None = param(None, "Radius of the attack's ball in [0, 1] pixels; default: the data set's.", kind="fraction")
    norm: str | None = param(None, "Norm of the attack's ball: Linf, L2 or L1.", metavar="NAME")
    clean_weight: float = param(0.0, "Share of the clean loss in the mix.")
    label_smoothing: float = param(0.0, "Share of each label that is spread over all classes.")
    awp: float = param(0.0, "Adversarial weight perturbation, as .005 or .01.")
    epochs: int = param(20, "Passes over the training images.")
    batch_size: int = param(100, "Images of each weight step.")
    optimizer: str = param("adam", "adam or sgd.")
    lr: float = param(2e-3, "Peak of the learning rate.")
    schedule: str = param("one-cycle", "How the learning rate changes.", choices=SCHEDULES)
    weight_decay: float = param(0.0, "Decay of the weights in each step.")
    ema: float | None = param(None, "Keep a moving average of the weights, as .999.", metavar="DECAY")
    eps_ramp: int | None = param(None, "Epochs over which eps rises from 0; default: the first fifth, at most 5.")
    augment: str = param("none", "none, crop, crop+flip, window+flip or heavy.")
    watch: int = param(200, "Validation images on which accuracy is watched.")
    early_stopping: int | None = param(None, "End after so many epochs without a better robust accuracy.", metavar="EPOCHS")
    on_collapse: str = param(
        "warn", "When robust accuracy collapses: go on, end before it, or train the epoch again.", choices=ON_COLLAPSE
    )
    seeds: int | None = param(None, "A sweep over N training seeds, from --seed on.", metavar="N", least=1)
    cell: str | None = param(None, "Train this run of a sweep alone, for a job array.", metavar="NAME|NUMBER", role="view")
    checkpoint_every: int | None = param(None, "Keep the state within epochs too.", metavar="BATCHES", role="view")
    compile: bool = param(False, "Send batches through torch.compile; for GPUs alone.")
    track: str | None = param(None, "Send the numbers to a tracker as well.", choices=TRACKERS, role="view")

    def check(self) -> None:
        steps, count = self.steps or (), len(self.attacks)
        baseline = isinstance(self.method, str) and self.method.lower() in BASELINE_ATTACKS
        if self.arch is None and self.start is None:
            raise ParameterError("say which network: {arch} REF, or {start} REF to go on from a checkpoint's weights")
        if self.freeze and self.start is None:
            raise ParameterError("{freeze} would keep random weights; give {start} REF, whose layers stay, or leave it out")
        if len(set(steps)) < len(steps):
            raise ParameterError("{steps} %r has a number twice", ",".join(map(str, steps)))
        for k in steps:
            if k < 0:
                raise ParameterError("{steps} must not be negative, got %s; 0 is standard training", k)
        if 0 in steps and self.attacks:
            raise ParameterError("{steps} 0 is standard training, which has no attack; leave out {steps} or {attacks}")
        if count > 1 and self.mix is None:
            raise ParameterError("%s attacks need {mix} avg, max or random to say how to learn from them", count)
        if count < 2 and self.mix is not None:
            raise ParameterError("{mix} %s needs two {attacks} or more, got %s; give another or leave {mix} out", self.mix, count)
        if count > 1 and (self.eps is not None or self.norm is not None):
            raise ParameterError("with several attacks write each one's norm and radius in its SPEC, not {eps} or {norm}")
        if baseline and (self.attacks or steps):
            raise ParameterError("{method} %s is an attack already; leave out {attacks} and {steps}", self.method)
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ParameterError("{checkpoint_every} must be at least 1 batch, got %s", self.checkpoint_every)
        if self.steps is None and not self.attacks and self.method is None:
            raise ParameterError("say how to train: {steps} K (0 is standard training), {attacks} SPEC or {method} NAME")
        if self.cell is not None and not self.is_sweep:
            raise ParameterError("{cell} %s is a part of a sweep; give several {steps}, or {seeds}", self.cell)

    @property
    def is_sweep(self) -> bool:
        """Whether there are several training runs, each in a folder of its own."""
        return self.seeds is not None or len(self.steps or ()) > 1


@spec
@dataclass(frozen=True, kw_only=True)
class JudgeRequest(Seeded):
    """Train three judges of clarity for your own data: one normally, one on heavily augmented images, one adversarially.

    They differ in architecture and learn from validation images of --data, which networks trained on it did not see, or with
    --split train from data that no compared network was trained on. Their card says how accurate and how well calibrated they
    are, and what they can tell apart. The same command goes on where it stopped.

    \b
    vizrobust judge --data imagefolder:photos@64 --out runs/judges
    vizrobust neurons mine.safetensors --judge runs/judges/standard --judge runs/judges/heavy --judge runs/judges/robust
    """

    data: Any = param(help="Data set (vizrobust list data).", kind="data")
    split: str = param("val", "What they learn from.", choices=("val", "train"))
    epochs: int | None = param(None, "Passes over these images; default: about 1,500 weight steps.", least=1)
    steps: int = param(4, "Attack steps K of the adversarially trained judge.", least=1)
    eps: float | None = param(None, "Radius of its attack; default: the data set's.", kind="fraction")


@spec
@dataclass(frozen=True, kw_only=True)
class ImportRequest(Request):
    """Convert someone else's checkpoint file to vizrobust's format; no code from it is run.

    The weights may lie under the usual names and prefixes. --normalize says what was done to images in [0, 1] before
    the network; it is read from the file where that holds a normalizing layer.

    With --half a checkpoint of our own (a file, a training run's folder) is stored in half precision. Clean, FGSM and
    PGD-50 accuracy are measured with the stored weights, and the model card is written beside the file.

    \b
    vizrobust import theirs.pt --arch small_cnn --normalize none --data mnist --out theirs.safetensors
    vizrobust import theirs.pth --arch my_nets.py:Wide --normalize cifar10 --data cifar10 --drop 'mask*' --out wide.safetensors
    vizrobust import pets.ckpt --arch torchvision:resnet18 --shape 3,64,64 --classes cat,dog --out pets.safetensors
    vizrobust import runs/k8 --half --out k8.safetensors
    """

    file: str = param(argument=True, metavar="FILE|REF", kind="file", help="The file to convert, or one of our checkpoints.")
    arch: str | None = param(
        None, "Ours, torchvision:NAME, timm:NAME, robustbench:NAME, hf:DIR or path/to/file.py:callable (is run).", metavar="REF"
    )
    normalize: str | None = param(None, "none, imagenet, cifar10, mnist or 0.5,0.5,0.5/0.2,0.2,0.2.", metavar="NAME|MEAN/STD")
    # Only recorded where shape and classes are given, so any name will do.
    data: str = param("", "Data set that it was trained on (vizrobust list data).", metavar="REF")
    out: str = param(help="The converted checkpoint, a .safetensors file.", kind="file")
    drop: tuple[str, ...] = param((), "Keys to leave out, with * and ?; several allowed.", metavar="PATTERN")
    key: str = param("", "Where the weights are, if a file holds several: ema, models.1.", metavar="KEY")
    shape: str = param("", "Shape of the images, for data that is not on this machine.", metavar="C,H,W")
    classes: str = param("", "Classes: how many, their names, or imagenet for its 1,000.", metavar="N|A,B,C")
    half: bool = param(False, "Store one of our own checkpoints in half precision, measured anew, with its card.")
    eps: float | None = param(None, "With --half: radius at which it is measured; default: the data set's.", kind="fraction")

    def check(self) -> None:
        if self.half:
            wrong = [name for name in ("normalize", "drop", "key", "shape", "classes") if getattr(self, name)]
            if wrong:
                raise ParameterError(f"{{half}} takes one of our own checkpoints, which needs no {{{wrong[0]}}}; leave it out")
            return
        if self.arch is None:
            raise ParameterError("Missing option '{arch}': which network the weights are for (vizrobust list archs)")
        if self.eps is not None:
            raise ParameterError(
                "{eps} goes with {half}, which measures; leave it out, and use vizrobust attack with {eps} afterwards"
            )
