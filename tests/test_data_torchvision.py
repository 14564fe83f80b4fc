"""The published sets, read from small files in torchvision's own raw formats; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from vizrobust.data import load, metadata_of, published
from vizrobust.data.published import IMAGENETTE, mnist_first_500

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIZROBUST_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def write_idx(path: Path, array: Array) -> None:
    """The format of the MNIST files: two zeros, type 8 (unsigned byte), rank, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_mnist(raw: Path, x: Array, y: Array, x_test: Array, y_test: Array) -> None:
    for stem, images, labels in (("train", x, y), ("t10k", x_test, y_test)):
        write_idx(raw / f"{stem}-images-idx3-ubyte", images)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", labels)


def small_mnist(raw: Path, seed: int = 1) -> tuple[Array, Array]:
    """40 training images; returns the 12 test images with their labels."""
    rng = np.random.default_rng(seed)
    x, x_test = (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (40, 12))
    write_mnist(raw, x, np.arange(40) % 10, x_test, np.arange(12) % 10)
    return x_test, np.arange(12) % 10


def images(split: Any) -> Array:
    return split.take(torch.arange(len(split))).numpy()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("Fashion-MNIST", "FashionMNIST")])
def test_idx_files(root: Path, name: str, folder: str) -> None:
    x_test, y_test = small_mnist(root / folder / "raw")
    data = load(name)
    assert (data.name, data.eps) == (name.lower(), 0.3)
    assert (data.shape, data.classes) == metadata_of(name)
    assert (len(data.train), len(data.val)) == (30, 10)
    assert np.array_equal(images(data.test), x_test[:, None] / np.float32(255))
    assert data.test.labels.tolist() == y_test.tolist()
    assert data.test.pixels.dtype == torch.uint8


def write_cifar(folder: Path, parts: dict[str, int], key: str, classes: int) -> dict[str, tuple[Array, list[int]]]:
    """Pickled batches of rows of 3,072 bytes, channel by channel."""
    folder.mkdir(parents=True)
    made = {}
    for part, count in parts.items():
        rows, labels = RNG.integers(0, 256, (count, 3072), dtype=np.uint8), [k % classes for k in range(count)]
        (folder / part).write_bytes(pickle.dumps({"data": rows, key: labels}))
        made[part] = (rows.reshape(-1, 3, 32, 32), labels)
    return made


def unchecked(monkeypatch: pytest.MonkeyPatch, reader: Any) -> None:
    """The reader without the checksums of the published files."""
    monkeypatch.setattr(reader, "train_list", [[name, None] for name, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[name, None] for name, _ in reader.test_list])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})


def test_cifar10_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch, datasets.CIFAR10)
    parts = {f"data_batch_{k}": 20 for k in range(1, 6)} | {"test_batch": 13}
    made = write_cifar(root / "cifar-10-batches-py", parts, "labels", 10)
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    data = load("cifar10")
    assert (data.shape, data.classes) == metadata_of("cifar10")
    assert data.eps == 8 / 255
    assert np.array_equal(images(data.test), made["test_batch"][0] / np.float32(255))
    assert data.test.labels.tolist() == made["test_batch"][1]
    assert torch.bincount(data.val.labels).tolist() == [1] * 10
    both = np.concatenate((images(data.train), images(data.val)))
    whole = np.concatenate([made[f"data_batch_{k}"][0] for k in range(1, 6)]) / np.float32(255)
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole)


def test_cifar100_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch, datasets.CIFAR100)
    made = write_cifar(root / "cifar-100-python", {"train": 300, "test": 100}, "fine_labels", 100)
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": ["x"] * 100}))
    data = load("cifar100")
    assert (data.shape, data.classes) == metadata_of("cifar100")
    assert data.test.labels.tolist() == made["test"][1]


def test_files_with_another_checksum_are_never_unpickled(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    write_cifar(folder, {f"data_batch_{k}": 2 for k in range(1, 6)} | {"test_batch": 2}, "labels", 2)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    with pytest.raises(FileNotFoundError, match="cifar10 is not on this machine, or not whole; add download"):
        load("cifar10")


def test_svhn_matrices_have_the_number_last_and_zero_as_ten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    monkeypatch.setattr(datasets.SVHN, "split_list", {k: [*v[:2], None] for k, v in datasets.SVHN.split_list.items()})
    root.mkdir()
    made = {}
    for part, count in {"train": 40, "test": 11}.items():
        x, y = RNG.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": x, "y": y})
        made[part] = (x.transpose(3, 2, 0, 1), y[:, 0] % 10)
    data = load("svhn")
    assert (data.shape, data.classes) == metadata_of("svhn")
    assert np.array_equal(images(data.test), made["test"][0] / np.float32(255))
    assert data.test.labels.tolist() == made["test"][1].tolist()


def write_imagenette(folder: Path) -> None:
    for split, count in {"train": 3, "val": 1}.items():
        for at, wnid in enumerate(IMAGENETTE):
            (folder / split / wnid).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (30 + at, 20), (at * 25, 0, 0)).save(folder / split / wnid / f"{number}.JPEG", quality=95)


@pytest.mark.parametrize(("ref", "side", "folder"), [
    ("imagenette", 64, "imagenette2-160"),
    ("Imagenette@160", 160, "imagenette2-160"),
    ("imagenette@161", 161, "imagenette2-320"),
    ("imagenette@321", 321, "imagenette2"),
])  # fmt: skip
def test_imagenette_is_read_from_the_smallest_version_that_is_large_enough(root: Path, ref: str, side: int, folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{folder}'"):
        load(ref)
    write_imagenette(root / folder)
    data = load(ref)
    assert (data.shape, data.classes) == metadata_of(ref) == ((3, side, side), tuple(IMAGENETTE.values()))
    assert data.name == ref.lower()
    assert data.eps == 4 / 255
    assert (len(data.train), len(data.val), len(data.test)) == (20, 10, 10)
    x = data.test.take(torch.arange(10))
    # Each class was painted in its own red: the labels follow the WordNet ids.
    assert torch.allclose(x[:, 0].mean((1, 2)) * 255, data.test.labels * 25.0, atol=4)


def test_imagenette_with_other_folders_is_refused(root: Path) -> None:
    write_imagenette(root / "imagenette2-160")
    for split in ("train", "val"):
        (root / "imagenette2-160" / split / "n01440764").rename(root / "imagenette2-160" / split / "dog")
    with pytest.raises(ValueError, match=r"imagenette: .*holds other classes"):
        load("imagenette")


def canonical_mnist() -> tuple[Array, Array, Array]:
    """The images of mnist5k, classes in turn as in the real file, then 40 more; and which those are."""
    x5, y5 = (tensor.numpy() for tensor in mnist_first_500())
    turns = np.arange(5000).reshape(10, 500).T.flatten()
    more = RNG.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    return np.concatenate((x5[turns, 0], more)), np.concatenate((y5[turns], np.arange(40) % 10)), more


def test_mnist55k_is_mnist_without_the_images_of_mnist5k(root: Path) -> None:
    x, y, more = canonical_mnist()
    x_test = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_mnist(root / "MNIST" / "raw", x, y, x_test, np.arange(5))
    data = load("mnist55k")
    assert (data.shape, data.classes) == metadata_of("mnist55k")
    kept = np.concatenate((images(data.train), images(data.val)))
    assert sorted(image.tobytes() for image in kept) == sorted((image / np.float32(255)).tobytes() for image in more)
    assert np.array_equal(images(data.test), x_test[:, None] / np.float32(255))


def test_mnist55k_refuses_files_in_another_order(root: Path) -> None:
    x, y, _ = canonical_mnist()
    write_mnist(root / "MNIST" / "raw", x[::-1], y[::-1], x[:5], y[:5])
    with pytest.raises(ValueError, match=r"mnist55k: .* not in their published order"):
        load("mnist55k")


def test_mlxtends_digits_are_the_first_500_of_each_class_of_the_real_training_set(shared: Path) -> None:
    with np.load(shared / "data" / "mnist_train60k_test3k.npz") as real:
        x, y = real["x_train"], real["y_train"]
    theirs, labels = mnist_first_500()
    for kind in range(10):
        assert np.array_equal(theirs.numpy()[labels.numpy() == kind, 0], x[y == kind][:500])


def test_mnist55k_from_the_real_training_set_shares_no_image_with_mnist5k(shared: Path, root: Path) -> None:
    with np.load(shared / "data" / "mnist_train60k_test3k.npz") as real:
        write_mnist(root / "MNIST" / "raw", *(real[key] for key in ("x_train", "y_train", "x_test", "y_test")))
    data = load("mnist55k")
    assert 4_990 < len(data.val) <= 5_000
    assert (len(data.train) + len(data.val), len(data.test)) == (55_000, 3_000)
    theirs = {image.tobytes() for image in mnist_first_500()[0].numpy()}
    pixels = data.train.whole.pixels
    assert len(pixels) == 55_000
    assert data.train.whole is data.val.whole
    assert not any(image.tobytes() in theirs for image in pixels.numpy())


NAMES = ["mnist", "mnist55k", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagenette", "imagenette@96"]


@pytest.mark.parametrize("name", NAMES)
def test_absent_data_says_how_to_get_it_and_downloads_nothing(root: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    said = str(caught.value)
    assert said.startswith(f"{name} is not on this machine")
    assert "add download" in said
    assert str(root) in said
    assert "VIZROBUST_DATA" in said
    assert "\n" not in said
    assert not root.exists()


def test_root_without_the_variable_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIZROBUST_DATA")
    assert published.data_root() == Path.home() / ".cache" / "vizrobust" / "data"


def test_download_fetches_into_the_root_and_keeps_stdout_clean(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(self: Any) -> None:
        print("fetching")  # noqa: T201
        small_mnist(Path(self.raw_folder))

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    assert len(load("mnist", download=True).test) == 12
    assert (root / "MNIST" / "raw").is_dir()
    assert capsys.readouterr().out == ""
    assert len(load("mnist").test) == 12


@pytest.mark.parametrize("name", ["mnist", "imagenette"])
def test_a_download_that_fails_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fetch(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    monkeypatch.setattr(datasets.Imagenette, "_download", fetch)
    with pytest.raises(ValueError, match=f"{name} could not be fetched to .*no route to host.* try again") as caught:
        load(name, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["short", "labels", "count"])
def test_damaged_files_are_told_from_absent_ones(root: Path, damage: str) -> None:
    raw = root / "MNIST" / "raw"
    small_mnist(raw)
    if damage == "short":
        path = raw / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-100])
    else:
        write_idx(raw / "t10k-labels-idx1-ubyte", np.full(12, 11) if damage == "labels" else np.arange(11) % 10)
    said = "test split has label 11" if damage == "labels" else "the files of mnist in .* are damaged .* remove them"
    with pytest.raises(ValueError, match=said):
        load("mnist")
