"""Every kind of page under axe-core, light and dark, on a desktop and a phone; and how soon a page of 2,000 units is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.digits import save_digits_net
from tests.study_reports import full_report
from tests.test_cli import run
from tests.test_report import CHECKPOINT, make_run
from tests.test_report_exemplars import add_exemplars
from tests.trial_studies import make_study
from vizrobust.report import style, write_gallery
from vizrobust.report.study_page import write_study
from vizrobust.results import Table

pytestmark = pytest.mark.slow
SCREENS = ((1440, 900, "light"), (1440, 900, "dark"), (390, 844, "light"), (390, 844, "dark"))
AXE = "JSON.stringify((await axe.run(document, {resultTypes: ['violations']})).violations)"


@pytest.fixture(scope="module")
def axe() -> str:
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("axe-playwright-python is not installed (extra: test)")
    return Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def a_gallery(folder: Path) -> list[Path]:
    make_run(folder / "run", range(3), seeds=(0, 1))
    make_run(folder / "run", [3], status="dead", trajectory=[])
    add_exemplars(folder / "run", [0, 1])
    return [write_gallery(folder, [folder / "run"], [Table("Clarity", ["measure", "k8"], [["AUC", "0.91"]], "a note")])]


def a_study(folder: Path) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 60)
        return [write_study(folder, full_report(folder, names=("tench", "springer", "church", "truck"), image_seeds=2))]


def a_site(folder: Path) -> list[Path]:
    for name, noise in (("a", 0.0), ("b", 0.3)):
        save_digits_net(folder / f"{name}.safetensors", noise)
    refs = [str(folder / f"{name}.safetensors") for name in "ab"]
    options = ("--units", "0:3", "--steps", "2", "--exemplars", "2", "--exemplar-images", "40", "--adversarial", "1", "--quiet")
    done = run("microscope", *refs, "--layers", "conv1,logits", "--masking", "5", *options, "--out", str(folder / "site"))
    assert done.exit_code == 0, done.output
    return [
        folder / "site" / f"{name}.html" for name in ("index", "layers/conv1", "units/conv1/1", "units/logits/0", "classes/3")
    ]


def trials(folder: Path) -> list[Path]:
    done = run("trials", make_study(folder, hidden=False), "--out", folder / "trials.html", "--trials", 4)
    assert done.exit_code == 0, done.output
    return [folder / "trials.html"]


@pytest.mark.parametrize("make", [a_gallery, a_study, a_site, trials])
def test_axe_finds_nothing_serious(make: Callable[[Path], list[Path]], tmp_path: Path, browser: Any, axe: str) -> None:
    found = []
    for page in make(tmp_path):
        for width, height, scheme in SCREENS:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
            )
            opened = context.new_page()
            opened.goto(page.as_uri())
            opened.evaluate(axe)
            for one in json.loads(opened.evaluate(f"(async () => {AXE})()")):
                where = [(" ".join(node["target"]), node["failureSummary"].splitlines()[-1].strip()) for node in one["nodes"]]
                found.append((page.name, width, scheme, one["impact"], one["id"], len(where), where[:3]))
            context.close()
    serious = [one for one in found if one[3] in ("serious", "critical")]
    assert serious == [], "\n".join(map(str, serious))


def test_a_page_of_2000_units_opens_in_two_seconds(tmp_path: Path, browser: Any) -> None:
    make_run(tmp_path / "run", [0], checkpoints={"k8-a": CHECKPOINT}, trajectory=[])
    rows = tmp_path / "run" / "rows.jsonl"
    (one,) = map(json.loads, rows.read_text().splitlines())
    rows.write_text("".join(json.dumps({**one, "unit": unit}) + "\n" for unit in range(2000)))
    page = write_gallery(tmp_path, [tmp_path / "run"])
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    metrics = opened.context.new_cdp_session(opened)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
    opened.goto(page.as_uri())
    assert opened.locator(".unit").count() == 2000
    spent = {one["name"]: one["value"] for one in metrics.send("Performance.getMetrics")["metrics"]}
    assert spent["TaskDuration"] < 2.0
