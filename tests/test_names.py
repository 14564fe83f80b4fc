"""Misspelt names are refused before torch is imported, in the sentence that the library has for them."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

from vizrobust import plugins
from vizrobust.attacks import NAMES, parse_attack
from vizrobust.commands.catalogues import text
from vizrobust.data import DATA, load
from vizrobust.features import parse_recipe
from vizrobust.features.recipes import RECIPES
from vizrobust.models import load_checkpoint
from vizrobust.plugins import check_names
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.requests.pictures import NeuronsRequest


def test_the_names_are_those_of_the_catalogues():
    assert tuple(DATA) == plugins.DATA
    assert tuple(NAMES) == plugins.ATTACKS
    assert (*RECIPES, "Recipe") == plugins.RECIPES


def test_the_record_of_list_is_what_the_catalogues_say():
    shipped = resources.files("vizrobust").joinpath("commands", "catalogues.json").read_text(encoding="utf-8")
    assert shipped == text() + "\n", "run: python -m vizrobust.commands.catalogues > vizrobust/commands/catalogues.json"


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "attacks", "PGD"], ["help", "study"]])
def test_a_command_that_only_answers_about_the_program_imports_no_torch(arguments):
    code = (
        f"import sys; from vizrobust.cli import main; main({arguments}, standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("read", "text", "asked"),
    [
        (load, "mnist5kk", {"data": "mnist5kk"}),
        (load, "mnist5kk", {"data": "shuffled:mnist5kk@rgb"}),
        (load, "cifar@64", {"data": "cifar@64"}),
        (load, "mine.npz", {"data": "mine.npz"}),
        (load_checkpoint, "mnist-k99", {"models": ("mnist-k8", "mnist-k99")}),
        (load_checkpoint, "mnist-k99", {"models": ("mnist-k99@random",)}),
        (parse_attack, "pgdd", {"attacks": ("fgsm", "pgdd")}),
        (parse_attack, "pgdd(steps=7)", {"attacks": ("pgdd(steps=7)",)}),
    ],
)
def test_a_misspelt_name_is_refused_as_by_what_reads_it(read, text, asked):
    with pytest.raises(ValueError, match=r"^no ") as expected:
        read(text)
    with pytest.raises(ValueError, match=r"^no ") as found:
        check_names(AttackRequest(**{"models": ("mnist-k8",)} | asked))
    assert str(found.value) == str(expected.value)


def test_a_misspelt_recipe_is_refused_as_by_what_reads_it():
    with pytest.raises(ValueError, match=r"^no ") as expected:
        parse_recipe("plane(steps=3)")
    with pytest.raises(ValueError, match=r"^no ") as found:
        check_names(NeuronsRequest(recipe="plane(steps=3)"))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"data": "MNIST5K"},
        {"data": "imagenette@96"},
        {"data": "digits@rgb"},
        {"data": "npz:not-there.npz"},
        {"data": "mine.py:make"},
        {"models": ("torchvision:resnet18", "timm:x@random", "runs/mine", "mine.safetensors", "mnist-k0@random")},
        {"attacks": ("pgd", "Standard", "ISM(steps=2)", "PGD(ball=l2(eps=8/255))", "my.py:Mine", "not a ( spec")},
    ],
)
def test_what_may_be_a_name_elsewhere_is_left_to_what_reads_it(asked):
    check_names(AttackRequest(**{"models": ("mnist-k8",)} | asked))


def test_a_run_folder_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no model 'mine'"):
        check_names(AttackRequest(models=("mine",)))
    (tmp_path / "mine").mkdir()
    check_names(AttackRequest(models=("mine", "mine@random")))


def test_torch_is_not_imported_for_a_misspelt_name():
    code = """
import sys
from vizrobust.cli import main
for args in (["attack", "mnist-k0", "--data", "mnist5kk"], ["attack", "mnist-k00"], ["attack", "mnist-k0", "--attack", "pgdd"],
             ["neurons", "mnist-k0", "--recipe", "plane"],
             ["train", "--data", "mnist5kk", "--arch", "small_cnn", "--steps", "0"]):
    try:
        main(args)
    except SystemExit as error:
        print(error.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["1 False"] * 5, done.stderr
    assert "no data set 'mnist5kk'; did you mean mnist5k" in done.stderr
