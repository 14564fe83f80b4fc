"""Secondary outcomes of a study: contrasts against plain numpy, numbers against the networks; what is forged or refused."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tests.test_study_forgery import field, forged, leaves, noticed
from tests.test_study_session import DIGITS, smallest
from vizrobust.attribution import MEASURES, IntegratedGradients, Saliency, SmoothGrad, explained, passes
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, head, load
from vizrobust.features.dictionary_fits import effective_features
from vizrobust.features.recipes import fourier
from vizrobust.models import CheckpointInfo, architecture, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.report.study_data import StudyGroups
from vizrobust.report.study_sections import TITLES, secondary_over_k, secondary_table
from vizrobust.requests.study import StudyRequest
from vizrobust.spec import parse
from vizrobust.study import (
    TRAININGS,
    Plan,
    Study,
    StudyReport,
    plan_for,
    preregistration,
    protocol,
    provided_checkpoints,
    report_of,
)
from vizrobust.study.measured_again import secondary_again
from vizrobust.study.power import costs

Finished = tuple[Path, dict[str, Any], Plan]
SECONDARY = ("attribution", "effective_features", "secondary")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Nothing is trained; one recipe of one step."""
    judge = untrained(tmp_path_factory.mktemp("judge") / "outside.safetensors", "vgg_small", "npz:others.npz")
    return replace(
        smallest(judge), hidden=0, unforeseen=(), corruption_images=0, steps=(), arms=(), controls=(), frames=2,
        recipes=(fourier(steps=1),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The study of two networks of K = 0 and K = 4 that nobody has trained."""
    folder = tmp_path_factory.mktemp("networks")
    files = [untrained(folder / f"k{k}.safetensors", "small_cnn", "digits", k) for k in (0, 4)]
    provided = [replace(load_checkpoint(file), name=Path(file).stem) for file in files]
    study = Study(folder / "study", plan, DIGITS, Compute("cpu", threads=1), provided=provided_checkpoints(provided, DIGITS))
    for _stage in study.run():
        pass
    report = report_of(study, "vizrobust study")
    report.write(study.folder)
    study.close()
    return folder, json.loads(json.dumps(dict(report))), plan


def untrained(path: Path, arch: str, data: str, k: int | None = None) -> str:
    torch.manual_seed(k or 9)
    about = CheckpointInfo(arch, (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data=data, training="", attack_steps=k)
    save_checkpoint(path, body_state(architecture(arch, (1, 8, 8), 10)()), about)
    return str(path)


def planted(table: np.ndarray[Any, Any], steps: tuple[int, ...]) -> StudyReport:
    """A report of networks whose maps have these values, (seeds, K), in the mean of two images of three; features are doubled."""
    places = [(f"k{k}-s{seed}", k, seed) for seed in range(len(table)) for k in steps]
    value = {name: float(table[seed, steps.index(k)]) for name, k, seed in places}
    maps = {name: [0.5 * number, None, 1.5 * number] for name, number in value.items()}
    return StudyReport({
        "checkpoints": [{"name": name, "role": "dose", "k": k, "seed": seed, "group": f"k{k}"} for name, k, seed in places],
        "metrics": [], "clarity": [], "accuracy": [], "references": [], "judges": [],
        "attribution": [
            {"checkpoint": name, "method": "Saliency()", "measure": "gini", "values": maps[name]}
            for name, _, _ in places
        ],
        "effective_features": [{"checkpoint": name, "layer": "conv", "value": 2 * value[name]} for name, _, _ in places],
    })  # fmt: skip


def test_the_contrasts_are_those_of_plain_numpy() -> None:
    steps = (0, 1, 2, 8)
    table = np.random.default_rng(0).uniform(0.2, 0.8, (5, 4))
    found = {(one.outcome.kind, one.contrast.name): one.row() for one in planted(table, steps).secondary}
    assert set(found) == {(kind, name) for kind in SECONDARY[:2] for name in ("H1", "H2")}
    for kind, factor in (("attribution", 1), ("effective_features", 2)):
        h1 = factor * (table[:, 1:].mean(1) - table[:, 0])
        h2 = factor * np.array([np.polyfit(np.log2(steps[1:]), row[1:], 1)[0] for row in table])
        for name, per_seed in (("H1", h1), ("H2", h2)):
            row = found[kind, name]
            assert row["per_seed"] == pytest.approx(per_seed)
            assert row["estimate"] == pytest.approx(per_seed.mean())
            interval = stats.t.interval(0.95, 4, loc=per_seed.mean(), scale=stats.sem(per_seed))
            assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval)
            assert row["role"] == "secondary"
            assert "verdict" not in row


def test_a_seed_without_a_value_is_left_out_and_two_have_no_interval() -> None:
    report = planted(np.array([[0.1, 0.2], [0.3, 0.5], [0.2, 0.6]]), (0, 1))
    rows = [row | {"value": None} if row["checkpoint"] == "k1-s1" else row for row in report["effective_features"]]
    (one,) = [one for one in StudyReport({**report, "effective_features": rows}).secondary if one.outcome.kind != "attribution"]
    assert one.row()["left_out_seeds"] == [1]
    assert one.row()["per_seed"] == pytest.approx([0.2, 0.8])
    assert one.row()["ci_low"] is None


def test_masked_networks_and_other_radii_have_their_own_contrasts() -> None:
    report = planted(np.array([[0.1, 0.2], [0.3, 0.5], [0.2, 0.6]]), (0, 1))
    more = [{"name": f"masked-s{seed}", "role": "masked", "k": None, "seed": seed, "group": "masked"} for seed in range(3)]
    rows = [{"checkpoint": one["name"], "layer": "conv", "value": 3.0} for one in more]
    whole = {**report, "checkpoints": [*report["checkpoints"], *more],
             "effective_features": [*report["effective_features"], *rows]}  # fmt: skip
    found = {(one.outcome.kind, one.contrast.name): one.contrast for one in StudyReport(whole).secondary}
    assert found["effective_features", "H5"].per_seed == pytest.approx([2.8, 2.4, 2.6])


def test_effective_features_are_those_of_the_covariance() -> None:
    """Of a layer (N, C, H, W) over all places, by the eigenvalues that numpy finds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 7, (2, 4)), nn.Flatten(), nn.Linear(7 * 4 * 3, 5))
    images = ArraySplit(torch.rand(11, 3, 5, 6), torch.zeros(11, dtype=torch.int64))
    with torch.no_grad():
        maps = net[0](images.take(torch.arange(11))).permute(0, 2, 3, 1).reshape(-1, 7).double().numpy()
    values = np.linalg.eigvalsh(np.cov(maps.T))
    found = effective_features(net, "0", images, shape=(3, 5, 6), compute=Compute("cpu"))
    assert found == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
    with torch.no_grad():
        net[0].weight.zero_()
    assert effective_features(net, "0", images, shape=(3, 5, 6), compute=Compute("cpu")) is None
    with torch.no_grad():
        net[0].bias.fill_(float("nan"))
    assert effective_features(net, "0", images, shape=(3, 5, 6), compute=Compute("cpu")) is None


def test_what_the_cost_says_is_what_is_computed() -> None:
    """Images that go through the network, and through its gradient."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = ArraySplit(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    other, counted = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {True: 0, False: 0}
    for one in (net, other):
        one.register_forward_hook(lambda _net, args, _out: counted.update({
            torch.is_grad_enabled(): counted[torch.is_grad_enabled()] + len(args[0])
        }))  # fmt: skip
    for method in (Saliency(), SmoothGrad(samples=7), IntegratedGradients(steps=9)):
        counted.update({True: 0, False: 0})
        list(explained(net, method, images, (0.0,), Compute("cpu"), random_net=other, batch_size=2))
        assert counted[True] / 2 + counted[False] / 2 / 3 == pytest.approx(passes(method), rel=0.1)
    plan = plan_for(TRAININGS["mnist5k"], explain_images=100, feature_images=300, eps=0.3)
    asked = {cost.stage: cost.passes for cost in costs(plan, load("mnist5k"))}
    networks = 5 * 14 + 1
    assert asked["attribution"] == pytest.approx(networks * 100 * sum(map(passes, plan.explain_methods)))
    assert asked["effective features"] == networks * 100


def test_a_plan_without_secondary_outcomes_has_the_text_that_it_had() -> None:
    """Its text is the identity of folders, and a part of every recorded preregistration."""
    plan = plan_for(TRAININGS["mnist5k"])
    assert repr(plan) == 'Plan(training=TrainingRecipe(arch="small_cnn", data="mnist5k"), radii=(0.3,), layer="linear1")'
    assert "secondary" not in preregistration.content(plan, {}, {}, {})
    asked = replace(plan, explain_images=7, explain_methods=(SmoothGrad(samples=3),), feature_images=9)
    assert parse(repr(asked), protocol.NAMES, "plan") == asked
    assert set(preregistration.content(asked, {}, {}, {})["secondary"]) == {"attribution", "effective_features", "inference"}
    only = preregistration.content(replace(plan, feature_images=9), {}, {}, {})["secondary"]
    assert set(only) == {"effective_features", "inference"}


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, steps=(0, 1))
    for changes, says in (
        ({"feature_images": 1}, "feature_images must be 0, or at least 2, got 1"),
        ({"explain_images": -1}, "explain_images must be at least 0, got -1"),
        ({"layer": "", "feature_images": 9}, "feature_images 9 needs a hidden layer; name one with layer"),
        ({"explain_methods": ()}, "explain_methods must be methods, each once, got none"),
        ({"explain_methods": (Saliency(), Saliency())}, "each once, got Saliency\\(\\), Saliency"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(plan, **changes)
    with pytest.raises(ValueError, match="explain_methods needs images to explain; give explain_images, such as 100"):
        StudyRequest(data="digits", explain_methods=("saliency",))
    with pytest.raises(ValueError, match="nowhere"):
        Study(tmp_path / "study", replace(plan, layer="nowhere"), DIGITS, Compute("cpu"))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"attribution needs the captum package: pip install 'vizrobust\[explain\]'"):
        Study(tmp_path / "study", plan, DIGITS, Compute("cpu"))
    assert not (tmp_path / "study").exists()
    Study(tmp_path / "study", replace(plan, explain_images=0), DIGITS, Compute("cpu")).close()


def test_a_studys_values_are_those_of_its_networks(finished: Finished) -> None:
    folder, report, plan = finished
    names = [one["name"] for one in report["checkpoints"]]
    assert [(row["checkpoint"], row["measure"]) for row in report["attribution"]] == [
        (name, measure) for name in names for measure in MEASURES
    ]
    checkpoint = load_checkpoint(str(folder / "k4.safetensors"))
    other, images = checkpoint.random_net(1), head(DIGITS.test, plan.explain_images)
    maps = list(explained(checkpoint.net(), Saliency(), images, DIGITS.mean, Compute("cpu"), random_net=other, batch_size=20))
    for row in report["attribution"]:
        if row["checkpoint"] == "k4":
            assert row["values"] == pytest.approx([one.measures[row["measure"]] for one in maps], abs=1e-5)
    mine = {row["checkpoint"]: row for row in report["effective_features"]}
    assert list(mine) == names
    again = effective_features(
        checkpoint.net(), "linear1", head(DIGITS.test, 20), shape=(1, 8, 8), compute=Compute("cpu", threads=1)
    )
    assert mine["k4"]["value"] == pytest.approx(again)
    assert mine["k4"]["layer"] == "linear1"
    assert {row["contrast"] for row in report["secondary"]} == {"H1"}  # of two K there is no slope
    assert len(report["secondary"]) == len(MEASURES) + 1
    assert set(TITLES) == set(MEASURES)
    assert secondary_table(StudyGroups(report)) is not None


def test_every_forged_field_of_them_is_noticed(finished: Finished) -> None:
    folder, report, _plan = finished
    assert not noticed(report, folder)
    assert noticed({key: value for key, value in report.items() if key != "secondary"}, folder)
    assert noticed({key: value for key, value in report.items() if key not in SECONDARY}, folder)
    places = {field(path): path for path in leaves({key: report[key] for key in SECONDARY})}
    missed = []
    for name, path in places.items():
        changed = {**report, path[0]: copy.deepcopy(report[path[0]])}
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = forged(place[path[-1]])
        missed += [] if noticed(changed, folder) else [name]
    assert len(places) >= 15
    assert missed == []


def test_values_that_were_never_asked_for_or_cannot_be_are_noticed_whatever_their_hash(finished: Finished) -> None:
    """A forger who computes hash and contrasts again."""
    folder, report, _plan = finished
    for key, change in (
        ("attribution", {"values": [2.0, 0.5, 0.5]}), ("attribution", {"values": [0.5] * 4}),
        ("attribution", {"method": "SmoothGrad()"}), ("effective_features", {"value": 0.9}),
        ("effective_features", {"layer": "conv2"}),
    ):  # fmt: skip
        rows = [*report[key][:-1], {**report[key][-1], **change}]
        assert noticed(dict(StudyReport.conclude({**report, key: rows})), folder), (key, change)
    assert not noticed(dict(StudyReport.conclude(report)), folder)


def test_measured_again_they_are_the_same_and_others_are_not(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report, plan = finished
    loaded = {"k0": load_checkpoint(str(folder / "k0.safetensors"))}

    def checked(content: dict[str, Any]) -> list[bool | None]:
        found = secondary_again(StudyReport(content), plan, loaded, DIGITS, Compute("cpu", threads=1), 0)
        return [one.ok for one in found]

    assert checked(report) == [True, True]
    other = [row | {"values": [0.9 * value for value in row["values"]]} for row in report["attribution"]]
    assert checked({**report, "attribution": other}) == [False, True]
    more = [row | {"value": 1.1 * row["value"]} for row in report["effective_features"]]
    assert checked({**report, "effective_features": more}) == [True, False]
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert checked(report) == [None, True]


def test_a_report_without_them_concludes_without_them() -> None:
    """As every report from before: its stated parts are those that it had."""
    lists: dict[str, list[Any]] = {key: [] for key in ("checkpoints", "metrics", "clarity", "accuracy", "references", "judges")}
    concluded = StudyReport.conclude(lists)
    assert set(concluded) == {*lists, "format", "trends", "verdict", "rows_sha256"}
    assert secondary_table(StudyGroups(concluded)) is None
    assert secondary_over_k(StudyGroups(concluded)) is None
