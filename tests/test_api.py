"""The functions that a Python user meets first, on a network whose robust accuracy is known by hand."""

from __future__ import annotations

import dataclasses
import gc
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vizrobust as vr
from tests.conftest import net_file
from vizrobust.commands.compare import random_reference
from vizrobust.commands.study import StudyResult
from vizrobust.data import ArraySplit, DataSet
from vizrobust.models import save_checkpoint
from vizrobust.requests.evaluation import AttackRequest, MaskingRequest
from vizrobust.requests.pictures import CompareRequest, NeuronsRequest
from vizrobust.requests.study import StudyRequest
from vizrobust.session import Session
from vizrobust.study import StudyReport

EPS = 0.1
GALLERY = Path(__file__).resolve().parents[1] / "gallery"
# Image k has brightness .5 + MARGINS[k]; it is class 1 if its mean is above .5, so exactly the larger margins survive EPS.
MARGINS = (0.3, 0.2, 0.15, 0.12, 0.09, 0.05, 0.02, -0.04, -0.2)
ROBUST = [abs(margin) > EPS and label == (margin > 0) for margin, label in zip(MARGINS, [1] * 8 + [1], strict=True)]


class Brightness(nn.Module):
    """Two logits that differ by the mean of the image minus one half; in training mode it would answer nonsense."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        margin = self.drop(self.scale * (x.mean((1, 2, 3)) - 0.5))
        return torch.stack((-margin, margin), 1)


def images() -> tuple[Tensor, Tensor]:
    x = torch.stack([torch.full((3, 4, 5), 0.5 + margin) for margin in MARGINS])
    return x, torch.ones(len(MARGINS), dtype=torch.int64)


def test_a_bare_network_and_a_pair_of_tensors_give_the_accuracy_worked_out_by_hand():
    x, y = images()
    found = vr.robust_accuracy(Brightness(), (x, y), "pgd", eps=EPS, steps=10)
    assert found.robust.tolist() == ROBUST
    assert found.correct.tolist() == [margin > 0 for margin in MARGINS]
    assert found.accuracy == pytest.approx(4 / 9)
    low, high = found.interval
    assert low < 4 / 9 < high
    assert not found.undefined.any()
    assert "44.4 %" in repr(found)
    assert "<table>" in found._repr_html_()
    adversarial = found.adversarial
    assert adversarial.shape == x.shape
    assert (adversarial - x).abs().max() <= EPS + 1e-6
    wrong = Brightness().eval()(adversarial).argmax(1) != y
    assert wrong.tolist() == [not robust for robust in ROBUST]


def test_loaders_batches_and_attacks_of_every_kind_give_the_same_verdicts():
    x, y = images()
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    for data, attack, size in (
        (loader, "pgd", None), ((x, y), vr.PGD(eps=EPS, steps=5), 1), ((x, y), "PGD(steps=5, ball=Linf(eps=0.1))", 4),
    ):  # fmt: skip
        found = vr.robust_accuracy(Brightness(), data, attack, eps=EPS, batch_size=size)
        assert found.robust.tolist() == ROBUST
    assert len(vr.robust_accuracy(Brightness(), loader, "fgsm", eps=EPS, images=4).robust) == 4


def test_arrays_lists_and_data_sets_are_data_as_tensors_are():
    x, y = images()
    arrays = (x.numpy(), y.numpy()), (x, y.tolist()), [x.numpy(), y], (x.tolist(), y.tolist())
    for data in (*arrays, TensorDataset(x, y), list(zip(x, y, strict=True))):
        assert vr.robust_accuracy(Brightness(), data, "fgsm", eps=EPS).robust.tolist() == ROBUST


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"image": torch.zeros(2, 3, 4, 5)}], "yield dict, not pairs"),
        (DataLoader(torch.rand(4, 3, 4, 5), batch_size=2), r"yield images \(3, 4, 5\)"),
        ([(torch.zeros(2, 3, 4, 5), torch.zeros(2)), (torch.zeros(2, 3, 4, 4), torch.zeros(2))], "of one size"),
        (iter(()), "no images"),
        ((torch.rand(2, 3, 4, 5).to_sparse(), torch.zeros(2, dtype=torch.int64)), "sparse"),
    ],
    ids=["dicts", "images alone", "sizes", "exhausted", "sparse"],
)
def test_data_of_another_form_are_refused_in_words_of_ours(data, said):
    with pytest.raises(ValueError, match=said):
        vr.robust_accuracy(Brightness(), data, "fgsm", eps=EPS)


def test_a_loader_that_shuffles_gives_all_networks_the_same_images():
    x, y = images()
    loader = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)
    one, other = Brightness(), Brightness()
    other.scale.data[()] = 19.0
    for _ in range(3):
        first, second = vr.certify([one, other], loader, samples=100, attack="none", images=4).found
        assert first.target.images.take(torch.arange(4)).equal(second.target.images.take(torch.arange(4)))


def test_networks_of_one_class_have_tables_of_their_own_although_their_weights_agree():
    x, y = images()
    linear = nn.Linear(60, 2)
    nets = [nn.Sequential(nn.Flatten(), linear, kind()) for kind in (nn.ReLU, nn.Tanh)]
    rows = vr.certify(nets, (x, y), method="ibp", attack="none", images=2).rows()
    assert len({row["name"] for row in rows}) == 2
    assert len(rows) == 4


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = Brightness(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z: z.mean(0, keepdim=True), r"\(1, 2\) for"),
        (lambda z: z.repeat(3, 1), "a row for each"),
        (lambda z: z.to(torch.complex64), "real logits"),
    ],
)
def test_outputs_that_are_no_row_for_each_image_are_refused(change, said):
    x, y = images()
    for call in (lambda net: vr.robust_accuracy(net, (x, y), eps=EPS), lambda net: vr.PGD(eps=EPS)(net, x, y)):
        with pytest.raises(ValueError, match=said):
            call(Returns(change))


def test_an_attack_by_itself_reads_outputs_by_the_rule_of_the_commands():
    x, y = images()
    for change in (lambda z: {"logits": z}, lambda z: (z, x), lambda z: z[:, 1:] * 2):
        assert vr.PGD(eps=EPS, steps=10)(Returns(change), x, y).robust.tolist() == ROBUST


class InPlace(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5).add_(0.25)
        return super().forward(x)


def test_a_network_that_writes_into_its_images_changes_none_of_them():
    x, y = images()
    kept = x.clone()
    assert vr.robust_accuracy(InPlace(), (x, y), "fgsm", eps=EPS).robust.tolist() == ROBUST
    assert vr.PGD(eps=EPS, steps=5)(InPlace(), x, y).robust.tolist() == ROBUST
    assert x.equal(kept)


def test_a_network_of_another_size_or_without_values_is_refused_in_words_of_ours():
    x, y = images()
    sparse = Brightness()
    sparse.register_buffer("mask", torch.eye(3).to_sparse())
    for net, said in (
        (nn.Sequential(nn.Flatten(), nn.Linear(50, 2)), r"cannot take images of \(3, 4, 5\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 2, device="meta")), "ordinary weights|cannot take"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), "no values yet"),
        (sparse, "sparse_coo tensor"),
    ):
        with pytest.raises(ValueError, match=said):
            vr.robust_accuracy(net, (x, y), "fgsm", eps=EPS)


def test_what_a_pass_leaves_in_a_network_does_not_keep_it_from_being_copied():
    x, y = images()
    net = Brightness()
    net.last = net(x.requires_grad_())
    assert vr.robust_accuracy(net, (x, y), "fgsm", eps=EPS).robust.tolist() == ROBUST


def test_a_callers_inference_mode_changes_nothing():
    x, y = images()
    with torch.inference_mode():
        assert vr.robust_accuracy(Brightness(), (x, y), "fgsm", eps=EPS).robust.tolist() == ROBUST
        assert len(vr.visualize(Brightness(), units=[0], steps=1, shape=(3, 4, 5))) == 1


def test_a_network_is_given_back_as_it_was():
    net = Brightness().train()
    net.scale.requires_grad_(False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    vr.robust_accuracy(net, images(), "pgd", eps=EPS, steps=3)
    assert net.training
    assert net.drop.training
    assert not net.scale.requires_grad
    assert net.scale.grad is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x * 255, y), "divide"),
        (lambda x, y: (torch.cat((x[1:], torch.full((1, 3, 4, 5), torch.nan))), y), "finite"),
        (lambda x, y: ((x * 255).byte(), y), "floating point|uint8"),
        (lambda x, y: (x, y[:5]), "for 9 images"),
        (lambda x, y: (x[:0], y[:0]), "no images"),
        (lambda x, y: (x, y + 7), "label 8"),
    ],
)
def test_images_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        vr.robust_accuracy(Brightness(), change(*images()), eps=EPS)


def test_errors_name_parameters_as_python_writes_them():
    with pytest.raises(ValueError, match="give eps") as error:
        vr.robust_accuracy(Brightness(), images())
    assert "--" not in str(error.value)
    with pytest.raises(ValueError, match="did you mean PGD"):
        vr.robust_accuracy(Brightness(), images(), "pgdd", eps=EPS)


QUICK = "AttackBudget(steps=5, restarts=1, queries=5, noise_samples=2, probes=10)"


def test_a_bare_network_is_diagnosed_and_its_diagnosis_shows_itself():
    x, y = (part.repeat(25, *[1] * (part.dim() - 1)) for part in images())
    sound = vr.diagnose_masking(Brightness(), (x, y), eps=EPS, trained_with="none", images=225, effort=QUICK)
    assert (sound.verdict.name, sound.ok) == ("sound", True)
    assert repr(sound).startswith("Brightness: sound: 44.4 % of 225 images")
    assert "\n" not in repr(sound)
    html = sound._repr_html_()
    assert "name one with transfer_from" in html
    assert "--" not in html
    (row,) = sound.rows()
    assert (row["verdict"], row["n"], row["eps"], row["norm"]) == ("sound", 225, EPS, "Linf")
    assert sound.survives["all"].tolist() == ROBUST * 25
    rounded = nn.Sequential(Rounded(), Brightness())
    found = vr.diagnose_masking(rounded, (x, y), eps=EPS, trained_with=vr.PGD(steps=2), images=225, effort=QUICK)
    assert not found.ok
    assert [check.flagged for check in found.checks if check.name == "no gradient at the start"] == [True]


class Rounded(nn.Module):
    """Black and white, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (50 * x).round() / 50


class Labels(Brightness):
    """Brightness as a label, one-hot: no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def test_a_network_that_gives_labels_is_attacked_by_decisions_and_diagnosed_on_fewer_images_than_asked_for():
    with pytest.raises(ValueError, match="outputs have no gradient with respect to the image; attack it with Square or Hop"):
        vr.robust_accuracy(Labels(), images(), "PGD(steps=2)", eps=EPS)
    found = vr.robust_accuracy(Labels(), images(), "HopSkipJump(queries=200, samples=20)", eps=EPS)
    assert found.robust.tolist() == [*ROBUST[:4], True, *ROBUST[5:]], "all but the one whose margin is nearly eps"
    diagnosis = vr.diagnose_masking(Labels(), images(), eps=EPS, effort=QUICK)
    assert (diagnosis.n, diagnosis.ok) == (len(ROBUST), None)
    assert [check.flagged for check in diagnosis.checks if check.name == "no gradient at the start"] == [True]


def test_a_diagnosis_takes_an_attack_budget_and_refuses_other_efforts():
    with pytest.raises(ValueError, match="is not an effort"):
        vr.diagnose_masking(Brightness(), images(), eps=EPS, effort="PGD()")
    with pytest.raises(ValueError, match="most_images 3 is less than images 9"):
        vr.diagnose_masking(Brightness(), images(), eps=EPS, images=9, most_images=3)
    with pytest.raises(ValueError, match="give eps"):
        vr.diagnose_masking(Brightness(), images())


def test_pictures_show_themselves_and_are_the_same_each_time():
    ref = net_file((1, 8, 8), 4)
    pictures = vr.visualize(ref, units=[2, 0], steps=3)
    assert [one.unit for one in pictures] == [2, 0]
    assert all(one.image.shape == (1, 8, 8) and one.status in ("ok", "dead", "saturated") for one in pictures)
    assert pictures._repr_html_().count("data:image/png;base64") == 2
    assert "2 pictures of units 2, 0" in repr(pictures)
    drawn = pictures.figure()
    assert [axes.get_title() for axes in drawn.axes] == ["class 2", "class 0"]
    assert drawn._repr_png_().startswith(b"\x89PNG")
    again = vr.visualize(vr.load(ref), units=[2, 0], steps=3)
    assert all(torch.equal(a.image, b.image) for a, b in zip(pictures, again, strict=True))
    bare = vr.visualize(vr.load(ref).net(), units=[2], steps=3, shape=(1, 8, 8))
    assert torch.allclose(bare[0].image, pictures[0].image, atol=1e-5)
    with pytest.raises(ValueError, match="did you mean conv"):
        vr.visualize(ref, layer="conv9")


def test_models_are_compared_with_tables_pictures_and_rows(tmp_path):
    refs = [net_file((1, 8, 8), 4, seed) for seed in (1, 2)]
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = (x, torch.arange(12) % 4)
    how = {"attack": "fgsm", "eps": 0.1, "seeds": 1, "steps": 2, "units": [1, 0], "images": 10}
    found = vr.compare(refs, data, **how)
    assert [len(result.robust) for _, result in found.evaluations] == [10, 10]
    assert repr(found).startswith(f"Comparison of {refs[0]} and {refs[1]}: ")
    assert "\n" not in repr(found)
    accuracies = [row for row in found.rows() if "accuracy" in row]
    assert [row["checkpoint"] for row in accuracies] == refs
    assert accuracies[1]["minus"] == refs[0]
    assert found.tables()[0].title == "Training and accuracy"
    assert "<table>" in found._repr_html_()
    assert "data:image/png;base64," in found._repr_html_()
    assert min(found.image().size) > 100
    assert found.figure()._repr_png_().startswith(b"\x89PNG")
    folder = found.folder
    assert len(list(folder.glob("images/**/*.png"))) == 4
    kept = vr.compare(refs, data, out=tmp_path / "run", **how)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("images/**/*.png")}
    assert len(pictures) == 2  # units 0 and 1 of both networks, whose folders differ
    assert kept.rows()[2]["accuracy"] == accuracies[0]["accuracy"]
    del found
    gc.collect()
    assert not folder.exists()


def test_networks_of_one_class_are_compared_under_names_of_their_own():
    nets = [Brightness(), Brightness()]
    with torch.no_grad():
        nets[1].scale.fill_(-20.0)
    found = vr.compare(nets, images(), eps=EPS, attack="fgsm", seeds=1, steps=1, units=[0])
    names = [checkpoint.name for checkpoint, _ in found.evaluations]
    assert len(set(names)) == 2
    assert all(name.startswith("Brightness#") for name in names)
    # Right on the last two, whose sign it has turned; both within EPS of the border or not.
    assert [result.clean for _, result in found.evaluations] == [7 / 9, 2 / 9]
    with pytest.raises(ValueError, match="two or more different checkpoints, got 1"):
        vr.compare([nets[0]], images(), eps=EPS)


def test_a_network_with_its_classes_in_another_order_is_compared_by_their_names(tmp_path, monkeypatch):
    ref, other = net_file((1, 8, 8), 4), tmp_path / "turned.safetensors"
    one = vr.load(ref)
    turned = {name: value.flip(0) if len(value) == 4 else value for name, value in one.state.items()}
    save_checkpoint(other, turned, dataclasses.replace(one.info, classes=one.info.classes[::-1]))
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = ArraySplit(x, torch.arange(12) % 4)
    named = DataSet("four", one.info.classes, (1, 8, 8), data, data, data, 0.1)
    told: list[str] = []
    monkeypatch.setattr(Session, "note", lambda _self, text: told.append(text))
    found = vr.compare([ref, str(other)], named, attack="fgsm", seeds=1, steps=1, units=[0])
    assert sum("unit 0 is " in text and "show different classes" in text for text in told) == 1
    first, second = (result for _, result in found.evaluations)
    assert first.correct.any()
    assert torch.equal(first.correct, second.correct)


def test_a_random_reference_has_weights_of_its_own():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    session = Session(memory=True, device="cpu")
    data = session.dataset((torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 3])))
    checkpoint = session.checkpoint(net, data)
    reference = random_reference(checkpoint)
    assert reference is not None
    assert not torch.equal(reference.state["0.weight"], checkpoint.state["0.weight"])
    net.register_parameter("shift", nn.Parameter(torch.tensor([0.3, 0.4])))
    assert random_reference(session.checkpoint(net, data)) is None


@pytest.mark.parametrize(
    ("function", "request_"),
    [
        ("robust_accuracy", AttackRequest), ("visualize", NeuronsRequest), ("compare", CompareRequest),
        ("diagnose_masking", MaskingRequest),
    ],
)  # fmt: skip
def test_functions_have_the_defaults_of_their_requests(function, request_):
    parameters = inspect.signature(getattr(vr, function)).parameters
    fields = {field.name: field.default for field in dataclasses.fields(request_)}
    shared = {name: one.default for name, one in parameters.items() if name in fields and fields[name] != ()}
    assert {"seed", "batch_size", "precision", "data"} <= set(shared)
    unlike = {name: (value, fields[name]) for name, value in shared.items() if value != fields[name] and name != "models"}
    assert not unlike


def test_bands_are_shown_one_by_one_and_never_as_transparency():
    for bands in (2, 4, 5):
        net = nn.Sequential(nn.Conv2d(bands, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        (picture,) = vr.visualize(net, "0", units=[1], steps=2, shape=(bands, 6, 7))
        assert picture.image.shape == (bands, 6, 7)
        assert picture.pixels().shape == (6, 7 * bands)
        assert picture.pixels()[:, 7:14].tolist() == (picture.image[1] * 255).round().to(torch.uint8).tolist()
        with pytest.raises(ValueError, match=f"opacity .* this network takes {bands} bands"):
            vr.visualize(net, "0", units=[1], shape=(bands, 6, 7), recipe="Recipe('x', AlphaChannel(), Adam(), steps=1)")


def test_every_listed_name_has_help():
    for name in (*vr.list_attacks(), *vr.list_recipes()):
        assert vr.help(name).title.lower() == name.lower()
    assert "mnist-k8" in vr.list_models()
    assert {"__version__", "load", "robust_accuracy", "diagnose_masking", "visualize", "train", "study"} <= set(dir(vr))
    assert vr.__version__[0].isdigit()


def test_training_gives_a_report_and_the_same_call_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("vizrobust.training.training_runs.TESTED_IMAGES", 20)
    monkeypatch.setattr("vizrobust.training.training_runs.TESTED_STEPS", 1)
    given = {"steps": 1, "eps": 0.1, "epochs": 1, "watch": 20, "out": tmp_path / "t"}
    report = vr.train("digits", **given)
    (row,) = report.rows()
    assert report.checkpoint.info.attack_steps == 1
    assert row["weights_sha256"] == report.checkpoint.sha256
    assert "\n" not in repr(report)
    assert "K = 1" in repr(report)
    assert "<table>" in report._repr_html_()
    assert len(report.figure().axes) == 2
    assert vr.train("digits", **given).checkpoint.sha256 == report.checkpoint.sha256
    sweep = vr.train("digits", steps=(0, 1), epochs=1, watch=20, out=tmp_path / "s")
    assert [checkpoint.info.attack_steps for checkpoint in sweep.checkpoints.values()] == [0, 1]
    with pytest.raises(ValueError, match="take one of"):
        _ = sweep.checkpoint


def test_training_refuses_by_the_names_of_parameters(tmp_path):
    for parameters, words in (
        ({}, "say how to train: steps K"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"steps": 0, "attack": "PGD"}, "steps 0 is standard training, which has no attack"),
        ({"steps": 1, "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"steps": 1, "epoch": 3}, "did you mean epochs"),
    ):
        with pytest.raises(ValueError, match=words):
            vr.train("digits", out=tmp_path / "t", **parameters)
    assert list(tmp_path.iterdir()) == []


def test_a_study_refuses_what_cannot_be_compared(tmp_path):
    with pytest.raises(ValueError, match="say what to study: data"):
        vr.study(out=tmp_path / "s")
    with pytest.raises(ValueError, match="a study compares two or more K, got K = 8"):
        vr.study(["mnist-k8"], out=tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_studys_result_shows_its_report():
    report = StudyReport.read(GALLERY / "mnist-study")
    result = StudyResult(StudyRequest(data="mnist5k"), report, Path("index.html"))
    assert result.rows() == report["trends"]
    assert repr(result).count("\n") == 0
    assert "<table>" in result._repr_html_()
    assert "strongest attack" in result.tables()[0].text()
    assert result.figure() is not None


def test_a_run_folder_is_free_again_after_an_error(tmp_path):
    """A notebook keeps the last traceback, and its frames would keep the lock."""
    from vizrobust.runs import _Lock

    def fails(*_: object, **__: object) -> object:
        raise ValueError("stopped")

    kept = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vizrobust.commands.targets.evaluated", fails)
        with pytest.raises(ValueError, match="stopped") as caught:
            vr.robust_accuracy("mnist-k0", images=4, out=kept)
    assert caught.traceback
    assert (kept / "run.json").is_file()
    assert kept.resolve() not in _Lock.held
