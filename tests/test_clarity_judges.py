"""The judges of a study: who may judge whom, images of another size or colours, classes by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import SHAPE
from vizrobust.clarity import Judge, encoder_for, judges_for
from vizrobust.clarity import judges as judging
from vizrobust.clarity.judges import class_columns, default_judges, resized_to_input
from vizrobust.data import load
from vizrobust.data.sources import overlapping_data
from vizrobust.models import Checkpoint, CheckpointInfo, architecture, load_checkpoint
from vizrobust.models.importing import import_file, task

LETTERS = tuple("abcdefg")
THREE = judging.BUILTIN["mnist5k"]


def checkpoint(name: str, seed: int, data: str = "", classes=LETTERS, shape=SHAPE, arch="small_cnn", **more) -> Checkpoint:
    build = architecture(arch, shape, len(classes))
    about = CheckpointInfo(arch, shape, classes, (0.4,) * shape[0], (0.3,) * shape[0], data=data, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Checkpoint(name, about, build().state_dict(), build)


@pytest.fixture
def known(monkeypatch) -> dict[str, Checkpoint]:
    """The checkpoints that references lead to; those named like built-in judges are built in."""
    there: dict[str, Checkpoint] = {}
    everyone = {name for names in judging.BUILTIN.values() for name in names}
    monkeypatch.setattr(judging, "load_checkpoint", lambda ref, _code="": there[ref])
    monkeypatch.setattr(judging, "builtin_names", lambda: [name for name in there if name in everyone])
    return there


def fill(known: dict[str, Checkpoint], *names: str, data: str = "mnist55k") -> None:
    known.update({name: checkpoint(name, 10 + k, data, metrics={"clean": 0.9}) for k, name in enumerate(names)})


def test_a_study_has_the_three_built_in_judges_and_those_given(known, compute):
    fill(known, *reversed(THREE), "mine")
    one = checkpoint("one", 1, "mnist5k")
    judges = judges_for("mnist5k", [one], compute, ["mine"])
    assert [judge.name for judge in judges] == [*THREE, "mine"]
    assert [judge.kind for judge in judges] == ["standard", "robust", "heavy", "given"]
    assert [judge.clean for judge in judges] == [0.9] * 4
    assert [judge.name for judge in judges_for("mnist5k", [one], compute, ["mine"], builtin=False)] == ["mine"]
    # The same network under another name has no second voice.
    known["copy"] = known["mine"]
    assert len(judges_for("MNIST5k", [one], compute, ["mine", "copy", THREE[0]])) == 4
    assert judges_for("somewhere", [one], compute) == []


def test_built_in_judges_that_are_not_there_yet_are_left_out(known, compute):
    one = checkpoint("one", 1, "mnist5k")
    assert judges_for("mnist5k", [one], compute) == []
    fill(known, THREE[0])
    assert [judge.name for judge in judges_for("mnist5k", [one], compute)] == [THREE[0]]
    fill(known, THREE[2])
    assert default_judges("mnist5k", one.info.classes)[0] == THREE[2]
    (found,) = judges_for("mnist5k", [one], compute, [THREE[2]], builtin=False)
    assert (found.name, found.kind) == (THREE[2], "heavy")
    assert default_judges("imagenette64", one.info.classes) == ()


def test_a_judge_of_a_study_may_not_be_compared_nor_know_the_images(known, compute):
    one, two = checkpoint("one", 1, "mnist5k"), checkpoint("two", 2)
    known.update(same=one, alike=checkpoint("alike", 3, "mnist5k"), wider=checkpoint("wider", 4, "mnist"))
    with pytest.raises(ValueError, match=r"'same' is one of the compared checkpoints \(one\)"):
        judges_for("mnist5k", [two, one], compute, ["same"])
    with pytest.raises(ValueError, match="'alike' was trained on mnist5k, as one was; name a judge"):
        judges_for("mnist5k", [one], compute, ["alike"])
    with pytest.raises(ValueError, match=r"trained on mnist, which shares images with that of one \(mnist5k\)"):
        judges_for("mnist5k", [one], compute, ["wider"])
    # A checkpoint that does not say what it was trained on is taken to be of the study's data.
    with pytest.raises(ValueError, match="as two was"):
        judges_for("mnist5k", [two], compute, ["alike"])
    with pytest.raises(ValueError, match="'wider' was trained on mnist"):
        judges_for("mnist5k", [one], compute, ["wider"], builtin=False)


def test_data_sets_of_the_same_images_are_known_to_overlap():
    names = ["mnist", "mnist5k", "mnist55k", "imagenette", "imagenette64", "imagenette64-rest", "cifar10", "imagenet"]
    apart = {("mnist5k", "mnist55k"), ("imagenette64", "imagenette64-rest"), ("imagenette", "imagenette64-rest")}
    for a in names:
        for b in names:
            family = a == b or (a.startswith("mnist") and b.startswith("mnist"))
            family = family or (a.startswith("imagenette") and b.startswith("imagenette"))
            expected = family and (a, b) not in apart and (b, a) not in apart
            assert overlapping_data(a, b) == expected, (a, b)
    assert overlapping_data("imagenette@96", "Imagenette64")
    assert overlapping_data("imagefolder:pets@64", "imagefolder:pets")
    assert not overlapping_data("imagefolder:pets", "imagefolder:Pets")
    assert not overlapping_data("", "")


def test_classes_are_found_by_name_in_any_case_and_order(known, compute):
    many = ("crane", "Gas Pump", "x", "crane", "tench", "golf ball")
    known["many"] = checkpoint("many", 3, "elsewhere", many)
    one = checkpoint("one", 1, classes=("golf ball", "tench", "gas pump"))
    (judge,) = judges_for("photos", [one], compute, ["many"], builtin=False)
    assert judge.classes == ("golf ball", "tench", "gas pump")
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = known["many"].net()(x)
    torch.testing.assert_close(judge(x).logits, own[:, [5, 4, 1]], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"the judge 'many' has no class 'pike' and 1 more .* name another judge"):
        judges_for("photos", [checkpoint("two", 2, classes=("pike", "tench", "perch"))], compute, ["many"])
    with pytest.raises(ValueError, match="several classes 'Crane'"):
        judges_for("photos", [checkpoint("two", 2, classes=("Crane", "tench"))], compute, ["many"])
    other_order = checkpoint("two", 2, classes=("tench", "golf ball", "gas pump"))
    with pytest.raises(ValueError, match="different orders"):
        judges_for("photos", [one, other_order], compute, ["many"])


def test_imagenet_knows_the_classes_of_imagenette(compute):
    """By its published names, 'chain saw' and 'French horn' among them; its weights here are random."""
    ref = "torchvision:mobilenet_v3_small@random"
    names = load_checkpoint(ref).info.classes
    photos = tuple(sorted(("tench", "English Springer", "cassette player", "chain saw", "church", "French horn", "gas pump")))
    columns = class_columns(ref, names, photos)
    assert columns is not None
    assert [names[k].lower() for k in columns] == [name.lower() for name in photos]
    one = checkpoint("one", 1, "imagenette64", photos)
    with pytest.warns(UserWarning, match="trained on ImageNet"):
        (judge,) = judges_for("imagenette64", [one], compute, [ref], builtin=False)
    output = judge(torch.rand(2, *SHAPE))
    assert output.logits.shape == (2, 7)
    assert output.features.shape == (2, 1024)


def test_a_judge_of_another_size_sees_the_images_at_its_own(known, compute):
    """What it sees is what PIL makes of them: an antialiased bilinear resize."""
    import numpy as np
    from PIL import Image

    x = torch.rand(2, 3, 30, 24, generator=torch.Generator().manual_seed(0))
    for size in ((13, 10), (40, 50)):
        planes = [[Image.fromarray(c.numpy()).resize(size[::-1], Image.Resampling.BILINEAR) for c in one] for one in x]
        expected = np.array([[np.asarray(plane) for plane in one] for one in planes])
        np.testing.assert_allclose(resized_to_input(x, (3, *size)).numpy(), expected, atol=1e-5)
    assert resized_to_input(x, (3, 30, 24)) is x
    known["small"] = checkpoint("small", 3, "elsewhere", shape=(3, 12, 16))
    (judge,) = judges_for("photos", [checkpoint("one", 1, shape=(3, 30, 24))], compute, ["small"], builtin=False)
    with torch.no_grad():
        own = known["small"].net()(resized_to_input(x, (3, 12, 16)))
    torch.testing.assert_close(judge(x).logits, own, rtol=1e-4, atol=1e-5)


def test_grey_and_colour_judges_judge_each_other(known, compute):
    grey, colour = torch.rand(2, 1, 20, 16), torch.rand(2, 3, 20, 16)
    torch.testing.assert_close(resized_to_input(grey, (3, 20, 16)), grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(resized_to_input(colour, (1, 20, 16)), (colour[:, :1] + colour[:, 1:2] + colour[:, 2:]) / 3)
    known.update(
        grey=checkpoint("grey", 3, "elsewhere", shape=(1, 20, 16)), four=checkpoint("four", 4, "elsewhere", shape=(4, 20, 16))
    )
    (judge,) = judges_for("photos", [checkpoint("one", 1)], compute, ["grey"], builtin=False)
    assert judge(colour).logits.shape == (2, 7)
    with pytest.raises(ValueError, match="'four' takes images of 4 channels, one of 3; name another judge"):
        judges_for("photos", [checkpoint("one", 1)], compute, ["four"])
    with pytest.raises(ValueError, match="only grey"):
        resized_to_input(colour, (4, 20, 16))


def test_a_network_without_a_linear_layer_judges_by_its_last_convolution_or_its_logits(known, compute):
    found = checkpoint("conv", 3, "elsewhere")
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    known["conv"] = Checkpoint("conv", found.info, body.state_dict(), lambda: nn.Sequential(*body))

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((7, 3, 1, 1), 0.5))

        def forward(self, x):
            return nn.functional.conv2d(x, self.weight).mean((2, 3))

    known["bare"] = Checkpoint("bare", found.info, Bare().state_dict(), Bare)
    conv, bare = judges_for("photos", [checkpoint("one", 1)], compute, ["conv", "bare"])
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        expected = body[:2]((x - 0.4) / 0.3).mean((2, 3))
    torch.testing.assert_close(conv(x).features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bare(x).features, bare(x).logits)


def test_columns_and_sizes_leave_a_plain_judge_as_it_was(compute):
    net = checkpoint("one", 1).net()
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain, same = Judge("j", net, LETTERS, compute), Judge("j", net, LETTERS, compute, input_shape=SHAPE, columns=tuple(range(7)))
    assert torch.equal(plain(x).logits, same(x).logits)
    assert torch.equal(plain(x).features, same(x).features)


def test_a_judge_and_an_encoder_of_somebody_s_own_code_are_run_only_where_they_are_typed(tmp_path, compute):
    code, out = tmp_path / "nets.py", tmp_path / "theirs.safetensors"
    code.write_text("from torch import nn\n\n\ndef Net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "theirs.pt")
    import_file(tmp_path / "theirs.pt", out, f"{code}:Net", task("digits"), "none")
    ref = f"{out}::arch={code}:Net"
    (judge,) = judges_for("mnist5k", [], compute, [ref], builtin=False, typed=True, classes=load("digits").classes)
    encoder = encoder_for(ref, "mnist5k", [], compute, typed=True)
    assert judge.name == encoder.name == ref
    x = load("digits").test.take(torch.arange(3))
    assert torch.equal(judge(x).features, x.flatten(1))
    with pytest.raises(ValueError, match="runs only where a person names it"):
        judges_for("mnist5k", [], compute, [ref], builtin=False)
    with pytest.raises(ValueError, match="runs only where a person names it"):
        encoder_for(ref, "mnist5k", [], compute)
