"""What training ends with: the weights whose accuracies the card states, a state that is whole, and no silent failure."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from tests.test_training import RECIPE, run_all, same_weights, tiny, trainer
from tests.test_training_methods import EVERY, of
from vizrobust.attacks import PGD, Linf
from vizrobust.cli import main
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet
from vizrobust.models import load_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.report.training_report import model_card
from vizrobust.robustness.evaluation_runs import reference_accuracies
from vizrobust.training import MultiAttack, TrainingRecipe, loop, train
from vizrobust.training.methods import alignment
from vizrobust.training.training_runs import PART_FILE, STATE_FILE

EPOCHS = 4
ADVERSARIAL = {
    "standard": replace(RECIPE, eps_ramp=0),
    "adversarial": replace(RECIPE, attack=PGD(steps=2, ball=Linf(eps=0.1)), eps_ramp=0),
    "several": replace(
        RECIPE, attack=MultiAttack((PGD(steps=1, ball=Linf(eps=0.1)), PGD(steps=2, ball=Linf(eps=0.2))), "max"), eps_ramp=0
    ),
}
METHODS = [*ADVERSARIAL, *EVERY]
# What the monitoring sees in the epochs of a teacher, the best of all, and in those of the network that is kept.
TEACHER = [(0.95, 0.9)] * EPOCHS
KEPT = [(0.3, 0.3), (0.6, 0.5), (0.9, 0.2), (0.95, 0.1)]
RULES: dict[str, tuple[dict[str, Any], int]] = {  # and the epoch of the last stage whose weights are kept
    "none": ({}, 4),
    "early stopping": ({"early_stopping": 1}, 2),
    "patient early stopping": ({"early_stopping": 9}, 2),
    "until clean": ({"until_clean": 0.9}, 3),
    "until clean and early stopping": ({"until_clean": 0.9, "early_stopping": 2}, 2),
    "stop at a collapse": ({"on_collapse": "stop"}, 2),
    "stop at a collapse, early stopping": ({"on_collapse": "stop", "early_stopping": 9}, 2),
}


pytestmark = pytest.mark.usefixtures("short_tests")


def recipe_of(name: str, **changes: Any) -> TrainingRecipe:
    changes = {"epochs": EPOCHS, "batch_size": 10, **changes}
    return replace(ADVERSARIAL[name], **changes) if name in ADVERSARIAL else of(name, **changes)


def shipped_cases() -> Iterator[Any]:
    """Every method with each rule. Early stopping stands for the rules, two methods of one and two stages for the methods."""
    for name, (rule, ema) in product(METHODS, [*((rule, None) for rule in RULES), ("early stopping", 0.5)]):
        held = (rule, ema) == ("early stopping", None) or name in ("adversarial", "Distillation")
        yield pytest.param(name, rule, ema, marks=[] if held else pytest.mark.slow)


@pytest.mark.parametrize(("name", "rule", "ema"), list(shipped_cases()))
def test_the_shipped_weights_are_those_of_the_stated_accuracies(
    name: str, rule: str, ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, kept_epoch = RULES[rule]
    recipe = recipe_of(name, ema=ema, **changes)
    if recipe.attack is None and rule == "stop at a collapse":
        kept_epoch = 4  # without an attack nothing collapses
    told = [*TEACHER * (recipe.training_method.stages - 1), *KEPT]
    seen: list[dict[str, Tensor]] = []

    def monitored(net: nn.Module, *_: object) -> dict[str, Any]:
        seen.append({key: value.clone() for key, value in body_state(net).items()})
        return dict(zip(("val_clean", "val_robust"), told[len(seen) - 1], strict=True))

    monkeypatch.setattr(loop, "accuracies", monitored)
    data, compute = tiny(), Compute("cpu")
    run_all(recipe, tmp_path / "run", compute, data)
    checkpoint = load_checkpoint(str(tmp_path / "run"), recipe.arch)
    expected = seen[(recipe.training_method.stages - 1) * EPOCHS + kept_epoch - 1]
    assert same_weights(checkpoint.state, expected)
    assert sum(same_weights(checkpoint.state, one) for one in seen) == 1, "no other epoch has these weights"
    metrics = reference_accuracies(checkpoint.net(), data, compute, steps=2)
    assert checkpoint.info.metrics == metrics
    assert f"| clean | {100 * metrics['clean']:.1f} % |" in model_card(checkpoint)


def test_distillation_stopped_in_the_student_resumes_to_the_same_student(tmp_path: Path) -> None:
    recipe = recipe_of("Distillation", early_stopping=1, until_clean=1.0)
    compute = Compute("cpu")
    rows, expected = run_all(recipe, tmp_path / "whole", compute)
    assert len(rows) > EPOCHS, "the teacher's epochs end nothing"
    for item in train(recipe, tiny(), compute, tmp_path / "parts"):
        if isinstance(item, dict) and item["epoch"] == EPOCHS + 1:
            break
    _, found = run_all(recipe, tmp_path / "parts", compute)
    assert same_weights(found, expected)


CODE = """
import torch
from torch import nn

class Roots(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        return self.linear(((x + x.abs()) / 2).sqrt().flatten(1))  # its gradient is NaN wherever x is below 0

def roots(shape, classes):
    return Roots(shape[0] * shape[1] * shape[2], classes)

def one_pixel(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes)
    )

class Constant(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.bias = nn.Parameter(50 * torch.eye(classes)[2])

    def forward(self, x):
        return x.flatten(1)[:, :1] * 0 + self.bias

def constant(shape, classes):
    return Constant(classes)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    return str(path)


@pytest.mark.parametrize("awp", [0.0, 0.01])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_that_are_not_finite_count_as_zero(name: str, awp: float, code: str) -> None:
    here = trainer(recipe_of(name, arch=f"{code}:roots", epochs=1, awp=awp))
    x = here.data.train.take(torch.arange(8)).requires_grad_()
    (gradient,) = torch.autograd.grad(here.net(x).sum(), x)
    assert gradient.isnan().any()
    assert gradient.isfinite().any()
    list(here.run_epoch())
    assert all(value.isfinite().all() for value in here.net.state_dict().values())
    if here.recipe.attack is not None and name != "several":
        assert here.metrics[0]["delta_linf"] > 0, "pixels with a gradient move"


def test_alignment_leaves_out_images_whose_gradient_is_not_finite(code: str) -> None:
    net = trainer(recipe_of("GradAlign", arch=f"{code}:roots")).net
    inside = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.9
    near, y = (inside + 0.05).clamp(max=1), torch.tensor([0, 1, 2])
    assert torch.isfinite(torch.autograd.grad(net(one := inside.clone().requires_grad_()).sum(), one)[0]).all()
    expected = alignment(net, inside, near, y)
    x = torch.cat((inside[:1], torch.zeros(1, 3, 8, 12), inside[1:]))
    found = alignment(net, x, torch.cat((near[:1], near[:1], near[1:])), torch.tensor([0, 3, 1, 2]))
    assert torch.allclose(found[[0, 2, 3]], expected)
    assert found[1] == 1
    found.sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("file", [STATE_FILE, PART_FILE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_with_numbers_that_are_not_finite_is_refused(file: str, value: float, tmp_path: Path) -> None:
    compute, recipe = Compute("cpu"), replace(RECIPE, epochs=3)
    for item in train(recipe, tiny(), compute, tmp_path, checkpoint_every=1):
        if not isinstance(item, dict) and (item.epoch, item.batch) == (3, 2):
            break
    state = torch.load(tmp_path / file, weights_only=True)
    next(iter(state["optimizer"]["state"].values()))["exp_avg"][0] = value
    torch.save(state, tmp_path / file)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"}
    with pytest.raises(
        ValueError, match=rf"{file}' holds NaN or infinity in optimizer\.state\.\d+\.exp_avg; remove '.*' and run"
    ):
        next(train(recipe, tiny(), compute, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"} == before
    (tmp_path / file).unlink()
    first = next(train(recipe, tiny(), compute, tmp_path))
    assert not isinstance(first, dict)
    assert (first.epoch, first.batch) == ((1, 1) if file == STATE_FILE else (3, 1))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a state", None])
def test_a_damaged_state_is_named(content: bytes | None, tmp_path: Path) -> None:
    compute = Compute("cpu")
    for item in train(RECIPE, tiny(), compute, tmp_path):
        if isinstance(item, dict):
            break
    whole = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"state.pt' is damaged and holds no state of a training run; remove '") as error:
        next(train(RECIPE, tiny(), compute, tmp_path))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_last_batch_of_one_image_trains(name: str, code: str, tmp_path: Path) -> None:
    recipe = recipe_of(name, arch=f"{code}:one_pixel", batch_size=19, epochs=2)  # of 20 images
    rows, state = run_all(recipe, tmp_path / "run", Compute("cpu"))
    assert rows[0]["gradient_passes"] > 0
    assert all(value.isfinite().all() for value in state.values())
    assert trainer(recipe).batches == 1
    assert trainer(replace(recipe, batch_size=9)).batches == 3, "a last batch of two stays"
    assert trainer(replace(recipe, arch="small_cnn")).batches == 2, "without BatchNorm one image is a batch"


def test_single_images_under_batchnorm_are_refused_in_a_sentence(code: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, arch=f"{code}:one_pixel", batch_size=1)
    with pytest.raises(
        ValueError, match=r"BatchNorm over maps of one pixel, which needs batches of two images or more; batch_size is 1"
    ):
        next(train(recipe, tiny(), Compute("cpu"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_network_that_predicts_one_class_is_named(code: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, arch=f"{code}:constant", epochs=1)
    rows, _ = run_all(recipe, tmp_path / "run", Compute("cpu"))
    assert rows[0]["constant_prediction"] == "c"
    checkpoint = load_checkpoint(str(tmp_path / "run"), recipe.arch)
    assert checkpoint.info.metrics["constant_prediction"] == "c"
    assert "The network predicts one class, `c`, for every test image." in model_card(checkpoint)
    rows, _ = run_all(RECIPE, tmp_path / "sound", Compute("cpu"))
    assert not any("constant_prediction" in row for row in rows[1:])


def test_the_command_names_a_constant_prediction(code: str, tmp_path: Path) -> None:
    command = ["train", "--data", "digits", "--arch", f"{code}:constant", "--steps", "0", "--epochs", "2", "--watch", "30"]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("predicts class '2' for every watched image") == 1
    assert "predicts class '2' for every test image: training collapsed to one class" in done.stderr


def test_a_state_that_is_code_is_not_run_and_torch_does_not_advise_to(tmp_path: Path) -> None:
    for item in train(RECIPE, tiny(), Compute("cpu"), tmp_path):
        if isinstance(item, dict):
            break
    (tmp_path / STATE_FILE).write_bytes(pickle.dumps(Touch(str(tmp_path / "ran")), protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"state.pt' is damaged and holds no state of a training run") as error:
            list(train(RECIPE, tiny(), Compute("cpu"), tmp_path))
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


class Touch:
    """Pickled, a command that makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_images_that_are_too_small_for_the_network_are_refused_with_their_size(tmp_path: Path) -> None:
    x = torch.rand(12, 1, 2, 2)
    split = ArraySplit(x, torch.arange(12) % 3)
    data = DataSet("small", ("a", "b", "c"), (1, 2, 2), split, split, split, 0.1)
    with pytest.raises(ValueError, match=r"small_cnn cannot take images of 2 x 2 pixels and 1 channel \("):
        list(train(replace(RECIPE, arch="small_cnn"), data, Compute("cpu"), tmp_path))
