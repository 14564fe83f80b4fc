"""`vizrobust masking` as a person meets it: tables, rows, exit codes, and what it takes a checkpoint to be trained against."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vizrobust.attacks import FGSM, L2, PGD, Linf
from vizrobust.cli import main, show
from vizrobust.commands.masking import checks_table, evaluation_ball, trained_against
from vizrobust.data import load
from vizrobust.models import load_checkpoint, save_checkpoint
from vizrobust.robustness.masking import CHECKS, NOT_ROBUST, OVERFITTED, UNDECIDED, Check, Diagnosis, Verdict

LITTLE = ("--effort", "AttackBudget(steps=5, restarts=1, queries=5, noise_samples=2, probes=10)")


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["masking", *map(str, args)], prog_name="vizrobust")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders go to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def test_a_masked_checkpoint_ends_with_3() -> None:
    result = run("mnist-k1", "--images", 20, "--batch-size", 20, *LITTLE, "--quiet")
    assert result.exit_code == 3, result.output
    assert f"verdict: {OVERFITTED}" in result.output
    assert "PGD(steps=1, ball=Linf(eps=0.3))" in result.output, "the attack of training is read from the checkpoint"
    assert "what to do:" in result.output
    table = result.output.split("verdict:")[0]
    assert table.count(" YES ") >= 1
    assert table.index("training attack beaten") < table.index("larger eps helps")


def test_sound_gradients_end_with_0_and_rows_have_the_agreed_fields() -> None:
    result = run("mnist-k0", "--images", 150, "--most-images", 150, "--batch-size", 150, *LITTLE, "--json")
    assert result.exit_code == 0, result.output
    (row,) = map(json.loads, result.stdout.splitlines())
    assert (row["checkpoint"], row["verdict"], row["eps"], row["norm"]) == ("mnist-k0", NOT_ROBUST, 0.3, "Linf")
    assert (row["data"], row["split"], row["n"], row["images_needed"]) == ("mnist5k", "test", 150, None)
    assert len(row["checks"]) == len(CHECKS)
    for check in row["checks"]:
        assert set(check) == {"name", "value", "threshold", "tripped", "counts", "evidence", "advice"}
        assert check["evidence"]
    assert row["sentence"].startswith("not robust, gradients sound: 0.0 % of 150 images")


def test_undecided_ends_with_4_and_says_how_many_images_it_takes() -> None:
    result = run("mnist-k0", "--images", 20, "--most-images", 20, "--batch-size", 20, *LITTLE, "--json")
    assert result.exit_code == 4, result.output
    row = json.loads(result.stdout)
    assert row["verdict"] == UNDECIDED
    assert row["images_needed"] > 100
    assert f"about {row['images_needed']} images" in row["sentence"]


def test_more_images_are_taken_where_the_verdict_depends_on_it() -> None:
    args = ("mnist-k0", "--images", 40, "--batch-size", 40, *LITTLE, "--out", "kept")
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["verdict"] == NOT_ROBUST
    assert (row["asked"], row["n"] > 40, row["n"] <= 200) == (40, True, True)
    assert f"40 images leave it undecided; {row['n']} are taken for" in result.stderr
    # No image is attacked twice by the same run of an attack, and those of a settled check by no attack of it.
    attacked: set[tuple[str, str, int]] = set()
    for line in Path("kept/rows.jsonl").read_text().splitlines():
        part = json.loads(line)
        new = {(part["attack"], part["walk"], index) for index in part["images"]}
        assert not new & attacked
        attacked |= new
    extended = {check["name"] for check in row["checks"] if check["counts"].get("images") == row["n"]}
    decided = {"margin loss finds more", "black box beats white box", "random noise finds more", "unbounded attack fails"}
    assert extended & decided
    assert extended <= decided, "what decides nothing meets no more images"
    assert all(name in result.stderr for name in extended - {"unbounded attack fails"})
    assert not any(attack.startswith("FGSM") and index >= 40 for attack, _, index in attacked)
    assert run(*args, "--json").stdout == result.stdout


def test_few_more_images_are_not_padded_to_a_full_batch() -> None:
    """Of 45 images five are added to the 40 of the first look: their batches hold few."""
    run("mnist-k0", "--images", 40, "--most-images", 45, "--batch-size", 40, *LITTLE, "--out", "kept", "--json")
    parts = [json.loads(line) for line in Path("kept/rows.jsonl").read_text().splitlines()]
    added = [part for part in parts if any(index >= 40 for index in part["images"])]
    assert added
    assert all(part["batch_size"] <= 6 and min(part["images"]) >= 40 for part in added)


def test_the_bounds_of_two_looks_hold_together() -> None:
    one, two = (
        json.loads(run("mnist-k0", "--images", 20, "--most-images", most, "--batch-size", 20, *LITTLE, "--json").stdout)
        for most in (20, 21)
    )
    (alone,), (first,) = ([check for check in row["checks"] if check["name"] == "margin loss finds more"] for row in (one, two))
    assert "(0.0 to 11.9)" in alone["evidence"], "one look at 95 %"
    assert "(0.0 to 15.5)" in first["evidence"], "z = 1.96 on 21 images"


def test_masked_outranks_undecided_and_several_have_a_table_of_verdicts() -> None:
    few = ("--images", 20, "--most-images", 20, "--batch-size", 20)
    result = run("mnist-k0", "mnist-k1", *few, *LITTLE, "--quiet")
    assert result.exit_code == 3, result.output
    summary = result.output.split("verdicts")[1]
    assert summary.index("mnist-k0") < summary.index("mnist-k1")
    assert "95.0 %" in summary or "100.0 %" in summary


def test_attacks_are_kept() -> None:
    args = ("mnist-k1", "--images", 20, "--batch-size", 20, *LITTLE, "--json")
    first = run(*args, "--out", "kept")
    rows = Path("kept/rows.jsonl").read_text().splitlines()
    assert run(*args, "--out", "kept").stdout == first.stdout
    assert Path("kept/rows.jsonl").read_text().splitlines() == rows, "nothing was attacked again"


def test_transfer_from_another_checkpoint() -> None:
    result = run("mnist-k1", "--transfer-from", "mnist-k0", "--images", 10, "--batch-size", 10, *LITTLE, "--json")
    (check,) = (check for check in json.loads(result.stdout)["checks"] if check["name"] == "transfer finds more")
    assert check["tripped"] is not None
    assert check["counts"]["images"] == 10


def test_a_checkpoint_is_not_transferred_from_itself() -> None:
    result = run(
        "mnist-k0", "--transfer-from", "mnist-k0", "--images", 5, "--most-images", 5, "--batch-size", 5, *LITTLE, "--json"
    )
    (check,) = (check for check in json.loads(result.stdout)["checks"] if check["name"] == "transfer finds more")
    assert check["tripped"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--effort", "PGD()"), "is not an effort"),
        (("--effort", "AttackBudget(restarts=0)"), "restarts must be at least 1"),
        (("--norm", "L2"), "L2 has no eps; give --eps"),
        (("--norm", "L7"), "no norm 'L7'"),
        (("--trained-with", "pgdd"), "no attack 'pgdd'"),
        (("--transfer-from", "mnist-k99"), "no model 'mnist-k99'"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(args: tuple[object, ...], message: str) -> None:
    result = run("mnist-k0", *args)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--images", 0), "--images must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--images", 20, "--most-images", 10), "--most-images 10 is less than --images 20"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_wrong_usage(args: tuple[object, ...], message: str) -> None:
    result = run("mnist-k0", *args)
    assert result.exit_code == 2
    assert message in result.output


# What a checkpoint was trained against, and the ball in which it is looked at.


def described(tmp_path: Path, **about: object):
    path = tmp_path / "a.safetensors"
    built_in = load_checkpoint("mnist-k8")
    save_checkpoint(path, built_in.state, replace(built_in.info, **about))
    return load_checkpoint(str(path))


TRAINING = 'Training(arch="small_cnn", data="mnist5k"{})'


@pytest.mark.parametrize(
    ("about", "told", "trained"),
    [
        ({}, None, (PGD(steps=8, ball=Linf(0.3)),)),
        ({"training": TRAINING.format(""), "attack_steps": 0}, None, ()),
        ({"training": "", "attack_steps": 0}, None, ()),
        ({"training": "", "attack_steps": None}, None, None),
        ({"training": "", "attack_steps": 7}, None, (PGD(steps=7),)),
        ({"training": "by hand, in 1998", "attack_steps": None}, None, None),
        ({"training": "published weights X", "attack_steps": None, "arch": "small_cnn"}, None, None),
        ({}, "none", ()),
        ({}, "fgsm", (FGSM(),)),
        ({"training": "", "attack_steps": None}, "PGD(steps=3, ball=Linf(eps=0.1))", (PGD(steps=3, ball=Linf(0.1)),)),
    ],
    ids=str,
)
def test_what_it_was_trained_against(tmp_path: Path, about: dict, told: str | None, trained: tuple | None) -> None:
    assert trained_against(described(tmp_path, **about), told) == trained


@pytest.mark.parametrize(
    ("about", "trained", "options", "ball"),
    [
        ({}, (PGD(ball=Linf(0.1)),), {}, Linf(0.1)),
        ({}, (PGD(ball=Linf(0.1)),), {"eps": 0.2}, Linf(0.2)),
        ({}, (PGD(ball=L2(2.0)), PGD(ball=Linf(0.1))), {}, L2(2.0)),
        ({}, (PGD(ball=L2(2.0)), PGD(ball=Linf(0.1))), {"norm": "linf"}, Linf(0.1)),
        ({}, (PGD(ball=L2(2.0)),), {"norm": "Linf"}, Linf(0.3)),
        ({"eps": 0.05, "norm": "Linf"}, (), {}, Linf(0.05)),
        ({"eps": None, "norm": ""}, (), {}, Linf(0.3)),
        ({"eps": None, "norm": ""}, (PGD(),), {"eps": 1.5, "norm": "L2"}, L2(1.5)),
    ],
    ids=str,
)
def test_the_ball_is_that_of_training_unless_told(tmp_path: Path, about: dict, trained: tuple, options: dict, ball) -> None:
    chosen = evaluation_ball(described(tmp_path, **about), trained, load("mnist5k"), **options)
    assert chosen == ball


# The table.


def diagnosis() -> Diagnosis:
    told = {"evidence": "evidence [of] it " * 6, "unit": "points"}
    names = [name.replace("_", " ") for name in CHECKS]
    checks = [Check(names[0], 0.812, 0.15, True, advice="do it", **told)]
    checks += [Check(name, 0.0, 0.15, False, **told) for name in names[1:]]
    return Diagnosis(Verdict(OVERFITTED, "masked: so it is."), 0.3, tuple(checks))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_is_as_wide_as_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(show, "PIPE_WIDTH", width)
    show.detailed_table(checks_table("a title [with brackets]", diagnosis()), "--{}".format)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    for words in (
        "a title [with brackets]",
        "81.2 pts",
        "> 15.0",
        "YES",
        "evidence [of] it",
        "what to do: do it",
        "verdict: masked: so it is.",
    ):
        assert words in printed, words
    assert printed.count("YES") == 1
    assert len(re.findall(r" no\b", printed)) == len(CHECKS) - 1
