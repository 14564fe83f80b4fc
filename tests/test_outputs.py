"""What a network may return and how it may read its images: one rule for logits, and code that needs contiguous images."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import make_net
from tests.test_cli import run
from vizrobust.attacks import PGD, Linf
from vizrobust.compute import Compute
from vizrobust.models import Checkpoint, CheckpointInfo, Normalized
from vizrobust.models.forward import NoLogits, choose_memory_format, logits_of

SHAPE, CLASSES = (3, 12, 8), 7
LOGITS, OTHER = torch.rand(2, CLASSES), torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "out": OTHER},
        {"features": OTHER, "out": LOGITS},
        (LOGITS, OTHER),
        [LOGITS],
        SimpleNamespace(logits=LOGITS),
        torch.return_types.max((LOGITS, LOGITS.long())),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found_by_one_rule(output: object) -> None:
    assert torch.equal(logits_of(output), LOGITS)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (OTHER, r"\(2, 3, 4, 4\)"),
        ({"features": LOGITS}, "dict"),
        ((), "tuple"),
        ((OTHER, LOGITS), r"\(2, 3, 4, 4\)"),
        (None, "NoneType"),
        (LOGITS[0], r"\(7,\)"),
    ],
    ids=["map", "dict", "empty", "map first", "nothing", "one row"],
)
def test_what_holds_no_logits_is_refused(output: object, kind: str) -> None:
    with pytest.raises(NoLogits, match=rf"must return logits \(N, classes\) for N images, it returned {kind}; return a tensor"):
        logits_of(output)


class ByView(nn.Module):
    """As much old code: the features are laid side by side with view."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        self.conv, self.linear, self.output = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 96, CLASSES), output

    def forward(self, x: Tensor) -> object:
        found = self.linear(self.conv(x).view(x.size(0), -1))
        return found if self.output == "tensor" else {"logits": found, "features": x}


def checkpoint(build, arch: str = "nets.py:make") -> Checkpoint:
    info = CheckpointInfo(arch, SHAPE, tuple("abcdefg"), (0.4,) * 3, (0.3,) * 3)
    return Checkpoint("mine", info, build().state_dict(), build)


def test_one_logit_is_that_of_two_classes_and_its_robustness_is_known_by_hand() -> None:
    """Of a plane z = w x + b the nearest image of the other class is |z| / |w|_1 away, and PGD and interval bounds find that."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    x = 0.3 + 0.4 * torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[1].bias -= net(x).mean()
        z, away = net(x)[:, 0], net(x)[:, 0].abs() / net[1].weight.abs().sum()
    right = torch.arange(12) % 4 != 0
    y = ((z > 0) == right).long()
    eps = float(away.median()) + 1e-4
    assert torch.allclose(logits_of(net(x)).softmax(1)[:, 1], z.sigmoid())
    loss = nn.functional.cross_entropy(logits_of(net(x)), y)
    assert torch.allclose(loss, nn.functional.binary_cross_entropy_with_logits(z, y.float()))
    found = vr.robust_accuracy(net, (x, y), attack="pgd", eps=eps, steps=5)
    assert found.correct.equal(right)
    assert found.robust.equal(right & (away > eps))
    (proved,) = vr.certify(net, (x, y), method="ibp", attack="none", images=12).found
    assert torch.allclose(proved.radius.float(), away * right, atol=1e-3)
    always = vr.robust_accuracy(nn.Sequential(net, nn.Sigmoid()), (x, y), attack="fgsm", eps=eps)
    assert "the network predicts class 1 for all 12 unchanged images" in always.warnings


@pytest.fixture(scope="module")
def one_logit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of one logit, its code and images."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "nets.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))\n"
    )
    x = np.random.default_rng(0).random((40, 8, 8), np.float32)
    half = {"x_test": x[:20], "y_test": np.arange(20) % 2, "x_train": x[20:], "y_train": np.arange(20) % 2}
    np.savez(folder / "d.npz", **half, classes=np.array(["no", "yes"]))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    torch.save({"state_dict": net.state_dict()}, folder / "theirs.ckpt")
    return folder


@pytest.mark.parametrize("command", [
    "layers REF", "neurons REF --steps 1", "invert REF npz:d.npz#0 --steps 1", "accentuate REF npz:d.npz#0 --near 0 --steps 1",
    "dictionary REF --layer 1 --units 2 --out d.safetensors", "explain REF --images 2 --method saliency",
    "attack REF --images 8 --eps .05", "first-order REF --images 8 --eps .05 --steps 2", "certify REF --method ibp --images 3",
    "intervene REF --layer 1 --units 0 --images 10 --controls 1",
    "train --data npz:d.npz --steps 1 --eps .05 --epochs 1 --watch 5",
    "compare REF REF@random --images 5 --eps .05 --steps 1 --seeds 1",
])  # fmt: skip
def test_every_command_takes_a_network_of_one_logit(command: str, one_logit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(one_logit)
    arch = ("--arch", "nets.py:build")
    if not Path("one.safetensors").exists():
        assert (
            run(
                "import", "theirs.ckpt", *arch, "--data", "npz:d.npz", "--normalize", "none", "--out", "one.safetensors"
            ).exit_code
            == 0
        )
    done = run(*command.replace("REF", "one.safetensors").split(), *arch)
    assert done.exit_code == 0, done.output
    assert "nan" not in done.output.lower()


def test_several_labels_per_image_are_refused_with_the_way_to_one(one_logit: Path) -> None:
    x, y = torch.rand(12, 1, 4, 4), (torch.rand(12, 3) > 0.5).float()
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    for ask in (vr.robust_accuracy, vr.diagnose_masking, vr.certify, vr.explain, vr.train):
        with pytest.raises(ValueError, match=r"several labels per image take one, y\[:, c\], with a network of that one logit"):
            ask(net, (x, y)) if ask is not vr.train else vr.train((x, y), steps=0)
    np.savez(one_logit / "m.npz", x_test=x[:, 0].numpy(), y_test=y.long().numpy())
    assert "of several labels per image save one" in run("attack", "mnist-k8", "--data", f"npz:{one_logit}/m.npz").output
    assert [one.unit for one in vr.visualize(net, units=[2, 0], steps=1, shape=(1, 4, 4))] == [2, 0]
    state = make_net("small_cnn", (1, 8, 8), 1).state_dict()
    torch.save(state, one_logit / "r.pt")
    about = ("--data", f"npz:{one_logit}/d.npz", "--normalize", "none", "--out", one_logit / "r.safetensors")
    refused = run("import", one_logit / "r.pt", "--arch", "small_cnn", *about)
    assert "has one output, which is two classes here" in " ".join(refused.output.split())
    assert refused.exit_code == 1


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_a_network_with_view_gets_contiguous_images_and_says_so_once(output: str) -> None:
    made = checkpoint(lambda: ByView(output))
    with pytest.warns(UserWarning, match="^mine fails on channels-last images, so it gets contiguous ones$"):
        net = made.net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = made.net()
    compute, x = Compute("cpu"), torch.rand(5, *SHAPE)
    with pytest.raises(RuntimeError, match="view"):
        ByView()(compute.images(x))
    for one in (compute.place(net), compute.place(again)):
        assert torch.allclose(one(compute.images(x)), one(x), atol=1e-6)
    found = PGD(steps=2, ball=Linf(0.1))(net, compute.images(x), torch.zeros(5, dtype=torch.long))
    assert found.x.isfinite().all()


def test_a_network_that_bears_channels_last_keeps_them() -> None:
    net = make_net("resnet_small")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not choose_memory_format(net.train(), SHAPE)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    placed = Compute("cpu").place(net)
    assert placed.net.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_fails_both_ways_is_left_as_it_is() -> None:
    net = Normalized(nn.Linear(3, 4), [0.0] * 3, [1.0] * 3)
    assert not choose_memory_format(net, SHAPE)
    assert not net.contiguous


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(288, CLASSES))

    made = checkpoint(build, arch="linear")
    made.state["1.weight"][2, 5] = value
    with pytest.raises(ValueError, match=r"^1\.weight in mine \(linear\) is NaN or infinite in 1 of 2016 places; use an earlier"):
        made.net()


class Brighter(nn.Module):
    """Class 1 where the image is brighter than one half, by a lead that a subclass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        lead = self.changed(self.scale * (x.mean((1, 2, 3)) - 0.5))
        return torch.stack((-lead, lead), 1)

    def changed(self, lead: Tensor) -> Tensor:
        return lead


class Relative(Brighter):
    def changed(self, lead: Tensor) -> Tensor:
        return lead - 1.5 * lead.mean()


class Alternating(Brighter):
    def changed(self, lead: Tensor) -> Tensor:
        self.passes += 1
        return lead if self.passes % 3 else -lead


class OfNumpy(Brighter):
    def changed(self, lead: Tensor) -> Tensor:
        return lead + torch.from_numpy(np.random.randn(len(lead))).float()


class OfPython(Brighter):
    def changed(self, lead: Tensor) -> Tensor:
        return lead + torch.tensor([random.gauss(0, 1) for _ in lead])


def of_brightness(leads: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    x = torch.stack([torch.full((1, 4, 5), 0.5 + lead) for lead in leads])
    return x, (x.mean((1, 2, 3)) > 0.5).long()


def test_an_image_whose_outputs_depend_on_the_batch_is_judged_alone_and_that_is_said() -> None:
    """Alone an image is half as bright as the mean asks for, so that none is right; beside others some would be."""
    x, y = of_brightness((0.3, -0.3, 0.2, -0.2, 0.3, 0.3))
    for size in (1, 2, 6):
        with pytest.warns(UserWarning, match="other images of the batch"):
            found = vr.robust_accuracy(Relative(), (x, y), "fgsm", eps=0.01, batch_size=size)
        assert (found.clean, found.accuracy) == (0, 0)
        assert any("other images of the batch" in said for said in found.warnings)


def test_a_network_that_remembers_says_so() -> None:
    x, y = of_brightness((0.3, -0.3, 0.2, -0.2))
    with pytest.warns(UserWarning, match="from pass to pass"):
        found = vr.robust_accuracy(Alternating(), (x, y), "fgsm", eps=0.01)
    assert any("from pass to pass" in said for said in found.warnings)


@pytest.mark.parametrize("kind", [OfNumpy, OfPython])
def test_noise_of_numpy_and_of_python_is_each_images_own_as_torchs_is(kind: type[Brighter]) -> None:
    x, y = of_brightness((0.09, -0.12, 0.1, -0.14, 0.07, 0.06, -0.08))
    np.random.seed(5)
    before = np.random.get_state()[1].tolist(), random.getstate()
    found = [vr.robust_accuracy(kind(), (x, y), "PGD(steps=8)", eps=0.02, batch_size=size) for size in (1, 3, 7)]
    assert len({tuple(one.robust.tolist()) for one in found}) == 1
    assert 0 < found[0].accuracy < 1
    assert any("stochastic" in said for said in found[0].warnings)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_a_network_that_takes_no_single_image_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="takes no single image"):
        vr.robust_accuracy(net, of_brightness((0.3, -0.3, 0.1)), "fgsm", eps=0.01)


def test_a_stochastic_network_is_pictured_and_changed_the_same_in_every_run() -> None:
    x, y = of_brightness((0.09, -0.12, 0.1, -0.14))

    def numbers() -> list[float]:
        picture = vr.visualize(OfPython(), units=[1], steps=3, shape=(1, 4, 5))[0]
        row = vr.intervene(OfNumpy(), "logits", [0], (x, y), controls=1).rows()[0]
        return [picture.score, *(one["logit"] for one in row["classes"])]

    assert numbers() == numbers()
