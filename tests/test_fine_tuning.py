"""Fine-tuning: the origin's weights, a new head where the classes are others, layers that stay, and a card that says so."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

import vizrobust as vr
from tests.conftest import assert_refused
from tests.test_cli import checkpoint, run
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet, load
from vizrobust.models import load_checkpoint
from vizrobust.models.references import architecture
from vizrobust.training import TrainingRecipe
from vizrobust.training.recipe import first_network
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


def of_three_classes(path: Path) -> Path:
    """A data set in a file: 3 x 32 x 32 noise that is brighter in the channel of its class."""
    noise, labels = np.random.default_rng(0), np.arange(45) % 3
    pixels = noise.integers(0, 120, (45, 32, 32, 3)).astype(np.uint8)
    pixels[np.arange(45), :, :, labels] += 100
    np.savez(
        path, x_train=pixels[:36], y_train=labels[:36], x_test=pixels[36:], y_test=labels[36:], classes=["red", "green", "blue"]
    )
    return path


def save_fresh(arch: str, classes: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save(architecture(arch, (3, 32, 32), classes)().state_dict(), path)


def saved_where_torchvision_looks(folder: Path) -> str:
    """Weights of torchvision:squeezenet1_1 of our own under the name that a download would have; the reference."""
    from torchvision.models import SqueezeNet1_1_Weights

    path = folder / "torch" / "hub" / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    save_fresh("torchvision:squeezenet1_1", 1000, path)
    return "torchvision:squeezenet1_1"


def imported_from_timm(folder: Path) -> str:
    """Weights of timm:test_resnet of our own, five classes, as a file that `import` made of a state dict; the reference."""
    save_fresh("timm:test_resnet", 5, folder / "theirs.pt")
    about = ("--arch", "timm:test_resnet", "--normalize", "0.4,0.5,0.6/0.2,0.25,0.3", "--shape", "3,32,32", "--classes", "5")
    done = run("import", folder / "theirs.pt", *about, "--out", folder / "theirs.safetensors")
    assert done.exit_code == 0, done.output
    return str(folder / "theirs.safetensors")


# Where it begins, the patterns of layers that stay, the head.
ORIGINS = {
    "timm": (imported_from_timm, ("layer[12]*", "conv1", "bn1"), "fc."),
    "timm, fresh": (lambda _: "timm:test_resnet@random", ("layer1*",), "fc."),
    "torchvision": (saved_where_torchvision_looks, ("features.?", "features.6*"), "classifier.1."),
    "torchvision, fresh": (lambda _: "torchvision:resnet18@random", ("layer1*", "conv1"), "fc."),
}


@pytest.mark.parametrize(
    "origin", [name if name == "torchvision" else pytest.param(name, marks=pytest.mark.slow) for name in ORIGINS]
)
def test_networks_of_torchvision_and_timm_are_fine_tuned_from_both_sides(
    origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if origin.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make, patterns, head = ORIGINS[origin]
    ref, data = make(tmp_path), f"npz:{of_three_classes(Path('three.npz'))}"
    frozen = [part for pattern in patterns for part in ("--freeze", pattern)]
    short = ("--steps", 1, "--epochs", 1, "--batch-size", 11, "--watch", 3, "--out", "typed")
    done = run("train", "--data", data, "--from", ref, *frozen, *short)
    assert done.exit_code == 0, done.output
    vr.train(data, start=ref, freeze=patterns, steps=1, epochs=1, batch_size=11, watch=3, out="called", device="cpu")
    began, tuned = load_checkpoint(ref), load_checkpoint("typed")
    assert tuned.sha256 == load_checkpoint("called").sha256
    assert (tuned.info.arch, tuned.info.classes) == (began.info.arch, ("red", "green", "blue"))
    assert (tuned.info.mean, tuned.info.std) == (began.info.mean, began.info.std)
    card, kept = Path("typed/card.md").read_text(), ", ".join(f"`{pattern}`" for pattern in patterns)
    assert f"fine-tuned from `{ref}`, sha256 `{began.sha256}`; layers that stayed: {kept}" in card
    same = {key for key, value in tuned.state.items() if torch.equal(value, began.state[key])}
    stays = {key for key in began.state if any(fnmatch(key, pattern) or fnmatch(key, f"{pattern}.*") for pattern in patterns)}
    assert stays
    assert stays <= same
    assert {key for key in began.state if key.startswith(head)} == {
        key for key, value in tuned.state.items() if value.shape != began.state[key].shape
    }
    learned = {key for key in began.state if "weight" in key} - stays
    assert learned
    assert not learned & same


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    origin = checkpoint(tmp_path / "a.safetensors")
    data = load("digits")
    assert_refused(lambda: first_network(recipe(origin, freeze=("conv9",)), data, 0), "'conv9' fits no layer; there are: conv1")
    assert_refused(lambda: first_network(recipe(origin, freeze=("*",)), data, 0), "leaves no layer that learns")
    many = recipe(Path("torchvision:squeezenet1_1@random"), arch="torchvision:squeezenet1_1", freeze=("conv9",))
    assert_refused(
        lambda: first_network(many, four_classes((3, 32, 32)), 0),
        "features.6.expand3x3, features.7.squeeze, features.7.expand1x1 and 14 more",
    )
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
