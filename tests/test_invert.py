"""Inversions, caricatures, accentuations: layers that keep all give the image back, likeness is what it says, sheets have all."""

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vizrobust as vr
from tests.conftest import make_net
from tests.test_cli import checkpoint, run
from vizrobust.commands.reconstruct import accentuate, small
from vizrobust.compute import Compute
from vizrobust.features import (
    Caricature,
    ImageActivations,
    Inversion,
    direct,
    reference_image,
    reference_sha256,
    render,
    representative_layers,
)
from vizrobust.models import activations, load_checkpoint
from vizrobust.report.sheets import Reconstructed, SheetRow, reconstruction_sheet
from vizrobust.requests.pictures import AccentuateRequest
from vizrobust.session import Session

IMAGE = "digits#5"


@pytest.fixture
def two(tmp_path):
    return checkpoint(tmp_path / "a.safetensors", 1), checkpoint(tmp_path / "b.safetensors", 2)


@pytest.fixture
def color(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "color.png")
    return str(tmp_path / "color.png")


def stretched(units):
    """A network whose layer `0` stretches the image by different factors and mixes it: it keeps everything."""
    mixed = nn.Linear(64, units, bias=False)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    mixed.weight.data = (turn * torch.linspace(0.5, 2, 64))[:units].contiguous()
    return nn.Sequential(nn.Flatten(), mixed)


def test_a_layer_that_keeps_everything_gives_the_image_back():
    image = reference_image(IMAGE, (1, 8, 8))
    found = next(render(stretched(64), Inversion("1", IMAGE), recipe=direct(), shape=(1, 8, 8), compute=Compute("cpu")))
    assert (found.image - image).abs().max() < 0.01
    half = next(render(stretched(24), Inversion("1", IMAGE), recipe=direct(), shape=(1, 8, 8), compute=Compute("cpu")))
    assert half.score > -1e-4  # the layer is content
    assert (half.image - image).abs().max() > 0.1


def test_a_caricature_answers_more_strongly_in_the_same_direction():
    net, image = stretched(64), reference_image(IMAGE, (1, 8, 8))
    found = next(
        render(net, Caricature("1", IMAGE), recipe=direct(steps=60), shape=(1, 8, 8), start=image, compute=Compute("cpu"))
    )
    with torch.no_grad():
        a, wanted = (net(x[None])[0] for x in (found.image, image))
    multiple, cosine = float(a @ wanted / wanted.square().sum()), float(torch.cosine_similarity(a, wanted, dim=0))
    assert multiple > 1.25  # the box ends not much later
    assert cosine > 0.9
    assert found.score == pytest.approx(multiple * cosine, rel=1e-4)


@pytest.mark.parametrize("layer", ["conv2", "linear1", "logits"])
def test_likeness_is_what_numpy_makes_of_the_activations(two, layer):
    subject = load_checkpoint(str(two[0]))
    original = ImageActivations.of(subject, IMAGE, ["conv1", "conv2", "linear1", "logits"], Compute("cpu"))
    picture = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = original.similarity(layer, picture)

    def answer(x):
        with torch.no_grad():
            return activations(subject.net(), x[None], [layer])[layer].numpy().astype(np.float64).ravel()

    a0, a, grey = map(answer, (original.image, picture, torch.full((1, 8, 8), 0.5)))
    assert found.error == pytest.approx(((a - a0) ** 2).sum() / (a0**2).sum(), rel=1e-4)
    assert found.grey_baseline_error == pytest.approx(((grey - a0) ** 2).sum() / (a0**2).sum(), rel=1e-4)
    assert found.relative_projection == pytest.approx(a @ a0 / (a0 @ a0), rel=1e-4)
    assert found.cosine == pytest.approx(a @ a0 / np.sqrt((a0 @ a0) * (a @ a)), rel=1e-4)
    missed = ((picture - original.image) ** 2).double().mean()
    assert found.psnr == pytest.approx(float(10 * torch.log10(1 / missed)), rel=1e-5)
    assert -1 <= found.ssim < 0.5


def test_an_image_is_like_itself(two):
    original = ImageActivations.of(load_checkpoint(str(two[0])), IMAGE, ["conv1"], Compute("cpu"))
    found = original.similarity("conv1", original.image)
    assert (found.error, found.psnr) == (0, None)
    assert (found.relative_projection, found.cosine, found.ssim) == pytest.approx((1, 1, 1))


def test_a_layer_without_an_answer_is_refused(two):
    subject = load_checkpoint(str(two[0]))
    subject.state["conv1.bias"].fill_(-1e3)
    with pytest.raises(ValueError, match=r"layer 'relu1' of .*a\.safetensors answers 'digits#5' with nothing but 0"):
        ImageActivations.of(subject, IMAGE, ["relu1"], Compute("cpu"))


@pytest.mark.parametrize(
    ("net", "shape", "expected"),
    [
        (lambda: make_net("small_cnn", (3, 20, 16)), (3, 20, 16), ["conv1", "conv2", "linear1", "linear2"]),
        (
            lambda: make_net("resnet_small", (3, 48, 48)),
            (3, 48, 48),
            ["stem", "stage1", "stage2", "stage3", "stage4", "linear"],
        ),
        (
            lambda: nn.Sequential(
                nn.Sequential(*[nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()) for _ in range(11)]),
                nn.Flatten(),
                nn.Linear(40, 3),
            ),
            (2, 4, 5),
            ["0.0", "0.2", "0.4", "0.7", "0.9", "2"],
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 3)), (2, 4, 5), ["1"]),
    ],
    ids=["plain", "stages", "nested", "one"],
)
def test_layers_are_spread_over_the_depth(net, shape, expected):
    assert representative_layers(net(), shape) == expected


def test_the_sheet_has_a_row_for_each_checkpoint_and_a_column_for_each_layer(two, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["vizrobust", "invert", "a file with spaces"])
    out = tmp_path / "run"
    asked = ("--layer", "conv1", "--layer", "linear2", "--steps", 3, "--seeds", 2)
    result = run("invert", *two, IMAGE, *asked, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    found = [(row["checkpoint"], row["layer"], row["seed"]) for row in rows]
    assert len(set(found)) == len(found) == 8
    assert [row["layer"] for row in rows] == ["conv1"] * 2 + ["linear2"] * 2 + ["conv1"] * 2 + ["linear2"] * 2
    assert all(row["error"] >= 0 and row["objective"].startswith(f'Inversion(layer="{row["layer"]}"') for row in rows)
    assert rows == [json.loads(line) for line in (out / "likeness.jsonl").read_text().splitlines()]
    with Image.open(out / "invert.png") as sheet:
        assert sheet.text["Command"] == "vizrobust invert 'a file with spaces'"
        assert sheet.width > sheet.height / 2
    assert len(list(out.glob("images/**/*.png"))) == 8


def test_a_second_call_renders_only_what_is_new(two, tmp_path):
    args = ("invert", two[0], IMAGE, "--steps", 2, "--out", tmp_path / "run", "--quiet")
    assert run(*args, "--layer", "conv1").exit_code == 0
    (first,) = (tmp_path / "run").glob("images/**/*.png")
    before = first.stat().st_mtime_ns
    result = run(*args, "--layer", "conv1", "--layer", "conv2")
    assert result.exit_code == 0, result.output
    assert "to render: 1, " in result.stderr
    assert first.stat().st_mtime_ns == before
    assert f"sheet: {tmp_path / 'run' / 'invert.png'}" in result.stdout
    other = run("invert", two[0], "digits#6", "--steps", 2, "--out", tmp_path / "run")
    assert other.exit_code == 1
    assert "another run" in other.stderr


@pytest.mark.parametrize("command", ["invert", "caricature"])
def test_without_layers_the_default_ones_are_shown_and_colours_become_grey(two, color, tmp_path, command):
    result = run(command, two[0], color, "--steps", 1, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    assert all(f" {layer} " in result.stdout for layer in ("conv1", "conv2", "linear1", "linear2"))


def test_a_caricature_may_begin_from_the_image_itself(two, tmp_path):
    args = (
        "caricature",
        two[0],
        IMAGE,
        "--layer",
        "conv2",
        "--recipe",
        "plain(step_size=0.0)",
        "--steps",
        1,
        "--quiet",
        "--json",
    )
    same = json.loads(run(*args, "--start", "--out", tmp_path / "same").stdout)
    assert same["ssim"] > 0.999
    assert same["multiple"] == pytest.approx(1, abs=0.01)
    assert json.loads(run(*args, "--out", tmp_path / "noise").stdout)["ssim"] < 0.5


def test_an_accentuated_image_excites_the_unit_and_the_more_it_is_held_the_nearer_it_stays(two, tmp_path):
    rows = {}
    for hold in (0, 30):
        asked = ("--layer", "conv2", "--units", "3,7", "--near", "conv1", "--hold", hold, "--steps", 12, "--recipe", "direct")
        result = run("accentuate", two[0], IMAGE, *asked, "--out", tmp_path / str(hold), "--json", "--quiet")
        assert result.exit_code == 0, result.output
        rows[hold] = [json.loads(line) for line in result.stdout.splitlines()]
    image = reference_image(IMAGE, (1, 8, 8))
    maps = activations(load_checkpoint(str(two[0])).net(), image[None], ["conv2"])["conv2"].detach()
    for free, held in zip(*rows.values(), strict=True):
        assert free["activation"] > free["activation_of_image"]
        assert free["error"] > held["error"]
        assert free["activation"] > held["activation"]
        assert "Inversion" not in free["objective"]
        assert free["activation_of_image"] == pytest.approx(float(maps[0, free["unit"]].mean()), abs=1e-5)
    with Image.open(tmp_path / "30" / "accentuate.png") as sheet:
        assert sheet.width > 3 * sheet.height / 4


def test_units_may_be_numbers_in_python(two):
    request = AccentuateRequest(models=(str(two[0]),), image=IMAGE, units=(2, 5), near="conv1", steps=1)
    with closing(Session(two[0].parent / "run", device="cpu")) as session:
        rows = [event for event in accentuate(request, session) if isinstance(event, dict)]
    assert [row["unit"] for row in rows] == [2, 5]


NUMBERS = ("error", "psnr", "ssim", "cosine")


def test_python_takes_tensors_arrays_and_networks_and_answers_as_the_command_does(two, tmp_path):
    own, image = load_checkpoint(str(two[0])), reference_image(IMAGE, (1, 8, 8))
    np.save(tmp_path / "image.npy", image.numpy())
    done = run("invert", two[0], IMAGE, "--layer", "conv1", "--steps", 3, "--out", tmp_path / "run", "--json", "--quiet")
    wanted = json.loads(done.stdout)
    assert wanted["layer"] == "conv1"
    bare = own.net()  # an object, its normalization inside
    for model, given in ((str(two[0]), IMAGE), (own, image), (bare, image), (own, tmp_path / "image.npy")):
        found = vr.invert(model, given, layers="net.conv1" if model is bare else "conv1", steps=3)
        (row,) = found.rows()
        assert [row[key] for key in NUMBERS] == pytest.approx([wanted[key] for key in NUMBERS], rel=1e-3)
        assert min(found.image().size) > 50
    how = {"layers": ["conv1", "conv2"], "steps": 2, "out": tmp_path / "kept"}
    moved = vr.caricature(own, image, **how)
    assert [row["layer"] for row in moved.rows()] == ["conv1", "conv2"]
    assert "Caricatures of image " in moved.tables()[0].title
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("images/**/*.png")}
    again = vr.caricature(own, image.clone(), **how)
    assert again.rows() == moved.rows()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(ValueError, match="another"):
        vr.caricature(own, 1 - image, **how)
    bands = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6 * 7, 3))
    rows = vr.accentuate(bands, torch.rand(4, 8, 9), [2, 0], near="0", steps=2).rows()
    assert [row["unit"] for row in rows] == [2, 0]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.rand(1, 8, 8) * 255, "divide"), (torch.rand(8, 8), r"is \(8, 8\); give \(C, H, W\)"),
        (torch.full((1, 8, 8), torch.nan), "NaN"), ("digits#9999", "no image 9999"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_used_is_refused_in_python_too(two, image, said):
    with pytest.raises(ValueError, match=said):
        vr.invert(str(two[0]), image, layers="conv1", steps=1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["invert", "{net}", "nothing.png"], ["no image file 'nothing.png'", "DATA#index"]),
        (["invert", "{net}", "digits#99999"], ["no image 99999 in digits"]),
        (["invert", "{net}", "nodata#1"], ["nodata"]),
        (["invert", "{net}", IMAGE, "--layer", "conv3"], ["no layer 'conv3'", "conv1", "vizrobust layers"]),
        (["invert", "{net}", IMAGE, "--smooth", "-1"], ["--smooth", "-1"]),
        (["invert", "{net}", IMAGE, "--layer", "linear1", "--size", "16"], ["16 x 16", "--size"]),
        (["caricature", "{net}", IMAGE, "--power", "-1"], ["power must not be negative"]),
        (["caricature", "{net}", IMAGE, "--recipe", "nonsense"], ["no recipe 'nonsense'"]),
        (["caricature", "{net}", IMAGE, "--seeds", "0"], ["--seeds", "at least 1"]),
        (["accentuate", "{net}", IMAGE, "--near", "conv3"], ["no layer 'conv3'", "conv1", "vizrobust layers"]),
        (["accentuate", "{net}", IMAGE, "--near", "conv1", "--hold", "-1"], ["--hold", "-1"]),
        (["accentuate", "{net}", IMAGE, "--near", "conv1", "--units", "99"], ["99", "logits", "10"]),
    ],
)
def test_bad_input_is_one_sentence(two, tmp_path, args, words):
    result = run(*[str(two[0]) if arg == "{net}" else arg for arg in args], "--out", tmp_path / "run", "--quiet")
    assert result.exit_code in (1, 2), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_an_image_in_colours_is_as_grey_as_pillow_makes_it(color):
    with Image.open(color) as picture:
        expected = np.asarray(picture.convert("L")) / 255
    assert reference_image(color, (1, 12, 9))[0].numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(*(reference_image(IMAGE, (3, 8, 8))[i] for i in (0, 2)))
    assert reference_image(IMAGE, (3, 5, 7)).shape == (3, 5, 7)
    with pytest.raises(ValueError, match="the network takes 4 channels"):
        reference_image(color, (4, 12, 9))
    assert reference_sha256(IMAGE) != reference_sha256("digits#6")


def test_small_numbers_keep_two_digits():
    assert [small(value) for value in (0, 0.000123, 0.0345, 1.234, 0.0000456)] == ["0", "0.00012", "0.035", "1.2", "5e-05"]


def test_a_sheet_needs_as_many_pictures_as_columns(tmp_path):
    row = SheetRow(("net",), (Reconstructed(np.zeros((4, 5), np.uint8)),))
    with pytest.raises(ValueError, match="rows of 2 pictures"):
        reconstruction_sheet(tmp_path / "a.png", "title", ["image", "conv1"], [row], [])
    with pytest.raises(ValueError, match=r"must end in \.png"):
        reconstruction_sheet(tmp_path / "a.svg", "title", ["image"], [row], [])
