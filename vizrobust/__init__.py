"""vizrobust: what adversarial training does to an image classifier, in numbers and pictures.

The public names are imported on first use, so that ``vizrobust --help`` never loads torch.

>>> import vizrobust as vr
>>> vr.visualize("mnist-k8", units=[3, 5], steps=2)
2 pictures of units 3, 5 of logits in mnist-k8, recipe plain with 2 steps
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vizrobust.api import (
        certify,
        compare,
        diagnose_masking,
        dictionary,
        explain,
        intervene,
        load,
        robust_accuracy,
        study,
        train,
        visualize,
    )
    from vizrobust.attacks import (
        ALMA,
        APGD,
        BIM,
        CW,
        DDN,
        EOT,
        FAB,
        FGSM,
        FMN,
        L0,
        L1,
        L2,
        PGD,
        Attack,
        AttackResult,
        AutoAttack,
        DeepFool,
        HopSkipJump,
        Linf,
        Noise,
        SigmaZero,
        Square,
        Transfer,
        parse_attack,
    )
    from vizrobust.clarity import judge_log_odds, two_afc
    from vizrobust.commands.after_image import accentuate, caricature, invert
    from vizrobust.commands.catalogues import help, list_attacks, list_models, list_recipes  # noqa: A004
    from vizrobust.compute import Compute
    from vizrobust.data import load as load_data
    from vizrobust.features import (
        Channel,
        Direction,
        FeatureImage,
        Logit,
        Neuron,
        Recipe,
        exemplars,
        fourier,
        gradient,
        parse_recipe,
        plain,
        render,
    )
    from vizrobust.models import Checkpoint, activations, layers, load_checkpoint
    from vizrobust.rng import Streams
    from vizrobust.robustness import evaluate, merge_results
    from vizrobust.training import TrainingRecipe

__all__ = [
    "ALMA",
    "APGD",
    "BIM",
    "CW",
    "DDN",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "L0",
    "L1",
    "L2",
    "PGD",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Channel",
    "Checkpoint",
    "Compute",
    "DeepFool",
    "Direction",
    "FeatureImage",
    "HopSkipJump",
    "Linf",
    "Logit",
    "Neuron",
    "Noise",
    "Recipe",
    "SigmaZero",
    "Square",
    "Streams",
    "TrainingRecipe",
    "Transfer",
    "accentuate",
    "activations",
    "caricature",
    "certify",
    "compare",
    "diagnose_masking",
    "dictionary",
    "evaluate",
    "exemplars",
    "explain",
    "fourier",
    "gradient",
    "help",
    "intervene",
    "invert",
    "judge_log_odds",
    "layers",
    "list_attacks",
    "list_models",
    "list_recipes",
    "load",
    "load_checkpoint",
    "load_data",
    "merge_results",
    "parse_attack",
    "parse_recipe",
    "plain",
    "render",
    "robust_accuracy",
    "study",
    "train",
    "two_afc",
    "visualize",
]

# Where each public name lives; a test holds that every name of __all__ is found.
_HOMES = {
    "api": "load robust_accuracy compare explain intervene dictionary certify diagnose_masking visualize train study",
    "commands.after_image": "invert caricature accentuate",
    "commands.catalogues": "list_attacks list_models list_recipes help",
    "compute": "Compute",
    "rng": "Streams",
    "data": "load_data",
    "models": "Checkpoint activations layers load_checkpoint",
    "attacks": "ALMA APGD BIM CW DDN EOT FAB FGSM FMN L0 L1 L2 PGD Attack AttackResult AutoAttack DeepFool HopSkipJump Linf "
    "Noise SigmaZero Square Transfer parse_attack",
    "robustness": "evaluate merge_results",
    "features": "Channel Direction Logit Neuron Recipe FeatureImage exemplars fourier gradient parse_recipe plain render",
    "training": "TrainingRecipe",
    "clarity": "judge_log_odds two_afc",
}
_HOME = {name: package for package, names in _HOMES.items() for name in names.split()}


class _Called(ModuleType):
    """The package `vizrobust.study`, which is also the facade's function of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("vizrobust.api").study(*args, **kwargs)


class _Vizrobust(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "study" and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Vizrobust


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vizrobust")
    if name == "study":
        return import_module("vizrobust.study")
    if name not in _HOME:
        raise AttributeError(f"module 'vizrobust' has no attribute {name!r}")
    return getattr(import_module(f"vizrobust.{_HOME[name]}"), {"load_data": "load"}.get(name, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
