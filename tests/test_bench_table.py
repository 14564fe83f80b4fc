"""`make bench`: what was measured stands beside its goal, in one table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import ratios


def test_every_ratio_is_in_the_table_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ratios, "MEASURED", [])
    ratios.verdict("theirs / ours", 1.31, 1.3, True)
    ratios.verdict("ours / bare passes", 1.06, 1.05, False)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["reached", "MISSED"]
    found = {"attacks": ratios.MEASURED}
    assert [row[-1] for row in ratios.table(found).rows] == ["reached", "missed"]
    ratios.write(found, {"attacks": 12.34}, tmp_path / "new" / "bench.json")
    kept = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [(one["ratio"], one["value"], one["reached"]) for one in kept["ratios"]] == [
        ("theirs / ours", 1.31, True), ("ours / bare passes", 1.06, False),
    ]  # fmt: skip
    assert kept["seconds"] == {"attacks": 12.3}
    assert {"processor", "instructions", "bfloat16 instructions", "torch"} <= set(kept["machine"])
