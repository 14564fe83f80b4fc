"""`vizrobust list`: everything that has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, percent, table


@click.command()
@click.argument("kind", required=False)
@options.as_json
def command(kind: str | None, as_json: bool) -> None:
    """List attacks, data sets, models and everything else that has a name.

    \b
    vizrobust list
    vizrobust list attacks
    vizrobust list models
    """
    from vizrobust.spec import lookup

    kinds = catalogues()
    chosen = kinds if kind is None else {kind.lower(): lookup(kinds, kind, "catalogue")}
    for title, entries in chosen.items():
        rows = [{"name": name, "what": what} for name, what in entries().items()]
        if as_json:
            for row in rows:
                json_row({"kind": title, **row})
        else:
            table(title, ["name", "what it is"], [[row["name"], row["what"]] for row in rows])


def catalogues() -> dict[str, Callable[[], dict[str, str]]]:
    """Catalogue name -> a function that gives its entries with their first lines."""
    from vizrobust.attacks import ATTACKS, BALLS, ENSEMBLES, LOSSES, UNFORESEEN
    from vizrobust.data import DATA
    from vizrobust.features import OBJECTIVES, OPTIMIZERS, PARAMETRIZATIONS, RECIPES, TRANSFORMS
    from vizrobust.models import ARCHS
    from vizrobust.robustness.corruptions import CORRUPTIONS
    from vizrobust.training import BASELINE_ATTACKS, METHODS
    from vizrobust.training.multi_attack import MIX_MODES
    from vizrobust.training.train_state import SCHEDULES

    def described(things: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
        return lambda: {name: (thing.__doc__ or "").strip().split("\n")[0] for name, thing in things.items()}

    return {
        "models": _models,
        "data": described(DATA),
        "archs": described(ARCHS),
        "attacks": described({**ATTACKS, **ENSEMBLES}),
        "unforeseen": described(UNFORESEEN),
        "corruptions": described(CORRUPTIONS),
        "methods": described({**BASELINE_ATTACKS, **METHODS}),
        "mixes": described(MIX_MODES),
        "schedules": described(SCHEDULES),
        "balls": described(BALLS),
        "losses": described(LOSSES),
        "recipes": described(RECIPES),
        "objectives": described(OBJECTIVES),
        "parametrizations": described(PARAMETRIZATIONS),
        "transforms": described(TRANSFORMS),
        "optimizers": described(OPTIMIZERS),
    }


def _models() -> dict[str, str]:
    from vizrobust.models import builtin_names, load_checkpoint

    lines = {}
    for name in builtin_names():
        about = load_checkpoint(name).info
        robust = f"{percent(about.metrics.get('robust'))} under {about.metrics.get('attack', 'attack')}"
        lines[name] = f"{about.arch} on {about.data}, clean {percent(about.metrics.get('clean'))}, {robust}"
    return lines
