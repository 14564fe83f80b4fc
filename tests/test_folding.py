"""BatchNorm folded for evaluation and rendering: the same function, what must stay as it is, and what a run folder records."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.features.objectives import Channel
from vizrobust.features.picture_runs import RenderJob, render_into
from vizrobust.features.pictures import to_uint8
from vizrobust.features.provenance import Provenance, rerender
from vizrobust.features.recipes import plain
from vizrobust.models import Checkpoint, CheckpointInfo
from vizrobust.models.checkpoints import body_state
from vizrobust.models.folding import Affine, SpaceToDepthConv, folded_net, pays
from vizrobust.models.forward import activations
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.runs import RunFolder, read_rows
from vizrobust.session import Session

SHAPE = (3, 9, 11)


class Net(nn.Module):
    """A convolution whose output a BatchNorm alone reads, one that others read too, one in a part, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, groups=2))
        self.norm3 = nn.BatchNorm2d(6, affine=False)
        self.linear = nn.Linear(6, 5)
        self.norm4 = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm1(self.first(x)))
        x = self.second(x)
        x = x + self.norm2(x)
        x = self.norm3(self.part(x)).mean((2, 3))
        return self.norm4(self.linear(x))


class Twice(Net):
    """One convolution runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        again = self.norm1(self.first(x)) + self.first(x.flip(3))
        return self.linear(self.norm3(self.part(again)).mean((2, 3)))


class Reads(Net):
    """It reads a weight of its BatchNorm itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm1.weight.mean()


def checkpoint(kind: type[nn.Module] = Net) -> Checkpoint:
    torch.manual_seed(0)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    classes = tuple("abcde")
    return Checkpoint("net", CheckpointInfo("own", SHAPE, classes, (0.4,) * 3, (0.3,) * 3), body_state(net), kind)


@pytest.mark.parametrize("layers", [(), ("first",), ("part", "norm3"), ("norm1",), ("linear", "second")], ids=repr)
def test_same_outputs_and_same_values_of_the_layers_that_are_read(layers: tuple[str, ...]) -> None:
    one, x = checkpoint(), torch.rand(4, *SHAPE)
    net, folded = folded_net(one, layers)
    assert folded == 4
    # second has another reader; norm3 stands outside the part that ends with its convolution.
    affine = [name for name, module in net.named_modules() if isinstance(module, Affine)]
    read = {"first": "net.norm1", "part": "net.norm3", "linear": "net.norm4"}
    assert set(affine) == {"net.norm2", *(read[name] for name in layers if name in read)}
    with torch.no_grad():
        before, after = (activations(each, x, [*layers, "logits"]) for each in (one.net(), net))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))


@pytest.mark.parametrize(("kind", "folded"), [(Twice, 2), (Reads, 0)])
def test_modules_that_are_used_otherwise_stay(kind: type[nn.Module], folded: int) -> None:
    one, x = checkpoint(kind), torch.rand(4, *SHAPE)
    net, found = folded_net(one)
    assert found == folded
    torch.testing.assert_close(net(x), one.net()(x), rtol=1e-5, atol=1e-5)


def hooked() -> nn.Module:
    net = Net()
    net.norm1.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return net


def batch_statistics() -> nn.Module:
    net = Net()
    net.norm1.track_running_stats = net.norm1.running_mean = net.norm1.running_var = None  # type: ignore[assignment]
    return net


def parametrized() -> nn.Module:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.first)
    return net


@pytest.mark.parametrize("build", [hooked, batch_statistics, parametrized])
def test_what_is_not_what_its_class_says_stays(build: Callable[[], nn.Module]) -> None:
    other = {key: value for key, value in checkpoint().state.items() if "norm1" not in key and "first" not in key}
    one = replace(checkpoint(), build=build, state=body_state(build()) | other)
    net, folded = folded_net(one)
    x = torch.rand(4, *SHAPE)
    assert folded == 4 - (build is not parametrized)
    torch.testing.assert_close(net(x), one.net()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize(
    ("channels", "kernel", "step", "padding"), [(3, 7, 2, (3, 3)), (1, 4, 2, (1, 0)), (2, 11, 4, (2, 5)), (3, 6, 3, (0, 2))]
)
@pytest.mark.parametrize("size", [(13, 18), (16, 11), (12, 12)], ids=str)
def test_blocks_of_pixels_make_the_same_convolution(
    channels: int, kernel: int, step: int, padding: tuple[int, int], size: tuple[int, int], last: bool
) -> None:
    torch.manual_seed(0)
    one = nn.Conv2d(channels, 5, kernel, step, padding, bias=step != 4).double()
    assert pays(one)
    other, x = SpaceToDepthConv.of(one), torch.randn(2, channels, *size, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    made, wanted = other(x), one(x)
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (made, wanted)))
    assert made.is_contiguous() is wanted.is_contiguous()


def test_a_first_convolution_with_steps_reads_blocks_unless_something_hangs_on_it() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.Flatten(), nn.LazyLinear(5))
    stem(torch.rand(1, *SHAPE))
    one = replace(checkpoint(), build=lambda: copy.deepcopy(stem), state=body_state(stem))
    net, changed = folded_net(one)
    assert changed == 1
    assert any(isinstance(module, SpaceToDepthConv) for module in net.modules())
    x = torch.rand(4, *SHAPE)
    torch.testing.assert_close(net(x), one.net()(x), rtol=1e-5, atol=1e-5)
    stem[0].register_forward_hook(lambda _module, _inputs, output: output + 1)
    assert folded_net(one)[1] == 0


def test_pictures_record_it_and_are_made_again_with_it(tmp_path: Path) -> None:
    one, job = checkpoint(), RenderJob(plain(steps=3), Channel("norm3"), (0, 1))
    record = {"threads": 1, "device": "cpu", "versions": {}}
    run = RunFolder(tmp_path / "run", "neurons", job.identity("fp32"), record, folds=True)
    rows = list(render_into(run, one, job, Compute("cpu")))
    assert [row["folded"] for row in rows] == [4, 4]
    for row in rows:
        made = Provenance.read(tmp_path / "run" / row["image"])
        assert (to_uint8(rerender(made, one).image) == made.pixels).all()


def test_a_folder_of_before_goes_on_with_plain_networks(tmp_path: Path) -> None:
    old = RunFolder(tmp_path / "run", "neurons", {"a": 1})
    old.close()
    new = RunFolder(tmp_path / "run", "neurons", {"a": 1}, folds=True)
    assert not new.folds
    assert "folded" not in new.info
    new.close()
    for _ in range(2):
        new = RunFolder(tmp_path / "new", "neurons", {"a": 1}, folds=True)
        assert new.folds
        new.close()


def test_attack_folds_unless_it_is_to_be_exact(tmp_path: Path) -> None:
    from vizrobust.commands.attack import attack
    from vizrobust.data import ArraySplit, DataSet

    split = ArraySplit(torch.rand(6, *SHAPE), torch.arange(6) % 5)
    data = DataSet("own", tuple("abcde"), SHAPE, split, split, split, 0.1)
    found = []
    for exact in (False, True):
        session = Session(tmp_path / str(exact), device="cpu")
        for _ in attack(AttackRequest(models=(checkpoint(),), data=data, attacks=("fgsm",), exact=exact), session):
            pass
        session.close()
        rows = read_rows(tmp_path / str(exact))
        assert [row.get("folded") for row in rows] == [None if exact else 4] * len(rows)
        found.append([(row["images"], row["broken_at"]) for row in rows])
        assert json.loads((tmp_path / str(exact) / "run.json").read_text()).get("folded", False) is not exact
    assert found[0] == found[1]
