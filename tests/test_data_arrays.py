"""npz:FILE: every form that is read, every form that is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vizrobust.data import DataSet, load

RNG = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """24 training and 6 test images of 5 x 4 pixels in colour, three classes; None leaves an array out."""
    made = {
        "x_train": RNG.integers(0, 256, (24, 5, 4, 3), dtype=np.uint8),
        "y_train": np.arange(24) % 3,
        "x_test": RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def save(folder: Path, **changes: Any) -> str:
    np.savez(folder / "mine.npz", **arrays(**changes))
    return f"npz:{folder / 'mine.npz'}"


def everything(data: DataSet, split: str) -> np.ndarray[Any, Any]:
    part = data.split(split)
    return part.take(torch.arange(len(part))).numpy()


def test_channel_last_bytes_become_channel_first_images(tmp_path: Path) -> None:
    made = arrays()
    data = load(save(tmp_path, **made))
    assert data.shape == (3, 5, 4)
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(everything(data, "test"), made["x_test"].transpose(0, 3, 1, 2) / np.float32(255))
    assert data.test.labels.tolist() == made["y_test"].tolist()


def test_name_keeps_the_reference_and_the_prefix_is_read_in_any_case(tmp_path: Path) -> None:
    ref = save(tmp_path)
    assert load(ref).name == ref
    assert load("NPZ" + ref[3:]).shape == (3, 5, 4)


def test_validation_is_a_fixed_stratified_part_of_train(tmp_path: Path) -> None:
    made = arrays()
    data = load(save(tmp_path, **made))
    (tmp_path / "moved").mkdir()
    again = load(save(tmp_path / "moved", **made))
    assert np.array_equal(everything(data, "val"), everything(again, "val"))
    assert sorted(data.val.labels.tolist()) == [0, 1, 2]
    both = np.concatenate((everything(data, "train"), everything(data, "val")))
    whole = made["x_train"].transpose(0, 3, 1, 2) / np.float32(255)
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole)


def test_own_validation_arrays_are_used(tmp_path: Path) -> None:
    x_val = RNG.integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    data = load(save(tmp_path, x_val=x_val, y_val=np.arange(7) % 3))
    assert len(data.train) == 24
    assert np.array_equal(everything(data, "val"), x_val.transpose(0, 3, 1, 2) / np.float32(255))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_0_1_are_taken_as_they_are(tmp_path: Path, dtype: type) -> None:
    x = RNG.random((24, 5, 4)).astype(dtype)
    data = load(save(tmp_path, x_train=x, x_test=x[:6], y_train=np.arange(24) % 3))
    assert data.shape == (1, 5, 4)
    assert np.array_equal(everything(data, "test"), x[:6, None].astype(np.float32))


def test_bytes_stay_bytes_in_memory(tmp_path: Path) -> None:
    assert load(save(tmp_path)).test.pixels.dtype == torch.uint8


def test_class_names_and_whole_float_labels(tmp_path: Path) -> None:
    data = load(save(tmp_path, classes=np.array(["ant", "bee", "cat", "dog"]), y_train=np.arange(24.0) % 3))
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert data.train.labels.dtype == torch.int64


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 3]))
def test_every_size_keeps_its_axes(tmp_path: Path, height: int, width: int, channels: int | None) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    x = RNG.random((26, *shape)).astype(np.float32)
    data = load(save(tmp_path, x_train=x[:24], x_test=x[20:]))
    assert data.shape == (channels or 1, height, width)
    last = np.moveaxis(everything(data, "test"), 1, 3)
    assert np.array_equal(last.reshape(6, *shape), x[20:])


GREY = np.zeros((24, 5, 4), np.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_test": None}, "has no x_test; expected x_test, y_test, found x_train"),
        ({"y_train": None}, "has only one of x_train and y_train; give both or neither"),
        ({"x_val": np.zeros((2, 5, 4, 3), np.uint8)}, "only one of x_val and y_val"),
        ({"x_train": np.zeros((24, 60), np.uint8)}, r"x_train has shape \(24, 60\); expected \(N, H, W\) or"),
        ({"x_train": np.zeros((24, 3, 5, 4), np.uint8)}, "channels first; save x.transpose"),
        ({"x_train": np.zeros((24, 5, 4, 4), np.uint8)}, "4 channels; expected 1 or 3"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test has shape .* so no pixels"),
        ({"x_test": np.zeros((6, 4, 5, 3), np.uint8)}, r"x_train has images of .* \(3, 5, 4\), x_test of \(3, 4, 5\)"),
        ({"x_train": np.ones((24, 5, 4, 3), np.uint8)}, "uint8 but holds only 0 and 1"),
        ({"x_train": np.ones((24, 5, 4, 3), np.int64)}, "dtype int64; expected uint8"),
        ({"x_train": np.ones((24, 5, 4, 3), bool)}, "dtype bool; expected uint8"),
        ({"x_train": GREY + np.nan}, "NaN or infinite"),
        ({"x_train": GREY + np.inf}, "NaN or infinite"),
        ({"x_train": GREY + 200}, "floats up to 200, as if in 0 to 255; divide by 255"),
        ({"x_train": GREY - 0.5}, "values from -0.5 to -0.5; expected float images in"),
        ({"x_train": GREY + 256}, "values from 256 to 256"),
        ({"y_train": np.arange(23) % 3}, "x_train has 24 images and y_train 23 labels"),
        ({"y_train": np.eye(24)}, r"y_train has shape \(24, 24\); expected \(N,\)"),
        ({"y_train": np.arange(24) % 3 + 0.5}, "not whole, such as 0.5"),
        ({"y_train": np.arange(24) % 3 + 10**6 * (np.arange(24) == 5)}, r"y_train holds the label 1000002; .* up to 100,000"),
        ({"y_train": np.where(np.arange(24) == 5, 2**40, np.arange(24) % 3)}, r"y_train holds the label 1099511627776"),
        ({"y_train": np.where(np.arange(24) == 5, 1e300, np.arange(24) % 3)}, r"y_train holds the label 1e\+300"),
        ({"y_train": np.full(24, np.nan)}, "not whole, such as nan"),
        ({"y_train": np.array(["a"] * 24)}, "dtype <U1; expected whole numbers"),
        ({"y_train": np.arange(24) % 3 - 1}, "train split has label -1; expected 0 to 1"),
        ({"y_test": np.arange(6)}, "test split has label 5; expected 0 to 2"),
        ({"classes": np.array(["a", "b"])}, "label 2; expected 0 to 1"),
        ({"classes": np.arange(3)}, "expected one string for each class"),
        ({"classes": np.array(["a", "b", "a"])}, "classes has 'a' twice"),
        ({"classes": np.array([b"a", b"\xff", b""])}, "an empty name"),
        ({"y_train": np.arange(24), "y_test": np.arange(6)}, "no class has two training images"),
        ({"y_train": np.array([None] * 24)}, "without objects"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load(save(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert "mine.npz" in str(caught.value)


def test_a_missing_file_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"needs a \.npz file with x_test, y_test"):
        load(f"npz:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("damage", ["truncated", "text", "npy", "empty"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path)
    path = tmp_path / "mine.npz"
    content = {"truncated": path.read_bytes()[:900], "text": b"not arrays", "empty": b""}.get(damage)
    if content is None:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*mine\.npz' as \.npz"):
        load(f"npz:{path}")


def test_one_changed_byte_in_the_file_is_noticed(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "mine.npz"
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*mine\.npz' as \.npz"):
        load(f"npz:{path}")


def test_real_cifar10(shared: Path) -> None:
    data = load(f"npz:{shared / 'data' / 'cifar10_lossless_train4000_test1000.npz'}")
    assert data.shape == (3, 32, 32)
    assert data.classes[6] == "frog"
    assert (len(data.train), len(data.val), len(data.test)) == (3600, 400, 1000)
    assert data.eps == 8 / 255
    # The figures everybody uses for CIFAR-10, from all 50,000 images.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)


def test_copies_are_said(tmp_path: Path) -> None:
    """A test image that was trained on, one with two labels, and one that may be in both halves of a split training set."""
    x = np.random.default_rng(0).integers(0, 256, (20, 5, 7), np.uint8)
    y = np.arange(20) % 2
    file = tmp_path / "copies.npz"
    np.savez(file, x_train=np.concatenate([x, x[3:4]]), y_train=np.append(y, y[3]), x_test=x[[4]], y_test=1 - y[[4]])
    with pytest.warns(UserWarning, match="with the same content") as said:
        load(f"npz:{file}")
    texts = " ".join(str(one.message) for one in said)
    assert "1 images stand in the training images twice with the same content, such as 'x_train[3]' and 'x_train[20]'" in texts
    for where in ("two splits", "two classes"):
        assert f"1 images stand in {where} with the same content, such as 'x_train[4]' and 'x_test[0]'" in texts
    np.savez(file, x_train=x, y_train=y, x_test=x[[4]], y_test=y[[4]].astype(float))
    with pytest.warns(UserWarning, match="in two splits") as said:
        load(f"npz:{file}")
    assert len(said) == 1, "a label is the same class whatever its type"
    np.savez(file, x_train=x[:10], y_train=y[:10], x_test=x[10:], y_test=y[10:])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(f"npz:{file}")
    assert not said
