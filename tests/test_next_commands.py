"""Commands that a command prints work as they stand when they are pasted, also for networks of one's own with spaces in names."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from tests.trial_studies import make_study
from vizrobust.cli import main
from vizrobust.commands.checkpoints import folded
from vizrobust.models import Layer

NETS = """
from torch import nn
def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def wide():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
"""


def run(line: str, *more: object) -> Result:
    done = CliRunner().invoke(main, [*shlex.split(line)[1:], *map(str, more)], prog_name="vizrobust")
    assert done.exit_code == 0, done.output
    return done


def pasted(done: Result, start: str) -> str:
    """The one command that follows `start` in what was printed."""
    (line,) = [line for line in done.output.splitlines() if start in line]
    return "vizrobust " + line.partition(start)[2]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two checkpoints with code of their own: the command that was named after each import."""
    monkeypatch.chdir(tmp_path)
    Path("my nets.py").write_text(NETS)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "flat net.pt")
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)).state_dict(), "wide.pt")
    found = {}
    for name, file in (("flat", "flat net"), ("wide", "wide")):
        done = run(
            f"vizrobust import '{file}.pt' --arch 'my nets.py:{name}' --normalize none --data digits --out '{file}.safetensors'"
        )
        found[name] = pasted(done, "next: vizrobust ")
    return found


def test_the_commands_after_import_and_layers_run_when_pasted(own):
    assert "'flat net.safetensors'" in own["flat"]
    run(own["flat"], "--images", 2, "--steps", 1, "--quiet")
    listed = run("vizrobust layers wide.safetensors --arch 'my nets.py:wide'")
    run(pasted(listed, "can be rendered: vizrobust "), "--steps", 1, "--units", 0, "--quiet")


def test_each_reference_may_name_its_own_code(own):
    flat, wide = "'flat net.safetensors::arch=my nets.py:flat'", "'wide.safetensors::arch=my nets.py:wide'"
    done = run(f"vizrobust attack {flat} {wide} --images 2 --steps 1 --json --quiet")
    assert [name in done.output for name in ('"flat net.safetensors"', '"wide.safetensors"')] == [True, True]
    listed = run(f"vizrobust layers {wide}")
    run(pasted(listed, "can be rendered: vizrobust "), "--steps", 1, "--units", 0, "--quiet")
    # The code is that of one reference: the other still lacks its own.
    lacking = CliRunner().invoke(main, ["layers", "flat net.safetensors"])
    assert lacking.exit_code == 1
    assert "give --arch" in lacking.output


def test_the_commands_around_a_dictionary_run_when_pasted(own):
    fit = "--layer 0 --units 2 --images 20 --out 'two units.safetensors'"
    made = run(f"vizrobust dictionary wide.safetensors --arch 'my nets.py:wide' {fit}")
    run(pasted(made, "next: vizrobust "), "--steps", 1, "--units", 0, "--quiet")
    wrong = ("dictionary", "wide.safetensors", "--arch", "my nets.py:wide", "--layer", "conv9", "--out", "d.safetensors")
    refused = CliRunner().invoke(main, wrong)
    assert refused.exit_code == 1
    listed = refused.output.replace("\n", " ").partition("(vizrobust ")[2].partition(" lists the layers)")[0]
    assert "linear" in run(f"vizrobust {listed}").output.lower()


def test_an_interrupted_command_names_the_one_that_goes_on(own, monkeypatch):
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    typed = ["neurons", "flat net.safetensors", "--arch", "my nets.py:flat", "--units", "0", "--steps", "1", "--out", "my run"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["vizrobust", *typed])
        patch.setattr("vizrobust.features.picture_runs.to_uint8", stop)
        stopped = CliRunner().invoke(main, typed)
    assert stopped.exit_code == 130
    run(pasted(stopped, "go on with: vizrobust "), "--quiet")
    assert Path("my run/index.html").is_file()


def test_the_commands_around_trials_run_when_pasted(tmp_path, monkeypatch):
    folder = make_study(tmp_path / "my study", hidden=False)
    monkeypatch.chdir(tmp_path)
    keyless = CliRunner().invoke(main, ["trials", "my study", "--answers", "answers.json"])
    assert keyless.exit_code == 1
    made = run("vizrobust " + keyless.output.replace("\n", " ").partition("make a page first: vizrobust ")[2], "--trials", 4)
    line = pasted(made, "next: vizrobust ")
    words = shlex.split(line)
    assert words[:3] == ["vizrobust", "trials", "my study"]
    # Before the page is answered, it says what is missing.
    early = CliRunner().invoke(main, words[1:])
    assert early.exit_code == 1
    assert "answer the page of trials" in early.output.replace("\n", " ")
    file = words[words.index("--answers") + 1]
    token = file.removeprefix("answers-").removesuffix(".json")
    trials = json.loads((folder / "trials-key.json").read_text())["pages"][token]["trials"]
    answers = [{"trial": one["id"], "choice": one["answer"], "confidence": 3, "seconds": 1.5} for one in trials]
    Path(file).write_text(json.dumps({"format": 1, "trials": token, "answers": answers}))
    assert "100.0 %" in run(line).output
    assert f"saves {file}" in made.output
    assert file in Path("trials.html").read_text()


def test_blocks_that_are_alike_are_listed_once_and_layers_can_be_filtered():
    short = run("vizrobust layers mnist-k8 --filter 'RE*U2'").stdout
    assert "relu2" in short
    assert "relu1" not in short
    parts = (("attn", (6, 2, 2)), ("attn:class", (6,)))
    blocks = [Layer(f"enc.layer_{k}.{part}", "Linear", shape, "tokens") for k in range(9, 12) for part, shape in parts]
    other = Layer("enc.layer_12.attn", "Linear", (7, 2, 2), "tokens")
    names = [name for _, name in folded([*blocks, other, Layer("enc", "Encoder", (7, 2, 2), "tokens")])]
    assert names == ["enc.layer_{9-11}.attn", "enc.layer_{9-11}.attn:class", "enc.layer_12.attn", "enc"]
