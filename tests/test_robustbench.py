"""A file of RobustBench's model zoo and the zoo's class, from a stand-in for their package that cannot be imported whole."""

from __future__ import annotations

import sys

import pytest
import torch

from vizrobust.models import architecture
from vizrobust.models.importing import convert, task

ZOO = """
from collections import OrderedDict
from torch import nn
class Name:
    def __init__(self, value): self.value = value
class Rice2020(nn.Module):
    def __init__(self, name="x"):
        super().__init__(); self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    def forward(self, x): return self.body((x - .5) / .2)
one = {"Rice2020": {"model": Rice2020}, "Only": {"model": lambda: Rice2020()}}
model_dicts = {Name("cifar10"): {Name("Linf"): one, Name("L2"): {"Rice2020": {"model": Rice2020}}}}
"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    package = tmp_path / "site" / "robustbench" / "model_zoo"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("import a_module_that_is_gone")
    (package / "__init__.py").write_text(ZOO)
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("zoo")
def test_a_file_of_robustbench_is_imported_with_the_zoos_class_and_no_normalization(tmp_path):
    net = architecture("robustbench:L2/Rice2020", (3, 2, 2), 10)()
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "net.pt")
    found = convert(tmp_path / "net.pt", "robustbench:L2/Rice2020", task(shape="3,2,2", classes="10")).checkpoint
    x = torch.rand(7, 3, 2, 2)
    torch.testing.assert_close(found.net()(x), net(x))
    assert architecture("robustbench:Only", (3, 2, 2), 10)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("ref", "classes", "sentence"),
    [
        ("robustbench:Rice2020", 10, "Rice2020 is in Linf and L2; write robustbench:Linf/Rice2020"),
        ("robustbench:Rice2021", 10, "no network of RobustBench for cifar10 'Rice2021'; did you mean Rice2020"),
        ("robustbench:Rice2020", 7, "has 10, 100 or 1000 classes, these images have 7"),
    ],
)
def test_names_that_the_zoo_does_not_have_alone(ref, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        architecture(ref, (3, 2, 2), classes)
