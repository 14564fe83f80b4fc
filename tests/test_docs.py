"""What the documents show is there: commands, options, files, and the Python example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from vizrobust.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/cluster.md",
    "docs/measuring-clarity.md",
    "gallery/README.md",
    "gallery/mnist-sweep/make.sh",
    "gallery/imagenette/make.sh",
    "gallery/imagenette-study/make.sh",
)


def shown_commands() -> list[str]:
    lines: list[str] = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        indent = " {4}" if name.endswith(".md") else ""
        lines += re.findall(rf"^{indent}(vizrobust [a-z].*)$", text, re.MULTILINE)
    return sorted({line.split("  #")[0].strip() for line in lines})


def test_the_readme_shows_every_command():
    shown = {command.split()[1] for command in shown_commands()}
    assert shown >= set(COMMANDS)


def unknown(shown: str) -> list[str]:
    """What a shown command has that the program has not: the command itself, or options."""
    words = [word for word in shlex.split(shown) if word not in ("|", ">", "2>&1")]
    command = main.get_command(click.Context(main), words[1])
    if command is None:
        return [words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    return sorted({word for word in words if word.startswith("--")} - known)


def test_every_shown_command_has_its_options():
    assert {shown: found for shown in shown_commands() if (found := unknown(shown))} == {}
    assert unknown("vizrobust nuerons mnist-k0") == ["nuerons"]
    assert unknown("vizrobust attack mnist-k0 --stesp 3 --eps 0.1") == ["--stesp"]


def test_linked_files_are_there():
    documents = [ROOT / name for name in DOCUMENTS if name.endswith(".md")]
    links = [(of, to) for of in documents for to in re.findall(r"\]\(([^)#:]+)\)", of.read_text(encoding="utf-8"))]
    assert len(links) > 5
    assert [(of.name, to) for of, to in links if not (of.parent / to).exists()] == []


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example.replace("steps=200", "steps=3"), "README.md", "exec"), {})
    pictures, result, title, *_ = capsys.readouterr().out.splitlines()
    assert pictures.startswith("10 pictures of units 0, 1, 2")
    assert 50 < float(result.split()[0]) < 100
    assert title == "PGD"


def test_no_file_names_a_path_of_the_machine_that_made_it():
    for path in [*ROOT.glob("gallery/**/*.json*"), *ROOT.glob("vizrobust/models/builtin/*.md"), ROOT / "README.md"]:
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|opt|Users)/", path.read_text(encoding="utf-8")), path
