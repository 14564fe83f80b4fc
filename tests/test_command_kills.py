"""Every command that writes a folder: killed in the middle and run again, it leaves what an undisturbed run leaves."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import net_file
from vizrobust.cli import main

# Forked from a server that has imported torch, a command begins at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["vizrobust.cli", "vizrobust.session", "vizrobust.commands.attack", "vizrobust.commands.compare", "scipy.stats"]
)
# What no two runs share: times, the folder's own name, and what was there already when a run began.
OWN = ("seconds", "started", "finished", "argv", "out", "created", "versions")

ON = ["--data", "digits", "--device", "cpu"]
CASES = {
    "neurons": ["neurons", "{net}", *ON, "--units", "0:6", "--seeds", "2", "--steps", "40"],
    "attack": ["attack", "{net}", *ON, "--attack", "pgd", "--attack", "fab", "--images", "60", "--eps", "0.1"],
    "masking": ["masking", "{net}", *ON, "--images", "60", "--eps", "0.1"],
    "spritemap": ["spritemap", "{net}", "--device", "cpu", "--layer", "linear1", "--steps", "20"],
    "compare": ["compare", "{net}", "{other}", *ON, "--units", "0:4", "--seeds", "2", "--steps", "40", "--images", "100"],
    "microscope": ["microscope", "{net}", *ON, "--layers", "linear2", "--steps", "40", "--exemplar-images", "100"],
    "atlas": ["atlas", "{net}", *ON, "--layer", "linear1", "--images", "100", "--grid", "4", "--steps", "40"],
    "invert": ["invert", "{net}", "{image}", "--device", "cpu", "--layer", "conv2", "--seeds", "6", "--steps", "60"],
    "caricature": ["caricature", "{net}", "{image}", "--device", "cpu", "--layer", "conv2", "--seeds", "6", "--steps", "60"],
    "accentuate": ["accentuate", "{net}", "{image}", "--device", "cpu", "--near", "conv2", "--units", "0:6", "--steps", "60"],
    "explain": ["explain", "{net}", *ON, "--images", "8", "--method", "Saliency", "--method", "SmoothGrad"],
    "calibrate": ["calibrate", *ON, "--attack", "fog", "--epochs", "1", "--candidates", "6", "--steps", "2", "--images", "50"],
    "dimension": ["dimension", *ON, "--sides", "8,12,16", "--epochs", "2", "--images", "50", "--arch", "small_cnn"],
}
FAST = ("attack",)


def start(argv: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(argv, standalone_mode=False)


def run(argv: list[str], killed_after: Path | None = None) -> bool:
    """Run a command; with `killed_after` until that folder holds two rows. Whether it was killed before its end."""
    process = SERVER.Process(target=start, args=(argv,))
    process.start()
    while killed_after is not None and process.is_alive():
        if sum(path.read_bytes().count(b"\n") for path in killed_after.glob("**/rows.jsonl")) >= 2:
            process.kill()
        time.sleep(0.005)
    process.join(120)
    assert process.exitcode is not None
    assert process.exitcode in ((0,) if killed_after is None else (0, -9))
    return process.exitcode == -9


def written(folder: Path) -> dict[str, Any]:
    """The rows without times, and the pixels of the pictures, by their names in the folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "rows.jsonl":
            rows = [json.loads(line) for line in path.read_text().replace(str(folder), "RUN").splitlines()]
            found[name] = sorted(json.dumps({key: row[key] for key in row if key not in OWN}, sort_keys=True) for row in rows)
        elif path.suffix == ".png":
            found[name] = np.asarray(Image.open(path)).tobytes()
        elif path.is_file():
            found[name] = None
    return found


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_a_killed_command_goes_on_to_the_same_folder(name: str, tmp_path: Path) -> None:
    names = {"net": net_file((1, 8, 8), 10), "other": net_file((1, 8, 8), 10, seed=2), "image": str(tmp_path / "image.png")}
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(names["image"])
    argv = [part.format(**names) for part in CASES[name]]
    folders = [tmp_path / "killed" / "run", tmp_path / "whole" / "run"]
    assert run([*argv, "--out", str(folders[0])], killed_after=folders[0]), "it ended before it could be killed"
    run([*argv, "--out", str(folders[0])])
    run([*argv, "--out", str(folders[1])])
    killed, whole = (written(folder) for folder in folders)
    assert sorted(killed) == sorted(whole)
    for key in whole:
        assert killed[key] == whole[key], key
    assert any(value for key, value in whole.items() if key.endswith("rows.jsonl"))
