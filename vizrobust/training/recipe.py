"""The training recipe: everything that decides the weights, as one text that a checkpoint carries, and where it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from vizrobust.attacks import FGSM, PGD, Attack, Linf, Noise
from vizrobust.attacks import NAMES as ATTACK_NAMES
from vizrobust.compute import PRECISIONS
from vizrobust.data import DataSet
from vizrobust.models import Checkpoint, Normalized, architecture, load_checkpoint
from vizrobust.models.architectures import ARCHS
from vizrobust.models.checkpoints import load_strictly
from vizrobust.models.forward import choose_memory_format
from vizrobust.models.references import is_user_code
from vizrobust.plugins import Catalogue
from vizrobust.requests import ParameterError
from vizrobust.spec import named, parse, spec, unknown
from vizrobust.training.examples import AUGMENTATIONS, MultiAttack, attacks_of
from vizrobust.training.methods import METHODS, Adversarial, Method
from vizrobust.training.train_state import OPTIMIZERS, SCHEDULES, UpdateSettings

ON_COLLAPSE = ("warn", "stop", "rollback")
RAMP_AT_MOST = 5


@spec
@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained; `attack` None is standard training, a `MultiAttack` is training against several attacks.

    `method` None learns from the attack's examples; the others are in `METHODS`. The loss is
    ``(1 - clean_weight) * adversarial + clean_weight * clean``, with `label_smoothing` in both.

    `lr` is the peak of the `schedule`: ``one-cycle`` (Smith & Topin 2019; the peak after 30 % of the steps), ``cosine``,
    ``piecewise`` or ``constant``. eps rises linearly from 0 over the first `eps_ramp` epochs (None: the first
    fifth, at most 5), of every attack in its own units, and a fixed step size with it: without it training at MNIST's 0.3
    often does not start. `augment` is ``none``, ``crop`` (shifts of up to 1/8, mirrored), ``crop+flip``,
    ``window+flip`` or ``heavy`` (for judges).

    `awp` perturbs the weights too, by this part of their length (Wu et al. 2020). `ema` is the decay of a moving
    average of the weights, which is then the network that is watched and kept.

    After every epoch clean and robust accuracy are measured on the first `watch` validation images. Training ends after
    the epoch whose clean accuracy reaches `until_clean`; with `early_stopping`, after so many epochs without a higher
    robust accuracy (Rice et al. 2020), and the weights of the best epoch are kept. When robust accuracy collapses (see
    `training.watch`), `on_collapse` says what follows: ``warn`` goes on, ``stop`` ends with the weights of the epoch
    before, ``rollback`` trains the epoch again in another order.

    `compile` sends the batches through ``torch.compile``'s version of the network. Training begins from the checkpoint
    `start`, whose weights have the hash `start_sha256` ("": from fresh weights), and layers whose names fit a pattern of
    `freeze` stay as they are.

    >>> TrainingRecipe(arch="small_cnn", data="mnist5k", epochs=5)
    TrainingRecipe(arch="small_cnn", data="mnist5k", epochs=5)
    """

    arch: str
    data: str
    attack: Attack | MultiAttack | None = None
    clean_weight: float = 0.0
    epochs: int = 20
    batch_size: int = 100
    optimizer: str = "adam"
    lr: float = 2e-3
    weight_decay: float = 0.0
    eps_ramp: int | None = None
    augment: str = "none"
    precision: str = "fp32"
    seed: int = 0
    until_clean: float | None = None
    method: Method | None = None
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0
    awp: float = 0.0
    ema: float | None = None
    watch: int = 200
    early_stopping: int | None = None
    on_collapse: str = "warn"
    compile: bool = False
    start: str = ""
    start_sha256: str = ""
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS), ("augment", AUGMENTATIONS), ("precision", PRECISIONS),
            ("schedule", SCHEDULES), ("on_collapse", ON_COLLAPSE),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(unknown(getattr(self, name), known, name))
        for name in ("epochs", "batch_size", "watch"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainingRecipe: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"TrainingRecipe: clean_weight must be between 0 and 1, got {self.clean_weight:g}")
        if self.lr <= 0 or self.weight_decay < 0:
            got = f"got {self.lr:g} and {self.weight_decay:g}"
            raise ValueError(f"TrainingRecipe: lr must be positive and weight_decay not negative, {got}")
        if self.until_clean is not None and not 0 <= self.until_clean <= 1:
            raise ValueError(f"TrainingRecipe: until_clean must be between 0 and 1, got {self.until_clean:g}")
        if self.eps_ramp is not None and self.eps_ramp < 0:
            raise ValueError(f"TrainingRecipe: eps_ramp must not be negative, got {self.eps_ramp}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"TrainingRecipe: label_smoothing must be from 0 to below 1, got {self.label_smoothing:g}")
        if not 0 <= self.awp < 1:
            raise ValueError(f"TrainingRecipe: awp must be from 0 to below 1, as .005 or .01, got {self.awp:g}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"TrainingRecipe: ema must be between 0 and 1, as .999, got {self.ema:g}")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"TrainingRecipe: early_stopping must be at least 1 epoch, got {self.early_stopping}")
        if self.freeze and not self.start:
            raise ValueError(f"TrainingRecipe: freeze {', '.join(self.freeze)} would keep random weights; give a start")
        self.training_method.check(self)

    @property
    def training_method(self) -> Method:
        """The method, `Adversarial` where none is named."""
        return Adversarial() if self.method is None else self.method

    @property
    def attack_steps(self) -> int:
        """K: gradient evaluations for each training example; 0 is standard training, a mix counts its longest attack."""
        return max((int(getattr(attack, "steps", 1)) for attack in attacks_of(self.attack)), default=0)

    @property
    def ramp(self) -> int:
        """The epochs over which eps rises."""
        return min(RAMP_AT_MOST, self.epochs // 5) if self.eps_ramp is None else self.eps_ramp

    @property
    def update_settings(self) -> UpdateSettings:
        """What one weight step depends on; without an attack nothing is mixed with the clean images."""
        return UpdateSettings(
            lr=self.lr, optimizer=self.optimizer, weight_decay=self.weight_decay, schedule=self.schedule, ema=self.ema,
            awp=self.awp, label_smoothing=self.label_smoothing, seed=self.seed, compile=self.compile,
            clean_weight=0.0 if self.attack is None else self.clean_weight,
        )  # fmt: skip


NAMES = Catalogue({**ATTACK_NAMES, **METHODS, **named(MultiAttack, TrainingRecipe)}, "attacks")


def is_recipe(training: str) -> bool:
    """Whether a checkpoint's ``training`` is the text of a recipe, by its present or its old name.

    >>> is_recipe('TrainingRecipe(arch="small_cnn", data="mnist5k")'), is_recipe("fine-tuned by hand")
    (True, False)
    """
    return training.startswith(("TrainingRecipe(", "Training("))


def attacks_seen(training: str) -> tuple[Attack, ...]:
    """The attacks that a checkpoint has seen, from its ``about.training``: none where it is standard or unknown.

    >>> attacks_seen('TrainingRecipe(arch="small_cnn", data="mnist5k", attack=PGD(steps=8, ball=Linf(eps=0.3)))')
    (PGD(steps=8, ball=Linf(eps=0.3)),)
    >>> attacks_seen("")
    ()
    """
    if not training:
        return ()
    recipe = parse(training, NAMES, "training")
    if not isinstance(recipe, TrainingRecipe):
        raise ValueError(f"{training!r} is no recipe, so it does not say which attacks were seen")
    return attacks_of(recipe.attack)


# Fast FGSM steps a little farther than the radius (Wong et al. 2020).
FAST_STEP = 1.25


def fgsm(eps: float) -> Attack:
    """One step from the image itself (Goodfellow et al. 2015)."""
    return FGSM(ball=Linf(eps=eps))


def fast(eps: float) -> Attack:
    """One long step from a random point of the ball, which may lie outside [0, 1] (Wong et al. 2020)."""
    return PGD(steps=1, ball=Linf(eps=eps), alpha=FAST_STEP * eps, clip_start=False)


def noise(eps: float) -> Attack:
    """A random point of the ball, without a gradient: the control."""
    return Noise(samples=1, ball=Linf(eps=eps))


BASELINE_ATTACKS: dict[str, Callable[[float], Attack]] = {"fgsm": fgsm, "fast": fast, "noise": noise}


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
    """Layers whose name fits a pattern, and those inside them, do not learn; see `train_mode` for their statistics.

    Nor do those that the network's own code has frozen.
    """
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
        if name not in kept:
            weight.requires_grad_(False)
    if names and not any(weight.requires_grad for weight in body.parameters()):
        raise ParameterError("{arch}: the network's own code has frozen all its weights, so nothing would learn; leave some free")


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")
