"""Our checkpoint file: what goes in comes out, and everything else is refused with a sentence."""

import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import make_net
from vizrobust.models import Checkpoint, CheckpointInfo, architecture, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state, read_checkpoint, weights_sha256

SHAPE = (3, 9, 12)
INFO = CheckpointInfo(
    arch="small_cnn",
    input_shape=SHAPE,
    classes=("bat", "cät", "dog", "emu", "fox"),
    mean=(0.4, 0.5, 0.6),
    std=(0.3, 0.2, 0.1),
    data="npz:x.npz",
    training='Training(arch="small_cnn", data="npz:x.npz")',
    attack_steps=8,
    eps=8 / 255,
    norm="Linf",
    metrics={"clean": 0.9, "robust": 0.5, "attack": "PGD(steps=50)", "n": 1000},
    versions={"torch": "2"},
)


@pytest.fixture
def state():
    return body_state(make_net("small_cnn", SHAPE, 5))


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, state, INFO)
    return path


def test_what_goes_in_comes_out(file, state):
    info, loaded = read_checkpoint(file)
    assert info == INFO
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[key], state[key]) and loaded[key].dtype == state[key].dtype for key in state)


def test_the_loaded_network_gives_the_same_logits_and_is_in_evaluation_mode(tmp_path):
    body = architecture("resnet_small", SHAPE, 5)().train()
    with torch.no_grad():
        body(torch.rand(4, *SHAPE))  # moves the batch statistics, which must be stored too
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, body.state_dict(), replace(INFO, arch="resnet_small"))
    net = load_checkpoint(str(path)).net()
    x = torch.rand(6, *SHAPE)
    mean, std = torch.tensor(INFO.mean).reshape(3, 1, 1), torch.tensor(INFO.std).reshape(3, 1, 1)
    with torch.no_grad():
        assert torch.equal(net(x), body.eval()((x - mean) / std))
    assert not any(module.training for module in net.modules())


def test_the_description_is_one_json_object_with_the_documented_keys(file):
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == ["vizrobust"]
    found = json.loads(metadata["vizrobust"])
    documented = "format arch normalization input_shape classes data training attack_steps eps norm metrics versions"
    assert set(documented.split()) <= set(found)
    assert found["format"] == 1
    assert found["normalization"] == {"mean": list(INFO.mean), "std": list(INFO.std)}
    assert found["input_shape"] == list(SHAPE)


def test_a_truncated_file_is_refused_wherever_it_was_cut(file, tmp_path):
    content = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    ends = [0, 1, 7, 8, 9, 100, 500, len(content) // 2, len(content) - 1]
    ends += [random.Random(k).randrange(len(content)) for k in range(20)]
    for end in ends:
        cut.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut.safetensors' is truncated or not a safetensors file .*get it again"):
            read_checkpoint(cut)


def test_a_safetensors_file_of_somebody_else_says_how_to_convert_it(tmp_path, state):
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    with pytest.raises(ValueError, match=r"not written by vizrobust; convert it once with: vizrobust import"):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (INFO.to_json().replace('"format": 1', '"format": 2'), "newer vizrobust"),
        ("[1, 2]", "not in vizrobust's format"),
        ("{", "not in vizrobust's format"),
        ("{}", "not in vizrobust's format"),
        (INFO.to_json().replace('"normalization"', '"normalisation"'), "not in vizrobust's format"),
        (INFO.to_json().replace('"eps"', '"epsilon"'), "not in vizrobust's format"),
        (INFO.to_json().replace("[3, 9, 12]", "[3, 9]"), "input_shape is"),
    ],
    ids=["format", "list", "broken", "empty", "without", "unknown", "shape"],
)
def test_a_description_that_is_not_ours_is_refused(tmp_path, state, text, sentence):
    path = tmp_path / "net.safetensors"
    save_file(state, path, metadata={"vizrobust": text})
    with pytest.raises(ValueError, match=sentence) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_another_architecture_is_refused_with_the_keys_and_shapes(tmp_path, state):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, state, replace(INFO, arch="resnet_small"))
    with pytest.raises(ValueError, match=r"do not fit .*resnet_small.*missing: stem.weight.* and \d+ more; extra: conv1"):
        load_checkpoint(str(path)).net()
    save_checkpoint(path, state, replace(INFO, input_shape=(3, 9, 16)))
    with pytest.raises(ValueError, match=r"of another shape: linear1.weight is \(100, 192\), not \(100, 256\)"):
        load_checkpoint(str(path)).net()
    save_checkpoint(path, state, replace(INFO, classes=("a", "b")))
    with pytest.raises(ValueError, match=r"linear2.weight is \(5, 100\), not \(2, 100\)"):
        load_checkpoint(str(path)).net()


def test_the_hash_depends_on_names_and_values_alone(state, tmp_path):
    expected = weights_sha256(state)
    assert weights_sha256(dict(reversed(list(state.items())))) == expected
    assert weights_sha256({key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                           for key, value in state.items()}) == expected  # fmt: skip
    for name, info in (("a", INFO), ("b", replace(INFO, data="", classes=tuple("vwxyz"), metrics={}))):
        save_checkpoint(tmp_path / name, state, info)
        assert load_checkpoint(str(tmp_path / name)).sha256 == expected
    changed = {**state, "conv1.bias": state["conv1.bias"] + 1e-6}
    renamed = {key.replace("conv1", "conv0"): value for key, value in state.items()}
    reshaped = {**state, "conv1.bias": state["conv1.bias"].reshape(4, 4)}
    assert len({expected, weights_sha256(changed), weights_sha256(renamed), weights_sha256(reshaped)}) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_every_dtype_can_be_hashed_and_stored(dtype, tmp_path):
    state = {
        "w": torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.ones((), dtype=dtype),
        "none": torch.zeros(0, dtype=dtype),
    }
    assert len(weights_sha256(state)) == 64
    assert weights_sha256(state) != weights_sha256({**state, "w": state["w"].flip(0)})
    save_checkpoint(tmp_path / "x", state, INFO)
    _, loaded = read_checkpoint(tmp_path / "x")
    assert weights_sha256(loaded) == weights_sha256(state)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(file, state, monkeypatch):
    before = file.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(file, {key: value + 1 for key, value in state.items()}, INFO)
    assert file.read_bytes() == before
    assert [item.name for item in file.parent.iterdir()] == [file.name]


def test_building_networks_leaves_the_global_generators_alone(file):
    checkpoint = load_checkpoint(str(file))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    checkpoint.net()
    checkpoint.random_net(5)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_random_network_has_the_architecture_and_its_seed_s_weights(file):
    checkpoint = load_checkpoint(str(file))
    one, same, other = (checkpoint.random_net(seed) for seed in (1, 1, 2))
    hashes = [weights_sha256(body_state(net)) for net in (one, same, other, checkpoint.net())]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert torch.equal(one.mean, checkpoint.net().mean)
    assert not one.training


def test_loading_runs_no_code_from_the_file(file):
    checkpoint = load_checkpoint(str(file))
    assert isinstance(checkpoint, Checkpoint)
    assert file.read_bytes()[8:9] == b"{"  # a JSON header; nothing is pickled


def test_the_weights_are_hashed_once(monkeypatch):
    from vizrobust.models import checkpoints, load_checkpoint

    calls = []
    real = checkpoints.weights_sha256
    monkeypatch.setattr(checkpoints, "weights_sha256", lambda state: calls.append(1) or real(state))
    one = load_checkpoint("mnist-k0")
    assert one.sha256 == one.sha256
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain["normalization"].update(mean=["grey"]), r"normalization mean is \['grey'\]"),
        (lambda plain: plain.update(classes=[0, {"a": 1}]), "classes are not all names"),
        (lambda plain: plain.update(classes="ab"), "classes are not all names"),
        (lambda plain: plain["normalization"].update(mean=[float("nan")]), "normalization mean"),
        (lambda plain: plain["normalization"].update(mean=[0.1] * 3), "normalization mean"),
        (lambda plain: plain["normalization"].update(mean=[True]), "normalization mean"),
        (lambda plain: plain["normalization"].update(mean=[130.0]), "images in"),
        (lambda plain: plain["normalization"].update(std=[0.0]), "deviations above 0"),
        (lambda plain: plain.update(input_shape=[1, 8.5, 8]), "input_shape is"),
        (lambda plain: plain.update(input_shape=[1, 8, 8, 8]), "input_shape is"),
        (lambda plain: plain.update(eps="large"), "eps is 'large'"),
        (lambda plain: plain.update(attack_steps=True), "attack_steps is True"),
        (lambda plain: plain.update(metrics={"clean": [1]}), "metrics is"),
        (lambda plain: plain.update(arch=7), "arch is 7"),
    ],
)
def test_a_description_of_other_types_is_refused_by_field(change, said):
    plain = json.loads(CheckpointInfo("small_cnn", (1, 8, 8), ("a", "b"), (0.0,), (1.0,)).to_json())
    assert CheckpointInfo.from_json(json.dumps(plain)).classes == ("a", "b")
    change(plain)
    with pytest.raises(ValueError, match=said):
        CheckpointInfo.from_json(json.dumps(plain))
