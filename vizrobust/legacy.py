"""Old class, field and default values of specs, so that files and commands written before a renaming still read."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

# Old class name -> new class name. A name counts only where the new one is in the catalogue that reads it.
NAMES: dict[str, str] = {
    "ISM": "BIM",
    "EoT": "EOT",
    "Magnitude": "MACO",
    "Shared": "SharedLowFrequency",
    "Transparent": "AlphaChannel",
    "Ascent": "NormalizedAscent",
    "Glance": "RawGradient",
    "Energy": "DeepDream",
    "Mix": "MultiAttack",
    "Training": "TrainingRecipe",
    "Plan": "StudyRequest",
    "Effort": "AttackBudget",
}

# (new class name, old field) -> new field. A field counts only where the class has the new one and not the old one.
FIELDS: dict[tuple[str, str], str] = {
    ("Noise", "draws"): "samples",
    ("SharedLowFrequency", "cycles"): "cutoff",
    ("SharedLowFrequency", "faces"): "group_size",
    ("Atlas", "fewest"): "min_activations",
    ("Diversity", "faces"): "group_size",
    ("Alignment", "faces"): "group_size",
    ("NormalizedAscent", "rate"): "step_size",
    ("plain", "rate"): "step_size",
    ("MultiAttack", "how"): "mode",
    ("AttackBudget", "retries"): "confirm_restarts",
    ("AttackBudget", "draws"): "noise_samples",
}

# (new field, old value) -> new value. A value counts where the class has the field; no other field has a value of this name.
VALUES: dict[tuple[str, str], str] = {
    ("kind", "corners"): "vertices",
    ("loss", "plain_ce"): "standard_ce",
}

# Old class name -> {new field: value} that the old text left out because it was the default then, and no longer is.
DEFAULTS: dict[str, dict[str, Any]] = {}

_FOLDED = {old.lower(): old for old in NAMES}


def new_name(name: str, known: Collection[str]) -> str | None:
    """What the class called `name` (in any case) is called now, if `known` has that; else None.

    >>> new_name("ISM", ["BIM", "PGD"]), new_name("ISM", ["PGD"]), new_name("PGD", ["PGD"])
    ('BIM', None, None)
    """
    found = NAMES.get(_FOLDED.get(name.lower(), ""))
    return found if found in known else None


def new_fields(name: str, values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of the class now called `name` under their present names; `known` are those that it has.

    >>> new_fields("SharedLowFrequency", {"faces": 2}, ["group_size", "cutoff"])
    {'group_size': 2}
    >>> new_fields("Noise", {"kind": "corners"}, ["kind"])
    {'kind': 'vertices'}
    """

    def present(field: str) -> str:
        new = field if field in known else FIELDS.get((name, field), field)
        return new if new in known and new not in values else field

    found = {present(field): value for field, value in values.items()}
    return {field: VALUES.get((field, value), value) if isinstance(value, str) else value for field, value in found.items()}


def old_defaults(name: str, known: Collection[str]) -> dict[str, Any]:
    """Values that a text with the old class name `name` (in any case) means where it names no others."""
    old = DEFAULTS.get(_FOLDED.get(name.lower(), ""), {})
    return {field: value for field, value in old.items() if field in known}


def present(value: Any) -> Any:
    """A JSON value with the spec texts in it as today's names write them, so that old and new files can be compared.

    >>> present({"recipe": "Recipe(name='x', optimizer=Ascent(rate=0.1))", "start": ""})
    {'recipe': "Recipe(name='x', optimizer=NormalizedAscent(step_size=0.1))", 'start': ''}
    """
    if isinstance(value, str):
        return _present_text(value)
    if isinstance(value, dict):
        return {key: present(one) for key, one in value.items()}
    return [present(one) for one in value] if isinstance(value, list | tuple) else value


@lru_cache(maxsize=4096)
def _present_text(text: str) -> str:
    # Hashes and numbers are texts too, and some of them are Python; a spec that could have changed has brackets.
    if "(" not in text:
        return text
    try:
        return ast.unparse(_Present().visit(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


class _Present(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name):
            name = node.func.id = NAMES.get(node.func.id, node.func.id)
            for keyword in node.keywords:
                keyword.arg = FIELDS.get((name, keyword.arg or ""), keyword.arg)
                if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
                    old = keyword.value.value
                    keyword.value.value = VALUES.get((keyword.arg or "", old), old)
        return node
