"""One option of a command, followed from the command line to the row: who hands it on, and in which order of rooms."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import CO_VARARGS, CO_VARKEYWORDS
from itertools import chain
from pathlib import Path
from types import CodeType, FrameType

import pytest

import vizrobust
from tests.conftest import make_net, net_file
from tests.test_cli import run
from vizrobust.data import load
from vizrobust.models import CheckpointInfo, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.runs import read_rows

ROOT = Path(vizrobust.__file__).parent
MOST_ROOMS, MOST_FUNCTIONS = 7, 12
# The layers that only read specs, folders and the code of an attack; every room may call them.
GROUND = ("spec.py", "runs.py", "legacy.py", "requests/", "plugins.py", "results.py", "models/object_code.py")


@contextmanager
def carriers(value: object) -> Iterator[dict[tuple[str, str], None]]:
    """The functions of the package (file, name) that get `value` itself as an argument, in the order of their first call."""
    found: dict[tuple[str, str], None] = {}
    homes: dict[CodeType, str] = {}

    def on_call(frame: FrameType, _event: str, _arg: object) -> None:
        code = frame.f_code
        if code not in homes:
            path = Path(code.co_filename)
            ours = path.is_relative_to(ROOT) and not code.co_name.startswith("<")
            homes[code] = path.relative_to(ROOT).as_posix() if ours else ""
        if not homes[code]:
            return
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
        arguments = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        inside = [item for one in arguments if isinstance(one, dict) for item in one.values()]
        if any(type(item) is type(value) and item == value for item in (*arguments, *inside)):
            found.setdefault((homes[code], code.co_qualname))

    before = sys.gettrace()
    sys.settrace(on_call)  # without a function to return, lines are not traced
    try:
        yield found
    finally:
        sys.settrace(before)


def rooms(found: Mapping[tuple[str, str], None]) -> list[str]:
    """The files in the order in which they first carry the value, without the ground that all stand on."""
    return list(dict.fromkeys(file for file, _ in found if not file.startswith(GROUND)))


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports are not followed: everything is loaded before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("loaded"))
        ref = net_file((1, 8, 8), 10)
        run("attack", ref, "--data", "digits", "--eps", 0.1, "--images", 2, "--steps", 1, "--json")
        run("neurons", ref, "--units", 0, "--steps", 1, "--json")


WALKS = {
    "attack --eps": ("attack", "--eps", 0.12345678),
    "attack --steps": ("attack", "--steps", 3),
    "attack --batch-size": ("attack", "--batch-size", 13),
    "attack --seed": ("attack", "--seed", 7919),
    "neurons --steps": ("neurons", "--steps", 17),
    "neurons --seed": ("neurons", "--seed", 7919),
}


@pytest.mark.parametrize("walk", WALKS)
def test_an_option_crosses_few_rooms(walk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, option, value = WALKS[walk]
    options = {
        "attack": {"--data": "digits", "--eps": 0.1, "--images": 5, "--steps": 2, "--attack": "pgd"},
        "neurons": {"--units": 0, "--steps": 2},
    }[command] | {option: value}
    with carriers(value) as found:
        result = run(command, net_file((1, 8, 8), 10), *chain(*options.items()), "--json")
    assert result.exit_code == 0, result.output
    functions = [one for one in found if not one[0].startswith(GROUND)]
    assert functions[0][0] == "cli/generated.py"
    assert len(rooms(found)) <= MOST_ROOMS, rooms(found)
    assert len(functions) <= MOST_FUNCTIONS, functions


def test_an_option_of_a_study_reaches_the_attacks_rows_through_few_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--images, followed to the last verdict; what comes after it is stopped."""
    monkeypatch.chdir(tmp_path)
    for name, arch, k, data in (
        ("a", "small_cnn", 0, "digits"),
        ("b", "small_cnn", 4, "digits"),
        ("judge", "vgg_small", 0, "npz:x.npz"),
    ):
        net = make_net(arch, (1, 8, 8), 10)
        about = CheckpointInfo(arch, (1, 8, 8), load("digits").classes, (0.4,), (0.3,), data=data, training="", attack_steps=k)
        save_checkpoint(f"{name}.safetensors", body_state(net), about)

    def rendering(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr("vizrobust.study.Study._render", rendering)
    options = {"--images": 11, "--judge": "judge.safetensors", "--hidden": 0, "--masking-images": 0, "--unforeseen-images": 0,
               "--corruption-images": 0, "--out": "run"}  # fmt: skip
    with carriers(11) as found:
        run("study", "a.safetensors", "b.safetensors", "--quick", *chain(*options.items()))
    rows = read_rows(tmp_path / "run" / "attacks")
    assert {image for row in rows for image in row["images"]} == set(range(11))
    functions = [one for one in found if not one[0].startswith(GROUND)]
    assert functions[0][0] == "cli/generated.py"
    assert len(rooms(found)) <= MOST_ROOMS, rooms(found)
    assert len(functions) <= MOST_FUNCTIONS, functions
