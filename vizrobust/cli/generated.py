"""Click commands out of requests: one option for each field, with its help, kind and default; and how they are run."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import UnionType
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli.show import command_line, visible
from vizrobust.parallel import launched
from vizrobust.plugins import check_names
from vizrobust.requests import COMMANDS, ParameterError, Request, request_class
from vizrobust.requests.request import DEVICES, READERS, fraction
from vizrobust.spec import number_text

if TYPE_CHECKING:
    from vizrobust.session import Session


class Number(click.ParamType[float]):
    """A number, also written as a fraction: 8/255."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        try:
            return fraction(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a number such as 0.3 or 8/255", param, ctx)


class Word(click.types.StringParamType):
    """An argument that, where it is missing, says what it is."""

    def __init__(self, help_text: str) -> None:
        self.help_text = help_text

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return self.help_text


# What a command needs to run and its rows do not depend on: options of every command, fields of no request.
SESSION = ("out", "download", "arch", "device", "wait", "as_json", "quiet")
KINDS: dict[str, click.ParamType[Any]] = {
    "fraction": Number(),
    "file": click.Path(),
    "folder": click.Path(),
    "figure": click.Path(),
}
METAVARS = {
    "model": "REF",
    "data": "REF",
    "attack": "SPEC",
    "recipe": "SPEC",
    "objective": "SPEC",
    "file": "FILE",
    "folder": "DIR",
    "figure": "FILE",
}


def command(name: str) -> click.Command:
    """The click command that asks for the request of this name and runs it."""
    request = request_class(name)
    # The command's own parameters come before those that it shares.
    depth = {
        name: level for level, base in enumerate(reversed(request.__mro__)) for name in vars(base).get("__annotations__", {})
    }
    fields = sorted(
        (field for field in dataclasses.fields(request) if field.metadata["cli"]), key=lambda field: -depth[field.name]
    )
    hints = typing.get_type_hints(request)
    parameters = [parameter_of(field, hints[field.name]) for field in fields]
    parameters.sort(key=lambda parameter: isinstance(parameter, click.Option))  # arguments first
    doc, own = request.__doc__ or "", {field.name for field in fields}

    def run(**values: Any) -> None:
        session = {key: values.pop(key) for key in SESSION if key in values and key not in own}
        answer(name, request, values, **session)

    # A field that has the name of a session's option stands in its place, such as the --out of a file.
    taken = {flag for parameter in parameters for flag in parameter.opts}
    takes = COMMANDS[name].session
    shared = [
        option
        for option in session_options(COMMANDS[name].resumable)
        if not taken.intersection(option.opts) and (takes is None or option.name in takes)
    ]
    # What the help's own examples use comes first.
    options = sorted((*parameters, *shared), key=lambda one: isinstance(one, click.Option) and _unused(doc, one))
    return click.Command(name, params=options, callback=run, help=doc)


def _unused(doc: str, option: click.Option) -> int:
    """Where the examples of a command's help use an option first; behind all others where they do not."""
    examples = doc.partition("\b\n")[2]
    places = [examples.find(f" {flag} ") for flag in option.opts if f" {flag} " in examples]
    return min(places, default=len(examples)) + 1


def option_name(request: type[Request], field: str) -> str:
    """A field as the command line writes it: --option, or the name of an argument."""
    about = next((one.metadata for one in dataclasses.fields(request) if one.name == field), None)
    if about is None:
        return f"--{field.replace('_', '-')}"
    return METAVARS.get(about["kind"], field.upper()) if about["argument"] else flag_of(field, about)


def flag_of(field: str, about: typing.Mapping[str, Any]) -> str:
    return str(about["flag"] or f"--{field.replace('_', '-')}")


def parameter_of(field: dataclasses.Field[Any], hint: Any) -> click.Parameter:
    """The option, or the argument, for one field of a request."""
    about = field.metadata
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    several = any(typing.get_origin(kind) is tuple for kind in kinds) and about["kind"] not in READERS
    metavar = about["metavar"] or METAVARS.get(about["kind"])
    if about["argument"]:
        needed = field.default is dataclasses.MISSING
        shown = metavar or field.name.upper()
        shown = f"{shown if needed else f'[{shown}]'}{'...' if several else ''}"
        told = about["help"].removesuffix(".") + "; vizrobust list models names the built-in ones" * (about["kind"] == "model")
        return click.Argument([field.name], type=Word(told), nargs=-1 if several else 1, required=needed, metavar=shown)
    names = [field.name, flag_of(field.name, about), *about["aliases"]]
    if bool in kinds:
        return click.Option(names, is_flag=True, help=about["help"])
    scalar = str if about["kind"] in READERS else next((kind for kind in kinds if kind in (int, float)), str)
    type_ = click.Choice(about["choices"]) if about["choices"] else KINDS.get(about["kind"]) or scalar
    default = None if field.default is dataclasses.MISSING or field.default == () else field.default
    shown_default: bool | str = default not in (None, "")
    if isinstance(default, float) and (text := number_text(default)) != str(default):
        shown_default = text
    # A default of None would count as given.
    needed = field.default is dataclasses.MISSING
    defaults: dict[str, Any] = {} if needed else {"default": None if several else default, "show_default": shown_default}
    return click.Option(
        names, type=type_, multiple=several, required=needed, metavar=metavar, help=about["help"], **defaults
    )  # fmt: skip


def session_options(writes: bool) -> list[click.Parameter]:
    """The options of `vizrobust.session.Session`; those about a run folder only where the command `writes` one."""
    folder = [
        click.Option(["--out"], type=click.Path(), metavar="DIR", help="Run folder; default: runs/<command>-<hash>."),
        click.Option(["--wait"], is_flag=True, help="Wait for a run folder that another process is writing."),
    ]
    return [
        *(folder if writes else []),
        click.Option(["--download"], is_flag=True, help="Allow downloads of data sets and published weights."),
        click.Option(
            ["--arch"], multiple=True, metavar="FILE:NAME",
            help="Your networks' code, path/to/file.py:callable, for all that need it; for one alone REF::arch=FILE:NAME.",
        ),
        click.Option(
            ["--device"], type=click.Choice(DEVICES), default="auto", show_default=True,
            help="Where it computes; auto: a GPU where there is one.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON object per line on stdout."),
        click.Option(["--quiet"], is_flag=True, help="No progress display."),
    ]  # fmt: skip


def session_of(name: str) -> Callable[..., Session | None]:
    """What makes the session of a command; a command that takes none of its options has none, and so needs no torch."""
    takes = COMMANDS[name].session
    if takes is not None and not {"download", "arch", "device"}.intersection(takes):
        return lambda **_options: None
    from vizrobust.session import Session

    return partial(Session, argv=command_line())


def answer(
    name: str, request: type[Request], values: dict[str, Any], *, as_json: bool = False, quiet: bool = False,
    arch: tuple[str, ...] = (), **session: Any,
) -> None:  # fmt: skip
    """Make the request, run its command and show the result; exits with the command's code where all is not well."""
    from vizrobust.cli.show import reporting, show

    def named(field: str) -> str:
        return option_name(request, field)

    try:
        asked = request(**{key: value for key, value in values.items() if value is not None})
    except ParameterError as error:
        raise click.UsageError(visible(error.text(named))) from error
    check_names(asked)
    try:
        module, _, function = COMMANDS[name].function.partition(":")
        run = getattr(import_module(f"vizrobust.commands.{module}"), function)
        with reporting(quiet or as_json, named) as report:
            result = show(run(asked, session_of(name)(code=arch, report=report, **session)), as_json, report, named)
    except ParameterError as error:
        raise click.ClickException(visible(error.text(named))) from error
    launch = launched()
    if result.ok is not True and (launch is None or launch.rank == 0):  # of several processes one answers
        raise click.exceptions.Exit(COMMANDS[name].exits[result.ok])
