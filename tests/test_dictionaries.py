"""Dictionaries as layers: codes and pictures against plain versions and scikit-learn, what a unit does, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import NMF, PCA
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import SHAPE, make_net
from tests.test_cli import run
from tests.tiny_transformers import TinyViT
from vizrobust.attribution.methods import layer_cam
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.features import Channel, parse_recipe, render, sources
from vizrobust.features.dictionary_fits import fit_dictionary, layer_vectors, quality
from vizrobust.features.scorer import redirected_relu
from vizrobust.features.unit_facts import class_effects
from vizrobust.models.dictionaries import Dictionary, read_dictionary
from vizrobust.models.layers import ActivationReader, edited, layer, on_units, views
from vizrobust.requests.pictures import NeuronsRequest


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, name: str = "d.safetensors", **parts: object) -> str:
    Dictionary(**parts).save(folder / name)  # type: ignore[arg-type]
    return str(folder / name)


@pytest.mark.parametrize(("name", "net"), [("relu1", make_net()), ("norm1", TinyViT().eval()), ("norm1:class", TinyViT().eval())])
def test_an_identity_dictionary_is_the_layer_itself(name: str, net: nn.Module, images, tmp_path: Path) -> None:
    units = layer(net, SHAPE, name).units
    own = f"{name}:sae={saved(tmp_path, encoder=torch.eye(units), decoder=torch.eye(units), activation='linear')}"
    read = ActivationReader.of(net, SHAPE, [name, own])(net, images[0])
    assert torch.equal(read[name], read[own])
    assert layer(net, SHAPE, own).shape == layer(net, SHAPE, name).shape == tuple(read[own].shape[1:])
    found = [class_effects(net, one, images[0], shape=SHAPE, compute=Compute("cpu")) for one in (name, own)]
    assert (found[0] is None) == (found[1] is None) == (name == "norm1:class")
    assert found[0] is None or torch.allclose(found[0].values, found[1].values, atol=1e-6)
    if name == "relu1":
        cams = [layer_cam(net, view, *images) for view in views(net, SHAPE, [name, own]).values() if view.name in (name, own)]
        assert torch.equal(*cams)
        recipe = dataclasses.replace(parse_recipe("plain"), steps=3)
        pictures = [
            [one.image for one in render(net, Channel(each), [1, 3], recipe, [0], shape=SHAPE, compute=Compute("cpu"))]
            for each in (name, own)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*pictures, strict=True))


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4)])
@pytest.mark.parametrize(("activation", "k"), [("linear", None), ("relu", None), ("topk", 2)])
def test_codes_are_those_of_a_plain_loop(activation: str, k: int | None, shape: tuple[int, ...]) -> None:
    encoder, decoder, b, c, x = drawn(6, 4), drawn(6, 4, seed=1), drawn(6, seed=2), drawn(4, seed=3), drawn(*shape, seed=4)
    found = Dictionary(encoder, decoder, b, c, activation, k, centered=True)
    vectors = x.movedim(1, -1).reshape(-1, 4)
    codes = []
    for vector in vectors:
        code = encoder @ (vector - c) + b
        if activation != "linear":
            code = code.clamp_min(0)
        if k:
            code[code.argsort()[: len(code) - k]] = 0
        codes.append(code)
    plain = torch.stack(codes)
    rows = found.encode(x).movedim(1, -1).reshape(-1, 6)
    assert torch.allclose(rows, plain, atol=1e-5)
    assert torch.allclose(found.decode(found.encode(x)).movedim(1, -1).reshape(-1, 4), plain @ decoder + c, atol=1e-5)
    assert k is None or int((rows > 0).sum(1).max()) == k


def test_a_unit_that_is_not_among_the_k_largest_has_a_gradient_that_brings_it_there() -> None:
    found = Dictionary(torch.eye(3), torch.eye(3), activation="topk", k=1)
    x = torch.tensor([[3.0, 2.0, 1.0]], requires_grad=True)
    with redirected_relu():
        (grad,) = torch.autograd.grad(found.encode(x)[:, 1].sum(), x)
    assert grad.tolist() == [[0.0, 1.0, 0.0]]
    (grad,) = torch.autograd.grad(found.encode(x)[:, 0].sum(), x)
    assert grad.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", ["relu1", "conv1"])
def test_changing_a_code_leaves_what_the_dictionary_misses(name: str, images, tmp_path: Path) -> None:
    net = make_net()
    units = layer(net, SHAPE, name).units
    encoder, decoder = drawn(5, units), drawn(5, units, seed=1)
    view = views(net, SHAPE, [own := f"{name}:sae={saved(tmp_path, encoder=encoder, decoder=decoder)}"])[own]
    raw = ActivationReader.of(net, SHAPE, [name])(net, images[0])[name].detach()
    code = torch.einsum("uc,nchw->nuhw", encoder, raw).clamp_min(0)
    wanted = raw + torch.einsum("nhw,c->nchw", 2 * code[:, 3], decoder[3])
    assert torch.allclose(on_units(view, [3], lambda values: 3 * values)(raw), wanted, atol=1e-4)
    with edited(net, view, on_units(view, [], torch.zeros_like)):
        assert torch.equal(net(images[0]), make_net()(images[0]))
    effects = class_effects(net, own, images[0], shape=SHAPE, compute=Compute("cpu"))
    plain = class_effects(net, name, images[0], shape=SHAPE, compute=Compute("cpu"))
    assert effects is not None
    assert plain is not None
    assert torch.allclose(effects.values, decoder @ plain.values, atol=1e-5)


def test_a_file_is_the_same_each_time_and_reads_back(tmp_path: Path) -> None:
    parts = {"encoder": drawn(3, 4), "decoder": drawn(3, 4), "decoder_bias": drawn(4), "activation": "topk", "k": 2}
    one, two = (Path(saved(tmp_path, name, **parts)) for name in ("1.safetensors", "2.safetensors"))
    assert one.read_bytes() == two.read_bytes()
    back = read_dictionary(one)
    assert torch.equal(back.decoder_bias, parts["decoder_bias"])
    assert repr(back) == "Dictionary(3 units of 4 channels, topk of 2)"


def test_files_that_are_no_dictionary_are_refused_before_anything_is_rendered(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    eye = torch.eye(32)
    saved(tmp_path, "wide.safetensors", encoder=drawn(3, 7), decoder=drawn(3, 7))
    nan = Dictionary(eye, eye.clone())
    nan.decoder[0, 1] = torch.nan
    nan.save("nan.safetensors")
    eye = torch.eye(32)
    about = {"vizrobust-dictionary": json.dumps({"format": 1, "activation": "relu"})}
    save_file({"encoder": eye}, "less.safetensors", about)
    save_file({"encoder": eye, "decoder": eye.clone()}, "foreign.safetensors")
    save_file(
        {"encoder": eye, "decoder": eye.clone()},
        "kind.safetensors",
        {"vizrobust-dictionary": '{"format": 1, "activation": "exp"}'},
    )
    Path("pickle.safetensors").write_bytes(b"\x80\x04.")
    for file, said in (
        ("gone", "no file 'gone.safetensors'"),
        ("wide", "'wide.safetensors' is a dictionary of 7 channels, layer 'conv2' has 32 units"),
        ("nan", "'nan.safetensors': decoder is NaN or infinite in 1 of 1024 places"),
        ("less", "'less.safetensors' has no tensor 'decoder'"),
        ("foreign", "'foreign.safetensors' does not say what kind of dictionary it is"),
        ("kind", "'kind.safetensors': no activation 'exp'; there are: linear, relu, topk"),
        ("pickle", "'pickle.safetensors' is truncated or not a safetensors file"),
    ):
        done = run("neurons", "mnist-k8", "--layer", f"conv2:sae={file}.safetensors", "--out", "n")
        assert done.exit_code != 0, file
        assert said in " ".join(done.output.split()), done.output
        assert len(done.output.strip().splitlines()) < 8
    assert not Path("n").exists()
    for wrong in (
        {"activation": "topk"},
        {"k": 3},
        {"activation": "topk", "k": 9},
        {"centered": True},
        {"encoder_bias": drawn(4)},
    ):
        with pytest.raises(ValueError, match=r"k is|centered takes|encoder_bias is"):
            Dictionary(drawn(3, 4), drawn(3, 4), **wrong)


def test_a_run_never_answers_for_another_dictionary(tmp_path: Path) -> None:
    file = saved(tmp_path, encoder=drawn(3, 32), decoder=drawn(3, 32))
    request = NeuronsRequest(models=("mnist-k8",), layer=f"conv2:sae={file}", objective=f'Channel(layer="conv2:sae={file}")')
    before = read_dictionary(file).sha256[:8]
    assert request.layer == f"conv2:sae={file}#{before}"
    assert request.objective == f'Channel(layer="{request.layer}")'
    loose = Channel(f"conv2:sae={file}")
    ((_, first),) = sources(loose)
    saved(tmp_path, encoder=drawn(3, 32, seed=5), decoder=drawn(3, 32))
    assert sources(loose) != ((f"conv2:sae={file}", first),)
    with pytest.raises(ValueError, match=rf"holds another dictionary \([0-9a-f]{{8}}\) than the one asked for \({before}\)"):
        vr.visualize("mnist-k8", request.layer, [0], steps=1)


@pytest.fixture
def split(images) -> ArraySplit:
    return ArraySplit(*images)


@pytest.fixture(scope="module")
def parts() -> Tensor:
    """(400, 6) vectors made of three non-negative parts, with noise."""
    drawn_by = torch.Generator().manual_seed(0)
    codes = (torch.rand(400, 3, generator=drawn_by) - 0.4).clamp_min(0)
    return codes @ torch.rand(3, 6, generator=drawn_by) + 0.01 * torch.rand(400, 6, generator=drawn_by)


def explained(x: Tensor, back: object) -> float:
    return float(1 - (x - torch.as_tensor(back)).square().sum() / (x - x.mean(0)).square().sum())


def test_pca_is_scikit_learn_s(parts: Tensor) -> None:
    x = parts.double().numpy()
    peer, found = PCA(4).fit(x), fit_dictionary(parts, "pca", 4)
    codes = found.encode(parts)
    assert torch.allclose(codes.double(), torch.tensor(peer.transform(x)), atol=1e-5)
    assert torch.allclose(found.decode(codes).double(), torch.tensor(peer.inverse_transform(codes.numpy())), atol=1e-5)


def test_nmf_comes_within_a_tenth_of_a_point_of_scikit_learn_s_own_coefficients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(400, 4, generator=generator) @ torch.randn(4, 6, generator=generator)).relu()
    found, wide = fit_dictionary(x, "nmf", 4), x.double().numpy()
    peer = NMF(4, init="nndsvda", max_iter=400, random_state=0).fit(wide)
    wanted = peer.transform(wide)
    codes = found.encode(x)
    assert torch.allclose(found.decoder.double(), torch.tensor(peer.components_), atol=1e-5)
    assert explained(x, found.decode(codes)) > explained(x, peer.inverse_transform(wanted)) - 0.001
    pairs = zip(codes.T.double(), torch.tensor(wanted).T, strict=True)
    assert min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs) > 0.999


def test_an_autoencoder_finds_the_parts(parts: Tensor) -> None:
    found = fit_dictionary(parts, "topk", 6, k=2, steps=300)
    assert int((found.encode(parts) > 0).sum(1).max()) == 2
    assert explained(parts, found.decode(found.encode(parts))) > 0.9
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(6), atol=1e-5)


def test_an_autoencoder_with_a_penalty_finds_a_planted_dictionary() -> None:
    """Vectors of eight planted directions, of which two are there at a time: each is found, and its size is told."""
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    sizes = torch.rand(1500, 8, generator=generator)
    sizes *= sizes >= sizes.topk(2, 1).values[:, -1:]
    x = sizes @ rows + 0.3
    found = fit_dictionary(x, "relu", 8, steps=400)
    likeness = rows @ found.decoder.T
    best = likeness.argmax(1)
    assert float(likeness.amax(1).min()) > 0.95
    assert len(best.unique()) == 8
    codes = found.encode(x)[:, best]
    assert min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(codes.T, sizes.T, strict=True)) > 0.95


def test_what_a_dictionary_is_worth_against_plain_sums(split) -> None:
    net, shape = make_net(), {"shape": SHAPE, "compute": Compute("cpu")}
    dictionary = Dictionary(drawn(7, 32), drawn(7, 32, seed=1), drawn(7, seed=2) - 1, drawn(32, seed=3))
    found = quality(net, "conv2", dictionary, split, **shape)
    maps = ActivationReader.of(net, SHAPE, ["conv2"])(net, split.take(torch.arange(5)))["conv2"].detach()
    x = maps.movedim(1, -1).reshape(-1, 32)
    codes = dictionary.encode(x)
    assert found.explained[0] == pytest.approx(explained(x, dictionary.decode(codes)), rel=1e-4)
    assert found.active[0] == pytest.approx(float((codes > 0).float().sum(1).mean()))
    assert torch.allclose(found.activity.float(), (codes > 0).float().mean(0))
    sizes = (codes.mean(0) * dictionary.decoder.norm(dim=1)).double()
    share = sizes / sizes.sum()
    assert torch.allclose(found.shares, share)
    assert found.effective[0] == pytest.approx(float(torch.special.entr(share).sum().exp()))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T.double()))
    assert found.dimensions == pytest.approx(float(eigenvalues.sum() ** 2 / eigenvalues.square().sum()))
    for value, low, high in (found.explained, found.active, found.effective):
        assert low is not None
        assert high is not None
        assert low <= value <= high
    vectors = layer_vectors(net, "conv2", split, 3, **shape)
    assert vectors.shape == (15, 32)
    assert all(any(torch.allclose(vector, other) for other in x) for vector in vectors)
    assert len(layer_vectors(net, "conv2", split, 10_000, **shape).unique(dim=0)) == len(x.unique(dim=0))


def test_the_command_writes_once_and_its_units_are_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ("dictionary", "mnist-k8", "--layer", "relu2", "--method", "nmf", "--units", 4, "--images", 60, "--held-out", 40)
    first = json.loads(run(*fit, "--out", "d.safetensors", "--json", "--plot", "d.svg").stdout)
    assert (first["units"], first["channels"], first["dead"]) == (4, 32, 0)
    assert first["explained_low"] < first["explained"] < first["explained_high"]
    content, changed = Path("d.safetensors").read_bytes(), Path("d.safetensors").stat().st_mtime_ns
    assert json.loads(run(*fit, "--out", "d.safetensors", "--json").stdout) == first
    assert Path("d.safetensors").stat().st_mtime_ns == changed
    run(*fit, "--out", "again.safetensors")
    assert read_dictionary("again.safetensors").encoder.equal(read_dictionary("d.safetensors").encoder)
    other = run(*fit, "--seed", 1, "--out", "d.safetensors")
    assert "--out 'd.safetensors' holds a dictionary made with another seed; give another name" in " ".join(other.output.split())
    Path("x.safetensors").write_text("mine")
    assert "is there and is no dictionary" in run(*fit, "--out", "x.safetensors").output
    assert (Path("d.safetensors").read_bytes(), Path("x.safetensors").read_text()) == (content, "mine")
    report = vr.intervene(["mnist-k8", "mnist-k0"], "relu2:sae=d.safetensors", [0], images=30, controls=1)
    assert report.rows()[0]["layer"] == f"relu2:sae=d.safetensors#{first['sha256'][:8]}"
    done = run("neurons", "mnist-k0", "--layer", "relu2:sae=d.safetensors", "--units", 0, "--steps", 1, "--out", "n")
    assert "fitted to relu2 of mnist-k8, not to relu2 of mnist-k0" in " ".join(done.output.split())
    assert f"relu2:sae=d.safetensors#{first['sha256'][:8]}" in Path("n/run.json").read_text()


@pytest.mark.parametrize(("options", "said"), [
    (("--layer", "conv2", "--method", "nmf"), "--method nmf needs activations without negative values"),
    (("--layer", "conv2", "--units", 33), "--units 33 is more than pca can have of"),
    (("--layer", "conv2", "--k", 3), "--k goes with --method topk, not with pca"),
    (("--layer", "conv2", "--method", "topk", "--l1", 0.1), "--l1 goes with --method relu"),
    (("--layer", "conv2", "--method", "topk", "--k", 30), "--k 30 is more than all --units 16"),
    (("--layer", "conv2:sae=d.safetensors",), "is a dictionary's; give the layer itself"),
    (("--layer", "conv9"), "no layer 'conv9'"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_said(options: tuple[object, ...], said: str, tmp_path: Path) -> None:
    Dictionary(torch.eye(32), torch.eye(32)).save(tmp_path / "d.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = run("dictionary", "mnist-k8", *options, "--images", 20, "--out", "new.safetensors")
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output
        assert not Path("new.safetensors").exists()
