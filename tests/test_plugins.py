"""Things of other packages and of a person's own file: found by name, checked, and never run because a file names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import vizrobust as vr
from tests.test_cli import run
from vizrobust import plugins, testing
from vizrobust.attacks import PGD, parse_attack
from vizrobust.clarity import METRICS
from vizrobust.clarity.judges import judges_for
from vizrobust.commands.catalogues import entries
from vizrobust.compute import Compute, versions
from vizrobust.data import load
from vizrobust.features import PARAMETRIZATIONS, TRANSFORMS, Logit, parse_objective, parse_recipe, render
from vizrobust.models import architecture
from vizrobust.plugins import Catalogue, quoted_references

EXAMPLE = Path(__file__).with_name("example_package")
OWN_FILE = """
from dataclasses import dataclass
from vizrobust_example import OtherPGD, stripes, one_layer, example_judge, brightness
from vizrobust.spec import spec

@spec
@dataclass(frozen=True)
class Mine(OtherPGD):
    steps: int = 2

half = 5
"""


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(plugins, "_used", {})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(OWN_FILE)
    return tmp_path / "my.py"


def test_an_installed_package_s_things_are_found_by_name() -> None:
    attack = parse_attack("otherpgd(steps=2)")
    assert repr(attack) == "OtherPGD(steps=2)"
    testing.check_attack(attack)
    objective = parse_objective("Contrast('conv2') - 0.1 * TotalVariation")
    assert "Contrast" in repr(objective)
    testing.check_objective(parse_objective("Contrast('conv2')"))
    recipe = parse_recipe(
        "Recipe('sig', parametrization=Sigmoid(deviation=0.2), optimizer=Adam(), transforms=(Jitter(), Invert()), steps=2)"
    )
    testing.check_parametrization(recipe.parametrization)
    testing.check_transform(recipe.transforms[1])
    assert parse_recipe(repr(recipe)) == recipe
    (picture,) = render(testing.network(), Logit(), [1], recipe, shape=testing.SHAPE)
    assert picture.image.isfinite().all()
    assert PARAMETRIZATIONS.lookup("sigmoid", "parametrization") is type(recipe.parametrization)
    assert TRANSFORMS.lookup("Invert", "transform") is type(recipe.transforms[1])
    metric = METRICS.lookup("brightness", "metric")
    testing.check_metric(metric, torch.rand(3, 1, 8, 8))
    assert architecture("one_layer", (1, 8, 8), 2)()(torch.rand(3, 1, 8, 8)).shape == (3, 2)
    data = load("stripes:30")
    assert (data.name, len(data.train)) == ("stripes:30", 30)
    assert load("shuffled:stripes").name == "shuffled:stripes"
    assert versions()["vizrobust-example"] == "1.0"


def test_list_shows_and_describes_an_installed_package_s_things() -> None:
    """Without loading the package, until one of its things is asked about."""
    sys.modules.pop("vizrobust_example", None)
    for kind, name in (("attacks", "OtherPGD"), ("archs", "one_layer"), ("data", "stripes"), ("judges", "example-judge")):
        assert entries()[kind][name].what == "of the package vizrobust-example"
    assert "vizrobust_example" not in sys.modules
    assert "steps" in run("list", "attacks", "otherpgd").stdout
    assert "brightness" in run("list", "metrics", "brightness").stdout
    assert vr.help("OtherPGD").title == "OtherPGD"
    assert vr.help("PGD").note.startswith("Projected gradient descent")


def test_an_installed_judge_judges() -> None:
    from vizrobust_example import example_judge

    (judge,) = judges_for(
        "stripes", [_other(example_judge())], Compute("cpu"), ["example-judge"], builtin=False, independent=True
    )
    assert judge(torch.rand(4, 1, 8, 8)).logits.shape == (4, 2)


def _other(checkpoint):
    return checkpoint.untrained("other")


def test_a_file_s_things_are_found_where_a_person_names_them(own: Path) -> None:
    attack = parse_attack("my.py:Mine(steps=4)", typed=True)
    assert repr(attack) == '"my.py:Mine"(steps=4)'
    assert parse_attack(repr(attack)) == attack, "once a person has named it"
    testing.check_attack(attack)
    assert parse_attack("EOT(attack=my.py:Mine, samples=1)", typed=True).attack == type(attack)()
    assert architecture("my.py:one_layer", (1, 8, 8), 2)()(torch.rand(1, 1, 8, 8)).shape == (1, 2)
    assert load("my.py:stripes:24", typed=True).name == "my.py:stripes:24"
    assert METRICS.lookup("my.py:brightness", "metric", typed=True).title == "Mean brightness"
    assert versions()["my.py:Mine"] == plugins.used()["my.py:Mine"]


@pytest.mark.parametrize(
    "run",
    [
        lambda: parse_attack("my.py:Mine(steps=4)"),
        lambda: parse_attack('"my.py:Mine"(steps=4)'),
        lambda: parse_attack('EOT(attack="my.py:Mine"())'),
        lambda: load("my.py:stripes"),
        lambda: METRICS.lookup("my.py:brightness", "metric"),
    ],
)
def test_code_that_a_file_names_never_runs(own: Path, run) -> None:
    own.write_text("open('ran', 'w')")
    with pytest.raises(ValueError, match=r"'my.py:\w+' is code of a file, which runs only where a person names it"):
        run()
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("my.py:Min", ValueError, "no callable in my.py 'Min'; did you mean Mine"),
        ("my.py:half", ValueError, "my.py:half is a int, not a class or function to call"),
        ("missing.py:Mine", FileNotFoundError, "no file 'missing.py' (from missing.py:Mine)"),
        ("broken.py:Mine", ValueError, "'broken.py' stopped with ZeroDivisionError"),
        ("my.py:one_layer((1, 8, 8), 2)", ValueError, "is not an attack"),
        ("my.py:Mine(stps=2)", ValueError, "no field of Mine 'stps'; did you mean steps"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(own: Path, text: str, error: type, said: str) -> None:
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(error) as raised:
        parse_attack(text, typed=True)
    assert said in str(raised.value)


def test_a_changed_file_runs_anew(own: Path) -> None:
    assert parse_attack("my.py:Mine", typed=True).steps == 2
    own.write_text(OWN_FILE.replace("steps: int = 2", "steps: int = 9"))
    assert parse_attack("my.py:Mine", typed=True).steps == 9


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vizrobust_example", None)
    with pytest.raises(ValueError, match=r"'OtherPGD' of the package vizrobust-example cannot be loaded \(ModuleNotFoundError"):
        parse_attack("OtherPGD")


def test_a_built_in_name_is_never_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "find", lambda *_args, **_more: pytest.fail("asked"))
    assert parse_attack("pgd") == PGD()


def test_an_unknown_name_suggests_installed_ones_too() -> None:
    with pytest.raises(ValueError, match="did you mean brightness"):
        METRICS.lookup("brightnes", "metric")


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("dir/my.py:A", '"dir/my.py:A"()'),
        ("../my.py:A(ball=Linf(eps=8/255))", '"../my.py:A"(ball=Linf(eps=8/255))'),
        ("EOT(attack=a-b.py:A (), samples=2)", 'EOT(attack="a-b.py:A"(), samples=2)'),
        ('"my.py:A"(steps=3)', '"my.py:A"(steps=3)'),
        ("Transfer(source='my.py:net')", "Transfer(source='my.py:net')"),
        ("2*my.py:A+b.py:B", '2*"my.py:A"()+"b.py:B"()'),
    ],
)
def test_the_shell_form_is_quoted(text: str, quoted: str) -> None:
    assert quoted_references(text) == quoted
