"""An image's place in a batch: the kernels that multiply its row give it the same bits in each."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vizrobust.compute import ask_for_repeatable, processor


def moved() -> list[tuple[int, int, int]]:
    """The shapes of products that have another row where it stands in another place, forward or backward."""
    found = []
    for n in (5, 6, 11):
        for inside, outside in ((640, 100), (100, 7), (128, 7)):
            weights, rows, slopes = torch.randn(outside, inside), torch.randn(n, inside), torch.randn(n, outside)
            order = torch.randperm(n)
            forward, backward = rows @ weights.T, slopes @ weights
            same = torch.equal(forward[order], rows[order] @ weights.T)
            if not same or not torch.equal(backward[order], slopes[order] @ weights):
                found.append((n, inside, outside))
    return found


@pytest.mark.usefixtures("two_threads")
def test_a_row_of_a_product_is_the_same_in_every_place() -> None:
    assert moved() == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_so_it_is_in_a_process_that_builds_a_compute_first(threads: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | {"OMP_NUM_THREADS": threads}
    code = "from vizrobust.compute import Compute; Compute('cpu'); from tests.test_kernels import moved; print(moved())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("cpu", "before", "after"),
    [
        ("vendor_id\t: AuthenticAMD\n", {}, {"MKL_CBWR": "AUTO"}),
        ("vendor_id\t: AuthenticAMD\n", {"MKL_CBWR": "AVX2"}, {"MKL_CBWR": "AVX2"}),
        ("vendor_id\t: GenuineIntel\n", {}, {}),
        ("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", {}, {"MKL_CBWR": "AUTO"}),
        ("arm", {}, {"MKL_CBWR": "AUTO"}),
    ],
)
def test_it_is_asked_for_where_the_maker_s_own_choice_is_not_repeatable(
    cpu: str, before: dict[str, str], after: dict[str, str]
) -> None:
    environment = dict(before)
    ask_for_repeatable(environment, cpu)
    assert environment == after


def test_the_processor_has_maker_name_and_model(tmp_path: Path) -> None:
    """As Linux tells it, once for each core; other systems have words of their own."""
    core = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon @ 2: x\nflags\t\t: fpu\n"
    )
    (tmp_path / "cpuinfo").write_text(core + "\n" + core.replace(": 0", ": 1"))
    assert processor(tmp_path / "cpuinfo") == "GenuineIntel Xeon @ 2: x family 6 model 143"
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert processor(tmp_path / "arm") == processor(tmp_path / "none") == (platform.processor() or platform.machine()) != ""
