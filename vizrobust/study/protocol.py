"""The protocol of a study: what is trained, attacked and rendered, and how eps is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vizrobust.attacks import PGD, Attack, Linf
from vizrobust.attribution import ATTRIBUTIONS, Attribution, IntegratedGradients, Saliency, SmoothGrad
from vizrobust.features import RECIPES, Recipe
from vizrobust.features.recipes import NAMES as RECIPE_NAMES
from vizrobust.features.recipes import fourier, plain
from vizrobust.plugins import Catalogue
from vizrobust.requests import ParameterError
from vizrobust.robustness.corruptions import SEVERITIES
from vizrobust.spec import lookup, named, number_text, spec, unknown
from vizrobust.training import BASELINE_ATTACKS, TrainingRecipe
from vizrobust.training import NAMES as TRAINING_NAMES

STEPS = (0, 1, 2, 4, 8, 16)
BASELINES = ("fgsm", "fast", "noise")
CONTROLS = ("k0-early", "k1-long", "k8-eps/4", "k8-eps/2", "k0-shuffled")

# Roles of a study's checkpoints, as files name them: K = 0, 1, 2 ... of the sweep, named baselines, controls, other radii,
# masked gradients, untrained.
SWEEP, BASELINE, CONTROL, RADIUS, MASKED, UNTRAINED = "dose", "arm", "control", "radius", "masked", "random"

# How the built-in sweeps are trained; each training run adds its attack and its seed.
TRAININGS = {
    "mnist5k": TrainingRecipe(arch="small_cnn", data="mnist5k"),
    "imagenette64": TrainingRecipe(
        arch="resnet_small", data="imagenette64", epochs=12, optimizer="sgd", lr=0.15, weight_decay=5e-4, augment="window+flip"
    ),
}
# Test images for masking, unforeseen attacks and corruptions.
SIDE_IMAGES = 200
# The hidden layer whose units are drawn: the last one before the logits.
LAYERS = {"small_cnn": "linear1", "resnet_small": "stage4"}
# The candidates of `eps_rule`. MNIST has one, so there the rule only says whether one step fails.
RADII = {"mnist5k": (0.3,), "imagenette64": (4 / 255, 8 / 255, 16 / 255)}


@spec
@dataclass(frozen=True)
class Plan:
    """Everything that a study's numbers depend on, besides the code.

    `training` is the recipe of every network, without attack. K runs over `steps`, the training seeds are
    `first_seed` … `first_seed` + `seeds` - 1; baselines, controls and other radii have only the first `arm_seeds` of them.
    K = 0, whose networks differ most from seed to seed, may have more: `standard_seeds`.
    With `eps` None, `eps_rule` chooses one of `radii`. Clarity is measured on the class units with `image_seeds` pictures
    each and on `hidden` units of `layer`, drawn at random, with `hidden_seeds` pictures each; if `matched`, also on the
    units that match those of the network of the same seed with the fewest attack steps. `frames` frames of each
    optimization path are kept, for the clarity-distance curve and for equal excitation. Accuracies are measured on the
    first `images` test images under PGD of `pgd_steps` with `restarts`, and under targeted APGD towards `targets` classes.
    Masking, unforeseen attacks and corruptions use the first ones of these images. Queries of the 2AFC are the first
    `query_images` test images, exemplars the first `exemplar_images` of the validation split.

    For each of `radius_eps`, networks of `radius_k` attack steps are trained at that radius; with those of the sweep's own
    radius they tell how clarity changes with eps at a fixed K.
    With `masked_eps`, networks learn from clean images and from one step of this radius alike: a radius too large to resist
    teaches them to hide their gradients.
    With an `encoder`, this network answers the questions about features (2AFC, identification, distances) in place of the
    judges' own features. `judge_independent` states that judges that do not say so saw none of the networks' training images.
    A shorter PGD has `short_steps`, corruptions have this `severity`, `eps_rule` looks at `eps_rule_images` test images at
    least, and the masking diagnosis gives Square `masking_queries`.
    Two secondary outcomes are measured of every network where they are asked for: what attribution maps by `explain_methods`
    are worth on the first `explain_images` test images, and the effective number of features of `layer` on the first
    `feature_images`.
    """

    training: TrainingRecipe
    steps: tuple[int, ...] = STEPS
    seeds: int = 5
    eps: float | None = None
    radii: tuple[float, ...] = ()
    arms: tuple[str, ...] = BASELINES
    controls: tuple[str, ...] = CONTROLS
    recipes: tuple[Recipe, ...] = (plain(), fourier())
    image_seeds: int = 9
    layer: str = ""
    hidden: int = 50
    hidden_seeds: int = 9
    matched: bool = True
    frames: int = 11
    batch_size: int = 90
    judges: tuple[str, ...] = ()
    images: int = 1000
    pgd_steps: int = 50
    restarts: int = 5
    targets: int = 3
    masking_images: int = SIDE_IMAGES
    unforeseen: tuple[str, ...] = ("Elastic", "JPEG", "Fog", "Gabor", "Snow")
    unforeseen_images: int = SIDE_IMAGES
    corruption_images: int = SIDE_IMAGES
    query_images: int = 1000
    exemplar_images: int = 1000
    quick: bool = False
    short_steps: int = 10
    severity: int = 3
    eps_rule_images: int = 1000
    masking_queries: int = 500
    radius_eps: tuple[float, ...] = ()
    radius_k: int = 1
    masked_eps: float | None = None
    first_seed: int = 0
    arm_seeds: int | None = None
    standard_seeds: int | None = None
    encoder: str = ""
    explain_images: int = 0
    explain_methods: tuple[Attribution, ...] = (Saliency(), SmoothGrad(), IntegratedGradients())
    feature_images: int = 0
    judge_independent: bool = False

    def __post_init__(self) -> None:
        if self.training.attack is not None:
            raise ValueError(f"Plan: the training must be without an attack, got {self.training.attack}")
        if len(set(self.steps)) < 2 and self.steps:
            raise ParameterError("a study compares two or more K, got {steps} %s; try 0,1,2,4,8", ",".join(map(str, self.steps)))
        if any(k < 0 for k in self.steps) or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"K must be 0 or more, each once, got {','.join(map(str, self.steps))}")
        for names, there, what in ((self.arms, BASELINES, "baseline"), (self.controls, CONTROLS, "control")):
            for name in names:
                if name not in there:
                    raise ValueError(unknown(name, there, what))
        at_least = {
            "seeds": 1, "image_seeds": 2, "images": 1, "pgd_steps": 1, "restarts": 1, "frames": 2, "batch_size": 1,
            "query_images": 1, "exemplar_images": 1, "short_steps": 1, "eps_rule_images": 1, "masking_queries": 0,
            "explain_images": 0, "feature_images": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ParameterError(f"{{{name}}} must be at least %s, got %s", least, getattr(self, name))
        if self.first_seed < 0:
            raise ParameterError("{first_seed} must be 0 or more, got %s", self.first_seed)
        if self.arm_seeds is not None and not 1 <= self.arm_seeds <= self.seeds:
            raise ParameterError("{arm_seeds} must be 1 to {seeds} (%s), got %s", self.seeds, self.arm_seeds)
        if self.standard_seeds is not None and (self.standard_seeds < self.seeds or 0 not in self.steps):
            raise ParameterError(
                "{standard_seeds} of K = 0 must be {seeds} (%s) or more, got %s", self.seeds, self.standard_seeds
            )
        if any(not 0 < one <= 1 for one in self.radius_eps) or len(set(self.radius_eps)) < len(self.radius_eps):
            raise ParameterError("{radius_eps} must be radii in (0, 1], each once, got %s", ", ".join(map(str, self.radius_eps)))
        if self.radius_eps and self.radius_k not in self.steps:
            raise ParameterError("{radius_k} must be one of the sweep's K (%s), got %s", self.steps, self.radius_k)
        if self.masked_eps is not None and not (0 < self.masked_eps <= 1 and 0 in self.steps):
            raise ParameterError("{masked_eps} must be a radius in (0, 1] in a study with K = 0, got %s", self.masked_eps)
        if self.severity not in SEVERITIES:
            raise ParameterError("{severity} must be one of %s, got %s", ", ".join(map(str, SEVERITIES)), self.severity)
        if self.feature_images == 1:
            raise ParameterError("{feature_images} must be 0, or at least 2, got 1")
        if self.feature_images and not self.layer:
            raise ParameterError("{feature_images} %s needs a hidden layer; name one with {layer}", self.feature_images)
        methods = [repr(method) for method in self.explain_methods]
        if self.explain_images and (not methods or len(set(methods)) < len(methods)):
            raise ParameterError("{explain_methods} must be methods, each once, got %s", ", ".join(methods) or "none")
        recipes = [recipe.name for recipe in self.recipes]
        if not recipes or len(set(recipes)) < len(recipes):
            raise ValueError(f"Plan: recipes must differ in name, got {recipes}")

    @property
    def training_seeds(self) -> range:
        """The training seeds of the sweep."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def inferential(self) -> bool:
        """Whether there are enough training seeds for inference beyond these checkpoints."""
        return self.seeds >= 3 and not self.quick

    def left_out(self, provided: bool = False) -> list[str]:
        """What the full protocol has and this plan lacks, as sentences; `provided` checkpoints have seeds of their own."""
        said = []
        if self.seeds < 3 and not provided:
            said.append(f"{self.seeds} training seed{'s' if self.seeds > 1 else ''}: the verdict is descriptive")
        if self.arm_seeds is not None and self.arm_seeds < self.seeds and not provided:
            said.append(f"{self.arm_seeds} training seeds of baselines, controls and other radii instead of {self.seeds}")
        missing = [f"baseline {name}" for name in BASELINES if name not in self.arms]
        missing += [f"control {name}" for name in CONTROLS if name not in self.controls]
        if missing and not provided:
            said.append(f"not trained: {', '.join(missing)}")
        if rest := [name for name in (plain().name, fourier().name) if name not in {one.name for one in self.recipes}]:
            said.append(f"no pictures by the recipe {' and '.join(rest)}")
        if self.image_seeds < 9:
            said.append(f"{self.image_seeds} pictures of each class unit instead of 9")
        if not self.hidden:
            said.append("no hidden units")
        elif self.hidden < 50 or self.hidden_seeds < 9:
            said.append(f"{self.hidden} hidden units with {self.hidden_seeds} pictures each instead of 50 with 9")
        if self.hidden and not self.matched:
            said.append("hidden units are not matched across networks")
        if self.images < 1000 or self.restarts < 5:
            said.append(f"PGD with {self.restarts} restart{'s' if self.restarts > 1 else ''} on {self.images} images "
                        "instead of 5 on 1,000")  # fmt: skip
        if not self.targets:
            said.append("no targeted APGD")
        for number, what in (
            (self.masking_images, "masking diagnosis"), (self.unforeseen_images, "unforeseen attacks"),
            (self.corruption_images, "corruptions"),
        ):  # fmt: skip
            if number < SIDE_IMAGES:
                said.append(f"{what} on {number} images instead of {SIDE_IMAGES}" if number else f"no {what}")
        if self.eps is not None and not provided:
            said.append("eps was given, not chosen by the rule")
        return said


def plan_for(training: TrainingRecipe, **changes: object) -> Plan:
    """The full protocol for a training recipe; `changes` are fields of the plan.

    >>> plan_for(TRAININGS["mnist5k"], seeds=3).layer
    'linear1'
    """
    plan = Plan(training, layer=LAYERS.get(training.arch, ""), radii=RADII.get(training.data, ()))
    return replace(plan, **changes)  # type: ignore[arg-type]


def quick(plan: Plan) -> Plan:
    """At most ten minutes on two cores for mnist5k: one training seed, fewer epochs and pictures, lighter attacks."""
    return replace(
        plan, training=replace(plan.training, epochs=max(1, plan.training.epochs * 3 // 4)), seeds=1,
        arms=tuple(name for name in plan.arms if name == "fgsm"), controls=(), image_seeds=3, hidden=0,
        images=500, query_images=500, exemplar_images=500, restarts=1, targets=0, masking_images=0, unforeseen_images=0,
        corruption_images=0, frames=6, batch_size=30, quick=True,
    )  # fmt: skip


NAMES = Catalogue(
    {**TRAINING_NAMES, **RECIPE_NAMES, **named(Plan), **RECIPES, **ATTRIBUTIONS}, "attacks", "parametrizations", "transforms"
)


# Controls copy properties of the network with this K.
REFERENCE_K = 8


@dataclass(frozen=True)
class TrainingRun:
    """One training run of a study. `group` is the same for all seeds; `k` is None outside the sweep over attack steps.

    `until` names the run whose clean validation accuracy ends this one early.

    >>> run = TrainingRun("k8-eps/2", CONTROL, 8, 0, TRAININGS["mnist5k"])
    >>> run.name, run.label
    ('k8-eps-2-s0', 'k8-eps/2, seed 0')
    """

    group: str
    role: str
    k: int | None
    seed: int
    training: TrainingRecipe
    until: str = ""

    @property
    def name(self) -> str:
        return f"{self.group.replace('/', '-').replace(' ', '')}-s{self.seed}"

    @property
    def label(self) -> str:
        what = f"K = {self.k}" if self.role == SWEEP else self.group
        return f"{what}, seed {self.seed}"


def training_attack(k: int, eps: float) -> Attack | None:
    """K gradient steps from a random start; None, standard training, for K = 0."""
    return PGD(steps=k, ball=Linf(eps=eps)) if k else None


def training_runs(plan: Plan, eps: float) -> Iterator[TrainingRun]:
    """All training runs, seed by seed, so that the first seed's sweep is complete before the next one begins.

    Seeds that only K = 0 has come last.
    """
    strongest = REFERENCE_K if REFERENCE_K in plan.steps else max(plan.steps)
    for seed in plan.training_seeds:
        base = replace(plan.training, seed=seed)
        for k in plan.steps:
            yield TrainingRun(f"k{k}", SWEEP, k, seed, replace(base, attack=training_attack(k, eps)))
        if plan.arm_seeds is not None and seed >= plan.first_seed + plan.arm_seeds:
            continue
        for name in plan.arms:
            yield TrainingRun(name, BASELINE, None, seed, replace(base, attack=lookup(BASELINE_ATTACKS, name, "baseline")(eps)))
        for radius in plan.radius_eps:
            if not math.isclose(radius, eps):
                attack = training_attack(plan.radius_k, radius)
                yield TrainingRun(f"eps {number_text(radius)}", RADIUS, None, seed, replace(base, attack=attack))
        if plan.masked_eps is not None:
            attack = BASELINE_ATTACKS["fgsm"](plan.masked_eps)
            yield TrainingRun("masked", MASKED, None, seed, replace(base, attack=attack, clean_weight=0.5))
        for name in plan.controls:
            yield _control(name, base, eps, strongest, seed)
    for seed in range(plan.first_seed + plan.seeds, plan.first_seed + (plan.standard_seeds or 0)):
        yield TrainingRun("k0", SWEEP, 0, seed, replace(plan.training, seed=seed))


def _control(name: str, base: TrainingRecipe, eps: float, strongest: int, seed: int) -> TrainingRun:
    """A run that holds a confound of K fixed: clean accuracy, gradient passes or the size of the perturbation."""
    if name == "k0-early":
        return TrainingRun(name, CONTROL, 0, seed, base, until=f"k{strongest}-s{seed}")
    if name == "k0-shuffled":
        # Its labels mean nothing, so its pictures may be strange but cannot be clear.
        return TrainingRun(name, CONTROL, 0, seed, replace(base, data=f"shuffled:{base.data}"))
    if name == "k1-long":
        # K attack passes and one for the weights: as many passes as K = 8 takes.
        epochs = round(base.epochs * (strongest + 1) / 2)
        return TrainingRun(
            name, CONTROL, 1, seed, replace(base, attack=training_attack(1, eps), epochs=epochs, eps_ramp=base.ramp)
        )
    part = int(name.rpartition("/")[2])
    return TrainingRun(name, CONTROL, strongest, seed, replace(base, attack=training_attack(strongest, eps / part)))
