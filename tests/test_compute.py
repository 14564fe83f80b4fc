"""Where the work runs: what can be asked for, and batches of one size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.conftest import make_net
from vizrobust.compute import Compute, changes, full_batches, has_bf16, versions


@given(st.integers(1, 60), st.integers(1, 20))
def test_full_batches_cover_everything_once_in_order(n: int, size: int) -> None:
    covered = []
    for index, count in full_batches(n, size):
        assert len(index) == size, "kernels depend on the batch size, so it never varies"
        assert 1 <= count <= size
        covered += index[:count].tolist()
        assert (index[count:] == n - 1).all()
    assert covered == list(range(n))


def test_no_batches_of_nothing() -> None:
    assert list(full_batches(0, 4)) == []


def test_an_unknown_device_or_precision_is_named() -> None:
    with pytest.raises(ValueError, match="no device 'tpu'; there are: auto, cpu, cuda, mps"):
        Compute("tpu")
    with pytest.raises(ValueError, match="no precision 'fp8'; there are: fp32, bf16"):
        Compute("cpu", "fp8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not available here; use device cpu"):
        Compute("cuda")


def test_placing_changes_no_value() -> None:
    compute = Compute("cpu")
    net = make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    placed = compute.place(net)
    assert placed is net
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    convolution = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(5, 3, 20, 16)
    assert torch.equal(compute.images(x), x)
    assert compute.images(x).is_contiguous(memory_format=torch.channels_last)


def test_precision_is_a_context_and_weights_stay_float32() -> None:
    net, x = make_net(), torch.rand(5, 3, 20, 16)
    fp32, bf16 = Compute("cpu"), Compute("cpu", "bf16")
    with fp32.autocast():
        full = net(x)
    with bf16.autocast():
        half = net(x)
    assert full.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert next(net.parameters()).dtype == torch.float32
    assert torch.allclose(full, half.float(), atol=0.05)


def test_backward_gives_weights_their_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    Compute("cpu").backward((weight**2).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 4


def test_threads_are_set_where_asked() -> None:
    before = torch.get_num_threads()
    try:
        assert Compute("cpu", threads=1).threads == 1
        assert Compute("cpu").threads == 1
    finally:
        torch.set_num_threads(before)


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert set(found) == {"python", "torch", "torchvision", "vizrobust", "processor"}
    assert found["torch"] in torch.__version__ or torch.__version__ in found["torch"]
    assert found["processor"].endswith(torch.backends.cpu.get_cpu_capability())


def test_what_is_another_thing_now_is_said_and_what_was_not_recorded_is_not() -> None:
    then = {"torch": "2.4.0", "processor": "a AVX2", "gone": "1"}
    now = {"torch": "2.4.0", "processor": "b AVX512", "new": "2"}
    assert changes(then, now) == ["processor was a AVX2, is now b AVX512"]


def test_bf16_without_its_instructions_is_said_before_anything_starts(tmp_path, monkeypatch):
    from vizrobust import session
    from vizrobust.results import Note

    for flags, there in (("flags : avx2 avx512f", False), ("flags : avx512_bf16", True), ("Features : asimd bf16", True)):
        (tmp_path / "cpuinfo").write_text(flags)
        assert has_bf16(tmp_path / "cpuinfo") is there
    told: list[object] = []
    for there in (False, True):
        monkeypatch.setattr(session, "has_bf16", lambda there=there: there)
        asked = session.Session(memory=True, device="cpu", report=told.append)
        for precision in ("fp32", "bf16", "bf16"):
            asked.compute(precision)
    assert [isinstance(one, Note) and "no bfloat16 instructions" in one.text for one in told] == [True]
