"""The training loop against hand computation, and runs that go on bit for bit where they stopped."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vizrobust.attacks import FGSM, L2, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet, content_of
from vizrobust.models import load_checkpoint
from vizrobust.models.checkpoints import body_state, weights_sha256
from vizrobust.rng import Streams
from vizrobust.runs import read_run
from vizrobust.spec import parse
from vizrobust.training import NAMES, Progress, Trainer, TrainingRecipe, recorded_threads, train, trained_checkpoint

SHAPE = (3, 8, 12)
RECIPE = TrainingRecipe(arch="small_cnn", data="tiny", epochs=2, batch_size=8, lr=1e-3)
ATTACK = PGD(steps=2, ball=Linf(eps=0.1))

CODE = """
from torch import nn

def dropping(shape, classes):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * shape[1] * shape[2], 6), nn.Dropout(0.3), nn.Linear(6, classes),
    )

def normed(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(shape[1] * shape[2], 6), nn.BatchNorm1d(6), nn.Linear(6, classes),
    )
"""


def tiny(n=20, poison=False):
    """Images of four classes that differ in brightness and colour; with `poison` one is not a number."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    x = 0.2 + 0.15 * labels.reshape(-1, 1, 1, 1) + 0.2 * torch.rand(n, *SHAPE, generator=generator)
    x[:, 0] *= 1 - 0.2 * (labels == 2).reshape(-1, 1, 1)
    clean = ArraySplit(x[: n // 2].clone(), labels[: n // 2])
    images = ArraySplit(x, labels)
    if poison:  # behind the check of what is given
        images.pixels[n // 2] = torch.nan
    return DataSet("tiny", ("a", "b", "c", "d"), SHAPE, images, clean, clean, 0.1)


@pytest.fixture
def compute():
    return Compute("cpu")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def dropping(code):
    return f"{code}:dropping"


@pytest.fixture
def normed(code):
    return f"{code}:normed"


def trainer(recipe, data=None, compute=None):
    data = data or tiny()
    for known in ("mean", "std"):
        if any(math.isnan(v) for v in getattr(data, known)):
            object.__setattr__(data, known, (0.5, 0.5, 0.5))
    return Trainer(recipe, data, compute or Compute("cpu"))


def run_all(recipe, folder, compute, data=None):
    rows = [item for item in train(recipe, data or tiny(), compute, folder) if isinstance(item, dict)]
    return rows, load_checkpoint(str(folder), recipe.arch).state


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def passes(net):
    """Forward passes as (training mode, batch size, leads to an image gradient)."""
    seen = []
    net.register_forward_hook(lambda module, inputs, _o: seen.append((module.training, len(inputs[0]), inputs[0].requires_grad)))
    return seen


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_k_attack_steps_are_k_gradient_passes_and_one_pass_learns(steps, clean_weight):
    here = trainer(replace(RECIPE, attack=replace(ATTACK, steps=steps), clean_weight=clean_weight))
    seen = passes(here.net)
    next(here.run_epoch())
    learns = (True, 8 if clean_weight == 0 else 16, False)
    assert seen == [(False, 8, True)] * steps + [learns]


def test_standard_training_makes_one_pass_a_batch():
    here = trainer(replace(RECIPE, clean_weight=0.5))
    seen = passes(here.net)
    next(here.run_epoch())
    assert seen == [(True, 8, False)]


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
@pytest.mark.parametrize("attack", [None, FGSM(Linf(0.1)), ATTACK, PGD(steps=4, ball=L2(0.5))], ids=repr)
def test_batchnorm_sees_each_batch_once_whatever_k_is(normed, attack, clean_weight):
    here = trainer(replace(RECIPE, arch=normed, attack=attack, clean_weight=clean_weight))
    for epoch in (1, 2):
        list(here.run_epoch())
        counted = {int(v) for key, v in here.net.state_dict().items() if key.endswith("num_batches_tracked")}
        assert counted == {3 * epoch}  # 20 images in batches of 8


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 1.0, 0.3])
def test_the_loss_mixes_adversarial_and_clean(normed, clean_weight):
    """The first batch's loss, from a network of our own in the state it had, on examples made by the same attack."""
    recipe = replace(RECIPE, arch=normed, attack=ATTACK, clean_weight=clean_weight, eps_ramp=0, seed=3)
    here, mine = trainer(recipe), trainer(recipe)
    progress = next(here.run_epoch())

    order = Streams(3, [0], "order").permutation(20)[0][:8]
    x, y = mine.data.train.take(order), mine.data.train.labels[order]
    mine.net.eval()
    streams = Streams(3, [f"0/{i}" for i in order.tolist()], "train").child("attack")
    adv = ATTACK(mine.net, x, y, streams=streams).x
    mine.net.train()
    logits = mine.net(adv if clean_weight == 0 else torch.cat((adv, x)))
    each = -torch.log_softmax(logits.detach().double(), 1)[torch.arange(len(logits)), y.repeat(len(logits) // 8)]
    expected = each[:8].mean() if clean_weight == 0 else (1 - clean_weight) * each[:8].mean() + clean_weight * each[8:].mean()
    assert progress.loss == pytest.approx(float(expected), abs=1e-5)
    assert not torch.equal(adv, x)


def test_the_row_of_an_epoch_says_what_happened():
    recipe = replace(RECIPE, attack=ATTACK, eps_ramp=0)
    here = trainer(recipe)
    losses = [progress.loss for progress in here.run_epoch()]
    (row,) = here.metrics
    assert row["epoch"] == 1
    assert row["loss"] == losses[-1]
    assert row["eps"] == 0.1
    assert 0.05 < row["delta_linf"] <= 0.1 + 1e-6
    assert row["delta_linf"] < row["delta_l2"] <= 0.1 * math.sqrt(math.prod(SHAPE)) + 1e-5
    assert 0 <= row["val_robust"] <= row["val_clean"] <= 1


def test_the_seed_decides_everything_and_another_seed_something_else():
    def weights(seed):
        here = trainer(replace(RECIPE, attack=ATTACK, seed=seed))
        before = weights_sha256(body_state(here.net))
        list(here.run_epoch())
        return before, weights_sha256(body_state(here.net))

    torch.manual_seed(1)
    one = weights(0)
    torch.manual_seed(2)  # the global generator has no say
    state = torch.get_rng_state()
    assert weights(0) == one
    assert torch.equal(torch.get_rng_state(), state)
    other = weights(1)
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_trainings_that_differ_in_k_share_initial_weights_and_the_order_of_images():
    seen = {}
    for steps in (0, 1, 5):
        recipe = replace(RECIPE, attack=replace(ATTACK, steps=steps) if steps else None)
        here = trainer(recipe)
        start, order, original = weights_sha256(body_state(here.net)), [], here._images

        def note(index, streams, order=order, original=original):
            order.extend(index.tolist())
            return original(index, streams)

        here._images = note
        list(here.run_epoch())
        list(here.run_epoch())
        seen[steps] = (start, order)
    assert seen[0] == seen[1] == seen[5]
    first, second = seen[0][1][:20], seen[0][1][20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def augmented(augment, epoch=0, index=range(20), k=0):
    here = trainer(replace(RECIPE, augment=augment, attack=replace(ATTACK, steps=k) if k else None))
    streams = Streams(0, [f"{epoch}/{i}" for i in index], "train")
    return here._images(torch.tensor(list(index)), streams)[0]


def test_augmentation_is_a_function_of_image_and_epoch():
    plain, cropped, flipped = (augmented(augment) for augment in ("none", "crop", "crop+flip"))
    assert torch.equal(plain, tiny().train.take(torch.arange(20)))
    assert torch.equal(augmented("crop+flip", k=5), flipped)
    assert torch.equal(augmented("crop+flip", index=[7, 3]), flipped[[7, 3]])
    assert not torch.equal(augmented("crop", epoch=1), cropped)
    # A crop is a mirrored shift of at most an eighth: here one row and, of 12 columns, two.
    padded = F.pad(plain, (2, 2, 1, 1), mode="reflect")
    for i in range(20):
        windows = [padded[i, :, top : top + 8, left : left + 12] for top in range(3) for left in range(5)]
        assert any(torch.equal(window, cropped[i]) for window in windows)
        assert torch.equal(flipped[i], cropped[i]) or torch.equal(flipped[i], cropped[i].flip(2))
    share = sum(torch.equal(a, b) for a, b in zip(flipped, cropped, strict=True))
    assert 4 <= share <= 16


def test_a_loss_that_is_not_a_number_stops_with_batch_rate_and_kept_state(tmp_path, compute):
    data = tiny(poison=True)
    for known in ("mean", "std"):
        data.__dict__[known] = (0.5, 0.5, 0.5)
    position = Streams(0, [0], "order").permutation(20)[0].tolist().index(10)  # where the order puts image 10
    rates = trainer(RECIPE).train_state.schedule
    rate = rates.get_last_lr()[0]
    for _ in range(position // 8):
        rates.optimizer.step()
        rates.step()
        rate = rates.get_last_lr()[0]
    sentence = f"the loss became nan in epoch 1, batch {position // 8 + 1}, at learning rate {rate:.2g}; try a lower lr"
    with pytest.raises(ValueError, match=sentence + r" \(nothing was kept yet\)"):
        list(train(RECIPE, data, compute, tmp_path / "run"))
    assert not (tmp_path / "run" / "state.pt").exists()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_run_that_diverges_later_keeps_the_state_before(tmp_path, compute, monkeypatch):
    recipe = replace(RECIPE, epochs=3)
    rows = (row for row in train(recipe, tiny(), compute, tmp_path / "run") if isinstance(row, dict))
    next(rows)
    rows.close()
    kept = (tmp_path / "run" / "state.pt").read_bytes()
    poisoned = tiny(poison=True)
    for known in ("mean", "std"):
        poisoned.__dict__[known] = getattr(tiny(), known)
    monkeypatch.setattr("vizrobust.training.training_runs.content_of", lambda _data: content_of(tiny()))
    with pytest.raises(ValueError, match=r"in epoch 2, batch \d.*state.pt keeps the state after epoch 1"):
        list(train(recipe, poisoned, compute, tmp_path / "run"))
    assert (tmp_path / "run" / "state.pt").read_bytes() == kept


@pytest.mark.usefixtures("short_tests")
@pytest.mark.parametrize(
    ("optimizer", "stop"),
    [
        ("adam", "mid-epoch 1"),
        ("adam", "after epoch 2"),
        ("sgd", "mid-epoch 2"),
        *(
            pytest.param(*place, marks=pytest.mark.slow)
            for place in (
                ("adam", "after epoch 1"),
                ("adam", "mid-epoch 2"),
                ("sgd", "mid-epoch 1"),
                ("sgd", "after epoch 1"),
                ("sgd", "after epoch 2"),
            )
        ),
    ],
)
def test_going_on_ends_with_the_same_weights_as_never_stopping(tmp_path, compute, dropping, optimizer, stop):
    recipe = replace(
        RECIPE,
        arch=dropping,
        attack=ATTACK,
        clean_weight=0.5,
        optimizer=optimizer,
        weight_decay=1e-3,
        augment="crop+flip",
        epochs=3,
    )
    rows, expected = run_all(recipe, tmp_path / "whole", compute)
    wanted = stop.split()[-1]
    with_epochs = 0
    interrupted = train(recipe, tiny(), compute, tmp_path / "parts")
    for item in interrupted:
        with_epochs += isinstance(item, dict)
        if stop.startswith("mid") and isinstance(item, Progress) and (item.epoch, item.batch) == (int(wanted), 2):
            break
        if stop.startswith("after") and with_epochs == int(wanted):
            break
    interrupted.close()
    torch.rand(7)  # whatever the next process draws meanwhile
    again, found = run_all(recipe, tmp_path / "parts", compute)
    assert same_weights(found, expected)
    assert [row["epoch"] for row in again] == [row["epoch"] for row in rows][int(wanted) - stop.startswith("mid") :]
    assert again == rows[-len(again) :]
    assert (tmp_path / "parts" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_dropout_drops_otherwise_in_every_batch(dropping):
    here = trainer(replace(RECIPE, arch=dropping))
    dropped = []
    here.net.net[3].register_forward_hook(lambda m, _i, out: dropped.append(out == 0) if m.training else None)
    list(here.run_epoch())
    assert len(dropped) == 3
    assert not torch.equal(dropped[0], dropped[1])


def test_a_run_killed_between_state_and_metrics_still_has_all_rows(tmp_path, compute):
    recipe = RECIPE
    rows, _ = run_all(recipe, tmp_path / "run", compute)
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    metrics.write_text(whole.splitlines(keepends=True)[0])
    assert run_all(recipe, tmp_path / "run", compute)[0] == []
    assert metrics.read_text() == whole
    assert [json.loads(line) for line in whole.splitlines()] == rows


def test_a_finished_run_yields_nothing_and_stays_as_it_is(tmp_path, compute):
    recipe = replace(RECIPE, epochs=1)
    run_all(recipe, tmp_path / "run", compute)
    content = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    assert list(train(recipe, tiny(), compute, tmp_path / "run")) == []
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == content


def test_a_folder_with_another_recipe_is_refused_and_left_alone(tmp_path, compute):
    recipe = replace(RECIPE, epochs=1)
    run_all(recipe, tmp_path / "run", compute)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"holds another run: training was .*epochs=1.*, now .*seed=1.*; give out another"):
        list(train(replace(recipe, seed=1), tiny(), compute, tmp_path / "run"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_the_run_records_its_recipe_and_threads_and_the_checkpoint_its_figures(tmp_path, compute):
    recipe = replace(RECIPE, attack=PGD(steps=3, ball=Linf(0.1)), lr=3e-3)
    rows, _ = run_all(recipe, tmp_path / "run", compute)
    info = read_run(tmp_path / "run")
    assert info["identity"] == {"training": repr(recipe), "content": content_of(tiny())}
    assert parse(info["identity"]["training"], NAMES) == recipe
    assert info["threads"] == torch.get_num_threads() == recorded_threads(tmp_path / "run")
    assert recorded_threads(tmp_path / "nowhere") is None
    found = trained_checkpoint(tmp_path / "run")
    about = found.info
    assert (about.attack_steps, about.eps, about.norm, about.data) == (3, 0.1, "Linf", "tiny")
    assert about.training == repr(recipe)
    assert about.mean == tiny().mean
    assert about.metrics["n"] == 10
    assert "steps=50" in about.metrics["attack"]
    net, test = found.net(), tiny().test
    with torch.no_grad():
        clean = float((net(test.take(torch.arange(10))).argmax(1) == test.labels).double().mean())
    assert about.metrics["clean"] == clean
    assert about.metrics["robust"] <= clean
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["metrics"] == rows


@pytest.mark.usefixtures("short_tests")
def test_training_learns(tmp_path, compute):
    recipe = replace(RECIPE, attack=PGD(steps=2, ball=Linf(0.02)), epochs=12, lr=5e-3)
    rows, _ = run_all(recipe, tmp_path / "run", compute)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["val_clean"] >= 0.7  # chance is a quarter


@pytest.mark.usefixtures("short_tests")
def test_a_network_that_is_not_ours_trains_too(tmp_path, compute, dropping):
    _, state = run_all(replace(RECIPE, arch=dropping, epochs=1), tmp_path / "run", compute)
    with pytest.raises(ValueError, match="needs your code"):
        trained_checkpoint(tmp_path / "run")
    net = trained_checkpoint(tmp_path / "run", dropping).net()
    assert isinstance(net.net, nn.Sequential)
    assert same_weights(body_state(net), state)
