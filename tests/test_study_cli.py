"""`vizrobust study` and `vizrobust verify` as a person meets them: what is wrong is said in one sentence, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vizrobust.cli import main
from vizrobust.study import Stage, Study, StudyReport


def said(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to study: --data REF trains a sweep on it, or name two or more checkpoints"),
        (("--data", "mnist5k", "--steps", "8"), "two or more K, got --steps 8"),
        (("--data", "mnist5k", "--steps", "0,one"), "--steps '0,one' is not a list of numbers such as 0,1,2,4,8"),
        (("--data", "mnist5k", "--steps", "0,4,4"), "K must be 0 or more, each once, got 0,4,4"),
        (("--data", "mnist5k", "--arms", "fsgm"), "no baseline 'fsgm'; did you mean fgsm or fast?"),
        (("--data", "mnist5k", "--controls", "k8"), "no control 'k8'; there are: k0-early"),
        (("--data", "no-such-data"), "no data set 'no-such-data'"),
        (("mnist-k8", "mnist-fgsm"), "a study compares two or more K, got K = 8"),
        (("mnist-k0", "mnist-k8", "--steps", "0,8"), "checkpoints are given, so nothing is trained; leave out --steps"),
        (("mnist-k0", "mnist-k8", "--data", "digits"), "mnist-k0 takes (1, 28, 28) and 10 classes, digits has (1, 8, 8)"),
        (("mnist-k0", "mnist-k8", "--judge", "mnist-k0"), "mnist-k0"),
        (("--data", "digits"), "there is no built-in judge for digits; name one or more with --judge REF"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = said("study", *arguments)
    assert result.exit_code in (1, 2)
    told = " ".join(result.stderr.split())
    assert sentence in told
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_of_fewer_images_is_said_to_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is done, which here is not done at all."""
    monkeypatch.setattr("vizrobust.study.Study.run", lambda _study: iter(()))
    monkeypatch.setattr("vizrobust.commands.study.report_of", lambda *_: StudyReport({"pictures": []}))
    monkeypatch.setattr("vizrobust.commands.study.write_study", lambda *_: tmp_path)
    monkeypatch.setattr("vizrobust.commands.study.StudyResult.tables", lambda _: [])
    monkeypatch.setattr("vizrobust.commands.study.StudyResult.lines", lambda _: [])
    options = (
        "--recipe",
        "fourier(steps=7)",
        "--images",
        "1000",
        "--masking-images",
        "0",
        "--unforeseen-images",
        "50",
        "--corruption-images",
        "200",
    )
    result = said("study", "mnist-k0", "mnist-k8", *options, "--out", str(tmp_path / "study"))
    assert result.exit_code == 0, result.output
    told = " ".join(result.stderr.split())
    assert "left out: no masking diagnosis" in told
    assert "left out: no pictures by the recipe plain" in told
    assert json.loads((tmp_path / "study" / "run.json").read_text())["identity"]["plan"].count("fourier") == 1
    assert "left out: unforeseen attacks on 50 images instead of 200" in told
    assert "left out: corruptions" not in told


def test_the_hash_of_the_preregistration_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as it is written, so that the person who reads along has a copy outside the report."""

    def run(study: Study) -> Iterator[Stage]:
        yield Stage("training", 0, 3)
        study.facts["prereg"] = {"sha256": "ab" * 32, "content": {}, "departures": []}
        yield Stage("attacking", 1, 3)
        yield Stage("rendering", 2, 3)

    monkeypatch.setattr("vizrobust.study.Study.run", run)
    monkeypatch.setattr("vizrobust.commands.study.report_of", lambda *_: StudyReport({"pictures": []}))
    monkeypatch.setattr("vizrobust.commands.study.write_study", lambda *_: tmp_path)
    monkeypatch.setattr("vizrobust.commands.study.StudyResult.tables", lambda _: [])
    monkeypatch.setattr("vizrobust.commands.study.StudyResult.lines", lambda _: [])
    result = said("study", "mnist-k0", "mnist-k8", "--out", str(tmp_path / "study"))
    assert result.exit_code == 0, result.output
    told = " ".join(result.stderr.split())
    assert told.count("preregistered in") == 1
    assert f"prereg.json, sha256 {'ab' * 32}" in told


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = said("study", "mnist-k0", "mnist-k8", "--quick", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "holds other files; give --out a new or empty folder" in result.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no report"),
        ("{", "is not a study's report"),
        ("[]", "is not a study's report"),
        (json.dumps({"format": 99}), "is of format 99, this vizrobust reads 1 and 2"),
        (json.dumps({"format": 1}), "is not a study's report (KeyError: 'checkpoints')"),
    ],
)
def test_verify_says_what_is_no_report(content: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    result = said("verify", str(path))
    assert result.exit_code == 1
    assert sentence in " ".join(result.stderr.split())
