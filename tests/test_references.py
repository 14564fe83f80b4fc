"""From a model reference to a checkpoint, and a sentence for each reference that leads nowhere."""

import pytest
import torch

from tests.test_checkpoints import INFO, SHAPE
from vizrobust import plugins
from vizrobust.models import architecture, builtin_names, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state, weights_sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_run_folder_stands_for_its_checkpoint(tmp_path, net):
    state = body_state(architecture("small_cnn", SHAPE, 5)())
    save_checkpoint(tmp_path / "run" / "checkpoint.safetensors", state, INFO)
    found = load_checkpoint(str(tmp_path / "run"))
    assert found.name == str(tmp_path / "run")
    assert found.sha256 == weights_sha256(state)


def test_a_folder_without_a_checkpoint_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint.safetensors$"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint.safetensors yet; its training has not ended"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"])
def test_a_pickle_is_never_opened_but_sent_to_import(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match=r"not in vizrobust's format; convert it once: vizrobust import .*net"):
        load_checkpoint(str(path))


def test_files_and_names_that_are_not_there():
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'runs/nowhere'"):
        load_checkpoint("runs/nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'absent.safetensors'"):
        load_checkpoint("absent.safetensors")
    with pytest.raises(ValueError, match=r"no model 'nonsense'; .*or give a file, a run folder or torchvision:NAME"):
        load_checkpoint("nonsense")


def test_torchvision_references_that_lead_nowhere(cache):
    with pytest.raises(ValueError, match=r"no torchvision model 'resnet19'; did you mean resnet"):
        load_checkpoint("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"no variant 'best' of torchvision:resnet18; there is only @random"):
        load_checkpoint("torchvision:resnet18@best")
    with pytest.raises(ValueError, match="no torchvision model 'fcn_resnet50'"):  # it segments
        load_checkpoint("torchvision:fcn_resnet50")
    with pytest.raises(
        FileNotFoundError, match=r"weights of torchvision:resnet18 are not in .*hub.*checkpoints; add download, or use"
    ):
        load_checkpoint("torchvision:resnet18")
    assert not cache.exists()  # nothing was fetched


def test_random_torchvision_networks_are_always_the_same_and_draw_nothing():
    before = torch.get_rng_state()
    first, second = (load_checkpoint("torchvision:resnet18@random") for _ in range(2))
    assert first.sha256 == second.sha256
    assert torch.equal(before, torch.get_rng_state())
    assert first.info.training == ""  # nobody takes it for a trained one
    assert first.info.input_shape == (3, 224, 224)
    assert len(first.info.classes) == 1000
    assert first.info.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        assert first.net()(torch.rand(2, 3, 40, 36)).shape == (2, 1000)


def test_published_weights_come_from_the_cache(cache, monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    weights = ResNet18_Weights.DEFAULT
    state = resnet18(weights=None).state_dict()
    file = cache / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    # The stand-in has another hash than the published file; that check is torch's own.
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: torch.load(file, weights_only=True))
    found = load_checkpoint("torchvision:resnet18")
    assert found.sha256 == weights_sha256(state)
    assert "ResNet18_Weights" in found.info.training
    assert found.info.metrics["published"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_trained_on_another_range_convert_their_input(name):
    """Their published weights expect [-1, 1]: 0.5 grey must reach the stem as 0, also where the architecture is built anew."""
    found = load_checkpoint(f"torchvision:{name}@random")
    net = found.net()
    assert not net.net.transform_input
    stem = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
    seen = []
    stem.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        net(torch.cat((torch.zeros(1, 3, 96, 96), torch.full((1, 3, 96, 96), 0.5), torch.ones(1, 3, 96, 96))))
    for image, expected in zip(seen[0], (-1.0, 0.0, 1.0), strict=True):
        assert (image - expected).abs().max() < 1e-5


def test_built_in_names_are_in_the_order_of_their_attack_steps(tmp_path, monkeypatch):
    ordered = ["mnist-fgsm", "mnist-judge", "mnist-k0", "mnist-k1", "mnist-k2", "mnist-k8", "mnist-k16"]
    for name in reversed(ordered):
        (tmp_path / "models" / "builtin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / "builtin" / f"{name}.safetensors").touch()
    (tmp_path / "models" / "builtin" / "README.md").touch()
    monkeypatch.setattr(plugins, "files", lambda _package: tmp_path)
    assert builtin_names() == ordered
    with pytest.raises(ValueError, match=r"no model 'mnist-k9'; did you mean .*mnist-k8"):
        load_checkpoint("mnist-k9")


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_checkpoint_loads(name):
    found = load_checkpoint(name)
    with torch.no_grad():
        assert found.net()(torch.rand(2, *found.info.input_shape)).shape == (2, len(found.info.classes))
