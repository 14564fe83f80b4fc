"""What a study is: its data, doses, arms, controls, recipes and how hard it looks, as one text."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vizrobust.features import RECIPES, Recipe
from vizrobust.features.recipes import NAMES as RECIPE_NAMES
from vizrobust.features.recipes import fourier, plain
from vizrobust.spec import named, spec, unknown
from vizrobust.training import NAMES as TRAINING_NAMES
from vizrobust.training import Training

STEPS = (0, 1, 2, 4, 8, 16)
ARMS = ("fgsm", "fast", "noise")
CONTROLS = ("k0-early", "k1-long", "k8-eps/4", "k8-eps/2", "k0-shuffled")

# How the built-in sweeps are trained; the attack and the seed are the cell's.
TRAININGS = {
    "mnist5k": Training(arch="small_cnn", data="mnist5k"),
    "imagenette64": Training(
        arch="resnet_small", data="imagenette64", epochs=12, optimizer="sgd", lr=0.15, weight_decay=5e-4, augment="window+flip"
    ),
}
# Images of what is looked at beside the accuracies.
BESIDE = 200
# The hidden layer whose units are drawn: the last one before the logits.
LAYERS = {"small_cnn": "linear1", "resnet_small": "stage4"}
# Where eps is looked for (the rule of `eps_rule`): MNIST's is settled, the rule only says whether one step fails there.
RADII = {"mnist5k": (0.3,), "imagenette64": (4 / 255, 8 / 255, 16 / 255)}


@spec
@dataclass(frozen=True)
class Plan:
    """Everything that a study's numbers depend on, besides the code.

    `training` is how every cell is trained, without attack; K runs over `steps`, the training seeds are 0 … `seeds` - 1.
    `eps` None asks `eps_rule` for one of `radii`. Clarity is measured on the class units with `image_seeds` pictures
    each and on `hidden` units of `layer`, drawn at random, with `hidden_seeds` pictures each; if `matched`, also on the
    units that match those of the network of the same seed with the fewest attack steps. `frames` pictures of each one's
    way are kept, for the clarity-distance curve and for equal excitation. Accuracy is that of the first `images` test
    images under PGD of `pgd_steps` with `restarts`, and under targeted APGD towards `targets` classes; masking,
    unforeseen attacks and corruptions are looked at on the first ones of them. Queries of the two-alternative choice
    are the first `query_images` test images, exemplars the first `exemplar_images` of the validation split.
    """

    training: Training
    steps: tuple[int, ...] = STEPS
    seeds: int = 5
    eps: float | None = None
    radii: tuple[float, ...] = ()
    arms: tuple[str, ...] = ARMS
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
    masking_images: int = BESIDE
    unforeseen: tuple[str, ...] = ("Elastic", "JPEG", "Fog", "Gabor", "Snow")
    unforeseen_images: int = BESIDE
    corruption_images: int = BESIDE
    query_images: int = 1000
    exemplar_images: int = 1000
    quick: bool = False

    def __post_init__(self) -> None:
        if self.training.attack is not None:
            raise ValueError(f"Plan: the training must be without an attack, got {self.training.attack}")
        if len(set(self.steps)) < 2 and self.steps:
            raise ValueError(f"a study compares two or more K, got --steps {','.join(map(str, self.steps))}; try 0,1,2,4,8")
        if any(k < 0 for k in self.steps) or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"K must be 0 or more, each once, got {','.join(map(str, self.steps))}")
        for given, there, what in ((self.arms, ARMS, "arm"), (self.controls, CONTROLS, "control")):
            for name in given:
                if name not in there:
                    raise ValueError(unknown(name, there, what))
        at_least = {
            "seeds": 1, "image_seeds": 2, "images": 1, "pgd_steps": 1, "restarts": 1, "frames": 2, "batch_size": 1,
            "query_images": 1, "exemplar_images": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"Plan: {name} must be at least {least}, got {getattr(self, name)}")
        names = [recipe.name for recipe in self.recipes]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Plan: recipes must differ in name, got {names}")

    @property
    def inferential(self) -> bool:
        """Whether there are enough training runs to speak of more than these checkpoints."""
        return self.seeds >= 3 and not self.quick

    def left_out(self, given: bool = False) -> list[str]:
        """What the full protocol has and this plan has not, as sentences; `given` checkpoints have seeds of their own."""
        said = []
        if self.seeds < 3 and not given:
            said.append(f"{self.seeds} training seed{'s' if self.seeds > 1 else ''}: the verdict is descriptive")
        missing = [f"{name} arm" for name in ARMS if name not in self.arms]
        missing += [f"control {name}" for name in CONTROLS if name not in self.controls]
        if missing and not given:
            said.append(f"not trained: {', '.join(missing)}")
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
            if number < BESIDE:
                said.append(f"{what} on {number} images instead of {BESIDE}" if number else f"no {what}")
        if self.eps is not None and not given:
            said.append("eps was given, not chosen by the rule")
        return said


def plan_for(training: Training, **changes: object) -> Plan:
    """The full protocol for a way of training; `changes` are fields of the plan."""
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


NAMES = {**TRAINING_NAMES, **RECIPE_NAMES, **named(Plan), **RECIPES}
