"""The whole conversion: someone's network, saved their way, gives the same logits in our format."""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import vizrobust as vr
from tests import user_networks
from tests.conftest import SHAPE
from vizrobust.attacks import PGD, Linf
from vizrobust.cli import main
from vizrobust.commands.checkpoints import import_
from vizrobust.data import ArraySplit, head, load
from vizrobust.intervals import share
from vizrobust.models import architecture, load_checkpoint
from vizrobust.models.foreign_files import Normalizer
from vizrobust.models.importing import Task, convert, import_file, normalization, task
from vizrobust.models.references import code_sha256
from vizrobust.requests.training import ImportRequest
from vizrobust.robustness import evaluate, merge_results
from vizrobust.runs import file_sha256
from vizrobust.session import Session

CODE = str(Path(user_networks.__file__))
SMALL = f"{CODE}:Small"
SEVEN = Task(SHAPE, tuple("abcdefg"), "npz:animals.npz")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(make=lambda: user_networks.Small(SHAPE, 7), seed=0):
    """A network with its own weights, and BatchNorm statistics that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
        net.train()(torch.rand(6, *SHAPE))
        return net.eval()


def expected(net, mean=MEAN, std=STD):
    """Its logits for five images, normalized by hand."""
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    normalized = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(len(mean))], 1)
    with torch.no_grad():
        return x, net(normalized)


def assert_same_logits(out, net, mean=MEAN, std=STD, arch=SMALL):
    x, logits = expected(net, mean, std)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(str(out), arch=arch).net()(x), logits)


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


class WithNormalizer(nn.Module):
    """As the `robustness` library wraps a network: a copy of it inside an attacker, normalizers beside both."""

    def __init__(self, net):
        super().__init__()
        self.normalizer = nn.Module()
        self.normalizer.register_buffer("new_mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.normalizer.register_buffer("new_std", torch.tensor(STD).reshape(3, 1, 1))
        self.model = net
        self.attacker = nn.Module()
        self.attacker.normalize, self.attacker.model = self.normalizer, net


LAYOUTS = {
    "plain": lambda net: net.state_dict(),
    "nested in a list, trained in parallel": lambda net: {"state_dict": [under("module.", net.state_dict())], "epoch": 3},
    "compiled": lambda net: {"model_state_dict": under("_orig_mod.", net.state_dict()), "loss": 0.1},
    "robustness": lambda net: {"model": under("module.", WithNormalizer(net).state_dict()), "epoch": 3},
    "behind a normalizer": lambda net: {
        "net": {"0.mu": torch.tensor(MEAN), "0.sigma": torch.tensor(STD), **under("1.", net.state_dict())}
    },
    "half precision": lambda net: {key: value.half() for key, value in net.state_dict().items()},
    "before BatchNorm counted": lambda net: {k: v for k, v in net.state_dict().items() if "num_batches" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_logits_stay_the_same(layout, tmp_path):
    net = network()
    torch.save(LAYOUTS[layout](net), tmp_path / "theirs.pt")
    out = tmp_path / "ours.safetensors"
    import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN, "imagenet")
    if layout == "half precision":
        net.load_state_dict({key: value.half().to(value.dtype) for key, value in net.state_dict().items()})
    assert_same_logits(out, net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_gives_the_numbers_of_full_precision(dtype, tmp_path):
    ours = load_checkpoint("mnist-k8")
    halves = {key: value.to(dtype) if value.is_floating_point() else value for key, value in ours.state.items()}
    torch.save(halves, tmp_path / "theirs.pt")
    about = ("small_cnn", task("mnist5k"), f"{ours.info.mean[0]!r}/{ours.info.std[0]!r}")
    found = import_file(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", *about)
    assert found.notes == (f"weights stored as {str(dtype).removeprefix('torch.')}, used as float32",)
    imported = load_checkpoint(str(tmp_path / "ours.safetensors"))
    assert {value.dtype for value in imported.state.values() if value.is_floating_point()} == {torch.float32}
    by_hand = ours.net()
    by_hand.net.load_state_dict({key: value.float() for key, value in halves.items()})
    first = vr.robust_accuracy(by_hand, "mnist5k", "pgd", eps=0.3, steps=10, images=60)
    found, full = (vr.robust_accuracy(one, "mnist5k", "pgd", eps=0.3, steps=10, images=60) for one in (imported, ours))
    assert torch.equal(found.robust, first.robust)
    # bfloat16 has three digits, which are enough for all but one image.
    assert found.clean == full.clean
    assert abs(found.accuracy - full.accuracy) <= (0 if dtype == torch.float16 else 1 / 59)
    mine, theirs = (vr.visualize(one, units=[3], steps=3, data="mnist5k")[0].image for one in (imported, by_hand))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_normalizer_in_half_precision_agrees_with_its_decimals(dtype, tmp_path):
    torch.save({key: value.to(dtype) for key, value in LAYOUTS["robustness"](network())["model"].items()}, tmp_path / "theirs.pt")
    found = import_file(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", SMALL, SEVEN, "imagenet")
    assert (found.checkpoint.info.mean, found.checkpoint.info.std) == (MEAN, STD)
    with pytest.raises(ValueError, match="but normalize says"):
        import_file(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", SMALL, SEVEN, "0.5,0.5,0.5/0.2,0.2,0.2")


def as_lightning(net: nn.Module, hyper: object) -> dict[str, object]:
    """What pytorch-lightning writes of a module whose attribute `model` is the network."""
    metric = {"val_acc.correct": torch.tensor(90), "val_acc.total": torch.tensor(100)}
    return {
        "epoch": 3, "global_step": 90, "pytorch-lightning_version": "2.5.0", "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": {**under("model.", net.state_dict()), **metric}, "callbacks": {}, "lr_schedulers": [{"last_epoch": 3}],
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hparams_name": "kwargs", "hyper_parameters": hyper,
    }  # fmt: skip


def test_a_checkpoint_of_lightning_gives_its_network(tmp_path):
    torch.save(as_lightning(network(), {"lr": 0.1, "arch": "small", "widths": [8, 16]}), tmp_path / "epoch=3.ckpt")
    out = tmp_path / "ours.safetensors"
    with pytest.raises(ValueError, match=r"extra: val_acc\.correct, val_acc\.total; leave out .* with drop 'val_acc.correct'"):
        import_file(tmp_path / "epoch=3.ckpt", out, SMALL, SEVEN, "imagenet")
    found = import_file(tmp_path / "epoch=3.ckpt", out, SMALL, SEVEN, "imagenet", drop=("val_acc.*",))
    assert found.notes == ("weights found under state_dict", "prefix stripped: model.", "2 keys dropped")
    assert_same_logits(out, network())


class Runs:
    """Un-pickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_among_the_hyperparameters_of_lightning_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--arch", SMALL, "--shape", "3,20,16", "--classes", "a,b,c,d,e,f,g", "--normalize", "imagenet")
    for name, hyper in {
        "namespace": argparse.Namespace(lr=0.1, arch="small"), "inside": {"lr": 0.1, "args": argparse.Namespace(depth=3)},
        "code": {"lr": 0.1, "schedule": Runs(tmp_path / "ran")},
    }.items():  # fmt: skip
        torch.save(as_lightning(network(), hyper), f"{name}.ckpt")
        refused = run(f"{name}.ckpt", *given, "--out", "ours.safetensors")
        assert refused.exit_code == 1, refused.output
        said = " ".join(refused.stderr.split())
        assert f"'{name}.ckpt' holds pickled objects" in said
        assert "argparse.Namespace" in said or name == "code"
        assert not {path.name for path in tmp_path.iterdir()} & {"ran", "ours.safetensors"}
        recipe = [line.strip() for line in refused.stderr.splitlines() if line.strip().startswith(("weights =", "torch.save("))]
        if name != "code":  # the two lines, run where the file came from
            exec("\n".join(recipe), {"torch": torch})
            done = run(f"{name}-weights.pt", *given, "--drop", "val_acc.*", "--out", "ours.safetensors")
            assert done.exit_code == 0, done.output
            assert_same_logits("ours.safetensors", network())
            Path("ours.safetensors").unlink()


@pytest.mark.parametrize("layout", ["robustness", "behind a normalizer"])
def test_a_normalizer_in_the_file_is_used_and_must_not_be_contradicted(layout, tmp_path):
    torch.save(LAYOUTS[layout](network()), tmp_path / "theirs.pt")
    out = tmp_path / "ours.safetensors"
    converted = import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN)
    assert (converted.checkpoint.info.mean, converted.checkpoint.info.std) == (MEAN, STD)
    assert any(note.startswith("normalization from ") for note in converted.notes)
    assert_same_logits(out, network())
    with pytest.raises(ValueError, match=r"is 0.485,0.456,0.406 / 0.229,0.224,0.225, but normalize says 0,0,0 / 1,1,1"):
        import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN, "none")


def test_safetensors_of_others_import(tmp_path):
    save_file(under("model.", network().state_dict()), tmp_path / "theirs.safetensors")
    out = tmp_path / "ours.safetensors"
    import_file(tmp_path / "theirs.safetensors", out, SMALL, SEVEN, "0.5/0.25")
    assert_same_logits(out, network(), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="in vizrobust's format already"):
        import_file(out, tmp_path / "again.safetensors", SMALL, SEVEN, "none")


@pytest.mark.parametrize("arch", ["small_cnn", "torchvision:squeezenet1_1"])
def test_architectures_that_are_not_the_users_own(arch, tmp_path):
    def make():
        return architecture(arch, (3, 40, 36), 7)()

    net = make().eval()
    torch.save({"state_dict": under("module.", net.state_dict())}, tmp_path / "theirs.pt")
    import_file(tmp_path / "theirs.pt", tmp_path / "o.safetensors", arch, Task((3, 40, 36), SEVEN.classes), "none")
    x = torch.rand(2, 3, 40, 36)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(str(tmp_path / "o.safetensors")).net()(x), net(x))


def test_the_description_says_what_was_given_and_no_more(tmp_path):
    torch.save(network().state_dict(), tmp_path / "theirs.pt")
    import_file(tmp_path / "theirs.pt", tmp_path / "o.safetensors", SMALL, SEVEN, "none")
    info = load_checkpoint(str(tmp_path / "o.safetensors"), arch=SMALL).info
    assert (info.arch, info.input_shape, info.classes, info.data) == (SMALL, SHAPE, SEVEN.classes, SEVEN.data)
    assert (info.mean, info.std) == ((0.0,) * 3, (1.0,) * 3)
    assert info.arch_sha256 == code_sha256(SMALL)
    assert info.attack_steps is None
    assert (info.training, dict(info.metrics)) == ("", {})


def test_dropped_keys_are_left_out_and_a_pattern_must_fit_something(tmp_path):
    extra = {"mask1.slope": torch.zeros(3), "mask2.slope": torch.zeros(3)}
    torch.save(under("module.", network().state_dict()) | extra, tmp_path / "theirs.pt")
    out = tmp_path / "o.safetensors"
    with pytest.raises(ValueError, match=r"extra: mask1.slope, mask2.slope; .* drop 'mask1.slope'"):
        import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN, "imagenet")
    with pytest.raises(ValueError, match=r"drop 'maks' fits no key of .*theirs.pt'; there are: module.conv.weight"):
        import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN, "imagenet", ["maks"])
    assert not out.exists()
    assert import_file(tmp_path / "theirs.pt", out, SMALL, SEVEN, "imagenet", ["mask?.*"]).notes[-1] == "2 keys dropped"
    assert_same_logits(out, network())


def without(key):
    return {name: value for name, value in network().state_dict().items() if name != key}


def with_value(key, position, value):
    state = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    state[key].view(-1)[position] = value
    return state


def with_buffers(mean, std):
    return network().state_dict() | {"mean": torch.full((3,), mean), "std": torch.full((3,), std)}


TEN = Task(SHAPE, tuple("0123456789"), "cifar10")
GREY = Task((1, 20, 16), SEVEN.classes)
# A state dict that must not be imported, the sentence, and what is asked for where it is not the usual.
REFUSED = {
    "missing": (lambda: without("conv.bias"), r"do not fit .*Small.*missing: conv.bias", {}),
    "another architecture": (nn.Linear(3, 4).state_dict, r"missing: conv.weight, .*extra: weight, bias", {}),
    "another width": (lambda: without("") | {"norm.weight": torch.ones(9)}, r"norm.weight is \(9,\), not \(4,\)", {}),
    "NaN": (lambda: with_value("conv.weight", 5, math.nan), r"conv.weight in .* is NaN or infinite in 1 of 108 places", {}),
    "NaN in a buffer": (lambda: with_value("norm.running_var", 0, math.nan), r"norm.running_var in .* is NaN", {}),
    "infinite": (lambda: with_value("linear.bias", 2, math.inf), r"linear.bias in .* is NaN or infinite in 1 of 7", {}),
    "quantized": (lambda: without("") | {"linear.bias": torch.ones(7, dtype=torch.int8)}, r"linear.bias in .* is torch.int8", {}),
    "classes": (network().state_dict, r"has 7 classes, cifar10 has 10; give", {"task": TEN}),
    "own classes": (network().state_dict, r"has 7 classes, cifar10 has 10; give", {"task": TEN, "arch": f"{CODE}:Fixed"}),
    "channels": (
        network().state_dict,
        r"cannot take images of \(1, 20, 16\)",
        {"task": GREY, "arch": f"{CODE}:Fixed", "normalize": "none"},
    ),
    "no logits": (network().state_dict, r"must return logits \(N, .*returned \(2, 3, 20, 16\)", {"arch": f"{CODE}:two_outputs"}),
    "no normalization": (network().state_dict, r"does not say how its images were normalized", {"normalize": None}),
    "negative std": (lambda: with_buffers(0.5, -0.2), r"mean: .*standard deviations positive", {"normalize": None}),
    "other units": (lambda: with_buffers(123.0, 58.0), r"in \[0, 1\], a mean of 123,123,123 is not", {"normalize": None}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(case, tmp_path):
    state, sentence, asked = REFUSED[case]
    torch.save(state(), tmp_path / "theirs.pt")
    given = {"arch": SMALL, "task": SEVEN, "normalize": "imagenet", **asked}
    with pytest.raises(ValueError, match=sentence) as refused:
        import_file(tmp_path / "theirs.pt", tmp_path / "o.safetensors", **given)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pt"]


def test_the_file_itself_is_never_overwritten(tmp_path):
    save_file(network().state_dict(), tmp_path / "theirs.safetensors")
    before = file_sha256(tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match="is the file to import itself"):
        import_file(tmp_path / "theirs.safetensors", tmp_path / "theirs.safetensors", SMALL, SEVEN, "none")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        import_file(tmp_path / "theirs.safetensors", tmp_path / "o.pt", SMALL, SEVEN, "none")
    assert file_sha256(tmp_path / "theirs.safetensors") == before


def test_the_global_generator_is_not_touched(tmp_path):
    torch.save(network().state_dict(), tmp_path / "theirs.pt")
    before = torch.get_rng_state()
    import_file(tmp_path / "theirs.pt", tmp_path / "o.safetensors", SMALL, SEVEN, "none")
    assert torch.equal(torch.get_rng_state(), before)


def test_normalizations_by_name_and_by_number():
    assert normalization("imagenet", 3) == Normalizer(MEAN, STD)
    assert normalization("None", 2) == Normalizer((0.0, 0.0), (1.0, 1.0))
    assert normalization("mnist", 1) == Normalizer((0.1307,), (0.3081,))
    assert normalization(".1,.2/.3,.4", 2) == Normalizer((0.1, 0.2), (0.3, 0.4))
    assert normalization(".5/.1,.2,.3", 3) == Normalizer((0.5,) * 3, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("text", "channels", "sentence"),
    [
        ("imagnet", 3, "did you mean imagenet"),
        ("imagenet", 1, "3 means and 3 deviations, the images have 1 channel$"),
        (".5,.5/.2", 3, "2 means and 1 deviations"),
        ("a/b", 3, "write MEAN/STD"),
        (".5/0", 3, "standard deviations positive"),
        ("nan/.5", 3, "must be finite"),
        ("123.7,116.3,103.5/58.4,57.1,57.4", 3, "divide mean and standard deviation by 255"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused(text, channels, sentence):
    with pytest.raises(ValueError, match=sentence):
        normalization(text, channels)


def test_the_data_may_have_some_of_the_classes_by_name():
    found = task("digits", "", "9,8,7,6,5,4,3,2,1,0,ten")
    assert (found.shape, len(found.classes), found.data) == ((1, 8, 8), 11, "digits")


def test_the_task_comes_from_the_data_or_from_what_is_given():
    assert task("mnist") == Task((1, 28, 28), tuple("0123456789"), "mnist")  # known without being on this machine
    assert task("digits") == Task((1, 8, 8), load("digits").classes, "digits")
    assert task("", "3,64,48", "cat,dog") == Task((3, 64, 48), ("cat", "dog"), "")
    assert task("npz:absent.npz", "3,64,48", "3") == Task((3, 64, 48), ("0", "1", "2"), "npz:absent.npz")
    for arguments, sentence in {
        (): "give data, or both shape",
        ("npz:absent.npz",): "or give both shape",
        ("mnist", "3,28,28"): "mnist has images of",
        ("mnist", "", "7"): "mnist has 10 classes, classes says 7",
        ("", "3,x,2", "7"): "is not C,H,W",
        ("", "3,2,2", "a,a"): "must be a number of at least 2, or different names",
        ("", "3,2,2", "1"): "must be a number of at least 2",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            task(*arguments)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


def test_the_command_converts_and_says_what_it_did(tmp_path):
    torch.save(LAYOUTS["robustness"](network()), tmp_path / "theirs.pt")
    out = tmp_path / "ours.safetensors"
    given = (tmp_path / "theirs.pt", "--arch", SMALL, "--shape", "3,20,16", "--classes", "a,b,c,d,e,f,g", "--out", out)
    result = run(*given)
    assert result.exit_code == 0, result.output
    assert "prefix stripped: module.model., module.attacker.model." in " ".join(result.stdout.split())
    assert_same_logits(out, network())
    row = json.loads(run(*given, "--json").stdout)
    assert row["weights_sha256"] == load_checkpoint(str(out), arch=SMALL).sha256
    assert row["normalization"] == {"mean": list(MEAN), "std": list(STD)}


def test_a_normalization_that_the_images_contradict_is_said(tmp_path, monkeypatch):
    """A network of MNIST with the right normalization, with a wrong one, and with none, which it bears."""
    torch.save(dict(load_checkpoint("mnist-k0").state), tmp_path / "theirs.pt")
    told = {}
    for given in ("mnist", "none", "0.9/0.1"):
        argv = ["import", str(tmp_path / "theirs.pt"), "--arch", "small_cnn", "--normalize", given, "--data", "mnist5k"]
        found = CliRunner().invoke(main, [*argv, "--out", str(tmp_path / "mine.safetensors")])
        assert found.exit_code == 0
        told[given] = " ".join(found.output.split())
    said = "% of the first 200 test images of mnist5k, with normalize mnist on 9"
    assert [said in told[given] for given in ("mnist", "none", "0.9/0.1")] == [False, False, True]


def test_code_given_for_storing_in_half_precision_is_that_reference_s_alone(tmp_path):
    session = Session(code=("other.py:Net",))
    request = ImportRequest(file="mnist-k0", out=str(tmp_path / "half.safetensors"), half=True, arch="small_cnn", data="mnist5k")
    list(import_(request, session))
    assert session.code == ("other.py:Net",)


def test_the_command_fails_in_one_sentence(tmp_path):
    torch.save(network(), tmp_path / "pickled.pt")
    refused = run(tmp_path / "pickled.pt", "--arch", "small_cnn", "--data", "mnist", "--out", tmp_path / "o.safetensors")
    assert refused.exit_code == 1
    assert "holds pickled objects" in refused.stderr
    assert "torch.save(weights, 'pickled-weights.pt')" in refused.stderr
    assert run(tmp_path / "pickled.pt").exit_code == 2


# --- checkpoints of other groups -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theirs:
    """A file of the shared folder, how it is imported, and its measured accuracies in percent: clean, and by eps."""

    file: str
    arch: str
    data: str
    normalize: str
    drop: tuple[str, ...]
    clean: float
    robust: tuple[tuple[float, float], ...]


THEIRS = (
    Theirs("mnist_lenet5_clntrained.pt", "NetworkL", "mnist", "none", (), 98.4, ((0.1, 55.5), (0.3, 0.0))),
    Theirs("mnist_lenet5_advtrained.pt", "NetworkL", "mnist", "none", (), 98.2, ((0.3, 92.3), (0.1, 96.8))),
    Theirs("mnist_cnn_a_adv.pt", "network_a", "mnist", "none", (), 95.6, ((0.3, 75.8), (0.1, 91.4))),
    Theirs(
        "cifar_sgd_8px.pth", "network_b", "cifar10", ".485,.456,.406/.225,.225,.225", (), 74.4, ((2 / 255, 16.7), (8 / 255, 0.1))
    ),
    Theirs(
        "cifar_wide_adv.pth", "NamedB", "cifar10", "cifar10", ("linear_masked_relu*",), 74.7, ((8 / 255, 12.6), (2 / 255, 56.7))
    ),
)
ARRAYS = {"mnist": "mnist_train60k_test3k.npz", "cifar10": "cifar10_lossless_train4000_test1000.npz"}


def test_images(shared, name):
    with np.load(shared / "data" / ARRAYS[name]) as arrays:
        pixels, labels = arrays["x_test"][:1000], arrays["y_test"][:1000]
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return ArraySplit(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64)))


test_images.__test__ = False


def imported(theirs, shared, folder):
    out = folder / "ours.safetensors"
    arch = f"{CODE}:{theirs.arch}"
    import_file(shared / "checkpoints" / theirs.file, out, arch, task(theirs.data), theirs.normalize, theirs.drop)
    return load_checkpoint(str(out), arch=arch).net()


def accuracies(net, images, eps, compute):
    """Clean and robust accuracy in percent: 40 steps of eps/16 from a random start, wrong at no iterate."""
    attack = PGD(steps=40, ball=Linf(eps=eps), alpha=eps / 16)
    found = merge_results(attack, list(evaluate(net, attack, images, compute)))
    return 100 * found.clean, 100 * share(found.robust)


def tolerance(percent, n, of=1000):
    """1.5 points, and three standard deviations of a share among n drawn from the `of` images of the table."""
    p = min(max(percent / 100, 0.01), 0.99)
    return 1.5 + 300 * math.sqrt(p * (1 - p) / n * (1 - n / of))


# One of them by default, which has other names, another normalization and weights to drop.
@pytest.mark.parametrize(
    "theirs", [pytest.param(one, id=one.file, marks=[pytest.mark.slow] * (one != THEIRS[-1])) for one in THEIRS]
)
def test_checkpoints_of_other_groups_import_with_their_accuracies(theirs, shared, tmp_path, compute):
    net = imported(theirs, shared, tmp_path)
    images = head(test_images(shared, theirs.data), 200)
    eps, expected_robust = theirs.robust[0]
    clean, robust = accuracies(net, images, eps, compute)
    assert clean == pytest.approx(theirs.clean, abs=tolerance(theirs.clean, 200))
    assert robust == pytest.approx(expected_robust, abs=tolerance(expected_robust, 200))


def test_a_named_network_of_others_fits_our_own_architecture(shared, tmp_path):
    """small_cnn is their network with the same names, so no code of theirs is needed."""
    wide = THEIRS[-1]
    out = tmp_path / "wide.safetensors"
    import_file(shared / "checkpoints" / wide.file, out, "small_cnn", task("cifar10"), "cifar10", wide.drop)
    x = test_images(shared, "cifar10").take(torch.arange(6))
    with torch.no_grad():
        assert torch.equal(load_checkpoint(str(out)).net()(x), imported(wide, shared, tmp_path)(x))


@pytest.mark.slow
def test_all_accuracies_of_other_groups_on_all_images(shared, tmp_path, compute, capsys):
    """Prints the table: pytest tests/test_convert.py -m slow."""
    wrong = []
    for theirs in THEIRS:
        net, images = imported(theirs, shared, tmp_path), test_images(shared, theirs.data)
        for eps, expected_robust in sorted(theirs.robust):
            began = time.perf_counter()
            clean, robust = accuracies(net, images, eps, compute)
            natural = f"clean {clean:5.1f} (theirs {theirs.clean:5.1f})"
            attacked = f"eps {eps:.4f} PGD {robust:5.1f} (theirs {expected_robust:5.1f})"
            line = f"{theirs.file:28} n {len(images)}  {natural}  {attacked}  {time.perf_counter() - began:.0f} s\n"
            with capsys.disabled():
                sys.stdout.write(line)
            if max(abs(clean - theirs.clean), abs(robust - expected_robust)) > 1.5:
                wrong.append(line)
    assert not wrong


def test_a_network_that_normalizes_itself_is_told_apart(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Own(nn.Module):\n    def __init__(self, shape, classes):\n"
        "        super().__init__()\n        self.register_buffer('mean', torch.full((1, 3, 1, 1), 0.5))\n"
        "        self.register_buffer('std', torch.full((1, 3, 1, 1), 0.25))\n        self.linear = nn.LazyLinear(classes)\n"
        "        self(torch.zeros(1, *shape))\n\n    def forward(self, x):\n"
        "        return self.linear(((x - self.mean) / self.std).flatten(1))\n"
    )
    own = f"{tmp_path / 'own.py'}:Own"
    torch.save(architecture(own, SHAPE, 7)().state_dict(), tmp_path / "theirs.pt")
    twice = convert(tmp_path / "theirs.pt", own, SEVEN, "imagenet").notes
    assert [note for note in twice if "normalize its images itself, by mean and std (0.5,0.5,0.5 / 0.25" in note], twice
    assert not [note for note in convert(tmp_path / "theirs.pt", own, SEVEN, "none").notes if "itself" in note]
