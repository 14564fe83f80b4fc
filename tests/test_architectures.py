"""From an architecture reference to a network: our own, torchvision's, and the user's code."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.test_checkpoints import INFO
from vizrobust.models import architecture, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.models.references import code_sha256, is_user_code

SHAPE = (3, 9, 12)
CODE = """
import torch
from torch import nn

def nothing():
    return nn.Sequential(nn.Flatten(), nn.Linear(324, 5))

def one(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(324, classes))

def two(shape, classes, width=4):
    return nn.Sequential(nn.Conv2d(shape[0], width, 3), nn.Flatten(), nn.Linear(width * (shape[1] - 2) * (shape[2] - 2), classes))

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = one(classes)

    def forward(self, x):
        return self.body(x)

def three(shape, classes, depth):
    return one(classes)

def text():
    return "a network"

number = 7
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("name", ["nothing", "one", "two", "Net"])
def test_user_code_takes_none_one_or_two_arguments(code, name):
    net = architecture(f"{code}:{name}", SHAPE, 5)()
    assert isinstance(net, nn.Module)
    assert net(torch.rand(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("three", ValueError, r"three needs 3 arguments; it may take none, \(classes\) or \(shape, classes\)"),
        ("text", ValueError, r"text returned str, not a torch.nn.Module"),
        ("number", ValueError, r"no callable in .*mine.py 'number'"),
        ("nett", ValueError, r"no callable in .*mine.py 'nett'; did you mean .*Net"),
    ],
)
def test_user_code_that_does_not_fit_is_refused(code, name, error, sentence):
    with pytest.raises(error, match=sentence):
        architecture(f"{code}:{name}", SHAPE, 5)()


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no file 'absent.py' \(from absent.py:net\)"):
        architecture("absent.py:net", SHAPE, 5)


def test_references_of_user_code():
    assert is_user_code("some/folder/mine.py:Net")
    assert not is_user_code("torchvision:resnet18")
    assert code_sha256("small_cnn") == ""


def test_unknown_architectures_name_the_nearest():
    with pytest.raises(ValueError, match=r"no architecture 'smal_cnn'; did you mean small_cnn"):
        architecture("smal_cnn", SHAPE, 5)
    with pytest.raises(ValueError, match=r"no torchvision model 'resnet19'; did you mean resnet1"):
        architecture("torchvision:resnet19", SHAPE, 5)


def test_torchvision_offers_classifiers_of_three_channels():
    with pytest.raises(ValueError, match=r"takes 3 channels, these images have 1; use small_cnn or resnet_small"):
        architecture("torchvision:resnet18", (1, 28, 28), 10)
    with pytest.raises(ValueError, match="no torchvision model 'fcn_resnet50'"):  # it segments
        architecture("torchvision:fcn_resnet50", SHAPE, 5)
    net = architecture("torchvision:squeezenet1_1", (3, 40, 36), 5)().eval()
    assert net(torch.rand(2, 3, 40, 36)).shape == (2, 5)


def test_timm_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 needs the timm package: pip install 'vizrobust\[timm\]'"):
        architecture("timm:resnet18", SHAPE, 5)


@pytest.fixture
def with_code(tmp_path, code):
    """A checkpoint whose network is the user's code."""
    ref = f"{code}:two"
    path = tmp_path / "net.safetensors"
    state = body_state(architecture(ref, SHAPE, 5)())
    save_checkpoint(path, state, replace(INFO, arch=ref, arch_sha256=code_sha256(ref)))
    return path, ref


def test_a_checkpoint_with_user_code_loads_only_when_the_code_is_named_again(with_code):
    path, ref = with_code
    with pytest.raises(ValueError, match=r"needs your code: give arch .*mine.py:two again"):
        load_checkpoint(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(str(path), arch=ref).net()(torch.rand(2, *SHAPE)).shape == (2, 5)


def test_changed_user_code_is_warned_of(with_code, code):
    path, ref = with_code
    code.write_text(CODE + "\n# another comment\n\ndef unrelated():\n    return 3\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that the network reaches has changed
        load_checkpoint(str(path), arch=ref)
    code.write_text(CODE.replace("width=4", "width=5"))
    with pytest.warns(UserWarning, match="has changed since"):
        load_checkpoint(str(path), arch=ref)


def test_user_code_of_another_name_runs_nothing_when_refused(with_code, code):
    path, _ = with_code
    code.write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="needs your code"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("ref", ["torchvision:vit_b_32", "timm:vit_tiny_patch16_224"])
def test_a_transformer_is_built_for_the_size_of_the_images(ref):
    if ref.startswith("timm"):
        pytest.importorskip("timm")
    assert architecture(ref, (3, 64, 64), 5)()(torch.rand(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 50), ("maxvit_t", 64)])
def test_a_transformer_that_cannot_be_built_for_a_size_is_refused_with_both(name, side):
    with pytest.raises(ValueError, match=f"{name} is made for 224 x 224 pixels; .* these images have {side} x {side}"):
        architecture(f"torchvision:{name}", (3, side, side), 5)
