"""Certificates: their formulas, networks for which they are known, and no attack that breaks one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, norm
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import SHAPE, make_net
from tests.test_cli import run
from vizrobust.attacks import FMN, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness.interval_bounds import certified_radius, in_float64, margin_bound
from vizrobust.robustness.smoothing import SmoothedNetwork, certificate, certified, smallest_attack, votes


class Halfspace(nn.Module):
    """Class 1 beyond a plane at the L2 distance `at`: its smoothed network is itself, and every radius is known."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1).sum(1) - 8 * 0.5) / math.sqrt(8) - self.at
        return torch.stack((-side, side), 1) * 20


def test_the_certificate_is_its_formula() -> None:
    for won, alpha in ((990, 0.001), (700, 0.05), (1000, 0.001)):
        found = certificate(torch.tensor([0, 10, 90]), torch.tensor([1000 - won, 0, won]), sigma=0.7, alpha=alpha)
        p_low = float(beta.ppf(alpha, won, 1000 - won + 1))  # Clopper and Pearson
        assert found.p_low == pytest.approx(p_low)
        assert found.radius == pytest.approx(0.7 * norm.ppf(p_low))
    # The class is chosen by the other votes, and then its bound says nothing.
    unlucky = certificate(torch.tensor([60, 40]), torch.tensor([100, 900]), sigma=1.0, alpha=0.001)
    assert (unlucky.predicted, unlucky.radius, unlucky.abstains) == (0, 0.0, True)


def test_a_plane_is_certified_up_to_its_distance_and_attacked_just_beyond() -> None:
    net, x, compute = Halfspace(at=0.3), torch.full((2, 2, 2), 0.5), Compute("cpu")
    for seed in range(3):
        how = {"sigma": 0.3, "samples": 2000, "alpha": 0.001, "streams": Streams(seed, [seed], "test")}
        found = certified(net, x, compute, **how)
        assert found.predicted == 0
        assert 0.24 < found.radius <= 0.3  # Phi(1) = .84 is estimated from below
        size = smallest_attack(net, x, found, vr.DDN(steps=30), compute, **how)
        assert size is not None
        assert 0.3 < size < 0.36
    counted = votes(net, x, 0.3, 20_000, Streams(0, ["many"]))
    assert int(counted.sum()) == 20_000
    assert float(counted[0]) / 20_000 == pytest.approx(norm.cdf(1), abs=0.01)


def test_each_image_has_noise_of_its_own_in_the_smoothed_network() -> None:
    net, x = make_net(), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole = SmoothedNetwork(net, 0.2, Streams(0, [5, 6, 7]), 4)
    first = whole(x)
    assert torch.allclose(SmoothedNetwork(net, 0.2, Streams(0, [7]), 4)(x[2:]), first[2:], atol=1e-5)
    assert not torch.allclose(whole(x), first, atol=1e-5)  # the next pass has other noise
    assert torch.allclose(first.exp().sum(1), torch.ones(3), atol=1e-5)


def margin_of(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("arch", ["small_cnn", "resnet_small", "vgg_small"])
def test_bounds_hold_at_every_point_of_the_ball_for_every_built_in_architecture(arch: str) -> None:
    net = make_net(arch, (3, 20, 16))
    with torch.no_grad():
        for module in net.modules():  # BatchNorm that does something, with gains of both signs
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
    exact = in_float64(net)
    x = torch.rand(4, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    at_once = margin_bound(exact, x, y, 0.0)
    logits = exact(x.double())
    assert torch.allclose(at_once, margin_of(logits, y), atol=1e-9)
    for eps in (0.001, 0.01):
        bound = margin_bound(exact, x, y, eps)
        attacked = PGD(steps=10, ball=Linf(eps=eps), loss="margin")(net, x, y).best
        for point in (attacked, *((x + eps * torch.randn(x.shape).sign()).clamp(0, 1) for _ in range(3))):
            assert (margin_of(exact(point.double()), y) >= bound - 1e-6).all()


@pytest.mark.parametrize("part", [
    nn.LeakyReLU(0.2), nn.ELU(), nn.ReLU6(), nn.Softplus(), nn.Tanh(), nn.Sigmoid(), nn.MaxPool2d(3, 2, 1),
    nn.AdaptiveMaxPool2d((2, 3)),
], ids=lambda part: type(part).__name__)  # fmt: skip
def test_bounds_hold_and_meet_for_what_never_falls(part: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), part, nn.Flatten(), nn.LazyLinear(5)).eval()
    x, y = torch.rand(4, 2, 9, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])
    net(x)
    exact = in_float64(net)
    assert torch.allclose(margin_bound(exact, x, y, 0.0), margin_of(exact(x.double()), y), atol=1e-9)
    for eps in (0.02, 0.2):
        bound = margin_bound(exact, x, y, eps)
        for _ in range(20):
            point = (x + eps * torch.randn(x.shape).sign()).clamp(0, 1).double()
            assert (margin_of(exact(point), y) >= bound - 1e-9).all()


def test_bounds_of_a_linear_network_are_exact() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    x, y = torch.full((1, 1, 2, 3), 0.5), torch.tensor([2])
    rows = (net[1].weight[2] - net[1].weight).detach()
    plain = (rows @ x.flatten() + net[1].bias[2] - net[1].bias).detach()
    expected = min(float(plain[j] - 0.1 * rows[j].abs().sum()) for j in (0, 1, 3))
    assert float(margin_bound(in_float64(net), x, y, 0.1)) == pytest.approx(expected, abs=1e-6)


def test_no_attack_breaks_a_certified_image() -> None:
    checkpoint, data = load_checkpoint("mnist-k8"), vr.load_data("mnist5k")
    x, y, net = data.test.take(torch.arange(30)), data.test.labels[:30], checkpoint.net()
    radius = certified_radius(in_float64(net), x, y)
    assert 0.005 < float(radius.median()) < 0.05
    attacked = FMN(steps=30)(net, x, y)
    smallest = (attacked.best - x).flatten(1).abs().amax(1)
    assert ((smallest >= radius) | attacked.robust).all()
    assert float((~attacked.robust).float().mean()) > 0.8
    for eps in (0.005, 0.01):
        found = PGD(steps=20, restarts=2, ball=Linf(eps=eps), loss="margin")(net, x, y)
        assert (found.robust | (radius < eps)).all()


ROWS = ("--sigma", 0.5, "--samples", 250, "--attack", "DDN(steps=5)")


def test_the_command_brackets_every_image_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("certify", "mnist-k0", *ROWS, "--json", "--out", "runs/c", "--plot", "brackets.svg", "--images")
    run(*command, 1)
    before = Path("runs/c/rows.jsonl").read_text()
    rows = [json.loads(line) for line in run(*command, 3).stdout.splitlines()]
    after = Path("runs/c/rows.jsonl").read_text()
    assert after.startswith(before)
    assert [row["image"] for row in rows] == list(range(3))
    assert run(*command, 3).exit_code == 0
    assert Path("runs/c/rows.jsonl").read_text() == after
    assert all(row["radius"] < row["smallest"] for row in rows if row.get("smallest"))
    assert Path("brackets.svg").is_file()


def test_the_report_counts_what_is_wrong_and_what_abstains() -> None:
    report = vr.certify(["mnist-k0"], sigma=0.5, samples=300, attack="none", images=8, radii=(0.1,))
    (one,) = report.found
    rows = report.rows()
    assert one.right.tolist() == [row["predicted"] == row["label"] for row in rows]
    assert one.abstains.tolist() == [row["p_low"] <= 0.5 for row in rows]
    assert (one.radius[~one.right | one.abstains] == 0).all()
    share = sum(row["radius"] >= 0.1 and row["predicted"] == row["label"] for row in rows) / 8
    assert report.tables()[1].rows[0][1] == f"{100 * share:.1f} %"
    assert "<img" in report._repr_html_()


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options, said in (
        (("--method", "ibp", "--sigma", 0.5), "are of the smoothed network, --method ibp has none; leave them out"),
        (("--sigma", 0), "--sigma must be above 0"),
        (("--alpha", 0.7), "--alpha must be between 0 and 0.5"),
        (("--attack", "pgd"), "does not look for the smallest L2 change, which --method smoothing certifies"),
        (("--method", "ibp", "--attack", "DDN"), "does not look for the smallest Linf change"),
    ):
        done = run("certify", "mnist-k8", *options, "--images", 1)
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for unknown, said in (
        (nn.GELU(), "do not know 'gelu'"), (nn.LeakyReLU(-0.1), "a falling 'leaky_relu'"),
        (nn.BatchNorm1d(10, track_running_stats=False), "takes no single image"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            vr.certify(nn.Sequential(flat, unknown), "mnist5k", method="ibp", images=2)


def test_a_copy_without_finite_outputs_votes_for_no_class() -> None:
    """Half of the noisy copies have NaN for logits; taken as class 0 they would certify it."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.flatten(1)[:, :2] * torch.tensor([0.0, 1.0]) + torch.tensor([9.0, 0.0])
            return torch.where(x.flatten(1)[:, :1] > 0.5, torch.nan, z)

    x = torch.full((1, 1, 2), 0.5)
    counted = votes(Broken(), x, 0.1, 400, Streams(0, [0]))
    assert int(counted[1]) == 0
    assert 150 < int(counted[0]) < 250
    found = certified(Broken(), x, Compute("cpu"), sigma=0.1, samples=400, alpha=0.001, streams=Streams(0, [0]))
    assert found.abstains


class Chooses(nn.Module):
    """A network that does with its activations what interval bounds have no rule for."""

    def __init__(self, choice) -> None:
        super().__init__()
        self.fc, self.choice = nn.Linear(12, 3), choice

    def forward(self, x):
        return self.choice(self.fc(x.flatten(1)))


@pytest.mark.parametrize(
    "choice",
    [
        lambda x: x if x.mean() > 0.5 else -x, lambda x: -x if x else x, lambda x: torch.where(x > 0, x, -x), lambda x: x[:, :2],
        lambda x: x if x == 3 else -x, lambda x: x.abs(), lambda x: torch.softmax(x, 1), lambda x: x.data, lambda x: x.numpy(),
        lambda x: max(x, x), lambda x: x**2, lambda x: x @ torch.eye(3), lambda x: x.detach().clone(),
        lambda x: torch.cat([x, x]),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_network_without_rules_has_no_bounds(choice) -> None:
    with pytest.raises(ValueError, match=r"interval bounds do not know .*by smoothing"):
        margin_bound(in_float64(Chooses(choice).eval()), torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), 0.1)


class Does(nn.Module):
    """A linear network behind what is done to the image."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change, self.linear, self.norm = change, nn.Linear(6, 2), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.change(self, x).flatten(1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda net, x: F.dropout(x, 0.5, True), "dropout that stays on"),
        (lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var, training=True), "batch statistics"),
        (lambda net, x: x + torch.randn(x.shape), "random numbers"),
        (lambda net, x: F.conv2d(x, torch.ones(1, 1, 1, 1)), "certify it by smoothing"),
    ],
    ids=["dropout", "batch", "noise", "float32"],
)
def test_what_is_no_function_of_the_image_has_no_bounds(change, said) -> None:
    with pytest.raises(ValueError, match=said):
        margin_bound(in_float64(Does(change)), torch.rand(2, 1, 2, 3), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("method", ["ibp", "smoothing"])
def test_a_network_of_the_whole_batch_is_not_certified(method: str) -> None:
    net = Does(lambda _net, x: x - x.mean(0, keepdim=True))
    with pytest.warns(UserWarning, match="other images"), pytest.raises(ValueError, match="cannot be certified"):
        vr.certify(net, (torch.rand(4, 1, 2, 3), torch.arange(4) % 2), method=method, attack="none", images=2)


class Root(nn.Module):
    """Class 0 for every image, but no number where a pixel is negative, as noise makes it."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.sqrt().flatten(1).sum(1)
        return torch.stack((z + 1, z), 1)


def test_an_image_without_finite_outputs_under_noise_is_neither_certified_nor_a_survivor() -> None:
    x = torch.cat((torch.zeros(2, 1, 4, 4), torch.full((1, 1, 4, 4), 0.9)))
    report = vr.certify(Root(), (x, torch.zeros(3, dtype=torch.int64)), samples=100, sigma=0.1, attack="none")
    (found,) = report.found
    assert [row["predicted"] for row in report.rows()] == [-1, -1, 0]
    assert found.right.tolist() == [False, False, True]
    assert (found.radius > 0).tolist() == [False, False, True]
    assert "not finite on noisy copies of 2 of 3 images" in report.tables()[0].note
