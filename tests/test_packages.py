"""Networks of Hugging Face folders, beside their own package."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vizrobust.cli import main
from vizrobust.models import layers, load_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")


def save(folder, net, **told):
    net.save_pretrained(folder)
    preprocessing = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 24, "width": 24}} | told
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(7)
    names = {number: f"{word}, and so on" for number, word in enumerate(("hen", "cat", "dog", "owl", "pig"))}
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=24, patch_size=8,
        id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("hf") / "vit", transformers.ViTForImageClassification(config))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5, layer_type="basic")
    net = transformers.ResNetForImageClassification(config)
    return save(
        tmp_path_factory.mktemp("hf") / "resnet", net,
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_its_logits_are_those_of_the_folders_own_preprocessing_and_network(request, name):
    folder = request.getfixturevalue(name)
    checkpoint = load_checkpoint(f"hf:{folder}")
    _, *sides = checkpoint.info.input_shape
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8))
    told = json.loads((folder / "preprocessor_config.json").read_text())
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    theirs = (x - torch.tensor(told["image_mean"])[:, None, None]) / torch.tensor(told["image_std"])[:, None, None]
    own = transformers.AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.net()(x), own(pixel_values=theirs).logits)
    assert len(checkpoint.info.classes) == 5


def test_classes_have_the_folders_names_and_layers_can_be_looked_at(vit, capfd):
    checkpoint = load_checkpoint(f"hf:{vit}")
    assert checkpoint.info.classes == ("hen", "cat", "dog", "owl", "pig")
    assert checkpoint.info.input_shape == (3, 24, 24)
    found = {layer.name: layer for layer in layers(checkpoint.net(), checkpoint.info.input_shape)}
    assert any(layer.layout == "tokens" and layer.units == 24 and layer.visualizable for layer in found.values())
    assert capfd.readouterr().err == ""  # no progress bar of theirs
    fresh = load_checkpoint(f"hf:{vit}@random")
    assert fresh.sha256 != checkpoint.sha256
    assert fresh.info.classes == checkpoint.info.classes


def test_the_same_weights_under_another_config_are_another_network(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "vit")
    first = load_checkpoint(f"hf:{tmp_path / 'vit'}")
    config = tmp_path / "vit" / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    other = load_checkpoint(f"hf:{tmp_path / 'vit'}")
    assert first.sha256 == other.sha256
    assert first.id != other.id


def test_neurons_renders_a_unit_of_it(vit, tmp_path):
    asked = ["neurons", f"hf:{vit}", "--units", "2", "--steps", "2", "--out", str(tmp_path / "out"), "--json"]
    rows = CliRunner().invoke(main, asked)
    assert rows.exit_code == 0, rows.output
    assert json.loads(rows.stdout.splitlines()[0])["unit"] == 2


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"rescale_factor": 1 / 127.5}, r"scales images by 0\.0078.*only images in \[0, 1\]"),
        ({"do_rescale": False}, "scales images by None"),
    ],
)
def test_preprocessing_that_0_to_1_cannot_say_is_refused(tmp_path, told, sentence):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=5, layer_type="basic")
    folder = save(tmp_path / "net", transformers.ResNetForImageClassification(config), **told)
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(f"hf:{folder}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no preprocessor_config.json, which says how images are normalized"):
        load_checkpoint(f"hf:{folder}")


def test_what_is_no_classifier_and_no_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'nowhere' with a config.json"):
        load_checkpoint("hf:nowhere")
    transformers.CLIPTextConfig().save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="clip_text_model, which is no image classifier"):
        load_checkpoint(f"hf:{tmp_path / 'text'}")
