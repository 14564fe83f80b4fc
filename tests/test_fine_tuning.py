"""Fine-tuning: the origin's weights, a new head where the classes are others, layers that stay, and a card that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vizrobust as vr
from tests.conftest import assert_refused
from tests.test_cli import checkpoint, run
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet, load
from vizrobust.models import load_checkpoint
from vizrobust.training import TrainingRecipe
from vizrobust.training.start import first_network
from vizrobust.training.train_state import TrainState


def four_classes(shape: tuple[int, int, int] = (1, 8, 8)) -> DataSet:
    split = ArraySplit(torch.rand(12, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4)
    return DataSet("four", ("a", "b", "c", "d"), shape, split, split, split, 0.1)


def recipe(start: Path, **fields: object) -> TrainingRecipe:
    return TrainingRecipe(**{"arch": "small_cnn", "data": "digits", "start": str(start), "epochs": 1, **fields})


def test_training_begins_with_the_origins_weights_and_normalization(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "a.safetensors")
    net, state = first_network(recipe(origin), load("digits"), seed=3), load_checkpoint(str(origin)).state
    assert all(torch.equal(value, state[key]) for key, value in net.net.state_dict().items())
    assert (net.mean.item(), net.std.item()) == pytest.approx((0.3, 0.4))  # those of the origin, not of digits


def test_other_classes_get_a_new_head_and_keep_the_rest(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "a.safetensors")
    state = load_checkpoint(str(origin)).state
    for data in (four_classes(), load("digits").seen_through(lambda split: split, classes=tuple("abcdefghij"))):
        net = first_network(recipe(origin), data, seed=3).net
        for key, value in net.state_dict().items():
            assert (value.shape == state[key].shape and torch.equal(value, state[key])) != key.startswith("linear2"), key
        assert net.linear2.out_features == len(data.classes)
        again, other = (first_network(recipe(origin), data, seed).net.linear2.weight for seed in (3, 4))
        assert torch.equal(again, net.linear2.weight)
        assert not torch.equal(other, net.linear2.weight)


def test_layers_that_stay_do_not_learn_and_keep_their_statistics(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "a.safetensors", arch="resnet_small")
    data, compute = load("digits"), Compute("cpu")
    tuned = recipe(origin, arch="resnet_small", freeze=("stem", "stage1*", "*.bn2"), weight_decay=0.1)
    net = first_network(tuned, data, 0)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = TrainState(tuned.update_settings, compute.place(net), compute, 2)
    x, y = data.train.take(torch.arange(9)), data.train.labels[:9]
    for _ in range(2):
        state.update(lambda network: state.cross_entropy(network(x), y))
    same = {key.removeprefix("net.") for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    kept = {key for key in net.net.state_dict() if key.startswith(("stem.", "stage1.")) or ".bn2." in key}
    assert same >= kept
    assert not {key for key in same - kept if "num_batches" in key or "running" in key or "weight" in key}


def test_the_command_says_where_it_began_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    origin = checkpoint(tmp_path / "a.safetensors")
    command = (
        "train",
        "--data",
        "digits",
        "--from",
        "a.safetensors",
        "--freeze",
        "conv?",
        "--steps",
        0,
        "--epochs",
        1,
        "--out",
        "t",
    )
    done = run(*command, "--watch", 20)
    assert done.exit_code == 0, done.output
    tuned, began = load_checkpoint("t"), load_checkpoint("a.safetensors")
    stayed = {key for key in began.state if torch.equal(began.state[key], tuned.state[key])}
    assert stayed == {key for key in began.state if key.startswith("conv")}
    assert (
        f"fine-tuned from `a.safetensors`, sha256 `{began.sha256}`; layers that stayed: `conv?`" in Path("t/card.md").read_text()
    )
    assert tuned.info.mean == began.info.mean
    assert run(*command, "--watch", 20).exit_code == 0
    checkpoint(origin, seed=5)  # another network under that name
    refused = run(*command, "--watch", 20)
    assert refused.exit_code == 1
    assert "another run" in refused.output


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    origin = checkpoint(tmp_path / "a.safetensors")
    data = load("digits")
    assert_refused(lambda: first_network(recipe(origin, freeze=("conv9",)), data, 0), "'conv9' fits no layer; there are: conv1")
    assert_refused(lambda: first_network(recipe(origin, freeze=("*",)), data, 0), "leaves no layer that learns")
    assert_refused(lambda: first_network(recipe(origin), four_classes((3, 8, 8)), 0), "takes images of 1 channels, four has 3")
    assert_refused(lambda: first_network(recipe(origin), four_classes((1, 16, 16)), 0), "images of 8 x 8, these have 16 x 16")
    assert_refused(lambda: first_network(recipe(origin, start_sha256="0" * 64), data, 0), "has other weights")
    assert_refused(lambda: vr.train("digits", "small_cnn", start=str(origin), steps=0), "brings its own, small_cnn")
    for options, said in (
        ((), "say which network: --arch REF, or --from REF"),
        (("--arch", "small_cnn", "--freeze", "conv1"), "--freeze would keep random weights; give --from REF"),
        (("--from", "nowhere.safetensors"), "no file or folder 'nowhere.safetensors'"),
    ):
        done = run("train", "--data", "digits", "--steps", 0, *options)
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output
