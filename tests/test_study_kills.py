"""A study killed at random five times and taken up again gives the report of one that ran through."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.forks import forks
from tests.test_study_session import DIGITS
from vizrobust.models import CheckpointInfo, architecture, save_checkpoint
from vizrobust.models.checkpoints import body_state

KILLS = 5
CODE = """
import sys
import torch._dynamo
from tests.test_study_processes import small, study_in
def run(folder):
    study_in(folder, small(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_five_kills_change_nothing_in_the_report(tmp_path: Path) -> None:
    torch.manual_seed(5)
    judge = tmp_path / "outside.safetensors"
    about = CheckpointInfo("vgg_small", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="npz:others.npz")
    save_checkpoint(judge, body_state(architecture("vgg_small", (1, 8, 8), 10)()), about)
    with forks(CODE, str(judge), cwd=tmp_path) as launcher:
        began = time.monotonic()
        launcher.start("whole")
        assert launcher.ended() == 0
        whole = time.monotonic() - began
        chance, met = random.Random(0), []
        while len(met) < KILLS:
            pid = launcher.start("killed")
            time.sleep(whole * chance.uniform(0.03, 0.2))
            with contextlib.suppress(ProcessLookupError):  # it has come to its end
                os.kill(pid, signal.SIGKILL)
            met.append(launcher.ended())
        launcher.start("killed")
        assert launcher.ended() == 0
    assert met.count(-signal.SIGKILL) >= 3, "most were killed before they came to their end"
    report, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    for name in report:
        assert again[name] == report[name], name
