"""`vizrobust neurons --exemplars` as a person meets it: rows, page and folder, a second call, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_cli import checkpoint, run
from vizrobust.data import load
from vizrobust.features import exemplar_runs
from vizrobust.models import activations, load_checkpoint

FEW = ["--layer", "conv2", "--steps", 1, "--data", "digits", "--device", "cpu"]


@pytest.fixture
def A(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "a.safetensors")


def test_rows_and_page_have_the_images_that_a_full_sort_finds(A: Path, tmp_path: Path) -> None:
    B, out = checkpoint(tmp_path / "b.safetensors", 1), tmp_path / "run"
    rows = []
    for one in (A, B):
        result = run("neurons", one, *FEW, "--units", "3,1", "--both", "--exemplars", 4, "--out", out, "--json")
        assert result.exit_code == 0, result.output
        rows += [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 2 * 2 * 2
    data = load("digits")
    x = data.val.take(torch.arange(len(data.val)))
    nets = {one.id: one.net() for one in map(load_checkpoint, (str(A), str(B)))}
    for row in rows:
        net = nets[row["checkpoint"]]
        with torch.no_grad():
            scores = activations(net, x, ["conv2"])["conv2"][:, row["unit"]].mean((1, 2)).numpy()
        shown = row["exemplars"]
        assert (shown["data"], shown["split"], shown["n"], shown["of"]) == ("digits", "val", len(x), len(x))
        for end, order in (("most", np.argsort(-scores, kind="stable")), ("least", np.argsort(scores, kind="stable"))):
            np.testing.assert_allclose([image["value"] for image in shown[end]], scores[order[:4]], atol=2e-5)
            assert {image["index"] for image in shown[end]} == set(order[:4].tolist())
            assert all((out / image["image"]).is_file() for image in shown[end])
            assert all(len(image["place"]) == 2 for image in shown[end] if image["place"])
    page = (out / "index.html").read_text()
    assert f"the 4 most and the 4 least exciting of {len(x)} validation images of digits" in page
    assert page.count('class="exemplar"') == 8 * 8


def test_a_second_call_reads_and_more_units_are_added(A: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert run("neurons", A, *FEW, "--units", 0, "--out", out).exit_code == 0
    assert 'class="exemplar"' not in (out / "index.html").read_text()
    assert run("neurons", A, *FEW, "--units", 0, "--exemplars", 2, "--out", out).exit_code == 0

    def never(*args: Any, **how: Any) -> None:
        raise AssertionError("the data were gone through again")

    monkeypatch.setattr(exemplar_runs, "exemplars", never)
    assert run("neurons", A, *FEW, "--units", "0:3", "--exemplars", 2, "--out", out).exit_code == 0
    assert (out / "index.html").read_text().count('class="exemplar"') == 3 * 2 * 2
    # A call without the option keeps what is there.
    assert run("neurons", A, *FEW, "--units", "0:4", "--out", out).exit_code == 0
    assert (out / "index.html").read_text().count('class="exemplar"') == 3 * 2 * 2


def test_a_data_set_of_other_classes_gives_images_all_the_same(tmp_path: Path) -> None:
    seven = checkpoint(tmp_path / "seven.safetensors", classes=7)
    result = run("neurons", seven, *FEW, "--units", 0, "--exemplars", 2, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--exemplars", 99999], "99999 images asked for each unit, but there are only"),
        (["--exemplars", 0], "--exemplars must be at least 1, got 0"),
        (["--exemplars", 2, "--objective", "DeepDream('conv2')"], "has none of them; leave out --exemplars"),
        (["--exemplars", 2, "NODATA"], "--exemplars needs natural images; name a data set with --data"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_rendered(
    more: list[Any], words: str, A: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = FEW
    if "NODATA" in more:
        A, more, given = checkpoint(tmp_path / "n.safetensors", data=""), more[:-1], FEW[:4]
    if "--objective" in more:
        given = FEW[2:]
    result = run("neurons", A, *given, *more, "--out", "r")
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("**/*.png"))
