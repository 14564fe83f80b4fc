"""Two processes write the report that one writes, go on with its folder, and diagnose as it does; one sees the folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.test_study_session import DIGITS, smallest
from vizrobust.cli import main
from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.features.recipes import plain
from vizrobust.models import Checkpoint, CheckpointInfo, architecture, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.parallel import Processes
from vizrobust.runs import read_rows
from vizrobust.study import Plan, Study, report_of, training_runs
from vizrobust.study.networks import assign_runs, on_all, passes

ROOT = Path(__file__).parent.parent
MASKING = [
    *("masking", "mnist-k8", "--images", "22", "--batch-size", "4", "--json", "--out", "masking"),
    *("--effort", "AttackBudget(steps=3, restarts=1, confirm_restarts=2, queries=20, noise_samples=5, probes=8)"),
]  # fmt: skip
UNDECIDED = 4
# Each process in a folder of its own, as on machines that share no disk.
DRIVER = """
import json, os, sys
from pathlib import Path
from tests.test_study_processes import DIGITS, MASKING, small, study_in
from vizrobust.cli import main
os.chdir(Path(sys.argv[1]) / f"rank{os.environ['RANK']}")
study_in("study", small(sys.argv[2]))
main(MASKING)
"""


def small(judge: str) -> Plan:
    """Every stage, with more than one batch to attack and a cell that ends where another one has come to."""
    return replace(
        smallest(judge), steps=(0, 1), radii=(0.1,), controls=("k0-early",), recipes=(plain(steps=4),),
        images=130, masking_images=120,
    )  # fmt: skip


def study_in(folder: Path | str, plan: Plan, until: str = "") -> str | None:
    """The report of a study as the main process writes it; None in the others, and where it ends at a stage."""
    study = Study(folder, plan, DIGITS, Compute("cpu", threads=1))
    for stage in study.run():
        if until and stage.what.startswith(until):
            return None
    if "measured" not in study.facts:
        return None
    report_of(study, "vizrobust study").write(study.folder)
    return (Path(folder) / "report.json").read_text()


@dataclass(frozen=True)
class Done:
    home: Path
    report: dict[str, Any]
    diagnosis: str
    launched: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A study of one process; and one that a process began alone and two have ended, with a diagnosis by both."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(5)
    judge = str(home / "outside.safetensors")
    about = CheckpointInfo("vgg_small", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="npz:others.npz")
    save_checkpoint(judge, body_state(architecture("vgg_small", (1, 8, 8), 10)()), about)
    for rank in (0, 1):
        (home / f"rank{rank}").mkdir()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        report = study_in(home / "one", small(judge))
        assert report is not None
        assert study_in(home / "rank0" / "study", small(judge), until="training K = 1") is None
        told = CliRunner().invoke(main, MASKING, catch_exceptions=False)
        assert told.exit_code == UNDECIDED, told.output
    torch.set_num_threads(threads)
    (home / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "driver.py", str(home)]
    launched = subprocess.run(
        [*command, judge], cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return Done(home, json.loads(report), told.stdout, launched)


@pytest.mark.slow
def test_two_processes_end_one_processes_study_with_its_report(done: Done) -> None:
    path = done.home / "rank0" / "study" / "report.json"
    assert path.is_file(), done.launched.stderr
    two = json.loads(path.read_text())
    for name in done.report:
        assert two[name] == done.report[name], name
    assert two == done.report


@pytest.mark.slow
def test_both_train_and_one_writes_all_else(done: Done) -> None:
    seen, unseen = (done.home / f"rank{rank}" / "study" for rank in (0, 1))
    assert {path.name for path in unseen.iterdir()} == {"cells", "checkpoints"}
    there, elsewhere = ({path.parent.name for path in of.glob("cells/*/checkpoint.safetensors")} for of in (seen, unseen))
    names = {cell.name for cell in training_runs(small("x"), 0.1)}
    assert elsewhere < names <= there
    assert elsewhere, "the other process has trained too"
    for name in elsewhere:
        assert not (seen / "cells" / name / "state.pt").exists(), "what is trained elsewhere is sent"
        for file in ("run.json", "metrics.jsonl", "checkpoint.safetensors"):
            assert (seen / "cells" / name / file).read_bytes() == (unseen / "cells" / name / file).read_bytes()
    assert {path.name for path in (seen / "checkpoints").iterdir()} == {f"{name}.safetensors" for name in names}
    for folder in (seen / "attacks", seen / "clarity", *(seen / "pictures").iterdir()):
        rows = [json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in read_rows(folder)]
        assert len(rows) == len(set(rows)) > 0


@pytest.mark.slow
def test_two_diagnose_as_one_does_and_one_answers(done: Done) -> None:
    printed = [line for line in done.launched.stdout.splitlines() if line.startswith("{")]
    assert [json.loads(line) for line in printed] == [json.loads(done.diagnosis)], done.launched.stderr
    # The launcher tells how the first process ended.
    assert re.search(rf"exitcode\s*:\s*{UNDECIDED}\b", done.launched.stderr)


def test_the_longest_trainings_are_shared_out_first_and_dependent_ones_stay_together() -> None:
    plan = replace(
        small("x"), steps=(0, 1, 2, 4, 8, 16), seeds=2, arms=("fgsm", "fast", "noise"), controls=("k0-early", "k1-long")
    )
    sweep = list(training_runs(plan, 0.1))
    assert assign_runs(sweep, 1) == [sweep]
    for size in (2, 3, 5):
        shares = assign_runs(sweep, size)
        assert sorted(cell.name for share in shares for cell in share) == sorted(cell.name for cell in sweep)
        loads = [sum(passes(cell.training, DIGITS) for cell in share) for share in shares]
        longest = max(passes(cell.training, DIGITS) for cell in sweep)
        assert max(loads) - min(loads) <= longest
        for share in shares:
            names = [cell.name for cell in share]
            assert names == [cell.name for cell in sweep if cell.name in names], "seed by seed"
            assert all(names.index(cell.until) < names.index(cell.name) for cell in share if cell.until)
    assert [len(share) for share in assign_runs(sweep[:1], 3)] == [1, 0, 0]


def test_a_checkpoint_that_one_process_loads_is_the_same_on_all() -> None:
    told: list[Any] = []

    class Pretended(Processes):
        """The main one's word is what the other one hears."""

        def broadcast(self, value: Any) -> Any:
            if self.main:
                told.append(value)
            return told[-1]

    def never() -> Checkpoint:
        raise FileNotFoundError

    own = load_checkpoint("mnist-k8")
    first, second = (on_all(load_, "small_cnn", Pretended(rank, 2)) for rank, load_ in enumerate((lambda: own, never)))
    assert (first.name, first.info, first.id, first.reference) == (own.name, own.info, own.id, own.reference)
    assert (second.name, second.info, second.id, second.reference) == (own.name, own.info, own.id, own.reference)
    x = load("mnist5k").test.take(torch.arange(3))
    assert torch.equal(first.net()(x), second.net()(x))
