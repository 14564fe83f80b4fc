"""Other people's files: read without running their code, found wherever they put the weights, fitted by name."""

import argparse
import contextlib
import os
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vizrobust.models.foreign_files import NETWORK_KEYS, Normalizer, find_state, fit, read_tensors, take_normalizer


def small() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 2), norm=nn.BatchNorm2d(4), flat=nn.Flatten(), linear=nn.Linear(24, 5)))


def weights(seed=0, net=None):
    """A state dict of `small` in which every tensor differs from every other."""
    generator = torch.Generator().manual_seed(seed)
    own = (net or small()).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7 + seed)
        for key, value in own.items()
    }


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


# --- reading ---------------------------------------------------------------------------------------------------------


def save_zip(state, path):
    torch.save(state, path)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state, path):
    save_file(state, path)


FORMATS = (save_zip, save_legacy, save_safetensors)


@pytest.mark.parametrize("save", FORMATS)
def test_every_format_gives_the_tensors_that_were_saved(save, tmp_path):
    save(weights(), tmp_path / "w.bin")
    read = read_tensors(tmp_path / "w.bin")
    assert set(read) == set(weights())
    assert all(torch.equal(read[key], value) for key, value in weights().items())


class Trap:
    """Un-pickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("save", [torch.save, save_legacy, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_not_run(save, tmp_path):
    save({"state_dict": weights(), "args": Trap(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt' holds pickled objects"):
        read_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_the_environment_cannot_switch_the_protection_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": weights(), "args": Trap(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="pickled objects"):
        read_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("thing", "named", "taken"),
    [
        (nn.Linear(2, 3), r"torch.nn.modules.linear.Linear", ".state_dict()  #"),
        ({"model_state_dict": weights(), "args": argparse.Namespace(lr=0.1)}, r"argparse.Namespace", "['model_state_dict']"),
        ({"state_dict": weights(), "accuracy": np.float64(0.9)}, r"numpy\S*scalar", "['state_dict']"),
    ],
)
def test_pickled_objects_are_refused_by_name_with_a_recipe_of_two_lines(thing, named, taken, tmp_path):
    torch.save(thing, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=rf"holds pickled objects \({named}\)") as refused:
        read_tensors(tmp_path / "theirs.pt")
    _, load, save = str(refused.value).splitlines()
    assert load.strip().startswith("weights = torch.load(")
    assert f"weights_only=False){taken}" in load
    assert save.strip() == "torch.save(weights, 'theirs-weights.pt')"


def as_program(net: nn.Module, path: str) -> None:
    torch.export.save(torch.export.export(net, (torch.rand(2, 3, 3, 4),)), path)


def as_script(net: nn.Module, path: str) -> None:
    torch.jit.save(torch.jit.script(net), path)


def as_lightning(net: nn.Module, path: str) -> None:
    """As pytorch-lightning writes it, with a hyperparameter that is an object."""
    hyper = {"lr": 0.1, "args": argparse.Namespace(depth=3)}
    torch.save({"epoch": 3, "state_dict": net.state_dict(), "loops": {}, "hyper_parameters": hyper}, path)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (torch.save, "holds pickled objects"), (as_lightning, r"holds pickled objects \(argparse.Namespace\)"),
        (as_script, "is a TorchScript program"),
        pytest.param(as_program, "is a program of torch.export, which can run code when it is read", marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_the_recipe_works(save, said, tmp_path, monkeypatch):
    """The two lines, run where the code is, give a file that can be read."""
    monkeypatch.chdir(tmp_path)
    net = small().eval()
    save(net, "theirs.pt2")
    with pytest.raises(ValueError, match=rf"^'theirs.pt2' {said}") as refused:
        read_tensors("theirs.pt2")
    exec("\n".join(line.strip() for line in str(refused.value).splitlines()[1:]), {"torch": torch})
    read, own = read_tensors("theirs-weights.pt"), net.state_dict()
    assert {key: torch.equal(read[key], own[key]) for key in read} == dict.fromkeys(own, True)


def test_a_pickle_that_torch_did_not_write_is_refused(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": 1, "b": [1.0]}, protocol=4))
    with pytest.raises(ValueError, match="holds pickled objects"):
        read_tensors(tmp_path / "w.pkl")


@pytest.mark.parametrize("save", FORMATS)
def test_a_truncated_file_is_called_so_wherever_it_was_cut(save, tmp_path):
    whole, cut = tmp_path / "whole.bin", tmp_path / "cut.bin"
    save(weights(), whole)
    content = whole.read_bytes()
    for end in [*range(10, len(content) - 1, max(1, len(content) // 23)), len(content) - 1]:
        cut.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"truncated|damaged") as refused:
            read_tensors(cut)
        assert "\n" not in str(refused.value)
        assert "cut.bin" in str(refused.value)


@pytest.mark.parametrize("save", FORMATS)
def test_a_damaged_file_never_fails_in_another_way(save, tmp_path):
    save(weights(), tmp_path / "w.bin")
    content, draw = (tmp_path / "w.bin").read_bytes(), random.Random(0)
    for _ in range(60):
        bad = bytearray(content)
        for _ in range(3):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        (tmp_path / "w.bin").write_bytes(bad)
        with contextlib.suppress(ValueError):
            read_tensors(tmp_path / "w.bin")


def test_what_is_no_checkpoint_is_called_so(tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.pt").write_text("<html>404 Not Found</html>")
    (tmp_path / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("inner/readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("x/models/model.json", "{}")
    for name, sentence in {
        "x.pt2": "is a program of torch.export",
        "empty.pt": "is empty",
        "page.pt": "is not a torch file",
        "picture.pth": "is not a torch file",
        "arrays.npz": "zip archive without torch weights",
        "other.zip": "zip archive without torch weights",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}' {sentence}|{name}'.*{sentence}"):
            read_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_tensors(tmp_path / "absent.pt")


# --- finding ---------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "": lambda state: state,
    "state_dict": lambda state: {  # as Lightning's
        "epoch": 3,
        "global_step": 90,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_path": "a.ckpt"}},
        "lr_schedulers": [],
        "optimizer_states": [{"state": {0: {"avg": torch.ones(3)}}}],
        "hyper_parameters": {"lr": 0.1, "net": "small"},
    },
    "model": lambda state: {"model": state, "lr": 0.1},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.ones(())},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 200},
    "ema": lambda state: {"ema": state},
    "state_dict.0": lambda state: {"state_dict": [state], "err": torch.ones(()), "sampler_indices": []},
    "0": lambda state: [state, {"lr": 0.1}],
    "model.state_dict": lambda state: {"model": {"state_dict": state, "name": "wide"}},
}


@pytest.mark.parametrize("where", LAYOUTS)
def test_the_weights_are_found_wherever_training_scripts_put_them(where):
    assert find_state(LAYOUTS[where](weights()), "'f.pt'")[0] == where
    assert same(find_state(LAYOUTS[where](weights()), "'f.pt'")[1], weights())


def test_two_networks_in_a_file_are_not_chosen_between_unless_they_are_equal():
    assert same(find_state({"model": weights(), "ema": weights()}, "f")[1], weights())
    different = {"model": weights(1), "ema": weights(2)}
    with pytest.raises(ValueError, match="several networks: model, ema; choose with key, such as key model"):
        find_state(different, "f")
    assert same(find_state(different, "f", "ema")[1], weights(2))


def test_a_key_leads_to_any_place():
    content = {"runs": [{"best": weights(1)}, {"best": weights(2)}]}
    assert same(find_state(content, "f", "runs.1.best")[1], weights(2))
    with pytest.raises(ValueError, match="choose with key from: runs"):
        find_state(content, "f")
    with pytest.raises(ValueError, match="no key in f 'rnus'; did you mean runs"):
        find_state(content, "f", "rnus.1")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [], [[]], torch.ones(3), 5, "text", {"optimizer": {"lr": 0.1}}])
def test_a_file_without_weights_is_called_so(content):
    with pytest.raises(ValueError, match=r"^f holds no weights"):
        find_state(content, "f")


def test_a_list_that_holds_itself_comes_to_an_end():
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="holds no weights"):
        find_state(endless, "f")


# --- fitting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "attacker.model.", "module.attacker.model.", "net.", "1.", "_orig_mod.module.", "a.b.c.d."],
)
def test_prefixes_are_stripped(prefix):
    found = fit(under(prefix, weights()), small().state_dict(), "f")
    assert found.complete
    assert same(found.weights, weights())
    assert found.prefixes == (prefix,)
    assert not found.rest


def test_numbers_of_a_sequential_are_names_and_no_prefix():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    state = weights(0, net)
    assert fit(state, net.state_dict(), "f").prefixes == ("",)
    behind_a_normalizer = under("1.", state) | {"0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 0.2)}
    found = fit(behind_a_normalizer, net.state_dict(), "f")
    assert found.prefixes == ("1.",)
    assert same(found.weights, state)
    assert set(found.rest) == {"0.mean", "0.std"}


def test_wrappers_inside_the_names_are_removed():
    state = {key.replace("conv.", "conv.module.").replace("linear.", "linear._orig_mod."): v for key, v in weights().items()}
    found = fit(state, small().state_dict(), "f")
    assert found.complete
    assert same(found.weights, weights())


def test_equal_copies_are_merged_and_others_refused_by_name():
    both = under("module.model.", weights()) | under("module.attacker.model.", weights())
    found = fit(both, small().state_dict(), "f")
    assert same(found.weights, weights())
    assert not found.rest
    both["module.attacker.model.norm.running_var"] = both["module.attacker.model.norm.running_var"] + 1e-6
    message = "module.model.norm.running_var differs from module.attacker.model.norm.running_var.*with drop"
    with pytest.raises(ValueError, match=message):
        fit(both, small().state_dict(), "f")


def test_of_two_networks_the_one_whose_shapes_fit_counts():
    wide = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 2), norm=nn.BatchNorm2d(8), flat=nn.Flatten(), linear=nn.Linear(48, 5)))
    found = fit(under("a.", weights(1, wide)) | under("student.", weights()), small().state_dict(), "f")
    assert found.complete
    assert same(found.weights, weights())
    assert set(found.rest) == set(under("a.", weights()))


def test_only_the_counters_of_batchnorm_may_be_missing():
    old = weights()
    del old["norm.num_batches_tracked"]
    found = fit(under("module.", old), small().state_dict(), "f")
    assert found.complete
    assert set(found.weights) == set(small().state_dict())
    del old["norm.running_mean"]
    assert not fit(old, small().state_dict(), "f").complete


def test_an_incomplete_fit_keeps_to_the_nearest_prefix():
    state = under("model.", weights())
    del state["model.linear.bias"]
    state["linear.bias"] = torch.zeros(5)  # of something else: not to be mixed in
    found = fit(state, small().state_dict(), "f")
    assert not found.complete
    assert found.prefixes == ("model.",)
    assert "linear.bias" not in found.weights


# --- normalizers -----------------------------------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("mean", "std"),
    [("normalizer.new_mean", "normalizer.new_std"), ("mu", "sigma"), ("mean", "std"), ("module.0.means", "module.0.sds")],
)
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_the_buffers_of_a_normalizer_are_recognised(mean, std, shape):
    state = {mean: torch.tensor(MEAN).reshape(shape), std: torch.tensor(STD).reshape(shape), "other": torch.ones(2)}
    normalizer, rest = take_normalizer(state, 3, "f")
    assert normalizer == Normalizer(MEAN, STD)  # with the decimals of the paper, not those of float32
    assert set(rest) == {"other"}


def test_one_value_counts_for_all_channels():
    state = {"mu": torch.tensor(0.5), "sigma": torch.tensor([0.25])}
    assert take_normalizer(state, 3, "f")[0] == Normalizer((0.5,) * 3, (0.25,) * 3)


def test_buffers_for_other_channels_or_without_a_partner_are_no_normalizer():
    for state in ({"mean": torch.ones(4), "std": torch.ones(4)}, {"mean": torch.ones(3)}, {"std": torch.ones(3)}):
        assert take_normalizer(state, 3, "f") == (None, state)


def test_two_normalizers_must_agree():
    pair = {"a.mean": torch.tensor(MEAN), "a.std": torch.tensor(STD)}
    assert take_normalizer(pair | {"b.mu": torch.tensor(MEAN), "b.sigma": torch.tensor(STD)}, 3, "f")[0] == Normalizer(MEAN, STD)
    with pytest.raises(ValueError, match=r"two normalizers that differ, a\.mean and b\.mu"):
        take_normalizer(pair | {"b.mu": torch.tensor(MEAN), "b.sigma": torch.ones(3)}, 3, "f")


def test_state_dicts_in_a_list_are_named_and_not_chosen_between():
    content = {"state_dict": [weights(1), weights(2)]}
    with pytest.raises(
        ValueError, match=r"several networks: state_dict\.0, state_dict\.1; choose with key, such as key state_dict"
    ):
        find_state(content, "f")
    assert same(find_state(content, "f", "state_dict.1")[1], weights(2))


def test_one_dict_under_many_names_is_visited_once():
    content = weights()
    for _ in range(8):
        content = dict.fromkeys(NETWORK_KEYS, content)
    assert same(find_state(content, "f")[1], weights())


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_that_are_no_plain_numbers_are_named(kind):
    name, value = next(iter(weights().items()))
    unusual = value.to_sparse() if kind == "sparse" else value.to("meta")
    with pytest.raises(ValueError, match=f"{name} in f is a {kind} tensor"):
        find_state({**weights(), name: unusual}, "f")
