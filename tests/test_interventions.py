"""What a unit does: changes that are known on small networks, and units beside those that are as active."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import vizrobust as vr
from tests.conftest import SHAPE, make_net
from tests.test_cli import run
from tests.tiny_transformers import TinyViT
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.features.unit_facts import class_aucs, effects, logits_with
from vizrobust.models.layers import ActivationReader, edited, on_units, views


@pytest.fixture
def split(images) -> ArraySplit:
    return ArraySplit(*images)


@pytest.mark.parametrize(("change", "value", "kept"), [("zero", 9.0, 0.0), ("mean", 0.7, None), ("scale", 3.0, 3.0)])
def test_a_unit_is_changed_at_every_position_and_nothing_else_is(split, change: str, value: float, kept: float | None) -> None:
    net, compute = make_net(), Compute("cpu")
    x = split.take(torch.arange(5))
    raw = ActivationReader.of(net, SHAPE, ["relu1"])(net, x)["relu1"].detach()
    raw[:, 4] = torch.full_like(raw[:, 4], value) if kept is None else kept * raw[:, 4]
    rest = nn.Sequential(net.net.conv2, net.net.relu2, net.net.flatten, net.net.linear1, net.net.relu3, net.net.linear2)
    found = logits_with(net, "relu1", 4, split, change=change, value=value, shape=SHAPE, compute=compute)
    assert torch.allclose(found, rest(raw), atol=1e-5)
    unchanged = logits_with(net, "relu1", None, split, shape=SHAPE, compute=compute)
    assert torch.allclose(unchanged, net(x), atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_of_tokens_one_or_all_are_changed(images) -> None:
    net, x = TinyViT().eval(), images[0]
    for name, first, others in (("norm1", False, False), ("norm1:class", False, True)):
        view, seen = views(net, SHAPE, [name])[name], []
        handle = net.norm1.register_forward_hook(lambda _m, _i, output: seen.append(output))  # noqa: B023
        with edited(net, view, on_units(view, [3], torch.zeros_like)):
            handle.remove()
            handle = net.norm1.register_forward_hook(lambda _m, _i, output: seen.append(output))  # noqa: B023
            net(x)
        handle.remove()
        changed = seen[-1][..., 3] != 0
        assert bool(changed[:, 0].any()) == first
        assert bool(changed[:, 1:].any()) == others


def test_a_linear_layer_before_the_logits_does_what_its_weights_say(split) -> None:
    net, compute = make_net(), Compute("cpu")
    before, after = (logits_with(net, "relu3", unit, split, shape=SHAPE, compute=compute) for unit in (None, 7))
    active = ActivationReader.of(net, SHAPE, ["relu3"])(net, split.take(torch.arange(5)))["relu3"][:, 7]
    assert torch.allclose(before - after, active[:, None] * net.net.linear2.weight[:, 7], atol=1e-5)


def test_how_well_a_unit_tells_a_class_is_the_area_that_scikit_learn_finds() -> None:
    excited = torch.randint(0, 5, (60, 3), generator=torch.Generator().manual_seed(0)).float()  # with many ties
    labels = torch.arange(60) % 4
    found = class_aucs(excited, labels, 5)
    for unit in range(3):
        for number in range(4):
            assert float(found[unit, number]) == pytest.approx(roc_auc_score(labels == number, excited[:, unit]))
    assert bool(found[:, 4].isnan().all())


def test_the_report_has_every_class_and_the_units_that_are_as_active() -> None:
    report = vr.intervene(["mnist-k0", "mnist-k8"], "linear2", [3, 5], images=80, controls=2)
    rows = report.rows()
    assert [(row["name"], row["unit"]) for row in rows] == [(name, unit) for name in ("mnist-k0", "mnist-k8") for unit in (3, 5)]
    for row in rows:  # a logit that is 0 is never the largest of a sure network
        own = row["classes"][row["unit"]]
        assert own["accuracy"] == -own["before"]
        assert own["accuracy_low"] <= own["accuracy"] <= own["accuracy_high"]
        assert all(other["logit"] == 0 for other in row["classes"] if other is not own)
        assert len(row["controls"]) == 2
        assert str(row["unit"]) not in row["controls"]
        assert max(row["aucs"], key=row["aucs"].get) == str(row["unit"])  # a logit tells its own class best
    first = report.tables()[0]
    assert [row[4] for row in first.rows] == [row[0] for row in first.rows]
    assert "<img" in report._repr_html_()


def test_the_command_keeps_each_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("intervene", "mnist-k8", "--layer", "linear1", "--images", 20, "--controls", 1, "--json", "--out", "i", "--units")
    run(*command, "3")
    before = Path("i/rows.jsonl").read_text()
    rows = [json.loads(line) for line in run(*command, "3,4", "--plot", "units.svg").stdout.splitlines()]
    assert [row["unit"] for row in rows] == [3, 4]
    assert Path("i/rows.jsonl").read_text().startswith(before)
    assert Path("units.svg").is_file()


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options, said in (
        (("--layer", "conv9"), "no layer 'conv9'; did you mean conv"),
        (("--layer", "conv1", "--units", "16"), "no unit 16 in layer conv1 of mnist-k8, which has 16"),
        (("--layer", "conv1", "--factor", 3), "--factor 3.0 goes with --change scale, not with zero"),
        (("--layer", "conv1", "--change", "scale", "--factor", 1), "--factor 1 changes nothing"),
        ((), "Missing option '--layer'"),
    ):
        done = run("intervene", "mnist-k8", *options, "--images", 1)
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output
    net = TinyViT(attention="torch").eval()
    heads = next(name for name in views(net, SHAPE) if name.endswith(":heads"))
    with pytest.raises(ValueError, match="can be read, not changed"), edited(net, views(net, SHAPE)[heads], torch.zeros_like):
        pass


def test_outputs_that_are_not_finite_are_nobody_s_class() -> None:
    """NaN taken for class 0 would be right for every image of class 0."""
    before, labels = torch.tensor([[2.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1])
    after = before.clone()
    after[0, 0] = torch.nan
    assert [one.accuracy for one in effects(before, after, labels, ["a", "b"])] == [-1.0, 0.0]


def test_logits_that_are_not_finite_are_in_no_mean() -> None:
    before = torch.tensor([[2.0, 1.0], [3.0, 1.0], [float("nan"), 1.0], [0.0, float("inf")]])
    labels = torch.tensor([0, 0, 0, 1])
    one, other = effects(before, before - 1, labels, ["a", "b"])
    assert (one.n, one.logit, other.logit, other.logit_low) == (3, -1.0, None, None)
    assert one.before == pytest.approx(2 / 3)
