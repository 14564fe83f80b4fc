"""The reference of all commands as a page of Markdown: ``python -m vizrobust.cli.reference > docs/commands.md``."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator

import click

from vizrobust.cli import COMMANDS, GROUPS, main
from vizrobust.requests import COMMANDS as REQUESTS
from vizrobust.requests import request_class

HEAD = """\
# Commands

Written by `python -m vizrobust.cli.reference` from the requests in `vizrobust/requests/`; change those, not this page.

A REF is a built-in checkpoint (`vizrobust list models`), a file, a training run's folder, `torchvision:NAME`, `timm:NAME` or
`hf:DIR`. Results go to stdout, progress and notes to stderr. Exit codes: 0 fine, 1 failed, 2 wrong usage, 130 interrupted;
others are named with their command. A command that is *resumable* continues where it stopped when it is started again;
torchrun divides the work of a *parallel* one ([Several processes](cluster.md)).
"""


def page() -> str:
    """The whole page: the commands under the headings of their groups.

    >>> page().splitlines()[0]
    '# Commands'
    """
    parts = [HEAD]
    for group, title in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [section(name) for name in COMMANDS if REQUESTS[name].group == group]
    return "\n".join(parts)


def section(name: str) -> str:
    """A command's usage, text, examples, and its arguments and options with their defaults."""
    with click.Context(main, info_name="vizrobust") as outer:
        command = main.get_command(outer, name)
        assert command is not None
        with click.Context(command, info_name=name, parent=outer) as context:
            usage = " ".join([f"vizrobust {name}", *command.collect_usage_pieces(context)])
            lines = [
                f"| {cell(option)} | {cell(default)} | {cell(text)} |" for option, default, text in rows(name, command, context)
            ]
    prose, examples = parts_of(command.help or "")
    facts = [word for word, holds in (("resumable", REQUESTS[name].resumable), ("parallel", REQUESTS[name].parallel)) if holds]
    codes = REQUESTS[name].exits
    if codes != {False: 1, None: 1}:
        facts.append(f"exit code {codes[False]} where the answer is no, {codes[None]} where it is undecided")
    return "\n".join(
        [
            f"### {name}\n", *prose, f"    {usage}\n", *(["Examples:\n", *examples, ""] if examples else []),
            "| option | default | what it is |", "|---|---|---|", *lines, "",
            *([f"{', '.join(facts).capitalize()}.\n"] if facts else []),
        ]
    )  # fmt: skip


def parts_of(help_text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and its examples as lines of code."""
    prose, examples = [], []
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b"):
            examples += [f"    {line}" for line in paragraph.splitlines()[1:]]
        else:
            prose.append(textwrap.fill(" ".join(paragraph.split()), 120) + "\n")
    return prose, examples


def rows(name: str, command: click.Command, context: click.Context) -> Iterator[tuple[str, str, str]]:
    """Name, default and text of each parameter; texts of arguments come from the request."""
    about = {field.name: field.metadata["help"] for field in dataclasses.fields(request_class(name))}
    for parameter in command.params:
        record = parameter.to_info_dict()
        required = "required" if parameter.required else ""
        if isinstance(parameter, click.Option):
            shown, _ = parameter.get_help_record(context) or ("", "")
            extra = parameter.get_help_extra(context)
            default = required or str(extra.get("default", ""))
            yield f"`{shown}`", f"`{default}`" if default and not required else default, parameter.help or ""
        else:
            yield f"`{parameter.make_metavar(context)}`", required, about.get(record["name"], "")


def cell(text: str) -> str:
    """A text for a cell of a table; code stays as it is but for the bars that would end the cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if line.startswith("`") else line.replace("<", "\\<")


if __name__ == "__main__":
    click.echo(page(), nl=False)
