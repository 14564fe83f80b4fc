"""What `neurons` can be asked for: both signs, faces, films, whole objectives, a start; and what it says where it cannot."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.test_cli import checkpoint, run
from vizrobust.clarity import picture_scores
from vizrobust.data import published
from vizrobust.data.images import image_files
from vizrobust.features import parse_objective
from vizrobust.runs import write_png


@pytest.fixture
def ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    checkpoint(tmp_path / "A")
    monkeypatch.chdir(tmp_path)
    return "A"


def rendered(*args: object) -> list[dict]:
    result = run("neurons", "--steps", "2", "--out", "out", "--json", *args)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_both_renders_what_a_unit_likes_and_what_it_dislikes(ref):
    rows = rendered(ref, "--units", "0:3", "--both")
    assert [(row["sign"], row["unit"]) for row in rows] == [(1, 0), (1, 1), (1, 2), (-1, 0), (-1, 1), (-1, 2)]
    assert "What the class units dislike" in Path("out/index.html").read_text()


def test_diversity_gives_several_faces_whose_weight_is_written_down(ref):
    rows = rendered(ref, "--layer", "conv1", "--units", "2,5", "--diversity", "3", "--seeds", "2")
    assert [(row["unit"], row["seed"]) for row in rows] == [(unit, seed) for unit in (2, 5) for seed in range(6)]
    objective = parse_objective(rows[0]["objective"])
    (one, about), (weight, diversity) = objective.parts
    assert (one, about.layer, diversity.layer, diversity.group_size) == (1, "conv1", "conv1", 3)
    assert weight < 0
    assert {row["objective"] for row in rows} == {repr(objective)}


def test_a_movie_runs_from_the_start_to_the_picture(ref):
    (row,) = rendered(ref, "--units", "4", "--movie")
    with Image.open(Path("out", row["film"])) as film, Image.open(Path("out", row["image"])) as picture:
        assert film.n_frames == 3  # two steps and the start
        film.seek(2)
        assert np.abs(np.asarray(film.convert("L"), dtype=int) - np.asarray(picture, dtype=int)).max() <= 1
    assert "data:image/gif;base64," in Path("out/index.html").read_text()


def test_a_long_way_is_thinned_and_that_is_said(ref):
    result = run("neurons", ref, "--units", "4", "--movie", "--steps", "90", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "the GIFs show 60 of the 91 pictures on the way" in result.output
    (film,) = Path("out").glob("images/**/*.gif")
    with Image.open(film) as frames:
        assert frames.n_frames <= 60


def test_a_whole_objective_may_be_about_several_layers_and_units(ref):
    text = "2 * Channel(layer='conv1') + Logit(unit=3) - 0.1 * TotalVariation"
    rows = rendered(ref, "--objective", text, "--units", "1,2")
    assert [(row["layer"], row["unit"]) for row in rows] == [("conv1", 1), ("conv1", 2)]
    assert parse_objective(rows[0]["objective"]) == parse_objective(text)


def test_an_objective_without_a_free_unit_is_one_picture(ref):
    (row,) = rendered(ref, "--objective", "Channel(layer='conv1', unit=7)")
    assert row["unit"] == 7
    assert "What excites the units of conv1" in Path("out/index.html").read_text()


def test_an_objective_about_a_whole_layer_is_called_so(ref):
    (row,) = rendered(ref, "--objective", "DeepDream(layer='conv1') - 0.1 * TotalVariation")
    assert (row["layer"], row["unit"]) == ("conv1", 0)
    page = Path("out/index.html").read_text()
    assert "conv1 as a whole" in page
    assert "What excites" not in page.split("<main>")[1]


def test_a_picture_may_start_from_a_test_image_or_a_file(ref):
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save("grey.png")
    for start in ("digits#5", "grey.png"):
        (row,) = rendered(
            ref, "--units", "1", "--start", start, "--recipe", "plain(step_size=0.0001)", "--out", re.sub(r"\W", "", start)
        )
        assert row["status"] in ("ok", "saturated")
        assert 0 < row["data_saturated_share"] < 1  # a digit is black for the most part, so a black picture is not saturated


BAD = {
    "no layer": (["--objective", "TotalVariation"], r"TotalVariation\(\) names no layer"),
    "no such layer": (["--objective", "Channel(layer='conv9')"], "no layer 'conv9'; did you mean conv"),
    "no such unit": (["--objective", "Channel(layer='conv1', unit=99)"], "no unit 99 in layer 'conv1', which has"),
    "units of their own": (["--objective", "DeepDream(layer='conv1')", "--units", "3"], "asks for no unit besides its own"),
    "faces of logits": (["--diversity", "4"], "logits have no positions in which styles could differ"),
    "faces and batch": (["--layer", "conv1", "--diversity", "5", "--batch-size", "4"], "has no room for a group of 5 images"),
    "faces at odds": (
        ["--objective", "Diversity('conv1', group_size=2) + Alignment('conv1', group_size=3)"],
        "the same group_size",
    ),
    "no test image": (["--start", "digits#99999"], "no image 99999 in digits, whose test images are 0 to"),
    "no image": (["--objective", "Inversion(layer='conv1', image='gone.png')"], "no image file 'gone.png'"),
    "not an objective": (["--objective", "3"], "not an objective"),
    "position of a vector": (["--objective", "Neuron(layer='linear1')"], "has no positions"),
    "size": (["--size", "5"], "cannot take images of 5 x 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_sentence_and_leaves_no_picture(case, ref):
    args, words = BAD[case]
    result = run("neurons", ref, "--steps", "2", "--out", "out", *args)
    assert result.exit_code == 1, result.output
    assert re.search(words, result.output.replace("\n", " ")), result.output
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert not list(Path().glob("out/**/*.png"))


def measures(networks: tuple[str, ...], *args: str) -> list[str]:
    """The words in the header of the table of units."""
    result = run("neurons", *networks, "--units", "0:2", "--steps", "1", "--out", "out", *args)
    assert result.exit_code == 0, result.output
    return next(line for line in result.stdout.splitlines() if line.split()[:1] == ["unit"]).split()


def test_many_checkpoints_show_the_score_beside_each_other(ref):
    networks = ("A", "B", "C")
    for seed, name in enumerate(networks):
        checkpoint(Path(name), seed)
    assert measures(networks, "--sort", "score") == ["unit", "A", "score", "B", "score", "C", "score"]


@pytest.mark.slow
def test_where_there_are_judges_it_is_the_measure_that_units_are_sorted_by(ref):
    networks = ("mnist-k0", "mnist-k1", "mnist-k8")
    for order, title in (("unit", "log-odds"), ("score", "score"), ("forced_choice", "AUC")):
        assert measures(networks, "--sort", order) == ["unit", *(word for name in networks for word in (name, title))]
    assert measures(networks[:2], "--out", "two").count("mnist-k0") == 4


def test_the_built_in_sweep_is_one_batch_of_its_classes(ref, scored, monkeypatch):
    # Of 9,469 training images only the share of saturated pixels is wanted.
    monkeypatch.setattr(published, "image_files", lambda at: image_files(at)[: 20 if at.parent.name == "train" else None])
    result = run("neurons", "--steps", "1", "--judge", "imagenette-judge-heavy", "--out", "out")
    assert result.exit_code == 0, result.output
    about = json.loads(Path("out/run.json").read_text())["identity"]
    assert about["batch_size"] == 10
    assert "steps=1)" in about["recipe"]
    rows = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert [(row["checkpoint"].rpartition("-")[0], row["unit"]) for row in rows] == [
        (f"imagenette-k{k}", unit) for k in (0, 1, 2, 4, 8) for unit in range(10)
    ]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each time that pictures are scored, here with few images."""
    calls: list[int] = []
    score = picture_scores.score_pictures

    def counted(*args: object) -> object:
        calls.append(1)
        return score(*args[:-1], 60)

    monkeypatch.setattr(picture_scores, "score_pictures", counted)
    monkeypatch.setattr(sys.modules["vizrobust.clarity.natural_scale"], "RESAMPLES", 20)
    return calls


def test_a_finished_command_computes_nothing_again(ref, scored, monkeypatch):
    asked = ["mnist-k8", "--units", "0:3"]
    first = rendered(*asked)
    assert len(scored) == 1
    assert [row["judge"] for row in first if "judge" in row] == ["mnist-judge-heavy"] * 2
    with monkeypatch.context() as closed:
        closed.setattr("vizrobust.clarity.judges.Judge.__call__", None)
        closed.setattr("vizrobust.features.picture_runs.render_batches", None)
        assert rendered(*asked) == first
    assert len(scored) == 1
    assert len(Path("out/scores.jsonl").read_text().splitlines()) == 1


def test_scores_are_of_what_they_are_asked_for(ref, scored):
    asked = ["mnist-k8", "--units", "0:2"]
    first = rendered(*asked)
    rendered("mnist-k8", "--units", "0:2", "--judge", "mnist-judge-robust")
    rendered("mnist-k8", "--units", "1:2")
    assert len(scored) == 3
    picture = next(Path("out").glob("images/**/1-s0.png"))
    content = picture.read_bytes()
    with Image.open(picture) as image:
        texts = {key: str(text) for key, text in image.text.items()}
    write_png(picture, np.zeros((28, 28), np.uint8), texts)
    assert rendered(*asked) != first
    picture.write_bytes(content)
    assert rendered(*asked) == first
    assert len(scored) == 4


def test_damaged_scores_are_computed_again(ref, scored):
    asked = ["mnist-k8", "--units", "0"]
    first = rendered(*asked)
    Path("out/scores.jsonl").write_text("garbled\n")
    assert rendered(*asked) == first
    assert len(scored) == 2
    # Other damage is read as no row at all, as this is.
    for line in ("7\n", '{"a": 1}\n', '{"key": "a", "scores": {"b": {}}}\n'):
        Path("out/scores.jsonl").write_text(line)
        assert picture_scores._score_rows(SimpleNamespace(folder=Path("out"))) == [], line
