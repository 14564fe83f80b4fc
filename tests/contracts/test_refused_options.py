"""Contract: what each command's options refuse before anything heavy is loaded is what is recorded in refused.json.

After an option or a check was added: ``python -m tests.contracts.test_refused_options``.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import click

from vizrobust.cli import main
from vizrobust.cli.generated import SESSION, option_name
from vizrobust.plugins import check_names
from vizrobust.requests import COMMANDS, request_class

RECORDED = Path(__file__).with_name("refused.json")
VALUES = ("", "nonsense", "-1", "0", "1.5", "8/0", "1,x")
# What each command cannot do without; the others need a checkpoint alone.
NEEDED = {
    "accentuate": "mnist-k0 x.png --near conv1",
    "atlas": "mnist-k0 --layer conv1",
    "calibrate": "--data digits --attack PGD",
    "caricature": "mnist-k0 x.png",
    "compare": "mnist-k0 mnist-k8",
    "dictionary": "mnist-k0 --layer conv1 --out d.safetensors",
    "dimension": "--data digits --sides 4,6,8",
    "gallery": "run --out g",
    "import": "x.pt --out x.safetensors --arch small_cnn",
    "intervene": "mnist-k0 --layer conv1",
    "invert": "mnist-k0 x.png",
    "judge": "--data digits",
    "list": "",
    "neurons": "",
    "rerender": "x.png",
    "study": "--data digits",
    "train": "--data digits --arch small_cnn --steps 1",
    "trials": "run --out t.html",
    "verify": "report.json",
}


@cache
def parser(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def is_refused(name: str, words: list[str]) -> bool:
    """Whether the command line is answered by a sentence before torch is needed."""
    command, request = parser(name), request_class(name)
    own = {field.name for field in dataclasses.fields(request)}
    try:
        values = command.make_context(name, list(words)).params
        given = {key: value for key, value in values.items() if value is not None and (key in own or key not in SESSION)}
        check_names(request(**given))
    except (click.ClickException, ValueError, FileNotFoundError):
        return True
    return False


def refused() -> dict[str, dict[str, str]]:
    """By command and option, the values that are refused, with a bar between them."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(COMMANDS):
        request, shortest = request_class(name), NEEDED.get(name, "mnist-k0").split()
        assert not is_refused(name, shortest), f"{name} {' '.join(shortest)}"
        for field in dataclasses.fields(request):
            about = field.metadata
            if about["cli"] and not about["argument"] and not isinstance(field.default, bool):
                option = option_name(request, field.name)
                rest = [word for k, word in enumerate(shortest) if word != option and (k == 0 or shortest[k - 1] != option)]
                values = [value for value in VALUES if is_refused(name, [*rest, f"{option}={value}"])]
                if values:
                    found.setdefault(name, {})[option] = "|".join(values)
    return found


def test_what_is_refused_is_what_was() -> None:
    """An option that is not recorded yet is no error; one that accepts more, or less, than it did is."""
    recorded, now = json.loads(RECORDED.read_text()), refused()
    assert sum(map(len, recorded.values())) > 100
    kept = {name: {option: now.get(name, {}).get(option, "") for option in options} for name, options in recorded.items()}
    assert kept == recorded


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(refused(), indent=1) + "\n")
