"""A run folder answers for the network and the data that it is asked about now, not for those that it was asked about before."""

import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vizrobust as vr
from vizrobust.data import content_of, load
from vizrobust.models import load_checkpoint
from vizrobust.models.checkpoints import CheckpointInfo, save_checkpoint
from vizrobust.models.object_code import object_sha256
from vizrobust.models.references import code_sha256
from vizrobust.runs import RunFolder, read_rows, write_rows

SHAPE = (1, 5, 4)
CODE = """
import torch
from torch import nn
SIGN = {sign}

class Net(nn.Module):
    "Brightness decides."
    def __init__(self, shape, classes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return self.scale * torch.stack((mean * 0, SIGN * (mean - .5), mean * 0 - 9), 1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of a person's own code, and their own images: class 1 is bright, class 0 dark."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = (0.2 + 0.6 * y[:, None, None] + 0.02 * rng.random((40, *SHAPE[1:]))).astype("float32")
    arrays = {"x_train": x, "y_train": y, "x_test": x[:24], "y_test": y[:24], "classes": np.array(["a", "b", "c"])}
    np.savez("mine.npz", **arrays)
    (tmp_path / "nets.py").write_text(CODE.format(sign=1))
    save("net.safetensors", 1)
    return arrays


def save(path, sign, mean=(0.0,), std=(1.0,)):
    Path("nets.py").write_text(CODE.format(sign=sign))
    state = {"scale": torch.ones(1)}
    info = CheckpointInfo("nets.py:Net", SHAPE, ("a", "b", "c"), mean, std, arch_sha256=code_sha256("nets.py:Net"))
    save_checkpoint(path, state, info)


def attacked(**more):
    """Accuracy of `attack` in the folder "run", its new rows, and its notes."""
    from click.testing import CliRunner

    from vizrobust.cli import main

    args = ["attack", "net.safetensors", "--arch", "nets.py:Net", "--data", "npz:mine.npz"]
    args += ["--attack", "fgsm", "--eps", "0.01"] if "attack" not in more else []
    before = len(read_rows("run"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, [*args, "--out", "run", "--json", *more.get("args", ())])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return rows[0]["accuracy"], len(read_rows("run")) - before, result.stderr


def test_the_same_command_again_computes_nothing(own):
    accuracy, new, _ = attacked()
    assert (accuracy, new > 0) == (1.0, True)
    assert attacked()[:2] == (1.0, 0)
    Path("nets.py").write_text(CODE.format(sign=1) + "\n# a comment\ndef unrelated():\n    return 3\n")
    assert attacked()[:2] == (1.0, 0)


def test_mended_code_is_evaluated_again_beside_the_old_rows(own):
    save("net.safetensors", -1)
    assert attacked()[0] == 0.0
    (old,) = {row["checkpoint"] for row in read_rows("run")}
    Path("nets.py").write_text(CODE.format(sign=1))
    accuracy, new, notes = attacked()
    assert (accuracy, new > 0) == (1.0, True)
    assert "weights, normalization or code of net.safetensors have changed" in notes
    assert len({row["checkpoint"] for row in read_rows("run")} - {old}) == 1  # nothing was deleted


def test_another_normalization_is_another_network(own):
    save("net.safetensors", 1, mean=(1.0,))
    assert attacked()[0] == 0.5
    save("net.safetensors", 1)
    assert attacked()[0] == 1.0


def test_changed_labels_and_images_are_evaluated_again(own):
    assert attacked()[0] == 1.0
    np.savez("mine.npz", **{**own, "y_test": 1 - own["y_test"]})
    accuracy, _, notes = attacked()
    assert accuracy == 0.0
    assert "npz:mine.npz has changed: " in notes
    assert "are kept, but not used" in notes
    np.savez("mine.npz", **{**own, "x_test": own["x_test"][::-1]})
    assert attacked()[0] == 0.0
    np.savez("mine.npz", **own)
    assert attacked()[:2] == (1.0, 0)  # the first rows are still there


def test_rows_of_an_earlier_version_are_not_taken_for_rows_of_own_data(own):
    attacked()
    rows = read_rows("run")
    for row in rows:
        row.pop("content")
        row["checkpoint"] = "net.safetensors-" + load_checkpoint("net.safetensors", "nets.py:Net").sha256[:8]
    write_rows("run/rows.jsonl", rows)
    assert attacked()[1] > 0


def test_the_code_hash_covers_what_the_callable_reaches(tmp_path):
    def sha256(text, other="x = 1"):
        (tmp_path / "beside.py").write_text(other)
        (tmp_path / "nets.py").write_text(textwrap.dedent(text))
        return code_sha256(f"{tmp_path / 'nets.py'}:make")

    text = """
    '''Networks.'''
    import beside
    WIDTH = 3
    def helper(): return WIDTH
    def make():  # builds it
        '''A network.'''
        return helper() + beside.x
    def other(): return 4
    """
    first = sha256(text)
    for same in (
        text.replace("# builds it", ""), text.replace("A network", "The network"), text.replace("return 4", "return 5"),
        text.replace("Networks", "Nets"), text.replace("WIDTH = 3", "WIDTH  =  3"),
    ):  # fmt: skip
        assert same != text
        assert sha256(same) == first
    for different in (
        text.replace("WIDTH = 3", "WIDTH = 4"), text.replace("return WIDTH", "return -WIDTH"),
        text.replace("+ beside", "- beside"),
        text + "\n    WIDTH += 1", text + "\n    helper.size = 3",
    ):  # fmt: skip
        assert different != text
        assert sha256(different) != first
    assert sha256(text, "x = 2") != first
    anything = text.replace("return helper()", "return globals()['other']() + helper()")
    assert sha256(anything.replace("return 4", "return 5")) != sha256(anything)


def test_the_hash_of_an_object_is_that_of_its_classes():
    class One(torch.nn.Module):
        def forward(self, x):
            return x

    class Two(torch.nn.Module):
        def forward(self, x):
            return -x

    assert object_sha256(One()) == object_sha256(One()) != object_sha256(Two())


def test_a_folder_tells_networks_given_as_objects_apart_by_all_that_they_compute_with(tmp_path):
    """Verdicts of ReLU are none of Tanh, and those of a factor none of another one, although class and weights are the same."""
    x = torch.stack([torch.full(SHAPE, value) for value in (0.9, 0.1, 0.8)])
    y = torch.tensor([1, 0, 1])
    mean = torch.nn.Linear(20, 2)
    mean.weight.data[:] = torch.tensor([[-1.0], [1.0]]) / 20
    mean.bias.data[:] = torch.tensor([0.5, -0.5])

    class Signed(torch.nn.Module):
        sign = 1.0

        def __init__(self, function=None):
            super().__init__()
            self.inner, self.function = mean, function or (lambda z: z)

        def forward(self, x):
            return self.function(self.sign * self.inner(x.flatten(1)))

    def accuracy(net, factor=1.0):
        net.sign = factor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return vr.robust_accuracy(net, (x, y), "fgsm", eps=0.01, out=tmp_path).accuracy

    body = [torch.nn.Flatten(), mean]
    assert accuracy(torch.nn.Sequential(*body, torch.nn.Softmax(1))) == 1
    assert accuracy(torch.nn.Sequential(*body, torch.nn.Softmin(1))) == 0
    assert (accuracy(Signed()), accuracy(Signed(), -1.0), accuracy(Signed(lambda z: z.flip(1)))) == (1, 0, 0)
    rows = len(read_rows(tmp_path))
    assert (accuracy(Signed()), len(read_rows(tmp_path))) == (1, rows)


OWN_ATTACK = """
from dataclasses import dataclass
from vizrobust.attacks import FGSM, Linf
from vizrobust.spec import spec

SHARE = {share}

@spec
@dataclass(frozen=True)
class Mine(FGSM):
    "A share of the radius."
    def runs(self, model, x):
        return FGSM(ball=Linf(eps=SHARE * self.ball.eps)).runs(model, x)
"""


def test_verdicts_of_a_persons_own_attack_are_those_of_its_code_of_now(own):
    """Margins of .3 and brightness in (.2, .8): a radius of .5 breaks all, a hundredth of it none."""
    path = Path("attacks.py")
    how = {"args": ["--attack", "attacks.py:Mine(ball=Linf(eps=0.5))"]}
    for share, accuracy, new in ((1, 0.0, True), (0.01, 1.0, True), (0.01, 1.0, False)):
        path.write_text(OWN_ATTACK.format(share=share))
        found = attacked(**how, attack=None)
        assert (found[0], found[1] > 0) == (accuracy, new)
        assert ("have changed" in found[2]) == (share < 1 and new)


def test_verdicts_by_transfer_are_those_of_the_source_of_now(tmp_path):
    digits = vr.load_data("mnist5k").test
    x, y = digits.take(torch.arange(12)), digits.labels[:12]
    source = tmp_path / "source.safetensors"
    found = []
    for name in ("mnist-k0", "mnist-k16"):
        checkpoint = vr.load(name)
        save_checkpoint(source, checkpoint.state, checkpoint.info)
        attack = f'Transfer(source="{source}", attack=FGSM(ball=Linf(eps=0.3)))'
        found.append(
            [vr.robust_accuracy("mnist-k0", (x, y), attack, out=out).robust.tolist() for out in (tmp_path / "run", None)]
        )
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]


def test_code_is_a_persons_own_wherever_it_is_imported_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lib/layers.py", "lib/sub/deep.py", "far/elsewhere.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("S = 1\n")
    Path("sizes.json").write_text("[1]")
    for head, file in (
        ("from lib import layers", "lib/layers.py"),
        ("def make(classes):\n    from lib.sub import deep\n    return deep.S", "lib/sub/deep.py"),
        ("import sys; sys.path.insert(0, 'far')\nimport elsewhere as layers", "far/elsewhere.py"),
        ("import json\nlayers = json.load(open('sizes.json'))", "sizes.json"),
    ):
        Path("nets.py").write_text(head + ("\n\ndef make(classes):\n    return layers" if "def make" not in head else ""))
        before, kept = code_sha256("nets.py:make"), Path(file).read_text()
        assert code_sha256("nets.py:make") == before
        Path(file).write_text("2\n")
        assert code_sha256("nets.py:make") != before, head
        Path(file).write_text(kept)


def test_maps_are_those_of_the_background_of_now(own):
    """The colour of a hidden pixel is the mean of the training images: other ones give other maps."""
    how = {"methods": "occlusion", "images": 2, "out": "e"}

    def rows():
        net = vr.load("net.safetensors", "nets.py:Net")
        return vr.explain(net, "npz:mine.npz", **how).rows()

    first = rows()
    assert rows() == first
    np.savez("mine.npz", **{**own, "x_train": own["x_train"] * 0.1})
    other = rows()
    assert [row["deletion"] for row in other] != [row["deletion"] for row in first]


def test_networks_trained_here_keep_their_names():
    """Folders of earlier versions go on: the hash of the weights stands for them."""
    checkpoint = vr.load("mnist-k8")
    assert checkpoint.network_sha256 == checkpoint.sha256
    fresh = checkpoint.untrained("mnist-k8@random")
    assert fresh.network_sha256 == fresh.sha256 != checkpoint.sha256


def test_published_data_have_no_content_to_compare_and_own_data_do(tmp_path):
    assert content_of(load("digits")) == ""
    x, y = np.random.default_rng(0).random((20, 5, 4, 1)), np.arange(20) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    first = load(f"npz:{tmp_path / 'mine.npz'}")
    assert len(content_of(first)) == 16
    assert content_of(first, "test") != content_of(first, "train")
    x[0, 0, 0, 0] += 0.001 if x[0, 0, 0, 0] < 0.5 else -0.001
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    assert content_of(load(f"npz:{tmp_path / 'mine.npz'}"), "test") != content_of(first, "test")


def test_a_run_folder_shows_rows_of_its_content_only(tmp_path):
    with_first = RunFolder(tmp_path, "attack", {}, content="aa")
    with_first.add({"n": 1})
    with_first.close()
    second = RunFolder(tmp_path, "attack", {}, content="bb")
    assert (second.rows(), second.outdated) == ([], 1)
    second.add({"n": 2})
    assert second.rows() == [{"n": 2, "content": "bb"}]
    second.close()
    assert RunFolder(tmp_path, "attack", {}, content="aa").rows() == [{"n": 1, "content": "aa"}]


def test_a_folder_of_images_is_hashed_by_content(tmp_path):
    from PIL import Image

    def write(value):
        for split in ("train", "test"):
            for kind in ("a", "b"):
                folder = tmp_path / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(3):
                    shade = value + number + 100 * (split == "test") + 50 * (kind == "b")
                    Image.fromarray(np.full((9, 8), shade, dtype=np.uint8)).save(folder / f"{number}.bmp")

    write(10)
    first = content_of(load(f"imagefolder:{tmp_path}"))
    assert content_of(load(f"imagefolder:{tmp_path}")) == first
    write(11)  # files of the same names and sizes
    assert content_of(load(f"imagefolder:{tmp_path}")) != first


def test_a_training_on_changed_data_is_another_run(own):
    from vizrobust.compute import Compute
    from vizrobust.training import TrainingRecipe, train

    recipe = TrainingRecipe(arch="nets.py:Net", data="npz:mine.npz", epochs=1, batch_size=20)
    list(train(recipe, load("npz:mine.npz"), Compute("cpu"), "trained", measure=False))
    np.savez("mine.npz", **{**own, "y_train": 1 - own["y_train"]})
    with pytest.raises(ValueError, match="content was"):
        list(train(recipe, load("npz:mine.npz"), Compute("cpu"), "trained", measure=False))
    np.savez("mine.npz", **own)
    Path("nets.py").write_text(CODE.format(sign=-1))
    with pytest.raises(ValueError, match="code was"):
        list(train(recipe, load("npz:mine.npz"), Compute("cpu"), "trained", measure=False))
