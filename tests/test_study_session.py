"""A whole study on 8 x 8 digits: what it does first, that it can be stopped anywhere, and that its report verifies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from vizrobust.attribution import Saliency
from vizrobust.clarity import METRICS, two_afc
from vizrobust.commands.study import resolve
from vizrobust.compute import Compute
from vizrobust.data import DataSet, load
from vizrobust.features.picture_runs import images_of
from vizrobust.features.recipes import fourier, plain
from vizrobust.models import CheckpointInfo, architecture, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.requests.study import StudyRequest
from vizrobust.runs import _Lock, read_rows
from vizrobust.study import Plan, Stage, Study, StudyReport, provided_checkpoints, report_of, training_runs, verify
from vizrobust.study.clarity_scores import first_reach
from vizrobust.study.networks import EpsChoice, StudyTrainings, eps_rule
from vizrobust.study.preregistration import content
from vizrobust.study.report_checks import AGAIN, READ
from vizrobust.study.stimuli import hidden_jobs
from vizrobust.training import TrainingRecipe

DIGITS = load("digits")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An outside network of another family, as a file; what it says of pictures is not the point here."""
    torch.manual_seed(5)
    net = architecture("vgg_small", (1, 8, 8), 10)()
    path = tmp_path_factory.mktemp("judge") / "outside.safetensors"
    about = CheckpointInfo("vgg_small", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="npz:others.npz", training="")
    save_checkpoint(path, body_state(net), about)
    return str(path)


@pytest.fixture
def small(judge: str) -> Plan:
    return smallest(judge)


def smallest(judge: str) -> Plan:
    """Every stage, as small as it can be."""
    return Plan(
        TrainingRecipe(arch="small_cnn", data="digits", epochs=1, eps_ramp=0), steps=(0, 1), seeds=1, radii=(0.1,),
        arms=("fgsm",), controls=("k0-early", "k0-shuffled"), eps=0.1, recipes=(fourier(steps=4),),
        image_seeds=2,
        layer="linear1", hidden=3, hidden_seeds=2, frames=3, batch_size=20, judges=(judge,), images=20, pgd_steps=3,
        restarts=1, targets=1, masking_images=0, unforeseen=("Fog",), unforeseen_images=10, corruption_images=4,
        query_images=300, exemplar_images=100, explain_images=3, explain_methods=(Saliency(),), feature_images=20,
    )  # fmt: skip


def ran(folder: Path, plan: Plan, stop: Callable[[int, Stage], bool] = lambda _n, _stage: False) -> dict[str, Any] | None:
    """The report of a study, or None where `stop` ended it; what each training measures at its end is kept short."""
    study = Study(folder, plan, DIGITS, Compute("cpu", threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vizrobust.training.training_runs.TESTED_STEPS", 2)
        patch.setattr("vizrobust.training.training_runs.TESTED_IMAGES", 30)
        for number, stage in enumerate(study.run()):
            if stop(number, stage):
                return None
    report = report_of(study, "vizrobust study")
    report.write(folder)
    return dict(report)


@pytest.fixture(scope="module")
def finished(judge: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Plan]:
    plan = smallest(judge)
    folder = tmp_path_factory.mktemp("study") / "one"
    report = ran(folder, plan)
    assert report is not None
    return folder, report, plan


def test_every_network_is_trained_and_evaluated(finished: tuple[Path, dict[str, Any], Plan]) -> None:
    _folder, report, plan = finished
    names = [one["name"] for one in report["checkpoints"]]
    assert names == ["k0-s0", "k1-s0", "fgsm-s0", "k0-early-s0", "k0-shuffled-s0", "random network"]
    kinds = {row["kind"] for row in report["accuracy"] if row["checkpoint"] == "k1-s0"}
    assert kinds == {"clean", "fgsm", "pgd", "strongest", "unforeseen"}
    assert "no corruptions of images below 28 px" in report["left_out"]
    for name in names[:-1]:
        of = {row["label"]: row["accuracy"] for row in report["accuracy"] if row["checkpoint"] == name}
        assert of["strongest attack found"] <= min(of["FGSM"], of["PGD-10"], of["PGD-3"]) <= of["clean"]
    assert {row["recipe"] for row in report["clarity"]} == {recipe.name for recipe in plan.recipes}
    assert {row["layer"] for row in report["clarity"]} == {"logits", "linear1"}


@pytest.mark.slow
def test_so_it_is_with_two_recipes_two_radii_and_an_encoder(judge: str, tmp_path: Path) -> None:
    """Seeds 3 and 4, of which only the first has a control; an outside encoder answers the 2AFC, the judge tells the class."""
    torch.manual_seed(6)
    about = CheckpointInfo("vgg_small", (1, 8, 8), tuple("abc"), (0.3,), (0.4,), data="npz:others.npz", training="")
    encoder = str(tmp_path / "encoder.safetensors")
    save_checkpoint(encoder, body_state(architecture("vgg_small", (1, 8, 8), 3)()), about)
    plan = replace(
        smallest(judge),
        recipes=(plain(steps=4), fourier(steps=4)),
        eps=None,
        radii=(0.1, 0.3),
        steps=(0, 1),
        arms=(),
        controls=("k8-eps/2",),
        seeds=2,
        first_seed=3,
        arm_seeds=1,
        encoder=encoder,
    )
    report = ran(tmp_path / "study", plan)
    assert report is not None
    assert {row["recipe"] for row in report["clarity"]} == {"plain", "fourier"}
    assert report["data"]["eps_rule"]["tried"][0]["eps"] == 0.1
    trained = [one["name"] for one in report["checkpoints"] if one["role"] != "random"]
    assert trained == ["k0-s3", "k1-s3", "k8-eps-2-s3", "k0-s4", "k1-s4"]
    assert {row["checkpoint"] for row in report["pictures"] if row["layer"] == "linear1"} == {
        name for name in trained if name.endswith("-s3")
    }
    asked = {metric: {row["judge"] for row in report["clarity"] if row["metric"] == metric} for metric in METRICS}
    assert asked["transfer"] == asked["recognised"] == {judge}
    assert asked["forced_choice"] == asked["identification"] == asked["seed_agreement"] == {encoder}
    assert report["encoder"]["kind"] == "encoder"
    natural = [row for row in report["references"] if row["reference"] == "natural" and row["judge"] == judge]
    assert report["judges"][0]["natural_identification"] == next(r["value"] for r in natural if r["metric"] == "recognised")
    checks = list(verify(StudyReport(report), tmp_path / "study", lambda: DIGITS, Compute("cpu", threads=1)))
    assert [(one.what, one.detail) for one in checks if one.ok is False] == []
    assert any(one.what == "encoder's weights" and one.ok for one in checks)
    for name, other in (("name", "another"), ("weights_sha256", "0" * 64)):
        forged = StudyReport({**report, "encoder": {**report["encoder"], name: other}})
        found = verify(forged, tmp_path / "study", lambda: DIGITS, Compute("cpu", threads=1))
        assert any(one.ok is False for one in found)


def test_the_same_questions_are_asked_of_all(finished: tuple[Path, dict[str, Any], Plan]) -> None:
    """Every checkpoint has the same rows of metrics, and the references answer the same ones."""
    _folder, report, _plan = finished
    asked: dict[str, set[tuple[Any, ...]]] = {}
    for row in report["clarity"]:
        key = tuple(row[name] for name in ("recipe", "metric", "judge", "control", "layer"))
        asked.setdefault(row["checkpoint"], set()).add((*key, tuple(row["units"])))
    assert len({frozenset(of) for of in asked.values()}) == 1
    natural = {row["metric"] for row in report["references"] if row["reference"] == "natural" and row["layer"] == "logits"}
    assert natural == {row["metric"] for row in report["clarity"] if row["layer"] == "logits"}


def test_matched_units_are_found_in_any_order(small: Plan, tmp_path: Path) -> None:
    """A network with its hidden units shuffled: what is matched has the pictures and so the clarity of what was drawn."""
    torch.manual_seed(8)
    plain_state = body_state(architecture("small_cnn", (1, 8, 8), 10)())
    order = torch.randperm(100)
    shuffled = {name: value.clone() for name, value in plain_state.items()}
    for name in ("linear1.weight", "linear1.bias"):
        shuffled[name] = shuffled[name][order]
    shuffled["linear2.weight"] = shuffled["linear2.weight"][:, order]
    for k, state in ((0, plain_state), (4, shuffled)):
        about = CheckpointInfo("small_cnn", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="digits", training="", attack_steps=k)
        save_checkpoint(tmp_path / f"k{k}.safetensors", state, about)
    provided = provided_checkpoints([load_checkpoint(str(tmp_path / f"k{k}.safetensors")) for k in (0, 4)], DIGITS)
    plan = replace(small, hidden=5, unforeseen=(), corruption_images=0)
    study = Study(tmp_path / "study", plan, DIGITS, Compute("cpu", threads=1), provided=provided)
    for _stage in study.run():
        pass
    report = report_of(study, "vizrobust study")
    first, second = (row["name"] for row in report["checkpoints"][:2])
    (pairs,) = report["matching"]
    assert (pairs["checkpoint"], pairs["reference"], len(pairs["units"])) == (second, first, 5)
    excited = [unit for unit, found in zip(pairs["units"], pairs["correlations"], strict=True) if found > 0]
    assert [int(order[partner]) for partner in pairs["partners"] if int(order[partner]) in excited] == excited
    assert len(excited) >= 3  # a unit that no image excites has no counterpart
    assert pairs["quality"] > pairs["chance"] + 0.3

    rows = {
        (row["checkpoint"], row["control"]): row
        for row in report["clarity"]
        if (row["layer"], row["metric"], row["recipe"]) == ("linear1", "forced_choice", "fourier")
    }
    assert rows[first, "matched"]["values"] == rows[first, None]["values"]
    assert rows[second, "matched"]["units"] == rows[first, None]["units"] == pairs["units"]
    # Asked of their pictures one by one, by where they were put.
    questions, judge, checkpoint = study.facts["questions"], study.judges[0], provided[1].checkpoint
    asked = questions.queries.outputs[judge.name].features
    for unit, value in zip(pairs["units"], rows[second, "matched"]["values"], strict=True):
        if unit in excited:
            partner = int((order == unit).nonzero())
            liked, disliked = hidden_jobs(study.plan, DIGITS, checkpoint, [partner])[:2]
            shown = [judge(images_of(study.pictures(job), checkpoint, job)[partner]).features for job in (liked, disliked)]
            (of_unit,) = questions.own(checkpoint, liked.objective, (partner,))
            queries, distractors = of_unit.questions("hard")
            assert value == pytest.approx(two_afc(*shown, asked[queries], asked[distractors]), abs=1e-5)
    assert rows[second, "matched"]["values"] != rows[second, None]["values"]


def test_the_preregistration_is_there_before_the_first_picture_and_the_first_attack(small: Plan, tmp_path: Path) -> None:
    plan = replace(small, hidden=0, eps=0.1, steps=(0, 1), controls=())

    def stop(_number: int, stage: Stage) -> bool:
        return stage.what.startswith("attacking")

    assert ran(tmp_path / "study", plan, stop) is None
    written = json.loads((tmp_path / "study" / "prereg.json").read_text())
    assert written["plan"] == repr(plan)
    assert set(written["checkpoints"]) >= {"k0-s0", "k1-s0", "fgsm-s0"}
    assert not list((tmp_path / "study").glob("pictures/*/images"))


STAGES = ("attacks", "pictures", "clarity", "attribution", "effective-features", "clarity-matched")


def cut(rows: Path) -> list[str]:
    """Leave three quarters of the rows and a piece of the next, as a process does that is killed while it writes."""
    lines = rows.read_text().splitlines(keepends=True)
    kept = lines[: 3 * len(lines) // 4]
    rows.write_text("".join(kept) + lines[len(kept)][:40])
    return kept


def test_stopped_in_every_stage_it_gives_the_same_report(finished: tuple[Path, dict[str, Any], Plan], tmp_path: Path) -> None:
    """In another folder, from which the last rows of each stage are gone; what is there is not computed a second time."""
    folder, whole, plan = finished
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again" / "report.json").unlink()
    stages = [tmp_path / "again" / stage for stage in STAGES]
    kept = {rows: cut(rows) for stage in stages for rows in sorted(stage.rglob("rows.jsonl"))}
    assert all(any(stage in rows.parents for rows in kept) for stage in stages[:5])
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("checkpoint.safetensors")}
    assert len(trained) == 5
    again = ran(tmp_path / "again", plan)
    for rows, before in kept.items():
        after = rows.read_text().splitlines(keepends=True)
        assert after[: len(before)] == before
        if rows.parent.name == "attacks":  # what is missing is attacked in other batches, so rows hold other images
            rows_of = [(row, (row["checkpoint"], row["attack"], row["walk"])) for row in map(json.loads, after)]
            verdicts = [(*key, image) for row, key in rows_of for image in row["images"]]
            assert len(verdicts) == len(set(verdicts))
        else:
            assert len(after) == len((folder / rows.relative_to(tmp_path / "again")).read_text().splitlines()), rows
    assert {path: path.stat().st_mtime_ns for path in trained} == trained, "nothing is trained again"
    assert json.dumps(again, sort_keys=True) == json.dumps(whole, sort_keys=True)


@pytest.mark.slow
def test_stopped_five_times_it_gives_the_same_report(finished: tuple[Path, dict[str, Any], Plan], tmp_path: Path) -> None:
    """In another folder, ended at five places of different stages: equal but for the folder's command."""
    _folder, whole, plan = finished
    for place in (3, 40, 110, 430, 730):
        ran(tmp_path / "again", plan, lambda number, _stage, place=place: number >= place)
    again = ran(tmp_path / "again", plan)
    assert again is not None
    # What was there was not computed a second time.
    kept = [(row["checkpoint"], row["recipe"], row["layer"]) for row in read_rows(tmp_path / "again" / "clarity")]
    assert len(kept) == len(set(kept)) == 2 * len(whole["checkpoints"])
    assert json.dumps(again, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_a_report_verifies_and_a_changed_one_does_not(finished: tuple[Path, dict[str, Any], Plan], tmp_path: Path) -> None:
    folder, _report, _plan = finished
    report = StudyReport.read(folder)
    compute = Compute("cpu", threads=1)
    checks = list(verify(report, folder, lambda: DIGITS, compute))
    assert [one for one in checks if one.ok is not True and one.how != READ] == []
    assert len([one for one in checks if one.what.startswith("picture ")]) == 3
    assert len([one for one in checks if one.how == AGAIN]) >= 3 + 1 + 1 + 4
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "prereg.json", elsewhere)
    alone = [one for one in verify(report, elsewhere, lambda: DIGITS, compute) if one.ok is None]
    assert {"checkpoints", "pictures", "attacks"} <= {one.what for one in alone}
    again = list(verify(report, elsewhere, lambda: DIGITS, compute, networks=folder))
    assert [(one.what, one.ok) for one in again if one.how == AGAIN] == [(one.what, one.ok) for one in checks if one.how == AGAIN]
    report["clarity"][0]["values"][0] = 0.123
    pictures = [{**row, "pixels_sha256": "0" * 64, "score": row["score"] + 1} for row in report["pictures"]]
    accuracy = [{**row, "right": "00" * 3} if "right" in row else row for row in report["accuracy"]]
    report = StudyReport({**report, "pictures": pictures, "accuracy": accuracy})
    wrong = (one.what.partition(" ")[0] for one in verify(report, folder, lambda: DIGITS, compute) if one.ok is False)
    found = set()
    for what in wrong:
        found.add(what)
        if found >= {"rows", "picture"}:
            break
    assert found >= {"rows", "picture"}


@pytest.mark.parametrize("recorded", ["another AVX2", pytest.param(None, marks=pytest.mark.slow)])
def test_another_processor_may_round_otherwise_and_no_more(
    finished: tuple[Path, dict[str, Any], Plan], recorded: str | None
) -> None:
    """Other pixels of almost the same score are wrong on the same processor only; another score is wrong on any."""
    folder, _report, _plan = finished

    def pictures(score: float, processor: str | None) -> list[tuple[bool | None, str]]:
        report = StudyReport.read(folder)
        others = {name: version for name, version in report["versions"].items() if name != "processor"}
        changed = {
            "versions": others if processor is None else {**others, "processor": processor},
            "pictures": [{**row, "pixels_sha256": "0" * 64, "score": score * row["score"]} for row in report["pictures"]],
        }
        found = verify(StudyReport({**report, **changed}), folder, lambda: DIGITS, Compute("cpu", threads=1))
        return list(islice(((one.ok, one.detail) for one in found if one.what.startswith("picture ")), 2))

    here = StudyReport.read(folder)["versions"]["processor"]
    assert {fine for fine, _ in pictures(1.001, here)} == {False}
    elsewhere = pictures(1.001, recorded)
    assert {fine for fine, _ in elsewhere} == {True}
    said = "processor was not recorded" if recorded is None else f"processor was {recorded}, is now {here}"
    assert all(said in told for _, told in elsewhere)
    assert {fine for fine, _ in pictures(1.1, recorded)} == {False}


def test_without_the_images_everything_else_is_looked_at(finished: tuple[Path, dict[str, Any], Plan]) -> None:
    folder, _report, _plan = finished

    def absent() -> DataSet:
        raise FileNotFoundError("digits is not on this machine")

    checks = list(verify(StudyReport.read(folder), folder, absent, Compute("cpu", threads=1)))
    absent_ones = [(one.what, one.detail) for one in checks if one.ok is not True and one.how != READ]
    assert absent_ones == [(what, "digits is not on this machine") for what in ("attacks", "scores of the pictures")]
    assert len([one for one in checks if one.what.startswith("picture ")]) == 3


def test_another_study_in_the_folder_is_refused(finished: tuple[Path, dict[str, Any], Plan]) -> None:
    folder, _report, plan = finished
    with pytest.raises(ValueError, match="holds another run: plan was"):
        ran(folder, replace(plan, images=21))


def test_a_sweep_needs_two_k(small: Plan) -> None:
    with pytest.raises(ValueError, match="two or more K, got steps 4"):
        replace(small, steps=(4,))
    with pytest.raises(ValueError, match="two or more K, got K = 8"):
        provided_checkpoints([load_checkpoint("mnist-k8"), load_checkpoint("mnist-fgsm")], load("mnist5k"))


def test_checkpoints_of_other_data_or_classes_are_refused() -> None:
    one = load_checkpoint("mnist-k0")
    other = replace(one, name="shirts", info=replace(one.info, classes=tuple("abcdefghij")))
    with pytest.raises(ValueError, match="class 0 is 'a' for shirts and '0' in mnist5k"):
        provided_checkpoints([one, other], load("mnist5k"))
    with pytest.raises(ValueError, match=r"mnist-k0 takes \(1, 28, 28\) and 10 classes, digits has"):
        provided_checkpoints([one], DIGITS)
    elsewhere = replace(one, name="elsewhere", info=replace(one.info, data="npz:mine.npz"))
    with pytest.raises(ValueError, match=r"elsewhere was trained on npz:mine.npz, the others on mnist5k"):
        provided_checkpoints([one, elsewhere], load("mnist5k"))


def test_provided_checkpoints_find_their_place() -> None:
    provided = provided_checkpoints([load_checkpoint(name) for name in ("mnist-k0", "mnist-fgsm", "mnist-k8")], load("mnist5k"))
    assert [(one.group, one.role, one.k, one.seed) for one in provided] == [
        ("k0", "dose", 0, 0), ("fgsm", "arm", None, 0), ("k8", "dose", 8, 0)
    ]  # fmt: skip


def test_networks_of_another_study_are_taken_where_the_training_is_the_same(
    finished: tuple[Path, dict[str, Any], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a repository can hold of a network, its weights and its history, is enough; a history that is cut is not."""
    folder, report, plan = finished
    kept, own = tmp_path / "kept", tmp_path / "own"
    for file in [*folder.glob("checkpoints/*"), *folder.glob("cells/*/run.json"), *folder.glob("cells/*/metrics.jsonl")]:
        there = kept / file.relative_to(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there)
    runs = [run for run in training_runs(plan, 0.1) if not run.until]

    def trainings(runs: Plan = plan) -> StudyTrainings:
        return StudyTrainings(own, runs, DIGITS, Compute("cpu", threads=1), "", kept)

    with monkeypatch.context() as patch:
        patch.setattr("vizrobust.study.networks.train", lambda *_, **__: pytest.fail("trained again"))
        list(trainings().train_all(runs, 0.1))
        found = [trainings()._finished(run) for run in runs]
    hashes = {row["name"]: row["weights_sha256"] for row in report["checkpoints"]}
    assert {one.checkpoint.name: one.checkpoint.sha256 for one in found}.items() <= hashes.items()
    assert [len(one.history) for one in found] == [1] * len(runs)
    shutil.rmtree(own)
    (kept / "cells" / runs[0].name / "metrics.jsonl").write_text("")
    others = [replace(run, training=replace(run.training, lr=0.1)) for run in runs]
    for run in (runs[0], *others):
        trainings()._take(run)
    assert not own.exists()


def test_a_judge_among_the_compared_is_refused(small: Plan, tmp_path: Path) -> None:
    provided = provided_checkpoints([load_checkpoint("mnist-k0"), load_checkpoint("mnist-k8")], load("mnist5k"))
    plan = replace(small, judges=("mnist-k8",), steps=(), arms=(), controls=())
    with pytest.raises(ValueError, match="mnist-k8"):
        Study(tmp_path / "study", plan, load("mnist5k"), Compute("cpu"), provided=provided)
    assert not (tmp_path / "study").exists()


def test_a_judge_of_unknown_training_needs_a_statement_that_the_plan_records(small: Plan, tmp_path: Path) -> None:
    torch.manual_seed(6)
    path = tmp_path / "silent.safetensors"
    state = body_state(architecture("vgg_small", (1, 8, 8), 10)())
    save_checkpoint(path, state, CheckpointInfo("vgg_small", (1, 8, 8), DIGITS.classes, (0.3,), (0.4,), data="", training=""))
    plan = replace(small, judges=(str(path),))
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        Study(tmp_path / "study", plan, DIGITS, Compute("cpu"))
    stated = resolve(StudyRequest(data="digits", judges=(str(path),), judge_independent=True), DIGITS)
    assert "judge_independent=True" in repr(stated)
    study = Study(tmp_path / "study", replace(small, judges=(str(path),), judge_independent=True), DIGITS, Compute("cpu"))
    assert str(path) in {one.name for one in study.judges}
    study.close()


def test_too_few_images_for_a_metric_is_said(small: Plan, tmp_path: Path) -> None:
    plan = replace(
        small, query_images=50, hidden=0, steps=(0, 1), arms=(), controls=(), eps=0.1, unforeseen=(), corruption_images=0
    )
    with pytest.raises(ValueError, match="needs at least 200 images for 20 queries, got 50"):
        ran(tmp_path / "study", plan)


def test_training_runs_follow_the_protocol(small: Plan) -> None:
    two_epochs = replace(small.training, epochs=2)
    plan = replace(
        small, training=two_epochs, steps=(0, 1, 8), arms=("fgsm", "fast", "noise"), controls=("k0-early", "k1-long", "k8-eps/4")
    )
    by_name = {cell.name: cell for cell in training_runs(plan, 0.2)}
    assert str(by_name["k8-s0"].training.attack) == "PGD(steps=8, ball=Linf(eps=0.2))"
    assert by_name["k0-s0"].training.attack is None
    assert str(by_name["fast-s0"].training.attack) == "PGD(steps=1, ball=Linf(eps=0.2), alpha=0.25, clip_start=False)"
    assert str(by_name["noise-s0"].training.attack) == "Noise(samples=1, ball=Linf(eps=0.2))"
    assert str(by_name["k8-eps-4-s0"].training.attack) == "PGD(steps=8, ball=Linf(eps=0.05))"
    # As many gradient passes: (1 + 1) x 9 epochs = (8 + 1) x 2 epochs.
    assert by_name["k1-long-s0"].training.epochs == 9
    assert by_name["k0-early-s0"].until == "k8-s0"
    more = replace(small, steps=(0, 1), arms=(), controls=(), seeds=2, first_seed=4, standard_seeds=4)
    assert [cell.name for cell in training_runs(more, 0.2)] == ["k0-s4", "k1-s4", "k0-s5", "k1-s5", "k0-s6", "k0-s7"]
    assert [cell.training.seed for cell in training_runs(more, 0.2)] == [4, 4, 5, 5, 6, 7]
    assert "H6" in content(more, {}, {}, {})["contrasts"]
    assert "H6" not in content(replace(more, standard_seeds=2), {}, {}, {})["contrasts"]
    with pytest.raises(ValueError, match=r"standard_seeds of K = 0 must be seeds \(2\) or more, got 1"):
        replace(more, standard_seeds=1)


def choose_eps(radii: tuple[float, ...], usual: float, accuracy: Callable[[str, float], float]) -> EpsChoice:
    """What the rule chooses where `accuracy` answers its questions."""
    asking, answer = eps_rule(radii, usual), None
    while True:
        try:
            answer = accuracy(*(next(asking) if answer is None else asking.send(answer)))
        except StopIteration as done:
            return done.value


def test_the_eps_rule_takes_the_smallest_radius_at_which_fgsm_fails() -> None:
    asked: list[tuple[str, float]] = []

    def accuracy(who: str, eps: float) -> float:
        asked.append((who, eps))
        return {"fgsm": {0.1: 0.9, 0.2: 0.4, 0.3: 0.1}[eps], "strong": 0.7}[who] if who == "fgsm" else 0.7

    chosen = choose_eps((0.3, 0.1, 0.2), 0.3, accuracy)
    assert chosen.eps == 0.3
    # At 0.1 nothing could be twice .9, so K = 8 is not trained; at 0.2 it is, and .4 is not below half of .7.
    assert asked == [("fgsm", 0.1), ("fgsm", 0.2), ("strong", 0.2), ("fgsm", 0.3), ("strong", 0.3)]
    assert choose_eps((0.1,), 0.25, accuracy).eps == 0.25


def test_above_the_usual_radius_k8_is_trained_only_where_it_could_decide() -> None:
    asked: list[tuple[str, float]] = []

    def accuracy(who: str, eps: float) -> float:
        asked.append((who, eps))
        kept = {"fgsm": {0.1: 0.52, 0.2: 0.4, 0.4: 0.2}, "strong": {0.1: 0.52, 0.4: 0.3}}
        return kept[who][eps]

    chosen = choose_eps((0.1, 0.2, 0.4), 0.1, accuracy)
    assert chosen.eps == 0.1
    # .4 is not below half of .52, which is the most that K = 8 could keep at .2; .2 is, and then K = 8 decides.
    assert asked == [("fgsm", 0.1), ("fgsm", 0.2), ("strong", 0.1), ("fgsm", 0.4), ("strong", 0.4)]
    assert [one.strong for one in chosen.tried] == [None, None, 0.3]
    assert "K = 8 keeps 52.0% at the usual radius" in chosen.reason


def test_first_reach_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    grown, largest = torch.randn(3, 4, 6, generator=generator).cumsum(2), torch.tensor([0.5, 1.0, 9.0])
    away = torch.rand(3, 4, 6, generator=generator).cumsum(2)
    at, radius = first_reach(grown, away, largest)
    for u in range(3):
        for r in range(4):
            reached = [f for f in range(6) if grown[u, r, f] >= largest[u]]
            frame = reached[0] if reached else 5
            assert at[u, r] == frame
            if not reached:
                assert radius[u, r] == torch.inf
            elif frame:
                low, high = grown[u, r, frame - 1], grown[u, r, frame]
                share = (largest[u] - low) / (high - low)
                expected = away[u, r, frame - 1] + share * (away[u, r, frame] - away[u, r, frame - 1])
                torch.testing.assert_close(radius[u, r], expected)


def test_a_studys_own_folder_is_locked_until_it_is_closed(small: Plan, tmp_path: Path) -> None:
    def held() -> set[Path]:
        return {folder for folder in _Lock.held if folder.is_relative_to(tmp_path.resolve())}

    study = Study(tmp_path / "study", small, DIGITS, Compute("cpu", threads=1))
    assert (tmp_path / "study").resolve() in held()  # what --wait waits for
    study.close()
    assert not held()
