"""What the documents show is there: commands, options, files, and the Python example."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import click
import pytest

from vizrobust.cli import COMMANDS, main
from vizrobust.requests import request_class

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "PACKAGE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "gallery/README.md",
    "gallery/mnist-sweep/make.sh",
    "gallery/imagenette/make.sh",
    "gallery/imagenette-study/make.sh",
    "gallery/imagenette-three-seeds/make.sh",
    "gallery/imagenette-controls/make.sh",
    "gallery/imagenette-recipes/make.sh",
    "gallery/cifar10-study/make.sh",
)


def shown_commands() -> list[str]:
    lines: list[str] = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        indent = " {4}" if name.endswith(".md") else ""
        lines += re.findall(rf"^{indent}(vizrobust [a-z].*)$", text, re.MULTILINE)
    return sorted({line.split("  #")[0].strip() for line in lines})


def test_the_documents_show_every_command():
    shown = {command.split()[1] for command in shown_commands() if "[OPTIONS]" not in command}
    assert shown >= set(COMMANDS)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [
        path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md" and f"({path.name})" not in index
    ] == []


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


def refused(shown: str) -> str:
    """Why the program would refuse a shown command before it loads anything; "" if it would not."""
    words = shlex.split(re.split(r" [|>] | 2>", shown)[0])
    command = main.get_command(click.Context(main), words[1])
    assert command is not None
    try:
        values = command.make_context(words[1], words[2:]).params
        fields = {field.name for field in dataclasses.fields(request_class(words[1]))}
        request_class(words[1])(**{name: value for name, value in values.items() if name in fields and value is not None})
    except (click.ClickException, ValueError) as error:
        return str(error)
    except FileNotFoundError as error:  # a dictionary's, which another command shown makes
        file = str(error).split("'")[1]
        return "" if any(f"--out {file}" in other for other in shown_commands()) else str(error)
    return ""


def test_every_shown_command_is_a_request():
    shown = [command for command in shown_commands() if "[OPTIONS]" not in command and "$" not in command]
    assert len(shown) > 100
    assert {command: why for command in shown if (why := refused(command))} == {}
    assert "study" in refused("vizrobust study")
    assert "not a number" in refused("vizrobust attack mnist-k0 --eps wide")


def test_linked_files_are_there():
    documents = [ROOT / name for name in DOCUMENTS if name.endswith(".md")]
    links = [(of, to) for of in documents for to in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", of.read_text(encoding="utf-8"))]
    assert len(links) > 50
    assert [(of.name, to) for of, to in links if not (of.parent / to).exists()] == []


@pytest.fixture(scope="module")
def loaded():
    """torch and all catalogues, whose import is no part of an example."""
    from vizrobust.commands.catalogues import catalogues

    return catalogues()


@pytest.mark.usefixtures("loaded")
def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example.replace("steps=200", "steps=3").replace("steps=40", "steps=10"), "README.md", "exec"), {})
    pictures, result, title, *_ = capsys.readouterr().out.splitlines()
    assert pictures.startswith("10 pictures of units 0, 1, 2")
    assert 50 < float(result.split()[0]) < 100
    assert title == "PGD"


@pytest.mark.parametrize("page", ["own-data.md", "extending.md"])
def test_the_python_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """One after another in one folder; the first of `extending.md` is the file that the second names."""
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_attacks.py").write_text(examples[0], encoding="utf-8")
    for example in examples:
        exec(compile(example, page, "exec", dont_inherit=True), {"__name__": "__main__"})


def test_no_file_names_a_path_of_the_machine_that_made_it():
    for path in [
        *ROOT.glob("gallery/**/*.json*"),
        *ROOT.glob("vizrobust/models/builtin/*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
    ]:
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|opt|Users)/", path.read_text(encoding="utf-8")), path
