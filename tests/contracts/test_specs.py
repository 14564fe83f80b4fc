"""Contract: everything in every catalogue prints itself and reads back."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vizrobust
from vizrobust.spec import parse, show

# Layers below the command line and the report: their catalogues hold what a text can name.
LEFT_OUT = ("vizrobust.cli", "vizrobust.report", "vizrobust.__main__")


def catalogues() -> dict[str, Callable[..., Any]]:
    """Every entry of every upper-case dict of the package that is a spec or makes one, under its own name."""
    found: dict[str, Callable[..., Any]] = {}
    for module in pkgutil.walk_packages(vizrobust.__path__, "vizrobust."):
        if module.name.startswith(LEFT_OUT):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.isupper() and isinstance(value, dict):
                found |= {key: thing for key, thing in value.items() if isinstance(key, str) and callable(thing)}
    return found


ENTRIES = catalogues()
SPECS = {name: thing for name, thing in ENTRIES.items() if is_dataclass(thing) and thing.__repr__ is show}
NAMES = dict(ENTRIES)

# What a text field may hold, where not every text will do. `attempt` sorts out the rest.
WORDS = ("ce", "margin", "adam", "sgd", "none", "crop", "crop+flip", "fp32", "bf16", "conv2", "small_cnn", "a \"b\" 'c'\n\\d é")
# What fields hold that have no default and take few words.
BY_NAME = {"mode": st.sampled_from(("avg", "max", "random")), "vector": st.sampled_from(("v.npy", (0.0, 1.0, 2.5)))}
NUMBERS = st.sampled_from([0.0, 0.3, 0.2, 1.0, 1e-3]) | st.integers(0, 255).map(lambda k: k / 255) | st.floats(0, 1)


def attempt(cls: Callable[..., Any], values: dict[str, Any]) -> Any:
    """The spec with these fields; a field set that it refuses is no example."""
    try:
        return cls(**values)
    except ValueError:
        return None


def values_of(hint: Any, depth: int) -> st.SearchStrategy[Any]:
    """Values for a field annotated `hint`; specs to a depth of two."""
    if typing.get_args(hint) and typing.get_origin(hint) is not tuple:
        return st.one_of([values_of(kind, depth) for kind in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return st.just(()) if inner is Any else st.lists(values_of(inner, depth), min_size=1, max_size=9).map(tuple)
    plain = {
        int: st.integers(0, 60), float: NUMBERS, bool: st.booleans(), str: st.sampled_from(WORDS), type(None): st.none(),
    }  # fmt: skip
    if hint in plain:
        return plain[hint]
    if depth == 0:
        return st.nothing()
    fitting = [cls for cls in SPECS.values() if isinstance(cls, type) and (hint is cls or _implements(cls, hint))]
    return st.one_of([specs(cls, depth - 1) for cls in fitting])


def _implements(cls: type, protocol: Any) -> bool:
    wanted = [name for name in vars(protocol) if not name.startswith("_") or name == "__call__"]
    own = {field.name for field in fields(cls)}
    return all(hasattr(cls, name) or name in own for name in wanted)


@st.composite
def specs(draw: st.DrawFn, cls: type, depth: int = 2) -> Any:
    # Composite, so that of the tree of specs within specs only the branches drawn are built.
    hints = typing.get_type_hints(cls)
    required, optional = {}, {}
    for field in fields(cls):
        place = required if field.default is field.default_factory else optional
        strategy = BY_NAME.get(field.name, values_of(hints[field.name], depth))
        if not strategy.is_empty:
            place[field.name] = strategy
    values = st.fixed_dictionaries(required, optional=optional)
    return draw(values.map(lambda values: attempt(cls, values)).filter(lambda x: x is not None))


def test_the_catalogues_are_found() -> None:
    assert {"FGSM", "BIM", "PGD", "Linf", "L2", "Logit", "Fourier", "Jitter", "Adam", "Recipe", "TrainingRecipe"} <= set(SPECS)


def check_it_reads_back(name: str, data: st.DataObject) -> None:
    spec = data.draw(specs(SPECS[name]))
    text = repr(spec)
    assert "\n" not in text
    assert parse(text, NAMES) == spec
    assert hash(parse(text, NAMES)) == hash(spec)
    assert repr(parse(text, NAMES)) == text


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


@pytest.mark.parametrize("name", sorted(SPECS))
@settings(UNHURRIED, max_examples=2)
@given(data=st.data())
def test_a_spec_reads_back(name: str, data: st.DataObject) -> None:
    check_it_reads_back(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SPECS))
@settings(UNHURRIED, max_examples=60)
@given(data=st.data())
def test_many_specs_read_back(name: str, data: st.DataObject) -> None:
    check_it_reads_back(name, data)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_default_spec_is_its_bare_name(name: str) -> None:
    cls = SPECS[name]
    spec = attempt(cls, {})
    if spec is None:
        with pytest.raises(ValueError, match=f"^{cls.__name__} needs "):
            cls()
        return
    assert repr(spec) == f"{cls.__name__}()"
    assert parse(name.lower(), {name: cls}) == spec


@pytest.mark.parametrize("name", sorted(SPECS))
def test_an_unknown_field_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"no field of {SPECS[name].__name__} 'colour_of_hope'"):
        SPECS[name](colour_of_hope=1)
