"""A picture made again from what its PNG says: the same pixels, or one sentence that says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tests.test_cli import checkpoint, run
from tests.user_networks import __file__ as CODE
from tests.user_networks import sequential
from vizrobust.features import Channel, Diversity, Inversion, PixelDifference, Provenance, plain, provenance, rerender, sources
from vizrobust.features import recipes as made_by
from vizrobust.models import load_checkpoint
from vizrobust.runs import write_png


@pytest.fixture(autouse=True, scope="module")
def without_pages():
    """Pictures alone are made again; their page takes as long as they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vizrobust.commands.neurons.write_gallery", lambda *_args, **_options: Path("index.html"))
        yield


@pytest.fixture
def net(tmp_path):
    return checkpoint(tmp_path / "net.safetensors")


@pytest.fixture
def picture(net, tmp_path):
    """A picture of unit 3, seed 1."""
    return pictures("neurons", net, "--units", "3", "--seed", 1, "--steps", 3, "--batch-size", 2, out=tmp_path / "run")[0]


def pictures(*args, out):
    result = run(*args, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return sorted(out.glob("images/**/*.png"))


def again(file, *args):
    return run("rerender", file, *args)


def changed(file, to, row=None, about=None, drop=()):
    """A copy of a picture with other entries in its texts."""
    with Image.open(file) as opened:
        texts = {"vizrobust": {**json.loads(opened.text["vizrobust"]), **(row or {})}}
        texts["vizrobust-run"] = {**json.loads(opened.text["vizrobust-run"]), **(about or {})}
        write_png(to, np.asarray(opened), {key: json.dumps(text) for key, text in texts.items() if key not in drop})
    return to


def one_sentence(result, *words, code=1):
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("Error: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in line, line


@pytest.fixture
def files(tmp_path):
    """Everything besides the network that a picture may be made from, by name."""
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    np.save(tmp_path / "vectors.npy", generator.normal(size=(3, 32)))
    np.save(tmp_path / "spectrum.npy", generator.uniform(0.1, 1, (1, 8, 5)))
    return {name: str(tmp_path / name) for name in ("image.png", "vectors.npy", "spectrum.npy")}


OPTIONS = {
    "plain": ["--seeds", 2],
    "fourier": ["--recipe", "fourier", "--negative"],
    "lucid": ["--recipe", "lucid"],
    "maco": ["--recipe", "maco"],
    "spectrum": ["--recipe", "maco(spectrum='{spectrum.npy}', crops=2)"],
    "network of coordinates": ["--recipe", "Recipe('c', CPPN(width=4, depth=2), Adam())"],
    "both": ["--both"],
    "faces": ["--layer", "conv2", "--diversity", 2],
    "shared structure": ["--recipe", "Recipe('s', SharedLowFrequency(group_size=2), Adam())", "--seeds", 2],
    "start": ["--start", "{image.png}", "--recipe", "fourier"],
    "start from data": ["--start", "digits#4"],
    "position": ["--layer", "conv1", "--neuron", "1,2"],
    "size": ["--layer", "conv2", "--size", 13],
    "half precision": ["--precision", "bf16"],
    "reference": ["--objective", "channel('conv1') + 2 * inversion('conv2', '{image.png}') - 0.1 * totalvariation"],
    "direction": ["--objective", "direction('conv2', '{vectors.npy}')"],
    "film": ["--movie"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_kind_of_picture_comes_out_with_the_same_pixels(net, files, tmp_path, options):
    for name, path in files.items():
        options = [str(option).replace("{" + name + "}", path) for option in options]
    found = pictures("neurons", net, "--units", "0:2", "--steps", 2, "--batch-size", 3, *options, out=tmp_path / "run")
    result = again(found[-1])
    assert (result.exit_code, result.stdout) == (0, "same pixels\n"), (found[-1], result.output)


@pytest.mark.parametrize(("command", "asked"), [
    ("invert", ("--layer", "conv2", "--layer", "linear1")), ("caricature", ("--layer", "conv2", "--layer", "linear1")),
    ("accentuate", ("--units", "0:2", "--near", "conv2")),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_reconstructions_come_out_with_the_same_pixels(net, files, tmp_path, command, asked):
    for file in pictures(command, net, files["image.png"], *asked, "--steps", 2, out=tmp_path / "run"):
        assert again(file).stdout == "same pixels\n"


def test_compared_pictures_and_their_random_reference_come_out_with_the_same_pixels(net, tmp_path):
    other = checkpoint(tmp_path / "1.safetensors", 1)
    judge = checkpoint(tmp_path / "2.safetensors", 2, data="other digits")
    args = ("compare", net, other, "--units", "0:2", "--seeds", 1, "--images", 0, "--judge", judge, "--recipe", "plain(steps=2)")
    found = pictures(*args, out=tmp_path / "run")
    (random,) = [file for file in found if file.parts[-4].startswith("random-network") and file.name == "1-s0.png"]
    for file in (random, found[0]):
        assert again(file).stdout == "same pixels\n"


def test_an_untrained_network_has_a_reference_of_its_own(tmp_path):
    net = checkpoint(tmp_path / "net.safetensors", 3)
    fresh = load_checkpoint(str(net)).untrained("fresh")
    assert (fresh.name, fresh.reference) == ("fresh", f"{net}@random")
    found = load_checkpoint(fresh.reference)
    assert found.sha256 == fresh.sha256 != load_checkpoint(str(net)).sha256
    assert found.untrained("again").reference == fresh.reference


def test_what_differs_is_counted(picture, tmp_path):
    result = again(changed(picture, tmp_path / "other.png", row={"seed": 2}))
    assert result.exit_code == 1
    assert " of 64 pixels differ, by at most " in result.stdout
    found = json.loads(again(tmp_path / "other.png", "--json").stdout)
    assert not found["same"]
    assert 32 < found["differing"] <= found["pixels"] == 64
    assert 0 < found["mean"] < found["largest"] <= 255


@pytest.mark.parametrize(
    ("row", "about"),
    [
        ({"unit": 4}, {}),
        ({"sign": -1}, {}),
        ({"objective": 'Channel(layer="conv1")'}, {}),
        ({"recipe_text": "plain(steps=4)"}, {}),
    ],
)
def test_every_entry_counts(picture, tmp_path, row, about):
    assert again(changed(picture, tmp_path / "other.png", row, about)).exit_code == 1


def test_a_difference_is_that_of_the_pixels():
    before = np.zeros((3, 4, 3), np.uint8)
    after = before.copy()
    after[1, 2] = (0, 7, 200)
    assert PixelDifference.between(before, after) == PixelDifference(12, 1, 200, round(207 / 36, 4))
    assert str(PixelDifference.between(before, after)) == "1 of 12 pixels differ, by at most 200 and on average 5.75 of 255"
    assert str(PixelDifference.between(after, after)) == "same pixels"
    with pytest.raises(ValueError, match=r"3 x 4 x 3 and 4 x 3 x 3 .* changed after it was made"):
        PixelDifference.between(before, before.swapaxes(0, 1))


def test_the_new_picture_says_how_it_was_made_too(picture, tmp_path):
    result = again(picture, "--out", tmp_path / "new" / "again.png", "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["same"]
    assert row["score"] == row["score_then"]
    assert again(tmp_path / "new" / "again.png").stdout == "same pixels\n"
    one_sentence(again(picture, "--out", tmp_path / "again.jpg"), "again.jpg", "must end in .png", code=2)
    assert not picture.with_name("again.jpg").exists()


def test_other_weights_are_refused(net, picture, tmp_path):
    one_sentence(again(picture, checkpoint(tmp_path / "other.safetensors", 1)), "other.safetensors", "weights", "REF")
    checkpoint(net, 1)
    one_sentence(again(picture), "weights")


def test_a_checkpoint_that_has_moved_is_named(net, picture, tmp_path):
    net.rename(tmp_path / "moved.safetensors")
    sha256 = load_checkpoint(str(tmp_path / "moved.safetensors")).sha256
    one_sentence(again(picture), "net.safetensors", sha256[:8], "REF")
    assert again(picture, tmp_path / "moved.safetensors").stdout == "same pixels\n"


def test_a_network_of_one_s_own_needs_its_code_again(tmp_path):
    arch, theirs = f"{CODE}:sequential", tmp_path / "theirs.pt"
    net = sequential((1, 8, 8), 10)
    torch.save(net.state_dict(), theirs)
    out = tmp_path / "ours.safetensors"
    imported = run("import", theirs, "--arch", arch, "--normalize", "none", "--data", "digits", "--out", out)
    assert imported.exit_code == 0, imported.output
    (file,) = pictures("neurons", out, "--arch", arch, "--units", "0", "--steps", 2, out=tmp_path / "run")
    one_sentence(again(file), "--arch", "user_networks.py:sequential")
    assert again(file, "--arch", arch).stdout == "same pixels\n"


@pytest.mark.parametrize("name", ["start", "direction"])  # an image and an array
def test_a_file_that_has_changed_or_gone_is_named(net, files, tmp_path, name):
    options = list(OPTIONS[name])
    for file, path in files.items():
        options = [option.replace("{" + file + "}", path) for option in options]
    (used,) = [tmp_path / file for file in files if any(file in option for option in options)]
    picture = pictures("neurons", net, "--units", "0", "--steps", 1, *options, out=tmp_path / "run")[0]
    content = used.read_bytes()
    if used.suffix == ".npy":
        np.save(used, np.load(used) * 2)
    else:
        Image.new("L", (8, 8), 40).save(used)
    one_sentence(again(picture), used.name, "not what it was")
    used.unlink()
    one_sentence(again(picture), used.name)
    used.write_bytes(content)
    assert again(picture).stdout == "same pixels\n"


def test_a_run_is_not_taken_up_with_another_file_of_the_same_name(net, files, tmp_path):
    args = ("neurons", net, "--objective", f"direction('conv2', '{files['vectors.npy']}')", "--steps", 1)
    pictures(*args, out=tmp_path / "run")
    np.save(files["vectors.npy"], np.ones((3, 32)))
    one_sentence(run(*args, "--out", tmp_path / "run", "--quiet"), "another run", "references")


def test_sources_are_those_of_all_parts():
    objective = Channel("a") - 2 * Diversity("b") + Inversion("c", "digits#1") + 3 * Inversion("d", "digits#2")
    found = sources(objective, made_by.maco(spectrum="digits"), made_by.maco(spectrum="digits"))
    assert [name for name, _ in found] == ["digits#1", "digits#2", "digits"]
    assert len({sha256 for _, sha256 in found}) == 3
    assert sources(plain(), Channel("a")) == ()


def test_batch_size_precision_and_threads_are_those_of_then_and_threads_put_back(picture, tmp_path, monkeypatch):
    seen = []

    def rendered(_net, _objective, batches, *_, compute, **__):
        seen.append((torch.get_num_threads(), batches[0].size, compute.precision))
        return iter(["done"])

    monkeypatch.setattr(provenance, "render_batches", rendered)
    identity = {"batch_size": 7, "precision": "bf16", "start": ""}
    about = {"threads": 3, "identity": identity}
    before = torch.get_num_threads()
    # Pictures of older versions name one size for the whole run, and were always computed at that size.
    for own, row in ((5, {"batch_size": 5}), (7, {"batch_size": None})):
        made = Provenance.read(changed(picture, tmp_path / "other.png", row=row, about=about))
        assert rerender(made, load_checkpoint(made.reference)) == "done"
        assert (seen.pop(), torch.get_num_threads()) == ((3, own, "bf16"), before)


def test_what_is_not_as_it_was_is_said(picture, tmp_path):
    about = {"threads": torch.get_num_threads() + 1, "versions": {"torch": "1.0", "gone": "2"}}
    result = again(changed(picture, tmp_path / "other.png", about=about))
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert notes[0].startswith("note: torch was 1.0, is now ")
    assert f"threads was {torch.get_num_threads() + 1}" in notes[1]
    assert again(picture).stderr == ""


def test_other_files_are_refused_in_a_sentence(picture, tmp_path):
    one_sentence(again(tmp_path / "no.png"), "no file", "no.png")
    one_sentence(again(tmp_path / "run" / "contact-sheet.png"), "sheet")
    Image.new("RGB", (5, 4)).save(tmp_path / "foreign.png")
    one_sentence(again(tmp_path / "foreign.png"), "foreign.png", "does not say how it was made")
    Image.new("RGB", (5, 4)).save(tmp_path / "photo.jpg")
    one_sentence(again(tmp_path / "photo.jpg"), "JPEG", "not a PNG")
    (tmp_path / "text.png").write_text("no picture")
    one_sentence(again(tmp_path / "text.png"), "not a picture")
    one_sentence(again(changed(picture, tmp_path / "old.png", drop=("vizrobust-run",))), "old.png", "once more")


def test_a_truncated_file_is_refused_wherever_it_ends(picture, tmp_path):
    content = picture.read_bytes()
    pixels = content.index(b"IDAT")
    for end in [*range(0, pixels, 131), pixels, pixels + 12]:
        (tmp_path / "short.png").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"short\.png"):
            Provenance.read(tmp_path / "short.png")


@pytest.mark.parametrize(
    ("row", "about"),
    [
        ({"unit": "3"}, {}),
        ({"unit": -1}, {}),
        ({"seed": True}, {}),
        ({"objective": "open('x')"}, {}),
        ({"recipe_text": "nonsense"}, {}),
        ({"recipe_text": 3}, {}),
        ({"checkpoint": "other"}, {}),
        ({}, {"threads": 0}),
        ({}, {"identity": {}}),
        ({}, {"identity": []}),
        ({}, {"checkpoints": None}),
        ({}, {"identity": {"batch_size": 16, "precision": "fp32", "start": "abc"}}),
    ],
)
def test_texts_that_cannot_be_read_are_refused_in_a_sentence(picture, tmp_path, row, about):
    one_sentence(again(changed(picture, tmp_path / "odd.png", row, about)), "odd.png", "cannot be read")


def test_a_text_that_is_no_json_is_refused_in_a_sentence(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    for key in ("vizrobust", "vizrobust-run"):
        chunks.add_itxt(key, "{")
    Image.new("L", (4, 4)).save(tmp_path / "odd.png", pnginfo=chunks)
    one_sentence(again(tmp_path / "odd.png"), "odd.png", "cannot be read")
