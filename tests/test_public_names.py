"""The names of `import vizrobust`: all found, and none of them loads torch before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vizrobust


def test_every_public_name_is_found_where_it_is_said_to_live():
    assert set(vizrobust._HOME) == set(vizrobust.__all__)
    for name in vizrobust.__all__:
        assert getattr(vizrobust, name) is not None
    assert set(vizrobust.__all__) <= set(dir(vizrobust))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        vizrobust.rendr  # noqa: B018


def test_help_does_not_load_torch():
    code = (
        "import sys; from vizrobust.cli import main; main(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "neurons" in done.stdout


def test_every_public_name_has_an_example_that_runs():
    """The doctests of the package run it; here it must be there, for all that `import vizrobust` and the catalogues offer."""
    from vizrobust import api
    from vizrobust.attacks import ATTACKS, BALLS, UNFORESEEN
    from vizrobust.clarity import METRICS
    from vizrobust.features import OPTIMIZERS, PARAMETRIZATIONS, RECIPES, TRANSFORMS
    from vizrobust.features.objectives import OBJECTIVES
    from vizrobust.robustness.corruptions import CORRUPTIONS
    from vizrobust.training import METHODS

    offered = {name: getattr(vizrobust, name) for name in vizrobust.__all__}
    offered["study"] = api.study  # the name is also the package's
    for catalogue in (ATTACKS, BALLS, UNFORESEEN, OPTIMIZERS, PARAMETRIZATIONS, RECIPES, TRANSFORMS, OBJECTIVES, METHODS):
        offered |= {f"{name} ({thing.__module__})": thing for name, thing in catalogue.items() if callable(thing)}
    assert [name for name, thing in offered.items() if ">>>" not in (thing.__doc__ or "")] == []
    assert [name for name, metric in METRICS.items() if not metric.title] == []
    assert [name for name, corruption in CORRUPTIONS.items() if not corruption.__doc__] == []
