"""docs/commands.md is what the requests say; options, requests and the functions for Python users agree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import click
import pytest

import vizrobust
from vizrobust import api
from vizrobust.cli import COMMANDS, GROUPS, main
from vizrobust.cli.generated import SESSION, flag_of
from vizrobust.cli.reference import page
from vizrobust.requests import COMMANDS as REQUESTS
from vizrobust.requests import request_class

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
# A function, its command, and its parameters that another field stands for, or that Python alone has.
FACADE = (
    (api.robust_accuracy, "attack", {"model": "models", "attack": "attacks"}),
    (api.diagnose_masking, "masking", {"model": "models"}),
    (api.visualize, "neurons", {"model": "models", "shape": ""}),
    (api.compare, "compare", {}),
    (api.explain, "explain", {}),
    (api.certify, "certify", {}),
    (api.intervene, "intervene", {}),
    (api.dictionary, "dictionary", {}),
    (vizrobust.invert, "invert", {}),
    (vizrobust.caricature, "caricature", {}),
    (vizrobust.accentuate, "accentuate", {}),
    (api.train, "train", {"attack": "attacks"}),
    (api.study, "study", {}),
)


def options_of(name: str) -> dict[str, click.Parameter]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return {str(parameter.name): parameter for parameter in command.params}


def test_the_reference_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m vizrobust.cli.reference > docs/commands.md"


def test_the_reference_has_every_command_once_with_an_example():
    assert set(COMMANDS) == set(REQUESTS)
    assert {command.group for command in REQUESTS.values()} == set(GROUPS)
    for name in COMMANDS:
        (section,) = [part for part in page().split("\n### ") if part.startswith(f"{name}\n")]
        usage, *examples = [line for line in section.splitlines() if line.startswith(f"    vizrobust {name}")]
        assert "[OPTIONS]" in usage
        assert examples, name


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_the_fields_of_the_request_and_those_of_a_session(name):
    fields = {field.name: field for field in dataclasses.fields(request_class(name)) if field.metadata["cli"]}
    options = options_of(name)
    assert set(fields) <= set(options) <= set(fields) | set(SESSION)
    for field in fields.values():
        option, about = options[field.name], field.metadata
        assert about["help"], field.name
        assert isinstance(option, click.Argument) == about["argument"]
        if isinstance(option, click.Option):
            assert option.opts == [flag_of(field.name, about), *about["aliases"]]
        assert option.required == (field.default is dataclasses.MISSING)
        if not option.required and field.default not in ((), None):
            assert option.get_default(click.Context(main)) == field.default


@pytest.mark.parametrize(("function", "name", "renamed"), FACADE, ids=[name for _, name, _ in FACADE])
def test_parameters_of_the_functions_are_fields_of_the_request_with_its_defaults(function, name, renamed):
    fields = {field.name: field for field in dataclasses.fields(request_class(name))}
    for parameter in inspect.signature(function).parameters.values():
        field = renamed.get(parameter.name, parameter.name)
        if parameter.kind is parameter.VAR_KEYWORD or not field or (field in SESSION and field not in fields):
            continue
        assert field in fields, parameter.name
        default = fields[field].default
        if parameter.default is not parameter.empty and default != () and default is not dataclasses.MISSING:
            assert parameter.default == default, parameter.name


# Texts outside cli/ and requests/ that hold an option for a reason.
OPTIONS_ALLOWED = {
    "commands/checkpoints.py": "the end of a command that is printed whole",
    "commands/train.py": "the end of a command that is printed whole",
    "report/microscope_pages.py": "a command that is shown whole",
    "report/training_report.py": "options that a card leaves out of the command it shows",
}


def options_named(source: str) -> list[str]:
    """Texts that name an option, without docstrings and without whole commands such as ``vizrobust import FILE --arch …``."""
    if not re.search(r"(?<![\w-])--[a-z]", source):
        return []
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (parts | docs):
            texts.append(node.value)
    return [text for text in texts if re.search(r"(?<![\w-])--[a-z]", re.sub(r"vizrobust [a-z-]+ [^;`(]*", "", text))]


def test_the_library_names_parameters_and_leaves_options_to_the_command_line():
    assert options_named('raise ValueError(f"{x} is not here; use --device cpu")') == ["… is not here; use --device cpu"]
    assert not options_named('"""Docs of --out."""\nx = f"first: vizrobust import {y} --arch …"')
    root = Path(vizrobust.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    found = {
        name: texts
        for name, path in files.items()
        if name.partition("/")[0] not in ("cli", "requests") and (texts := options_named(path.read_text(encoding="utf-8")))
    }
    assert {name: texts for name, texts in found.items() if name not in OPTIONS_ALLOWED} == {}
    assert set(found) == set(OPTIONS_ALLOWED), "an exception that is no longer needed"
