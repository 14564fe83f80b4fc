"""A study killed at random five times and taken up again gives the report of one that ran through."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_study_session import DIGITS
from vizrobust.models import Description, architecture, save_checkpoint
from vizrobust.models.checkpoints import body_state

ROOT = Path(__file__).parent.parent
KILLS = 5
# Starting Python takes longer than this study: one process loads everything and forks one for each folder it is told.
LAUNCHER = """
import os, sys
import torch._dynamo
from tests.test_study_processes import small, study_in
judge = sys.argv[1]
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            study_in(line.strip(), small(judge))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_five_kills_change_nothing_in_the_report(tmp_path: Path) -> None:
    torch.manual_seed(5)
    judge = tmp_path / "outside.safetensors"
    about = Description("vgg_small", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="npz:others.npz")
    save_checkpoint(judge, body_state(architecture("vgg_small", (1, 8, 8), 10)()), about)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LAUNCHER, str(judge)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        stdin, stdout = launcher.stdin, launcher.stdout

        def start(folder: str) -> int:
            stdin.write(f"{folder}\n")
            stdin.flush()
            return int(stdout.readline())

        began = time.monotonic()
        start("whole")
        assert int(stdout.readline()) == 0
        whole = time.monotonic() - began
        chance, met = random.Random(0), []
        while len(met) < KILLS:
            pid = start("killed")
            time.sleep(whole * chance.uniform(0.03, 0.2))
            with contextlib.suppress(ProcessLookupError):  # it has come to its end
                os.kill(pid, signal.SIGKILL)
            met.append(int(stdout.readline()))
        start("killed")
        assert int(stdout.readline()) == 0
        stdin.close()
    assert met.count(-signal.SIGKILL) >= 3, "most were killed before they came to their end"
    report, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    for name in report:
        assert again[name] == report[name], name
