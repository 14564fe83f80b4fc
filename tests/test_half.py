"""Half precision on disk: what is stored, what comes back, and accuracies that are those of the stored weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from tests.conftest import make_net
from vizrobust.attacks import FGSM, PGD, Linf
from vizrobust.cli import main
from vizrobust.compute import Compute
from vizrobust.data import head, load
from vizrobust.intervals import share
from vizrobust.models import CheckpointInfo, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state, read_checkpoint, to_half, weights_sha256
from vizrobust.report.training_report import model_card
from vizrobust.robustness import evaluate, merge_results, reference_accuracies
from vizrobust.training import TrainingRecipe, store_half, train, training_runs

SHAPE = (1, 8, 8)  # of `digits`
INFO = CheckpointInfo(
    "resnet_small", SHAPE, tuple(map(str, range(10))), (0.3,), (0.4,), data="digits",
    metrics={"clean": 0.111, "robust": 0.0, "attack": "before", "n": 7},
)  # fmt: skip


def stored_types(path: Path) -> dict[str, torch.dtype]:
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return body_state(make_net("resnet_small", SHAPE, 10))


@pytest.fixture
def file(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_checkpoint(tmp_path / "full.safetensors", state, INFO)
    return tmp_path / "full.safetensors"


def test_kernels_and_matrices_are_halved_and_what_has_one_axis_is_not(tmp_path, state):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, state, INFO, half=True)
    on_disk = stored_types(path)
    assert {on_disk[key] for key in state if key.endswith(("running_mean", "running_var", ".bias"))} == {torch.float32}
    assert {on_disk[key] for key in state if key.endswith("num_batches_tracked")} == {torch.int64}
    assert {on_disk[key] for key in state if state[key].dim() == 4} == {torch.float16}
    info, loaded = read_checkpoint(path)
    assert info == replace(INFO, storage_dtype="float16")
    for key, before in state.items():
        assert loaded[key].dtype == before.dtype, key
        expected = before.numpy().astype(np.float16).astype(np.float32) if before.dim() > 1 else before.numpy()
        assert np.array_equal(loaded[key].numpy(), expected), key


def test_a_half_file_is_about_half_as_large(tmp_path, state):
    for half in (False, True):
        save_checkpoint(tmp_path / str(half), state, INFO, half)
    ratio = (tmp_path / "True").stat().st_size / (tmp_path / "False").stat().st_size
    assert 0.5 < ratio < 0.55


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([1.0, -65504.0], True),
        ([1.0, 70000.0], False),
        ([1.0, torch.inf], False),
        ([1.0, torch.nan], False),
        ([1e-7, 3e-7], False),  # below float16's normal range: digits are lost
        ([1.0, 3e-7], True),  # beside a weight of 1 the loss does not count
        ([0.0, 0.0], True),
    ],
)
def test_a_tensor_that_float16_cannot_hold_stays_as_it_is(values, fits):
    tensor = torch.tensor([values])
    (stored,) = to_half({"w": tensor}).values()
    assert stored.dtype == (torch.float16 if fits else torch.float32)
    assert stored.shape == (1, 2)
    if not fits:
        assert torch.equal(stored.nan_to_num(7.0), tensor.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_other_types_are_left_alone(dtype, tmp_path):
    state = {"w": torch.arange(6).reshape(2, 3).to(dtype), "none": torch.zeros(0, 3)}
    assert to_half(state)["w"].dtype == dtype
    save_checkpoint(tmp_path / "x", state, INFO, half=True)
    loaded = read_checkpoint(tmp_path / "x")[1]["w"]
    assert torch.equal(loaded, state["w"].to(loaded.dtype))


def test_a_half_file_has_one_hash_however_often_it_is_stored(tmp_path, state):
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    save_checkpoint(paths[0], state, INFO, half=True)
    save_checkpoint(paths[1], read_checkpoint(paths[0])[1], INFO, half=True)
    save_checkpoint(paths[2], read_checkpoint(paths[0])[1], read_checkpoint(paths[0])[0])  # back in full precision
    hashes = {load_checkpoint(str(path)).sha256 for path in paths}
    assert len(hashes) == 1
    assert hashes != {weights_sha256(state)}
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_checkpoint(paths[2])[0].storage_dtype == ""
    net = load_checkpoint(str(paths[0])).net()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_full_precision_files_are_described_as_before(file):
    with safe_open(str(file), "pt") as opened:
        assert "stored" not in json.loads(opened.metadata()["vizrobust"])
    assert read_checkpoint(file)[0].storage_dtype == ""


def by_hand(net, eps, compute):
    images = head(load("digits").test, 1000)
    found = {}
    for name, attack in (("fgsm", FGSM(Linf(eps))), ("robust", PGD(steps=50, ball=Linf(eps)))):
        outcome = merge_results(attack, list(evaluate(net, attack, images, compute)))
        found |= {"clean": outcome.clean, name: share(outcome.robust)}
    return found | {"attack": repr(attack), "n": len(images)}


def readout() -> dict[str, torch.Tensor]:
    """A network that tells digits apart by the last digits of its weights alone, which float16 takes away."""
    net, train = make_net("small_cnn", SHAPE, 10), load("digits").train
    features: list[torch.Tensor] = []
    net.net.linear2.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0]))
    with torch.no_grad():
        net(train.take(torch.arange(len(train))))
    truth = torch.nn.functional.one_hot(train.labels, 10).float()
    weight = torch.linalg.lstsq(features[0], truth).solution.T
    # The same large number in all classes moves all logits alike; beside it float16 steps by 2.
    return {**body_state(net), "linear2.weight": weight / weight.abs().max() + 3000.0, "linear2.bias": torch.zeros(10)}


def test_shipping_measures_the_stored_weights(tmp_path, compute):
    save_checkpoint(tmp_path / "full.safetensors", readout(), replace(INFO, arch="small_cnn"))
    checkpoint = load_checkpoint(str(tmp_path / "full.safetensors"))
    shipped = store_half(checkpoint, load("digits"), compute, tmp_path / "half.safetensors", eps=0.05)
    expected = by_hand(load_checkpoint(str(tmp_path / "half.safetensors")).net(), 0.05, compute)
    assert dict(shipped.info.metrics) == expected
    assert by_hand(checkpoint.net(), 0.05, compute)["clean"] > expected["clean"] + 0.2
    assert shipped.info.storage_dtype == "float16"
    assert shipped.sha256 == load_checkpoint(str(tmp_path / "half.safetensors")).sha256


def test_training_and_shipping_measure_alike(tmp_path, monkeypatch):
    """What `train` writes into its checkpoint is what `reference_accuracies` says of its weights."""
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 60)
    monkeypatch.setattr(training_runs, "TESTED_STEPS", 3)
    data, compute = load("digits"), Compute("cpu")
    recipe = TrainingRecipe("small_cnn", "digits", PGD(steps=1, ball=Linf(0.1)), epochs=1)
    list(train(recipe, data, compute, tmp_path / "run"))
    found = load_checkpoint(str(tmp_path / "run"))
    assert dict(found.info.metrics) == reference_accuracies(found.net(), data, compute, images=60, steps=3)
    assert found.info.metrics["n"] == 60


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


def test_import_half_writes_file_and_card_of_a_training_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 5)
    folder, out = tmp_path / "runs" / "k1", tmp_path / "k1.safetensors"
    recipe = TrainingRecipe("small_cnn", "digits", PGD(steps=1, ball=Linf(0.1)), epochs=1)
    list(train(recipe, load("digits"), Compute("cpu"), folder, "vizrobust train --data digits --quiet"))
    before = (folder / "checkpoint.safetensors").read_bytes()
    done = run(folder, "--half", "--out", out, "--eps", "0.05", "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    shipped = load_checkpoint(str(out))
    assert row["weights_sha256"] == shipped.sha256
    assert row["bytes"] == out.stat().st_size < 0.6 * len(before)
    assert (shipped.info.training, shipped.info.attack_steps) == (repr(recipe), 1)
    assert (shipped.info.metrics["n"], shipped.info.metrics["attack"]) == (359, "PGD(steps=50, ball=Linf(eps=0.05))")
    card = (tmp_path / "k1.md").read_text(encoding="utf-8")
    assert card.startswith("# k1\n")
    assert "half precision (float16)" in card
    assert shipped.sha256 in card
    assert card.rstrip().endswith("    vizrobust train --data digits")
    assert card.startswith(model_card(replace(shipped, name="k1")).rstrip())
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert run(out, "--half", "--out", tmp_path / "again.safetensors", "--eps", "0.05").exit_code == 0
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()  # already rounded, measured alike


def test_a_checkpoint_measured_on_other_images_says_so(tmp_path, compute):
    net = make_net("small_cnn", SHAPE, 10)
    save_checkpoint(tmp_path / "full.safetensors", body_state(net), replace(INFO, arch="small_cnn", data="npz:elsewhere.npz"))
    missing = run(tmp_path / "full.safetensors", "--half", "--out", tmp_path / "half.safetensors")
    assert missing.exit_code == 1
    assert "elsewhere.npz" in missing.stderr
    assert not (tmp_path / "half.safetensors").exists()
    done = run(tmp_path / "full.safetensors", "--half", "--data", "digits", "--out", tmp_path / "half.safetensors")
    assert done.exit_code == 0, done.output
    info = load_checkpoint(str(tmp_path / "half.safetensors")).info
    assert (info.data, info.metrics["data"]) == ("npz:elsewhere.npz", "digits")
    assert "first 359 test images of `digits`" in (tmp_path / "half.md").read_text(encoding="utf-8")


def test_a_full_precision_card_does_not_speak_of_half(file):
    assert "half" not in model_card(load_checkpoint(str(file)))


BAD = {
    "foreign file": (["theirs.pt", "--half"], 1, "convert it once: vizrobust import"),
    "foreign option": (["full.safetensors", "--half", "--normalize", "none"], 2, "needs no --normalize; leave it out"),
    "onto itself": (["full.safetensors", "--half", "--out", "full.safetensors"], 1, "is the checkpoint itself"),
    "onto the run": ([".", "--half", "--out", "checkpoint.safetensors"], 1, "is the checkpoint itself"),
    "another suffix": (["full.safetensors", "--half", "--out", "full.pt"], 1, "must end in .safetensors"),
    "no architecture": (["theirs.pt"], 2, "Missing option '--arch'"),
    "eps without half": (["theirs.pt", "--arch", "small_cnn", "--eps", "0.1"], 2, "--eps goes with --half"),
    "absent": (["nowhere.safetensors", "--half"], 1, "no file or folder 'nowhere.safetensors'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, file, monkeypatch):
    args, code, words = BAD[case]
    monkeypatch.chdir(file.parent)
    torch.save({}, "theirs.pt")
    save_checkpoint("checkpoint.safetensors", read_checkpoint(file)[1], INFO)
    before = file.read_bytes()
    done = run(*args, *([] if "--out" in args else ["--out", "out.safetensors"]))
    assert done.exit_code == code
    assert words in done.output
    assert not Path("out.safetensors").exists()
    assert file.read_bytes() == before
