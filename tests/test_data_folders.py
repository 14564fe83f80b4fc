"""imagefolder:DIR[@SIZE]: what is read, when, and what is refused."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vizrobust.data import FileSplit, content_of, load, with_classes
from vizrobust.data import files as folders_module
from vizrobust.data.published import imagenet_classes, imagenet_ids

KINDS = ("bee", "Ant", "Cat")


def picture(path: Path, size: tuple[int, int] = (6, 9), mode: str = "RGB", seed: int = 0) -> None:
    """A random image; `size` is (width, height), as Pillow has it."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.squeeze() if bands == 1 else values, mode if bands > 1 else None).convert(mode).save(path)


def folder(root: Path, **splits: int) -> str:
    """`splits` images of each class in each split, all different."""
    seed = 0
    for split, count in splits.items():
        for kind in KINDS:
            for number in range(count):
                picture(root / split / kind / f"{number}.png", seed=(seed := seed + 1))
    return f"imagefolder:{root}"


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255)


def test_images_and_labels_come_from_the_class_folders(tmp_path: Path) -> None:
    data = load(folder(tmp_path, train=10, val=2, test=3))
    assert data.classes == ("Ant", "Cat", "bee")  # sorted as Python and torchvision sort
    assert data.shape == (3, 9, 6)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 6, 9)
    for name in ("train", "val", "test"):
        split = data.split(name)
        assert isinstance(split, FileSplit)
        x = split.take(torch.arange(len(split)))
        for image, label, path in zip(x.numpy(), split.labels.tolist(), split.paths, strict=True):
            assert Path(path).parent.name == data.classes[label]
            assert Path(path).parent.parent.name == name
            assert np.array_equal(image, pixels(path))


@pytest.mark.parametrize("there", ["val", "test"])
def test_with_one_folder_beside_train_that_is_test_and_a_tenth_of_train_is_validation(tmp_path: Path, there: str) -> None:
    data = load(folder(tmp_path, **{"train": 10, there: 2}))
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 6)
    assert sorted(data.val.labels.tolist()) == [0, 1, 2]
    assert not set(data.train.paths) & set(data.val.paths)
    assert all(Path(path).parent.parent.name == there for path in data.test.paths)


def test_splits_are_in_a_fixed_mixed_order(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=4, val=8)
    assert len(set(load(ref).test.labels[:8].tolist())) > 1
    assert load(ref).test.paths == load(ref).test.paths


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = folder(tmp_path, train=5, val=2)
    read: list[str] = []
    decode = folders_module.read_image
    noted = lambda path, *more, **named: read.append(path) or decode(path, *more, **named)  # noqa: E731
    monkeypatch.setattr(folders_module, "read_image", noted)
    data = load(ref)
    assert read == []
    data.test.take(torch.tensor([1]))
    assert read == [data.test.paths[1]]


def test_size_resizes_the_shorter_side_and_cuts_out_the_centre(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    wide = tmp_path / "val" / "Cat" / "0.png"
    picture(wide, (40, 20))
    image = Image.open(wide)
    data = load(f"{ref}@10")
    assert data.shape == (3, 10, 10)
    at = [Path(path).parent.name for path in data.test.paths].index("Cat")
    small = image.resize((20, 10), Image.Resampling.BILINEAR).crop((5, 0, 15, 10))
    expected = np.asarray(small).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(data.test.take(torch.tensor([at]))[0].numpy(), expected)


def test_a_folder_that_is_called_like_a_size_is_found(tmp_path: Path) -> None:
    assert load(folder(tmp_path / "set@64", train=3, val=1)).shape == (3, 9, 6)
    assert load(f"imagefolder:{tmp_path / 'set@64'}@12").shape == (3, 12, 12)


def test_grey_folders_have_one_channel_and_a_few_grey_photographs_change_nothing(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    picture(tmp_path / "train" / "bee" / "0.png", mode="L")
    assert load(ref).shape == (3, 9, 6)
    grey, seed = tmp_path / "grey", 0
    for split in ("train", "val"):
        for kind in KINDS:
            for number in range(3):
                picture(grey / split / kind / f"{number}.png", mode="L", seed=(seed := seed + 1))
    data = load(f"imagefolder:{grey}")
    assert data.shape == (1, 9, 6)
    first = np.asarray(Image.open(data.test.paths[0]))[None] / np.float32(255)
    assert np.array_equal(data.test.take(torch.tensor([0]))[0].numpy(), first)
    picture(Path(data.test.paths[0]), mode="RGB")
    with pytest.raises(ValueError, match="it is in colour, the others are grey"):
        data.test.take(torch.tensor([0]))


def test_palettes_transparency_and_cmyk_are_read_as_colours(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    transparent = Image.new("P", (6, 9), 1)
    transparent.putpalette([0, 0, 0, 255, 0, 0])
    transparent.save(tmp_path / "val" / "bee" / "0.png", transparency=bytes([0, 128]))
    picture(tmp_path / "val" / "Ant" / "0.png", mode="RGBA")
    Image.new("CMYK", (6, 9)).save(tmp_path / "val" / "Cat" / "1.jpg")
    data = load(ref)
    x = data.test.take(torch.arange(4))
    red = x[data.test.labels == 2][0]
    assert red.mean((1, 2)).tolist() == [1.0, 0.0, 0.0]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    (tmp_path / "train" / "notes.txt").write_text("mine")
    (tmp_path / "train" / "bee" / "notes.txt").write_text("mine")
    (tmp_path / "train" / "bee" / "._0.png").write_text("made by a file manager")
    (tmp_path / "train" / ".thumbnails").mkdir()
    with pytest.warns(UserWarning, match=r"1 files are no images and are left out: 1 \.txt"):
        data = load(ref)
    assert data.classes == ("Ant", "Cat", "bee")
    assert len(data.train) + len(data.val) == 9


def broken_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("size", ["", "@12"])
def test_a_broken_image_is_named(tmp_path: Path, size: str) -> None:
    ref = folder(tmp_path, train=3, val=1)
    broken_off(tmp_path / "val" / "bee" / "0.png")
    data = load(ref + size)
    with pytest.raises(ValueError, match=r"cannot read image '.*val/bee/0\.png' .*replace or remove it"):
        data.test.take(torch.arange(3))


def test_sixteen_bits_are_read_as_sixteen_bits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in KINDS:
            for number in range(3):
                path = tmp_path / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 6), 40_000 + number, np.uint16)).save(
                    path, compress_level=1 if split == "train" else 9
                )
    data = load(f"imagefolder:{tmp_path}")
    assert data.shape == (1, 9, 6)
    values = sorted({float(value) for value in data.test.take(torch.arange(9)).flatten()})
    assert values == pytest.approx([40_000 / 65535, 40_001 / 65535, 40_002 / 65535], abs=1e-7)
    assert load(f"imagefolder:{tmp_path}@8").test.take(torch.arange(2)).mean() == pytest.approx(40_001 / 65535, abs=1e-4)


def test_a_photograph_on_its_side_is_read_upright(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    upright = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "val" / "bee" / "0.png", exif=tags)
    data = load(ref)
    found = data.test.take(torch.arange(3))[data.test.labels == 2][0]
    assert np.array_equal(found.numpy(), upright.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".gif", ".tif", ".webp", ".bmp"])
def test_every_kind_of_image_is_read_by_its_content(tmp_path: Path, suffix: str) -> None:
    ref = folder(tmp_path, train=3, val=1)
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    Image.new("RGB", (6, 9), (250, 0, 0)).save(tmp_path / "train" / "bee" / f"9{suffix}", kind)
    data = load(ref)
    assert len(data.train) + len(data.val) == 10
    red = [data.train.take(torch.tensor([i]))[0] for i in range(len(data.train))]
    red += [data.val.take(torch.tensor([i]))[0] for i in range(len(data.val))]
    assert sum(bool(image[0].mean() > 0.95 and image[1].mean() < 0.05) for image in red) == 1


@pytest.mark.parametrize("text", ["no image", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 9\n"])
def test_a_file_of_another_kind_is_refused_whatever_its_name(tmp_path: Path, text: str) -> None:
    ref = folder(tmp_path, train=3, val=1)
    (tmp_path / "val" / "Cat" / "0.png").write_text(text)
    kinds = r"\(it is no PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF file\); replace"
    with pytest.raises(ValueError, match=rf"cannot read image '.*val/Cat/0\.png' {kinds}"):
        load(ref)


def test_hidden_folders_loops_and_second_links_add_nothing(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    bee = tmp_path / "train" / "bee"
    picture(bee / ".ipynb_checkpoints" / "0.png")
    (bee / "again").symlink_to(bee)
    (bee / "linked.png").symlink_to(bee / "0.png")
    data = load(ref)
    assert len(data.train) + len(data.val) == 9


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    picture(tmp_path / "val" / "bee" / "0.png", (7, 9))
    with pytest.raises(
        ValueError, match=r"is 6 x 9 and '.*val/bee/0\.png' 7 x 9; give a size for all, such as imagefolder:.*@64"
    ):
        load(ref)
    assert load(f"{ref}@8").shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({}, "expected train/ and val/ or test/, class folders or images in .*, found nothing"),
        ({"train": 2}, "expected val/ or test/ beside train/"),
        ({"train": 1, "val": 1}, "no class has two training images"),
    ],
)
def test_folders_without_the_needed_splits_are_refused(tmp_path: Path, splits: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(folder(tmp_path, **splits))


def test_a_missing_folder_and_a_split_without_classes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder '.*none'; expected one with train/"):
        load(f"imagefolder:{tmp_path / 'none'}@64")
    ref = folder(tmp_path, train=2)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="val' holds no class folders"):
        load(ref)


def test_class_folders_must_agree_and_hold_images(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=2, val=1)
    picture(tmp_path / "val" / "dog" / "0.png")
    with pytest.raises(ValueError, match="class folder 'dog' is in val/ but not in train/"):
        load(ref)
    picture(tmp_path / "train" / "dog" / "0.png")
    picture(tmp_path / "train" / "eel" / "0.png")
    with pytest.raises(ValueError, match="class folder 'eel' is in train/ but not in val/"):
        load(ref)
    (tmp_path / "val" / "eel").mkdir()
    with pytest.raises(ValueError, match=r"no images in '.*val/eel'"):
        load(ref)


@pytest.mark.parametrize("size", ["0", "7", "-8", "8.5", "x", ""])
def test_sizes_that_are_none(tmp_path: Path, size: str) -> None:
    with pytest.raises(ValueError, match="expected a whole number of pixels, at least 8"):
        load(f"{folder(tmp_path, train=2, val=1)}@{size}")


def test_real_imagenette(shared: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared / "data" / "imagenette64.zip") as archive:
        few = [name for name in archive.namelist() if "/000" in name and ("church" in name or "tench" in name)]
        archive.extractall(tmp_path, few)
    data = load(f"imagefolder:{tmp_path / 'imagenette64'}")
    assert data.classes == ("church", "tench")
    assert data.shape == (3, 64, 64)
    assert data.eps == 4 / 255
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 20)
    assert all(0.1 < std < 0.4 for std in data.std)


def test_images_to_evaluate_need_no_training_images(tmp_path: Path) -> None:
    """Only val/, only class folders, and only images: enough to attack and to look, not to train."""
    folder(tmp_path / "val only", val=2)
    folder(tmp_path, classes=2)
    for number in range(3):
        picture(tmp_path / "flat" / f"{number}.png", seed=100 + number)
    whole = load(f"imagefolder:{tmp_path / 'val only'}")
    bare = load(f"imagefolder:{tmp_path / 'classes'}")
    assert bare.classes == whole.classes == ("Ant", "Cat", "bee")
    assert (len(bare.test), len(bare.val), len(whole.test), len(whole.val)) == (6, 6, 6, 6)
    flat = load(f"imagefolder:{tmp_path / 'flat'}")
    assert (flat.classes, len(flat.test)) == (("unlabelled",), 3)
    for data in (whole, bare, flat):
        assert 0 < data.mean[0] < 1
        assert len(content_of(data)) == 16
        with pytest.raises(ValueError, match="has no train images"):
            data.split("train")


def test_an_image_in_two_splits_is_said(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    (tmp_path / "val" / "Ant" / "again.png").write_bytes((tmp_path / "train" / "Ant" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match="1 images stand in two splits with the same content, such as .*Ant/0.png"):
        load(ref)


def test_an_image_in_two_classes_and_a_copy_that_may_be_a_validation_image_are_said(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=2)
    (tmp_path / "train" / "bee" / "copy.png").write_bytes((tmp_path / "train" / "bee" / "1.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 images stand in the training images twice with the same content"):
        load(ref)
    (tmp_path / "train" / "bee" / "copy.png").unlink()
    (tmp_path / "train" / "Ant" / "copy.png").symlink_to(tmp_path / "train" / "bee" / "1.png")
    with pytest.warns(UserWarning, match=r"in two classes with the same content.*; at most one of their labels is right"):
        load(ref)


def test_a_link_to_a_folder_around_it_adds_nothing(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=2)
    before = len(load(ref).train)
    for place, target in (("train/Ant/up", ".."), ("train/bee/top", "../.."), ("val/Ant/self", ".")):
        (tmp_path / place).symlink_to(target)
    assert len(load(ref).train) == before


def test_a_pipe_in_place_of_an_image_is_named_as_one(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=2)
    os.mkfifo(tmp_path / "train" / "Ant" / "pipe.png")
    with pytest.raises(FileNotFoundError, match=r"pipe.png'; it is a pipe"):
        load(ref)


def test_one_color_image_far_down_makes_a_folder_colored(tmp_path: Path) -> None:
    for number in range(15):
        for split in ("train", "val"):
            mode, seed = "RGB" if number == 14 else "L", number + 50 * (split == "val")
            picture(tmp_path / split / "a" / f"{number:02}.png", mode=mode, seed=seed)
    data = load(f"imagefolder:{tmp_path}")
    assert data.shape == (3, 9, 6)
    assert data.test.take(torch.arange(15)).shape == (15, 3, 9, 6)


def test_grey_is_read_in_three_channels_and_colors_as_their_luma(tmp_path: Path) -> None:
    ref = folder(tmp_path, train=3, val=1)
    data, grey = load(ref), load(f"{ref}@grey")
    x = data.test.take(torch.arange(3))
    assert (grey.shape, grey.name) == ((1, 9, 6), f"{ref}@grey")
    expected = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert torch.allclose(grey.test.take(torch.arange(3))[:, 0], expected, atol=1e-6)
    digits, colored = load("digits"), load("digits@rgb")
    assert colored.shape == (3, 8, 8)
    assert torch.equal(colored.test.take(torch.arange(4)), digits.test.take(torch.arange(4)).expand(-1, 3, -1, -1))
    assert torch.equal(colored.test.labels, digits.test.labels)


def test_classes_are_mapped_by_name(tmp_path: Path) -> None:
    data = load(folder(tmp_path, val=2))
    mapped = with_classes(data, ("bee", "dog", "ant", "cat"))
    assert mapped is not None
    names = [data.classes[label].lower() for label in data.test.labels]
    assert [mapped.classes[label] for label in mapped.test.labels] == names
    assert with_classes(data, ("bee", "dog", "ant")) is None


def test_folders_named_by_wordnet_ids_are_mapped_to_imagenet(tmp_path: Path) -> None:
    """A crane is a bird and a machine: its name is no answer where both are called so, its id is."""
    for name in ("n02012849", "n03126707", "n03445777"):
        picture(tmp_path / "val" / name / "0.png")
    data, names = load(f"imagefolder:{tmp_path}"), imagenet_classes()
    mapped = with_classes(data, names)
    assert mapped is not None
    places = zip(data.test.labels.tolist(), mapped.test.labels.tolist(), strict=True)
    assert {data.classes[own]: place for own, place in places} == {"n02012849": 134, "n03126707": 517, "n03445777": 574}
    assert [names[place].split()[0] for place in (134, 517, 574)] == ["crane", "crane", "golf"]
    twice = ("crane", "golf ball", "crane", "tench")
    assert with_classes(replace(data, classes=("golf ball", "crane", "tench")), twice) is None
    assert with_classes(data, ("golf ball", "tench", "church")) is None  # neither crane is there
    few = with_classes(replace(data, classes=("n03445777", "n01440764", "n03028079")), ("tench", "church", "golf ball"))
    assert few is not None
    assert len(set(imagenet_ids())) == 1000
    timm = pytest.importorskip("timm.data")
    assert imagenet_ids() == tuple(timm.ImageNetInfo().label_names())


def test_the_whole_image_and_a_crop_out_of_a_larger_one(tmp_path: Path) -> None:
    """A wide picture, white with a black edge left and right: a fit shows the edges, a crop of a larger one does not."""
    wide = np.full((32, 64, 3), 255, np.uint8)
    wide[:, :8] = wide[:, -8:] = 0
    for kind in ("a", "b"):
        (tmp_path / "val" / kind).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "val" / kind / "0.png")
    fit, cut, plain = (
        load(f"imagefolder:{tmp_path}@{size}").test.take(torch.arange(1))[0] for size in ("16-fit", "resize32-crop16", "16")
    )
    assert fit.shape == cut.shape == plain.shape == (3, 16, 16)
    assert fit[:, :4].max() == fit[:, -4:].max() == 0
    assert fit[:, 8, 8].min() == 1
    assert fit[:, 8, 0].max() < 0.1
    assert cut.min() == plain.min() == 1
    with pytest.raises(ValueError, match="size 'resize8-crop16'"):
        load(f"imagefolder:{tmp_path}@resize8-crop16")


def test_broken_files_can_be_left_out(tmp_path: Path) -> None:
    ref = folder(tmp_path, val=3)
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"not a picture")
    whole = (tmp_path / "val" / "Cat" / "1.png").read_bytes()
    (tmp_path / "val" / "Cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"bee/0\.png.*skip-broken:imagefolder:DIR"):
        load(ref)
    with pytest.warns(UserWarning, match=r"2 broken files are left out, the first: cannot read image .*Cat/1\.png"):
        data = load(f"skip-broken:{ref}")
    assert (len(data.test), data.name) == (7, f"skip-broken:{ref}")
    assert data.test.take(torch.arange(7)).shape == (7, 3, 9, 6)
    with pytest.raises(ValueError, match="skip-broken reads a folder of images, got 'digits'"):
        load("skip-broken:digits")
