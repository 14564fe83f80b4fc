"""Blind trials: the right pictures and images in every question, nothing in the page that tells, and scores that add up."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata, spearmanr

from tests.trial_studies import CHECKPOINTS, SEEDS, make_study, pixels, whose
from vizrobust.commands.trials import page_data, write_trials
from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.features.pictures import to_uint8
from vizrobust.intervals import wilson
from vizrobust.models import load_checkpoint
from vizrobust.runs import write_png
from vizrobust.study.human_answers import (
    Answer,
    krippendorff_alpha,
    rank_correlation,
    read_answers,
    score,
    score_people,
    write_key,
)
from vizrobust.study.human_trials import TrialSet, choose, data_of
from vizrobust.study.report import StudyReport


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def chosen(folder: Path, **options: Any) -> TrialSet:
    report = StudyReport.read(folder)
    return choose(folder, report, data_of(report), Compute("cpu"), **options)


@pytest.fixture(scope="module")
def trials(folder: Path) -> TrialSet:
    return chosen(folder, count=24, names=("k0-s0", "k8-s0"))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def ranks(folder: Path, names: tuple[str, ...], unit: int) -> list[int]:
    """Test images in falling mean rank of a class unit, by plain numpy, without the one that is an exemplar."""
    x = load("digits").test.take(torch.arange(359))
    with torch.no_grad():
        logits = [load_checkpoint(str(folder / f"checkpoints/{name}.safetensors")).net()(x)[:, unit].numpy() for name in names]
    kept = [k for k in range(359) if k != 17]
    mean = sum(rankdata(one[kept]) for one in logits)
    return [kept[k] for k in np.argsort(-mean, kind="stable")]


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_the_pictures_are_of_the_unit_and_of_others_of_the_same_checkpoint(folder, trials):
    real = [trial for trial in trials.trials if not trial.catch]
    assert len(real) == 24
    for trial in real:
        own, other = ([whose(read(folder / name)) for name in names] for names in (trial.exciting, trial.other))
        assert {(who, unit, sign) for who, unit, _, sign in own} == {(trial.checkpoint, trial.unit, 1)}
        assert len({seed for _, _, seed, _ in own}) == len(own) == len(SEEDS)
        assert {who for who, *_ in other} == {trial.checkpoint}
        assert trial.unit not in {unit for _, unit, _, _ in other}
        assert len(set(other)) == len(other) == len(own)
        assert len({unit for _, unit, _, _ in other}) == len({0, 1, 3} - {trial.unit})  # as many other units as there are


def test_a_unit_with_a_dead_picture_is_left_out_for_all(trials):
    """k0-s0 has three pictures of unit 2 and four of the others: sides of another size would tell it."""
    assert {trial.unit for trial in trials.trials if not trial.catch} == {0, 1, 3}


def test_every_checkpoint_gets_the_same_units_equally_often(trials):
    count = Counter((trial.checkpoint, trial.unit) for trial in trials.trials if not trial.catch)
    assert set(count) == {(name, unit) for name in ("k0-s0", "k8-s0") for unit in (0, 1, 3)}
    assert set(count.values()) == {4}


def test_queries_excite_the_unit_and_distractors_are_hard(folder, trials):
    for unit in (0, 1, 3):
        order = ranks(folder, ("k0-s0", "k8-s0"), unit)
        mine = [trial for trial in trials.trials if not trial.catch and trial.unit == unit]
        queries, distractors = [trial.query for trial in mine], [trial.distractor for trial in mine]
        assert set(queries) <= set(order[:20])
        assert set(distractors) <= set(order[round(0.1 * 358) : round(0.5 * 358)])
        assert len(set(queries)) == len(set(distractors)) == len(mine) == 8  # never the same image twice


def test_no_exemplar_is_a_query(tmp_path):
    folder = make_study(tmp_path, hidden=False)
    before = chosen(folder, count=12)
    taken = {before.trials[0].query, before.trials[1].distractor}
    for place, unit in zip(taken, (4, 5), strict=True):
        write_png(folder / f"exemplars/{unit}-0.png", before.natural[place], {})
    after = chosen(folder, count=12)
    assert not taken & set(after.natural)


def test_hidden_units_are_asked_about_their_own_queries_and_the_negated_unit(folder):
    found = chosen(folder, count=12, names=("k8-s0", "k8-s1"), layer="linear1")
    x = load("digits").test.take(torch.arange(359))
    for trial in found.trials:
        if trial.catch:
            continue
        assert {whose(read(folder / name))[::3] for name in trial.exciting} == {(trial.checkpoint, 1)}
        assert {whose(read(folder / name))[:2] for name in trial.other} == {(trial.checkpoint, trial.unit)}
        assert {whose(read(folder / name))[3] for name in trial.other} == {-1}
        net, seen = load_checkpoint(str(folder / f"checkpoints/{trial.checkpoint}.safetensors")).net(), []
        net.net.linear1.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.clone()))
        with torch.no_grad():
            net(x)
        value = seen[0][:, trial.unit].numpy()
        assert (value > value[trial.query]).sum() <= 20
        assert 30 <= (value > value[trial.distractor]).sum() <= 180


def test_catch_trials_are_about_exemplars_and_easy(folder, trials):
    catch, labels = [trial for trial in trials.trials if trial.catch], load("digits").test.labels
    assert len(catch) == 2
    assert len(chosen(folder, count=60).trials) == 66
    for trial in catch:
        assert all(name.startswith(f"exemplars/{trial.unit}-") for name in trial.exciting)
        assert not any(name.startswith(f"exemplars/{trial.unit}-") for name in trial.other)
        assert int(labels[trial.query]) == trial.unit != int(labels[trial.distractor])
        assert len(trial.exciting) == len(trial.other) == 4


def test_the_practice_trial_is_easy_tells_its_answer_and_is_not_asked(folder, trials):
    practice, labels = trials.practice, load("digits").test.labels
    assert practice.catch
    assert all(name.startswith(f"exemplars/{practice.unit}-") for name in practice.exciting)
    assert int(labels[practice.query]) == practice.unit != int(labels[practice.distractor])
    assert page_data(folder, trials)["practice"]["belongs"] == practice.answer
    assert practice.id not in {trial.id for trial in trials.trials}
    assert practice.id not in {trial["id"] for trial in trials.key()["trials"]}
    assert practice.query not in {trial.query for trial in trials.trials if trial.catch}


def test_the_default_is_the_first_seed_of_every_dose(folder):
    assert list(chosen(folder, count=4).about["checkpoints"]) == ["k0-s0", "k8-s0"]


def test_the_seed_decides_everything(folder, trials):
    again, other = (chosen(folder, count=24, names=("k0-s0", "k8-s0"), seed=seed) for seed in (0, 1))
    assert again.key() == trials.key()
    assert again.token == trials.token != other.token
    assert not {trial.id for trial in trials.trials} & {trial.id for trial in other.trials}


def test_sides_are_random_and_say_nothing_about_each_other(folder):
    found = chosen(folder, count=200).trials
    table = Counter((trial.exciting_side, trial.answer) for trial in found)
    assert len(table) == 4
    assert all(30 <= count <= 80 for count in table.values())  # a fair coin leaves this once in a million
    first = [trial.catch for trial in found[:110]]
    assert 2 <= sum(first) <= 18  # catch trials are spread


# --- what the page holds ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(folder: Path, trials: TrialSet) -> str:
    return write_trials(folder.parent / "page.html", folder, trials).read_text(encoding="utf-8")


def content_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL).group(1))


def decoded(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_page_names_nothing_that_would_tell(folder, trials, page):
    content = content_of(page)
    assert set(content) == {"token", "images", "practice", "trials"}
    keys = {"id", "unit", "left", "right", "queries"}
    assert {key for trial in content["trials"] for key in trial} == keys
    assert set(content["practice"]) == {*keys, "belongs"}
    rest = page.replace(json.dumps(content["images"])[1:-1], "")
    secrets = [*CHECKPOINTS, "exemplar", "pictures/", ".png", "digits", "plain(", "catch", "distractor", 'answer":']
    secrets += [row["weights_sha256"][:8] for row in StudyReport.read(folder)["checkpoints"]]
    assert [secret for secret in secrets if secret in rest.partition("<script>")[0]] == []
    for uri in content["images"]:
        image = decoded(uri)
        image.load()
        assert image.info == {}
        assert set(re.findall(rb"(tEXt|iTXt|zTXt|eXIf|tIME)", base64.b64decode(uri.partition(",")[2]))) == set()


def test_the_page_shows_what_the_key_says(folder, trials, page):
    content, test = content_of(page), load("digits").test
    images = [np.asarray(decoded(uri)) for uri in content["images"]]
    asked_about = zip((*trials.trials, trials.practice), (*content["trials"], content["practice"]), strict=True)
    for trial, shown in asked_about:
        assert shown["id"] == trial.id
        sides = {side: [images[k] for k in shown[side]] for side in ("left", "right")}
        other_side = {"left": "right", "right": "left"}[shown["unit"]]
        for side, names in ((shown["unit"], trial.exciting), (other_side, trial.other)):
            assert all(np.array_equal(image, read(folder / name)) for image, name in zip(sides[side], names, strict=True))
        asked = dict(zip(("left", "right"), (images[k] for k in shown["queries"]), strict=True))
        assert np.array_equal(asked[trial.answer], to_uint8(test.take(torch.tensor([trial.query]))[0]))
        assert np.array_equal(asked[{"left": "right", "right": "left"}[trial.answer]], trials.natural[trial.distractor])


def test_the_order_of_pictures_in_the_page_says_nothing(folder, trials):
    """Were they in the order of first use, a question's own pictures would come before the others."""
    content = page_data(folder, trials)
    own, other = [], []
    for shown in content["trials"]:
        own += shown[shown["unit"]]
        other += shown[{"left": "right", "right": "left"}[shown["unit"]]]
    assert abs(np.mean(own) - np.mean(other)) < 0.15 * len(content["images"])
    natural = [place for shown in content["trials"] for place in shown["queries"]]
    assert min(natural) < 0.2 * len(content["images"]) < 0.8 * len(content["images"]) < max(natural)


def test_without_the_run_folders_one_picture_a_unit_is_shown(tmp_path):
    found = chosen(make_study(tmp_path, hidden=False, one_seed=True), count=4)
    assert {len(trial.exciting) for trial in found.trials} == {1}
    assert np.array_equal(read(tmp_path / found.trials[0].exciting[0]).shape, (8, 8))
    assert pixels("k0-s0", 1, 0)[0, 1] == 1


# --- scores ----------------------------------------------------------------------------------------------------------


def answered(trials: TrialSet, right: Any) -> list[Answer]:
    other = {"left": "right", "right": "left"}
    return [
        Answer(trial.id, trial.answer if right(trial) else other[trial.answer], 1 + k % 3, float(k))
        for k, trial in enumerate(trials.trials)
    ]


def test_scores_count_what_was_right(folder, trials):
    answers = answered(trials, lambda trial: trial.checkpoint == "k8-s0" or trial.unit == 0)
    found = score(trials.key(), answers, StudyReport.read(folder))
    k0, k8 = found.checkpoints
    assert (k0.name, k0.right, k0.n, k0.share) == ("k0-s0", 4, 12, 1 / 3)
    assert (k0.ci_low, k0.ci_high) == wilson(4, 12)
    assert (k8.name, k8.right, k8.n) == ("k8-s0", 12, 12)
    mine = [answer for answer, trial in zip(answers, trials.trials, strict=True) if trial.checkpoint == "k0-s0"]
    assert k0.seconds == np.median([answer.seconds for answer in mine])
    assert k0.confidence == pytest.approx(np.mean([answer.confidence for answer in mine]), abs=0.005)
    assert found.catch.n == 2


def test_correlations_are_spearman_s_over_checkpoints_and_units(folder):
    found = chosen(folder, count=90, names=tuple(CHECKPOINTS))
    rng = np.random.default_rng(0)
    answers = answered(found, lambda trial: rng.random() < 0.3 + 0.2 * (trial.unit + (trial.checkpoint == "k8-s1")) / 2)
    truth = {trial.id: trial for trial in found.trials}
    person, machine = [], []
    for number, name in enumerate(CHECKPOINTS):
        for unit in (0, 1):  # the machine has no value for unit 3, and unit 2 is not shown
            hits = [
                a.choice == truth[a.trial].answer
                for a in answers
                if (truth[a.trial].checkpoint, truth[a.trial].unit) == (name, unit)
            ]
            person.append(np.mean(hits))
            machine.append(10 * number + unit)
    expected = spearmanr(machine, person)
    transfer, near = score(found.key(), answers, StudyReport.read(folder)).correlations
    assert (transfer.metric, transfer.judge, transfer.direction, near.direction) == ("transfer", "judge", 1, -1)
    assert transfer.n == 6
    assert transfer.rho == pytest.approx(expected.statistic)
    assert transfer.p == pytest.approx(expected.pvalue)
    assert transfer.ci_low < transfer.rho < transfer.ci_high


def test_people_are_scored_together_and_the_careless_left_out(folder, trials):
    """Two who are right on all but k0's units other than 0, one who answers everything wrong, catch trials too."""
    same = answered(trials, lambda trial: trial.checkpoint == "k8-s0" or trial.catch or trial.unit == 0)
    wrong = answered(trials, lambda _trial: False)
    key, report = trials.key(), StudyReport.read(folder)
    alone = score(key, same, report)
    found = score_people({"ada": (key, same), "ben": (key, same), "cy": (key, wrong)}, report)
    assert [(one.total.name, one.total.share, one.careful) for one in found.people] == [
        ("ada", 16 / 24, True), ("ben", 16 / 24, True), ("cy", 0, False),
    ]  # fmt: skip
    assert not found.careful
    assert [(one.right, one.n) for one in found.together.checkpoints] == [(8, 24), (24, 24)]
    assert [one.rho for one in found.together.correlations] == [one.rho for one in alone.correlations]
    assert (found.agreement.people, found.agreement.trials, found.agreement.alpha) == (2, 24, 1)
    assert found.agreement.ceiling == pytest.approx(1)
    other = score_people({"ada": (key, same), "ben": (key, answered(trials, lambda trial: True))}, report).agreement
    assert -1 < other.ci_low < other.alpha < other.ci_high < 1
    assert score_people({"ada": (key, same)}, report).agreement is None
    with pytest.raises(ValueError, match=r"different pictures \(fourier, logits and plain, logits\)"):
        score_people({"ada": (key, same), "ben": ({**key, "recipe": "fourier"}, same)}, report)


def test_alpha_is_that_of_krippendorff_s_own_example():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section A: two observers, ten binary units."""
    first, second = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    counts = np.array([[2 - a - b, a + b] for a, b in zip(first, second, strict=True)])
    assert krippendorff_alpha(counts) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(np.vstack([counts, [[1, 0]]])) == krippendorff_alpha(counts)
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None


def test_the_interval_of_a_rank_correlation_holds_the_truth_about_95_times_in_100():
    rng, rho, held = np.random.default_rng(0), 0.5, 0
    # Spearman's rho of a bivariate normal with Pearson's r (Pearson 1907).
    truth = 6 / np.pi * np.arcsin(rho / 2)
    for _ in range(400):
        x = rng.normal(size=30)
        _, low, high, _ = rank_correlation(x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=30))
        held += low < truth < high
    assert 370 <= held <= 395


def test_what_does_not_vary_has_no_correlation():
    assert rank_correlation([1, 2, 3, 4], [1, 1, 1, 1]) is None
    assert rank_correlation([1, 2, 3], [1, 3, 2]) is None
    assert rank_correlation([1, 2, 3, 4], [2, 4, 6, 8])[:3] == (1, None, None)


# --- answers that cannot be scored -----------------------------------------------------------------------------------


def as_json(trials: TrialSet) -> dict[str, Any]:
    rows = [{"trial": one.trial, "choice": one.choice, "confidence": one.confidence, "seconds": one.seconds}
            for one in answered(trials, lambda trial: True)]  # fmt: skip
    return {"format": 1, "trials": trials.token, "answers": rows}


def changed(place: str, value: Any) -> Any:
    def change(given: dict[str, Any]) -> dict[str, Any]:
        given["answers"][3][place] = value
        return given

    return change


WRONG = {
    "another study": (
        lambda given: given | {"trials": "0badcafe"},
        r"answers page '0badcafe', which was not made from this study",
    ),
    "incomplete": (lambda given: given | {"answers": given["answers"][:7]}, r"answers 7 of 26 trials; finish the page"),
    "unknown trial": (changed("trial", "zz"), r"answers trial 'zz', which page \w+ does not have"),
    "twice": (lambda given: given | {"answers": [*given["answers"], given["answers"][0]]}, "more than once"),
    "no choice": (changed("choice", "middle"), "no side 'middle'"),
    "too sure": (changed("confidence", 9), "confidence must be 1, 2 or 3"),
    "not a number": (changed("seconds", "soon"), "without trial, choice, confidence or seconds"),
    "nan": (changed("seconds", float("nan")), "seconds not negative, got"),
    "a list": (lambda given: given["answers"], "holds no answers to trials"),
    "another format": (lambda given: given | {"format": 2}, "holds no answers to trials"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers_are_refused_in_one_sentence(case, folder, trials, tmp_path):
    change, sentence = WRONG[case]
    write_key(folder, trials)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(change(as_json(trials))))
    with pytest.raises(ValueError, match=sentence) as caught:
        read_answers(file, folder)
    assert "\n" not in str(caught.value)


def test_truncated_answers_and_missing_files(folder, trials, tmp_path):
    write_key(folder, trials)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(as_json(trials))[:-40])
    with pytest.raises(ValueError, match=r"is truncated or not JSON .*download the answers again"):
        read_answers(file, folder)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.json"):
        read_answers(tmp_path / "nowhere.json", folder)
    with pytest.raises(FileNotFoundError, match=r"no trials-key.json in .*make a page first"):
        read_answers(file, tmp_path)
    (tmp_path / "trials-key.json").write_text("{")
    with pytest.raises(ValueError, match=r"trials-key.json' is not readable"):
        read_answers(file, tmp_path)


def test_a_second_page_keeps_the_answers_of_the_first(folder, trials, tmp_path):
    other = chosen(folder, count=6, seed=9)
    write_key(folder, trials)
    write_key(folder, other)
    (tmp_path / "answers.json").write_text(json.dumps(as_json(trials)))
    key, answers = read_answers(tmp_path / "answers.json", folder)
    assert key == json.loads(json.dumps(trials.key()))
    assert [answer.trial for answer in answers] == [trial.id for trial in trials.trials]


# --- studies that cannot be asked about ------------------------------------------------------------------------------


def test_what_the_study_does_not_have_is_said(folder):
    for options, sentence in [
        ({"names": ["k9"]}, "no checkpoint with pictures of logits under plain 'k9'; .*k8-s0"),
        ({"recipe": "fourier"}, "no recipe with pictures in this study 'fourier'; there are: plain"),
        ({"layer": "linear2"}, "no layer with pictures under plain in this study 'linear2'; did you mean linear1"),
        ({"count": 0}, "trials must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            chosen(folder, **options)


def test_missing_data_pictures_and_checkpoints_are_said(tmp_path):
    folder = make_study(tmp_path, hidden=False)
    report = StudyReport.read(folder)
    elsewhere = {**report, "data": {**report["data"], "name": "npz:gone.npz"}}
    with pytest.raises(
        FileNotFoundError, match=r"test images of the study's data set 'npz:gone.npz', which are not here: no file"
    ):
        data_of(elsewhere)
    with pytest.raises(ValueError, match="other classes or another shape"):
        data_of({**report, "data": {**report["data"], "shape": [1, 9, 8]}})
    (folder / "checkpoints/k8-s0.safetensors").write_bytes((folder / "checkpoints/k8-s1.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds other weights than checkpoint 'k8-s0'"):
        chosen(folder)
    (folder / "checkpoints/k8-s0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="need the activations of checkpoint 'k8-s0', which is not available"):
        chosen(folder)
    (folder / "exemplars/0-0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture 'exemplars/0-0.png' is gone"):
        chosen(folder)
    with pytest.raises(FileNotFoundError, match=r"no report.json at .*vizrobust study"):
        StudyReport.read(tmp_path / "nowhere")
    (folder / "report.json").write_text("{")
    with pytest.raises(ValueError, match="is not a study's report"):
        StudyReport.read(folder)


def test_a_study_without_exemplars_has_no_catch_trials(tmp_path):
    folder = make_study(tmp_path, hidden=False)
    report = {**StudyReport.read(folder), "exemplars": []}
    found = choose(folder, report, load("digits"), Compute("cpu"), count=4)
    assert len(found.trials) == 4
    assert score(found.key(), answered(found, lambda trial: True), report).catch is None
