"""The site of `microscope`: whole, within itself, made once, and in a browser pictures first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from torch import nn

from tests.conftest import until
from tests.digits import save_digits_net
from tests.test_cli import run
from vizrobust.commands.microscope import microscope as command
from vizrobust.commands.microscope_facts import ATTRIBUTION, UnitScores
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.features import picture_runs
from vizrobust.features.unit_facts import heat_maps, unit_activations
from vizrobust.models import load_checkpoint
from vizrobust.report.microscope import Site
from vizrobust.report.microscope_pages import pages
from vizrobust.requests.pictures import MicroscopeRequest
from vizrobust.results import answer_of
from vizrobust.rng import Streams
from vizrobust.session import Session

OPTIONS = ("--units", "0:3", "--steps", "2", "--exemplars", "2", "--exemplar-images", "40", "--adversarial", "1", "--quiet")


def microscope(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    result = run("microscope", *arguments, *OPTIONS, "--json", "--out", str(folder / "site"))
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of two networks at two layers."""
    folder = tmp_path_factory.mktemp("microscope")
    for name, noise in (("a", 0.0), ("b", 0.3), ("c", 0.6)):
        save_digits_net(folder / f"{name}.safetensors", noise)
    microscope(folder, *(str(folder / f"{name}.safetensors") for name in "ab"), "--layers", "conv1,logits")
    return folder


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r'(?:href|src)="([^"]*)"', text) + re.findall(r"url\(&#39;([^&]*)&#39;\)", text)


def test_every_page_is_there_and_its_links_stay_within_the_site(folder: Path) -> None:
    site = folder / "site"
    pages = {str(page.relative_to(site)) for page in site.rglob("*.html")}
    units = {f"units/{layer}/{unit}.html" for layer in ("conv1", "logits") for unit in range(3)}
    assert pages == {"index.html", "layers/conv1.html", "layers/logits.html", *units, *(f"classes/{n}.html" for n in range(10))}
    images: set[Path] = set()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "http://" not in text
        assert "https://" not in text
        told = re.sub(r"<pre.*?</pre>|<code>.*?</code>", "", text, flags=re.S)  # commands name checkpoints as they were typed
        assert str(folder.parent) not in told
        found = [link for link in links(page) if not link.startswith(("#", "data:"))]
        files = {(page.parent / unquote(link.partition("#")[0])).resolve() for link in found}
        assert all(file.is_file() and file.is_relative_to(site.resolve()) for file in files), page
        images |= {file for file in files if file.suffix == ".png"}
    # The picture, its two seeds, what it dislikes, natural images with their heat, and adversarial examples.
    kinds = {"heat", "attribution", "exemplars", "adversarial", "classes"}
    assert kinds <= {image.relative_to(site.resolve()).parts[1] for image in images}
    assert sum(image.name.endswith("-neg-s0.png") for image in images) == 2 * 2 * 3


def test_what_is_there_is_not_rendered_again_and_a_site_grows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(Path(folder, "site/rows.jsonl").read_text().splitlines())
    assert before == 2 * 2 * 3 * 2 * 2  # checkpoints, layers, units, seeds, signs

    def refused(*_arguments: object, **_options: object) -> None:
        raise AssertionError("rendered again")

    with monkeypatch.context() as patch:
        patch.setattr(picture_runs, "render_batches", refused)
        rows = microscope(folder, *(str(folder / f"{name}.safetensors") for name in "ab"), "--layers", "conv1,logits")
    assert len(rows) == before
    rows = microscope(folder, str(folder / "c.safetensors"), "--layers", "conv1")
    assert len(rows) == 3 * 2 * 2
    site = Site.read(folder / "site")
    assert [one.name for one in site.checkpoints] == ["a.safetensors", "b.safetensors", "c.safetensors"]
    a, _, c = site.checkpoints
    assert site.match(a, a, "conv1", 0) is None
    assert site.match(a, c, "conv1", 0) is not None
    assert "c.safetensors" in (folder / "site/units/conv1/0.html").read_text()
    assert "c.safetensors" not in (folder / "site/units/logits/0.html").read_text().split("<main>")[1]


def test_attribution_of_a_unit_is_exact_where_it_is_linear() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU())
    x = torch.rand(2, 1, 2, 2)
    found = ATTRIBUTION(UnitScores(net, "1", (1, 2, 2)), x, torch.tensor([2, 0]), torch.zeros(1), Streams(0, [0, 1]))
    torch.testing.assert_close(found.flatten(1), x.flatten(1) * net[1].weight[[2, 0]].detach())


def test_a_card_has_the_verdict_that_was_asked_for(folder: Path) -> None:
    site = folder / "site"
    one = Site.read(site).checkpoints[0]
    (site / "facts" / f"masking-{one.id}.json").write_text(json.dumps({"verdict": "no sign of masking", "n": 50}))
    (page,) = [text for path, text in pages(Site.read(site)) if path == "index.html"]
    assert "no sign of masking, by 50 images" in page
    assert page.count("not diagnosed here") == len(Site.read(site).checkpoints) - 1


class Knows:
    """An encoder whose space is the layer itself, with a word for its second unit."""

    name, key = "knows", "1"

    def __init__(self, net: nn.Module) -> None:
        self.scores = UnitScores(net, "conv1", (1, 8, 8))

    def images(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.scores(x)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        noise = 0.1 * Streams(0, texts).normal(16)
        return torch.stack([torch.eye(16)[1] if text == "<b>edge" else noise[place] for place, text in enumerate(texts)])


def test_a_unit_s_page_has_its_word(tmp_path: Path) -> None:
    save_digits_net(tmp_path / "a.safetensors")
    request = MicroscopeRequest(
        models=(str(tmp_path / "a.safetensors"),), layers=("conv1",), units="0:2", steps=1, seeds=1, likes=True, exemplars=1,
        exemplar_images=130, adversarial=0, clip=Knows(load_checkpoint(str(tmp_path / "a.safetensors")).net()), words=["<b>edge"],
    )  # fmt: skip
    for _ in range(2):  # the second time from what is there
        answer_of(command(request, Session(tmp_path / "site", device="cpu")))
        site = Site.read(tmp_path / "site")
        (known,) = site.checkpoints
        found = site.word(known, "conv1", 1)
        assert (found["word"], found["by"], found["auc"]) == ("<b>edge", "knows", 1.0)
        page = (tmp_path / "site" / "units" / "conv1" / "1.html").read_text(encoding="utf-8")
        assert "<p>&lt;b&gt;edge 1.00 (" in page
        assert "images held out, by knows" in page
    assert ("<h3>Label</h3>" in (tmp_path / "site/units/conv1/0.html").read_text()) == bool(site.word(known, "conv1", 0))


def test_activations_and_heat_are_those_of_the_map() -> None:
    conv = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        conv.bias.zero_()
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(32, 3))
    images = torch.zeros(3, 1, 4, 4)
    images[1, 0, 0, 3] = 0.5
    images[2, 0, 2, 0] = 1.0
    split, compute = ArraySplit(images, torch.zeros(3, dtype=torch.int64)), Compute("cpu")
    found = unit_activations(net, "0", split, shape=(1, 4, 4), compute=compute)
    torch.testing.assert_close(found, torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1))
    heat = heat_maps(net, "0", {0: [2, 1], 1: [1]}, split, shape=(1, 4, 4), compute=compute)
    assert float(heat[0].max()) == 1.0
    first, second = heat[0]
    assert divmod(int(first.argmax()), 32)[0] // 8 == 2
    assert divmod(int(second.argmax()), 32)[1] // 8 == 3
    assert float(second.max()) == pytest.approx(0.5, abs=0.05)  # smoothed
    assert float(heat[1].max()) == 0.0


def test_a_browser_shows_pictures_first_and_keys_change_the_network(folder: Path, browser: Any) -> None:
    for width, height in ((1440, 900), (390, 844)):
        context = browser.new_context(viewport={"width": width, "height": height})
        page, asked, problems = context.new_page(), [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, problems=problems: problems.append(message.text))
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        for name in ("index", "layers/conv1", "units/conv1/1", "classes/2"):
            page.goto((folder / "site" / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
            boxes = "[...document.images].map(one => one.getBoundingClientRect())"
            assert page.evaluate(f"{boxes}.some(one => one.width >= 160 && one.top + 160 <= innerHeight)"), name
        page.goto((folder / "site/units/conv1/1.html").as_uri())
        shown = page.locator(".big .part:visible img")
        last = shown.get_attribute("src")
        page.keyboard.press("ArrowLeft")
        assert shown.get_attribute("src") != last
        assert "#" in page.url
        page.evaluate("const s = document.getElementById('slider'); s.value = s.max; s.dispatchEvent(new Event('input'))")
        assert shown.get_attribute("src") == last
        until(page, "document.querySelector('.big .part:not([hidden]) img').naturalWidth > 0")
        page.keyboard.press("n")
        page.wait_for_url("**/2.html*")
        page.goto((folder / "site/layers/conv1.html").as_uri() + "#sort=score&units=0%3A2")
        assert page.locator(".unit:visible").count() == 2
        page.locator(".unit:visible .tile").first.click()
        page.wait_for_url("**/units/conv1/*")
        assert problems == []
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
        context.close()
