"""The natural scale: known amounts of structure are found again, and judges that see nothing are left out."""

import sys

import numpy as np
import pytest
import torch

from vizrobust.clarity import Judge, NaturalScale, natural_clarity, natural_scale, phases_scrambled
from vizrobust.clarity.natural_scale import COHERENCES, degraded, recorded_scales
from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.rng import Streams


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals of means over a few units; their width is known after a hundred draws."""
    monkeypatch.setattr(sys.modules["vizrobust.clarity.natural_scale"], "RESAMPLES", 100)


def photographs(n: int = 12) -> torch.Tensor:
    """Images with edges: (n, 3, 24, 20)."""
    draw = Streams(0, range(n), "photographs")
    x = draw.uniform(3, 6, 5)
    return torch.nn.functional.interpolate(x, (24, 20), mode="nearest")


def test_scrambling_moves_phases_alone():
    x = photographs()
    streams = Streams(0, range(len(x)), "scale")
    # Without the clip the magnitudes are those of the image, whatever the coherence.
    raw = torch.fft.rfft2(x)
    for coherence in (0.0, 0.5, 1.0):
        noise = torch.fft.rfft2(Streams(0, range(len(x)), "scale").normal(1, 24, 20)).angle()
        turned = raw * torch.exp(1j * (1 - coherence) * noise)
        turned[..., 0, 0] = raw[..., 0, 0]
        expected = torch.fft.irfft2(turned, s=(24, 20)).clamp(0, 1)
        torch.testing.assert_close(phases_scrambled(x, coherence, Streams(0, range(len(x)), "scale")), expected)
    whole = phases_scrambled(x, 0.0, streams)
    assert abs(float((whole - whole.mean()).flatten() @ (x - x.mean()).flatten())) < 0.2 * float(((x - x.mean()) ** 2).sum())
    # An image's result does not depend on the images beside it.
    alone = phases_scrambled(x[3:4], 0.4, Streams(0, [3], "scale"))
    torch.testing.assert_close(phases_scrambled(x, 0.4, Streams(0, range(len(x)), "scale"))[3:4], alone)


def test_degraded_images_lose_what_they_should():
    x, streams = photographs(), Streams(0, range(12), "scale")
    assert float(degraded(x, "blur", 0.5, streams).var()) < 0.5 * float(x.var())
    assert float(degraded(x, "contrast", 0.9, streams).var(dim=(1, 2, 3)).mean()) < 0.02 * float(x.var(dim=(1, 2, 3)).mean())
    assert torch.equal(degraded(x, "noise", 0.0, streams), x)
    assert float((degraded(x, "noise", 0.1, streams) - x).abs().max()) > 0.1


CLASSES = ("a", "b", "c", "d")


def scale_of(
    curve: list[float], errors: float = 0.1, spread: float = 0.5, name: str = "judge", others=None, accuracy: float = 0.9
) -> NaturalScale:
    """A scale whose mean over classes is `curve` at the coherences; classes differ by a constant."""
    offsets = np.linspace(-spread, spread, len(CLASSES))
    scores = tuple(tuple(float(value + offset) for offset in offsets) for value in curve)
    flat = tuple((errors,) * len(CLASSES) for _ in curve)
    return NaturalScale(name, "", CLASSES, COHERENCES, scores, flat, 30, "", accuracy, others)


STEEP = [-8.0, -8.0, -8.0, -7.9, -7.6, -7.0, -6.2, -5.0, -3.4, -2.0, -1.6]


@pytest.mark.parametrize("planted", [0.5, 0.9])
def test_planted_clarity_is_found_within_its_interval(planted):
    """Pictures with the scores of photographs at a known coherence read as that coherence."""
    scale = scale_of(STEEP)
    rng = np.random.default_rng(int(100 * planted))
    inside, found = 0, []
    for draw in range(5):
        truth = np.array([np.interp(planted, COHERENCES, np.asarray(scale.scores)[:, unit]) for unit in range(4)])
        scores = (truth + rng.normal(0, 0.4, 4)).tolist()
        value = natural_clarity({"judge": scores}, {"judge": scale}, {"judge": "f"}, range(4), seed=draw)
        assert value is not None
        found.append(value.value)
        inside += value.low <= planted <= value.high
    assert abs(float(np.mean(found)) - planted) < 0.08
    assert inside >= 3, "a bootstrap over four units is a little narrow, not more"


def test_differences_are_paired_and_the_mean_is_over_families():
    scale = scale_of(STEEP)
    three = {"a": scale, "b": scale, "c": scale_of([value - 2 for value in STEEP], name="c")}
    families = {"a": "one", "b": "one", "c": "two"}
    low = {name: [-7.0] * 4 for name in three}
    high = {name: [-3.4] * 4 for name in three}
    first, second = (natural_clarity(scores, three, families, range(4)) for scores in (low, high))
    assert first is not None
    assert second is not None
    assert first.families == ("one", "two")
    # Family one counts once: (.5 + .6) / 2 whatever the number of its members.
    at = scale.clarity([-7.0] * 4), three["c"].clarity([-7.0] * 4)
    assert first.value == pytest.approx(np.mean(at))
    difference = second.minus(first)
    assert difference.value == pytest.approx(second.value - first.value)
    assert difference.low > 0.1
    assert difference.high - difference.low < (first.high - first.low) + (second.high - second.low)
    assert "draws" not in first.row()


def test_judges_that_cannot_see_are_left_out():
    assert scale_of(STEEP).disqualified == ""
    assert "less than 100 % of their phase coherence" in scale_of([-5.0] * 11).disqualified
    late = [-8.0] * 8 + [-5.0, -3.0, -1.0]
    assert "less than 80 %" in scale_of(late).disqualified
    falling = [*STEEP[:-1], -4.0]
    assert "falls where 100 %" in scale_of(falling).disqualified
    assert "noise" in scale_of(STEEP, others={"noise": (-2.0, -1.5, -1.0)}).disqualified
    assert "recognises 40.0 %" in scale_of(STEEP, accuracy=0.4).disqualified
    blind = scale_of([-5.0] * 11, name="blind")
    scores = {"judge": [-5.0] * 4, "blind": [-5.0] * 4}
    both = natural_clarity(scores, {"judge": scale_of(STEEP), "blind": blind}, {"judge": "f", "blind": "g"}, range(4))
    assert both is not None
    assert both.families == ("f",)
    assert natural_clarity({"blind": [-5.0] * 4}, {"blind": blind}, {"blind": "g"}, range(4)) is None


def test_where_the_curve_is_flat_the_value_says_so():
    value = natural_clarity({"judge": [-8.0] * 4}, {"judge": scale_of(STEEP)}, {"judge": "f"}, range(4))
    assert value is not None
    assert value.below
    assert value.value < 0.3


def test_a_judge_is_calibrated_on_digits():
    """A linear judge of the mean of digits' halves: its curve falls as the phases are scrambled."""
    data = load("mnist5k")
    x, y = data.test.take(torch.arange(300)), data.test.labels[:300]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        net[1].weight.copy_(means)
        net[1].bias.copy_(-0.5 * (means**2).sum(1))
    scale = natural_scale(Judge("linear", net, data.classes, Compute("cpu")), data.test, data.name, most=4)
    curve = scale.curve()
    assert curve[-1] > curve[0] + 2
    assert (np.diff(curve) >= 0).all()
    assert scale.resolves_from <= 0.7
    assert NaturalScale.read(scale.row()) == scale
    with pytest.raises(ValueError, match="class 'x' has 0 held-out images, expected two or more"):
        natural_scale(Judge("linear", net, (*data.classes, "x"), Compute("cpu")), data.test, most=4)


def test_the_recorded_scales_are_of_judges_that_see():
    scales = recorded_scales()
    assert scales
    for scale in scales:
        assert len(scale.scores) == len(scale.coherences)
        assert {len(row) for row in scale.scores} == {len(scale.classes)}
