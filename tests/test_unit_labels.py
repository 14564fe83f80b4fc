"""Words for units: planted ones are found, the others have none, and nothing is labelled by chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import assert_refused
from tests.test_cli import checkpoint, run
from vizrobust.commands.unit_tables import words_of
from vizrobust.features.unit_facts import LIMIT, nonsense, unit_labels
from vizrobust.models import clip
from vizrobust.models.clip import clip_file
from vizrobust.rng import Streams

WORDS = tuple(f"word {number}" for number in range(25))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_word_that_predicts_a_unit_is_its_label_and_other_units_have_none() -> None:
    similarity = random(600, len(WORDS))
    activity = torch.stack([similarity[:, 7] + 0.5 * random(600, seed=1), random(600, seed=2), torch.zeros(600)], 1)
    by_word, by_chance, dead = unit_labels(activity, similarity, WORDS)
    assert (by_word.label, by_word.word) == ("word 7", "word 7")
    assert by_word.low < by_word.auc < by_word.high
    assert by_chance.label is None
    assert by_chance.chosen_auc > 0.55 > by_chance.auc  # the best of 25 looks better than it is
    assert dead is None


def test_the_areas_are_those_of_scikit_learn_on_two_halves() -> None:
    activity, similarity = random(90, 4).round(decimals=1), random(90, 5, seed=1).round(decimals=1)  # with ties
    activity[:, 3] = activity[:, 3].clamp_min(0.5)
    found = unit_labels(activity, similarity, WORDS[:5], seed=3)
    order = Streams(3, ["images"], "halves for labels").permutation(90)[0]
    assert sorted(order.tolist()) == list(range(90))
    first, second = order[:45], order[45:]
    for unit, one in enumerate(found):
        excited = activity[:, unit] > float(np.quantile(activity[first, unit].double().numpy(), 0.8))
        areas = [roc_auc_score(excited[first], similarity[first, word]) for word in range(5)]
        best = int(np.argmax(areas))
        assert (one.word, one.chosen_auc) == (WORDS[best], pytest.approx(areas[best]))
        assert one.auc == pytest.approx(roc_auc_score(excited[second], similarity[second, best]))
        assert (one.active, one.n) == (int(excited[second].sum()), 45)


def test_random_similarities_label_no_unit() -> None:
    found = unit_labels(random(400, 300), random(400, 60, seed=1), [f"word {number}" for number in range(60)])
    assert not [one for one in found if one.label]


@pytest.mark.parametrize(("area", "least", "most"), [(0.7, 0.0, 0.025), (0.85, 0.9, 1.0)])
def test_a_word_at_the_limit_is_a_label_no_more_often_than_stated(area: float, least: float, most: float) -> None:
    """Similarities of two normal distributions, for images that excite the unit and for the others, with a known area."""
    repetitions, n = 300, 600
    apart = 2**0.5 * float(norm.ppf(area))
    labelled = 0
    for number in range(repetitions):
        excited = torch.arange(n) < n // 5
        activity = excited + 0.1 * random(n, seed=2 * number)
        similarity = apart * excited + random(n, seed=2 * number + 1)
        (found,) = unit_labels(activity[:, None], similarity[:, None], ["word"], seed=number)
        labelled += found.label is not None
    chance = 2 * (most * (1 - most) / repetitions) ** 0.5
    assert least <= labelled / repetitions <= most + chance


def test_texts_without_meaning_label_one_unit_in_twenty_at_most() -> None:
    """A network that knows no word: every text, word or not, is a direction at random, and some of them predict units."""
    words, could, labelled, alone = [f"word {number}" for number in range(10)], 0, 0, 0
    for seed in range(60):
        features = random(300, 4, seed=3 * seed)
        activity = features @ random(4, 3, seed=3 * seed + 1)
        similarity = features @ random(4, len(words) + len(nonsense(words)), seed=3 * seed + 2)
        found = unit_labels(activity, similarity, words, seed)
        labelled += sum(one.label is not None for one in found)
        could += sum(one.low > LIMIT for one in found)
        alone += sum(one.label is not None for one in unit_labels(activity, similarity[:, : len(words)], words, seed))
    assert alone == could > 100  # without the nonsense they would all be labels
    assert labelled <= (0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5) * 180


def test_nonsense_has_the_words_shape_and_other_letters() -> None:
    words = ["a photo", "ox", "кот"]
    made = nonsense(words)
    assert len(made) == len(set(made)) == 57
    assert [len(text) for text in made[:6]] == [7, 2, 3, 7, 2, 3]
    assert all(text[1] == " " for text in made if len(text) == 7)
    assert not set(made) & set(words)
    assert all(text.replace(" ", "").isascii() for text in made)
    assert made == nonsense(words) != nonsense(words, seed=1)
    assert len(nonsense([f"word {number}" for number in range(500)])) == 2000


def test_too_few_images_give_no_label() -> None:
    for n in (1, 2, 3, 6):
        assert not [one for one in unit_labels(random(n, 3), random(n, 2, seed=1), WORDS[:2]) if one and one.label]


def test_a_word_list_is_a_line_for_each_word_or_the_words_themselves(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("dog\n\n  a photo of stripes \ndog\nкошка\n", encoding="utf-8")
    assert words_of(path) == words_of(str(path)) == ("dog", "a photo of stripes", "кошка")
    assert words_of(["dog", "cat", "dog"]) == ("dog", "cat")
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused(lambda: words_of(path), "is no text in UTF-8")
    path.write_text("\n \n")
    assert_refused(lambda: words_of(path), "words holds no word; give one word or phrase a line")
    with pytest.raises(FileNotFoundError, match="give a text file with a word or phrase a line"):
        words_of(tmp_path / "nowhere.txt")


# --- the command -----------------------------------------------------------------------------------------------------


class Channels:
    """An encoder that knows the mean of each channel by name, and of other words nothing but noise."""

    name, key = "channels", "1"

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.read: list[str] = []

    def images(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        noise = torch.sin(1e4 * x.flatten(1)[:, :6])  # of the image, so that it is the same each time
        return torch.cat([4 * x.mean((2, 3)), noise], 1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.read += texts
        known = {"red": 0, "green": 1}
        noise = torch.cat([torch.zeros(len(texts), 3), Streams(0, texts).normal(6)], 1)
        return torch.stack([torch.eye(9)[known[text]] if text in known else noise[place] for place, text in enumerate(texts)])


class Units(nn.Module):
    """A layer with a unit for red, one for green, one for blue, one for what no word names, and a dead one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.head = nn.Linear(5, 2)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.zero_()
            self.conv.weight[:3, :, 0, 0] = torch.eye(3)
            self.conv.weight[3, 2, 0, 0], self.conv.bias[3] = -1.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def pictures(n: int) -> tuple[Tensor, Tensor]:
    """Images 3 x 6 x 4 whose channels are bright independently of each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, 1, 1, generator=generator) * 0.8 + 0.2 * torch.rand(n, 3, 6, 4, generator=generator)
    return x, torch.arange(n) % 2


def test_units_of_a_network_get_the_words_that_were_planted_and_go_on(tmp_path: Path) -> None:
    net, words = Units().eval(), ["red", "green", *WORDS]

    def asked(encoder: Channels, units: str, words: list[str] = words) -> object:
        return vr.intervene(
            net,
            "conv",
            units,
            pictures(240),
            change="none",
            images=240,
            clip=encoder,
            words=words,
            out=tmp_path / "run",
            device="cpu",
        )

    first, again = Channels(), Channels()
    found = {row["unit"]: row["label"] for row in asked(first, "0:3").rows()}
    assert [found[unit]["label"] for unit in range(3)] == ["red", "green", None]
    assert sum(first.seen) == 240
    rows = asked(again, "all").rows()
    assert (again.seen, again.read) == ([], [])  # what was encoded is kept
    assert {row["unit"]: row["label"] for row in rows if row["unit"] < 3} == found
    assert [row["label"]["label"] for row in rows[3:]] == [None, None]
    assert rows[4]["label"]["word"] is None
    report = asked(again, "all")
    assert report.rows() == rows
    assert len([line for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines() if "nonsense_auc" in line]) == 5
    profile, labels = report.tables()
    assert profile.header == ["unit", "activity", "tells best, AUC"]
    assert [row[:2] for row in labels.rows[:2]] in ([["0", "red"], ["1", "green"]], [["1", "green"], ["0", "red"]])
    assert labels.rows[-1] == ["4", "no label", "-", "-", "-", "-"]
    assert "2 of 5 units have a label" in labels.note
    assert "The best of 27 words is chosen" in labels.note
    assert (
        "none of 513 strings of random letters fits as well (so a network that knows no word labels at most 5.0 %" in labels.note
    )
    assert report.figure() is None
    assert "red" in report._repr_html_()
    fewer = asked(again, "0", ["green", *WORDS]).rows()[0]["label"]
    assert fewer["label"] is None
    other = Channels()
    other.key = "2"
    asked(other, "0")
    assert sum(other.seen) == 240


def test_several_checkpoints_share_what_was_encoded() -> None:
    encoder, same = Channels(), {"change": "none", "images": 80, "clip": Channels(), "words": ["red"], "device": "cpu"}
    found = vr.intervene([Units().eval(), Units().eval()], "conv", "0", pictures(80), **{**same, "clip": encoder})
    assert len(found.rows()) == 2
    assert (sum(encoder.seen), len(encoder.read)) == (80, 20)


def test_labels_stand_beside_what_a_change_does() -> None:
    report = vr.intervene(
        Units().eval(), "conv", "0:2", pictures(80), images=80, controls=1, clip=Channels(), words=("red", *WORDS), device="cpu"
    )
    assert [table.header[0] for table in report.tables()] == ["unit", "unit"]
    assert {"classes", "accuracy", "label", "aucs"} <= set(report.rows()[0])


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("dog\n")
    given = ("intervene", "mnist-k8", "--layer", "conv1", "--images", 4)
    for options, said, code in (
        (("--clip", "ViT-B-32:w.pt"), "--clip and --words go together", 2),
        (("--words", "words.txt"), "--clip and --words go together", 2),
        (("--change", "none", "--plot", "a.png"), "--change none changes nothing; leave one out", 2),
        (("--change", "none", "--clip", "ViT-B-32:w.pt", "--words", "nowhere.txt"), "no file 'nowhere.txt' of --words", 1),
    ):
        done = run(*given, *options)
        assert (done.exit_code, said in " ".join(done.output.split())) == (code, True), done.output
    monkeypatch.setattr(clip, "find_spec", lambda name: None)
    done = run(*given, "--change", "none", "--clip", "ViT-B-32:w.pt", "--words", "words.txt")
    assert "--clip needs the package open_clip: pip install 'vizrobust[clip]'" in " ".join(done.output.split())


# --- open_clip itself: networks without training, as this project has no weights of a trained one ------------------------

TINY = {
    "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in open_clip's format, and its configuration under the name `tiny-clip`."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not here (extra: clip)")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": SIGLIP}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = open_clip.create_model("tiny-clip")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, folder / "open_clip_model.pth"
    )
    return folder


def by_hand(folder: Path, x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    open_clip = pytest.importorskip("open_clip")
    net = open_clip.create_model("tiny-clip")
    state = torch.load(folder / "open_clip_model.pth", weights_only=True)["state_dict"]
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    pixels = (x.expand(-1, 3, -1, -1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return nn.functional.normalize(net.eval().encode_image(pixels), dim=-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_open_clip_encodes_as_it_does_by_hand_with_its_own_preprocessing(tiny: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    grey = (255 * torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(2))).round() / 255
    named, foldered = clip_file(f"tiny-clip:{tiny / 'open_clip_model.pth'}"), clip_file(str(tiny))
    assert torch.allclose(named.images(grey), by_hand(tiny, grey, **OPENAI), atol=1e-5)
    assert torch.allclose(foldered.images(grey), by_hand(tiny, grey, SIGLIP["mean"], SIGLIP["std"]), atol=1e-5)
    assert named.key != foldered.key
    texts = ["a dog", "stripes"] * 20
    tokens = open_clip.get_tokenizer("tiny-clip")(texts)
    with torch.no_grad():
        assert torch.allclose(
            named.texts(texts), nn.functional.normalize(named._network[0].encode_text(tokens), dim=-1), atol=1e-5
        )
    wide = torch.zeros(1, 3, 16, 64)
    wide[:, :, :, :8] = wide[:, :, :, -8:] = 1  # its ends are cut off unless both sides are squashed
    assert torch.allclose(named.images(wide), named.images(torch.zeros(1, 3, 32, 32)), atol=1e-4)
    assert not torch.allclose(foldered.images(wide), foldered.images(torch.zeros(1, 3, 32, 32)), atol=1e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_siglip_2_from_a_file_is_prepared_as_it_was_trained(tiny: Path, tmp_path: Path) -> None:
    weights = tmp_path / "open_clip_model.pth"
    weights.write_bytes((tiny / weights.name).read_bytes())
    assert_refused(lambda: clip_file(f"ViT-B-16-SigLIP2:{weights}"), "put tokenizer.json and tokenizer_config.json there")
    (tmp_path / "tokenizer.json").write_text("{}")
    found = clip_file(f"ViT-B-16-SigLIP2:{weights}")
    assert dict(found.preprocessing) == SIGLIP
    assert_refused(found._tokenizer, "cannot be read")
    assert clip_file(f"ViT-B-32:{weights}").preprocessing["resize_mode"] == "shortest"
    for ref, said in {
        f"ViT-L-14:{weights}": "ViT-L-14@TAG:FILE with TAG one of openai, laion400m_e31",
        f"ViT-L-14@openai:{weights}": "another GELU than ViT-L-14; write ViT-L-14-quickgelu",
        f"ViT-B-33:{weights}": "did you mean ViT-B-32",
        f"roberta-ViT-B-32:{weights}": "which would be downloaded",
        f"ViT-B-32:{tmp_path / 'nowhere'}": "with the weights of ViT-B-32",
        "nowhere": "is no folder; write MODEL:FILE",
        str(tmp_path): "has no open_clip_config.json",
    }.items():
        assert_refused(lambda ref=ref: clip_file(ref), said)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    assert_refused(lambda: clip_file(str(tmp_path)), "is no whole configuration of open_clip: KeyError('preprocess_cfg')")
    assert_refused(lambda: clip_file(f"ViT-S-32-alt:{weights}").images(torch.zeros(1, 3, 8, 8)), "do not fit ViT-S-32-alt")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    assert_refused(lambda: clip_file(f"tiny-clip:{tmp_path / 'bad.pt'}").images(torch.zeros(1, 3, 8, 8)), "is not a torch file")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_of_its_own_is_read_beside_the_weights(tiny: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<unk>": 1, "dog": 2, "a": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")
    wrapped.save_pretrained(tmp_path)
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "nobody/none", "tokenizer_kwargs": {"clean": "canonicalize"}}
    about = {"model_cfg": {**TINY, "text_cfg": text}, "preprocess_cfg": SIGLIP}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    (tmp_path / "open_clip_model.pth").write_bytes((tiny / "open_clip_model.pth").read_bytes())
    found = clip_file(str(tmp_path))
    assert found._tokenizer()(["A dog!", "cat"])[:, :3].tolist() == [[3, 2, 0], [1, 0, 0]]
    assert found.texts(["a dog", "A dog!", "cat"]).shape == (3, 16)
    assert torch.equal(*found.texts(["a dog", "A dog!"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_asks_open_clip_from_a_file_and_from_a_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "a.safetensors")
    Path("words.txt").write_text("dog\nstripes\n")
    given = ("intervene", "a.safetensors", "--layer", "conv1", "--change", "none", "--images", 60, "--words", "words.txt")
    for ref in (f"tiny-clip:{tiny / 'open_clip_model.pth'}", tiny):
        done = run(*given, "--clip", ref, "--json", "--out", "run")
        assert done.exit_code == 0, done.output
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(rows) == 16
        assert {row["label"]["word"] for row in rows} <= {"dog", "stripes", None}
    assert len(list(Path("run/encoded").iterdir())) == 4  # images and texts
