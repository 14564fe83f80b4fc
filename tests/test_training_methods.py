"""Training methods against plain loops written from the papers' formulas."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.test_training import ATTACK, RECIPE, code, normed, run_all, same_weights, tiny, trainer  # noqa: F401
from vizrobust.attacks import FGSM, L2, PGD, Linf, Noise
from vizrobust.compute import Compute
from vizrobust.rng import Streams
from vizrobust.spec import parse
from vizrobust.training import METHODS, NAMES, NFGSM, TRADES, Distillation, Free, GradAlign, TrainingRecipe, train
from vizrobust.training.methods import alignment

pytestmark = pytest.mark.usefixtures("short_tests")
ONE = FGSM(ball=Linf(eps=0.1))
EVERY = {
    "TRADES": (TRADES(beta=3.0), ATTACK),
    "Free": (Free(replays=3), ONE),
    "NFGSM": (NFGSM(), ONE),
    "GradAlign": (GradAlign(weight=0.5), ONE),
    "Distillation": (Distillation(temperature=20.0), None),
}


def of(name, **changes):
    method, attack = EVERY[name]
    return replace(RECIPE, method=method, attack=attack, eps_ramp=0, **changes)


def first_batch(here):
    """The images and labels of the first batch, and their random streams."""
    recipe = here.recipe
    order = Streams(recipe.seed, [0], "order").permutation(20)[0][: recipe.batch_size]
    streams = Streams(recipe.seed, [f"0/{i}" for i in order.tolist()], "train")
    return here.data.train.take(order), here.data.train.labels[order], streams


def input_gradient(net, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0]


def gradients_of_the_step(here):
    """By name, as they are when the optimizer steps; filled when it does."""
    held = {}
    here.train_state.optimizer.register_step_pre_hook(
        lambda *_: held.update({name: p.grad.clone() for name, p in here.net.named_parameters()})
    )
    return held


def test_every_method_is_tested():
    assert EVERY.keys() == METHODS.keys()


@pytest.mark.parametrize("name", EVERY)
def test_the_recipe_reads_back(name):
    recipe = of(name, ema=0.9, awp=0.01, label_smoothing=0.0, schedule="cosine", early_stopping=3, on_collapse="stop")
    assert parse(repr(recipe), NAMES, "training") == recipe


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("epochs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_method_learns_and_goes_on_bit_for_bit(tmp_path, name, epochs):
    recipe = of(name, epochs=epochs, ema=0.5, augment="crop+flip", schedule="cosine", lr=3e-3)
    compute = Compute("cpu")
    rows, expected = run_all(recipe, tmp_path / "whole", compute)
    assert rows[epochs - 1]["loss"] < rows[0]["loss"]
    for stop in ((1, 2), *([(3, 1)] if epochs > 2 else []), (recipe.training_method.stages * epochs, 2)):
        for item in train(recipe, tiny(), compute, tmp_path / "parts", checkpoint_every=1):
            if not isinstance(item, dict) and (item.epoch, item.batch) == stop:
                break
    again, found = run_all(recipe, tmp_path / "parts", compute)
    assert same_weights(found, expected)
    assert [{**row, "epoch": 0} for row in again] == [{**row, "epoch": 0} for row in rows[-len(again) :]]


@pytest.mark.parametrize("name", EVERY)
def test_batchnorm_sees_the_batch_once_a_weight_step(name, normed):  # noqa: F811
    here = trainer(of(name, arch=normed, epochs=1, awp=0.01))
    list(here.run_epoch())
    counted = {int(v) for key, v in here.net.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counted == {3 * here.recipe.training_method.minibatch_replays}


@pytest.mark.parametrize("name", EVERY)
def test_attack_passes_make_no_weight_gradients(name, monkeypatch):
    """Whatever happens before the weight step leaves every .grad as it was."""
    here = trainer(of(name))
    seen = []
    original = here.train_state.update
    monkeypatch.setattr(
        here.train_state, "update", lambda loss: (seen.append([p.grad for p in here.net.parameters()]), original(loss))[1]
    )
    here.train_state.optimizer.zero_grad = lambda set_to_none: [setattr(p, "grad", None) for p in here.net.parameters()]
    next(here.run_epoch())
    assert all(grad is None for grad in seen[0])


def test_trades_is_its_formula():
    here = trainer(of("TRADES", seed=5))
    reference = trainer(of("TRADES", seed=5)).net
    x, y, streams = first_batch(here)
    loss = next(here.run_epoch()).loss

    reference.eval()
    soft = reference(x).softmax(1).detach()
    adv = (x + ATTACK.ball.sample(x, streams.child("attack"))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        adv.requires_grad_()
        p = reference(adv).log_softmax(1)
        (grad,) = torch.autograd.grad((soft * (soft.log() - p)).sum(), adv)
        adv = torch.minimum(torch.maximum(adv.detach() + 0.1 * grad.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    clean, moved = reference(x), reference(adv)
    divergence = (clean.softmax(1) * (clean.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()
    expected = -clean.log_softmax(1)[range(8), y].mean() + 3.0 * divergence
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_of_trades_goes_through_both_predictions():
    """As in the paper's code, the clean prediction is not detached in the second term."""
    here, net = trainer(of("TRADES")), trainer(of("TRADES")).net
    held = gradients_of_the_step(here)
    x, y, streams = first_batch(here)
    result = here.recipe.training_method.train_step(here.train_state, here.recipe.attack, x, y, streams)
    clean, moved = net(x), net(result.examples)
    divergence = (clean.softmax(1) * (clean.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()
    loss = F.cross_entropy(clean, y) + 3.0 * divergence
    for (name, _), grad in zip(net.named_parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
        assert torch.allclose(held[name], grad, atol=1e-6), name


def test_n_fgsm_steps_from_strong_noise_and_does_not_come_back():
    here = trainer(of("NFGSM"))
    x, y, streams = first_batch(here)
    reference = trainer(of("NFGSM")).net.eval()
    adv = here.recipe.training_method.train_step(here.train_state, ONE, x, y, streams).examples
    start = (x + Linf(eps=0.2).sample(x, streams.child("noise"))).clamp(0, 1)
    expected = (start + 0.1 * input_gradient(reference, start, y).sign()).clamp(0, 1)
    assert torch.equal(adv, expected)
    assert 0.2 < float((adv - x).abs().max()) <= 0.3 + 1e-6


def test_free_is_its_algorithm():
    """Two batches by hand: the pass that moves the weights moves the perturbation, which goes on to the next batch."""
    here = trainer(of("Free"))
    batches = []
    original = here._images
    here._images = lambda index, streams: batches.append(original(index, streams)) or batches[-1]
    list(here.run_epoch())

    net = trainer(of("Free")).net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=2 * 3 * 3 + 1)
    delta = torch.zeros(8, 3, 8, 12)
    net.train()
    for x, y in batches:
        n = len(x)
        for _ in range(3):
            point = (x + delta[:n]).clamp(0, 1).requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(net(point), y).backward()
            delta[:n] = (point.detach() - x + 0.1 * point.grad.sign()).clamp(-0.1, 0.1)
            optimizer.step()
            schedule.step()
    for name, value in net.state_dict().items():
        assert torch.allclose(here.net.state_dict()[name], value, atol=1e-6), name
    assert here.metrics[0]["gradient_passes"] == 3


def test_gradalign_adds_one_minus_the_cosine():
    here = trainer(of("GradAlign"))
    reference = trainer(of("GradAlign")).net
    x, y, streams = first_batch(here)
    result = here.recipe.training_method.train_step(here.train_state, ONE, x, y, streams)
    near = (x + Linf(eps=0.1).sample(x, streams.child("gradalign"))).clamp(0, 1)
    a, b = (input_gradient(reference.eval(), point, y).flatten(1).double() for point in (x, near))
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    expected = F.cross_entropy(reference(result.examples), y) + 0.5 * (1 - cosine).mean()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradalign_aligns(tmp_path):
    """After training with it the gradients point the same way more than after training without."""

    def aligned(method):
        recipe = replace(RECIPE, attack=ONE, method=method, eps_ramp=0, epochs=10, lr=5e-3)
        here = trainer(recipe)
        while not here.finished:
            list(here.run_epoch())
        x, y = here.data.train.take(torch.arange(20)), here.data.train.labels
        near = (x + Linf(eps=0.1).sample(x, Streams(9, range(20)))).clamp(0, 1)
        return float(alignment(here.net, x, near, y).detach().mean())

    assert aligned(GradAlign(weight=2.0)) > aligned(None) + 0.01


def test_the_student_learns_the_teachers_probabilities_from_new_weights():
    here = trainer(of("Distillation", epochs=1))
    fresh = {key: value.clone() for key, value in here.net.state_dict().items()}
    list(here.run_epoch())
    teacher = here.net
    assert not here.finished
    progress = here.run_epoch()
    first = next(progress)
    order = Streams(0, [1], "order").permutation(20)[0][:8]
    x = here.data.train.take(order)
    student = trainer(of("Distillation", epochs=1))
    with torch.no_grad():
        soft = (teacher.eval()(x) / 20).softmax(1)
    untaught = student._network(1)
    assert not torch.equal(untaught.state_dict()["net.conv1.weight"], fresh["net.conv1.weight"])
    expected = -(soft * (untaught(x) / 20).log_softmax(1)).sum(1).mean()
    assert first.loss == pytest.approx(expected.item(), rel=1e-5)
    list(progress)
    assert here.finished
    assert here.epoch == 2


def test_awp_takes_the_gradient_where_the_weights_are_worst():
    recipe = replace(RECIPE, attack=ATTACK, awp=0.05, eps_ramp=0)
    here, net = trainer(recipe), trainer(recipe).net
    held = gradients_of_the_step(here)
    x, y, streams = first_batch(here)
    before = {name: p.detach().clone() for name, p in here.net.named_parameters()}
    adv = here.recipe.training_method.train_step(here.train_state, ATTACK, x, y, streams).examples
    # One step of Adam at the first rate of the cycle: nobody kept the perturbed weights.
    assert all(float((p.detach() - before[name]).abs().max()) < 1e-4 for name, p in here.net.named_parameters())

    net.train()
    parameters = dict(net.named_parameters())
    grads = torch.autograd.grad(F.cross_entropy(net(adv), y), list(parameters.values()))
    with torch.no_grad():
        for p, grad in zip(parameters.values(), grads, strict=True):
            if p.ndim > 1:
                p += 0.05 * p.norm() * grad / grad.norm()
    for name, grad in zip(parameters, torch.autograd.grad(F.cross_entropy(net(adv), y), list(parameters.values())), strict=True):
        assert torch.allclose(held[name], grad, atol=1e-5), name


def test_the_moving_average_is_what_is_watched_and_kept(tmp_path):
    recipe = replace(RECIPE, ema=0.8, epochs=2)
    here = trainer(recipe)
    parameters = dict(here.net.named_parameters())
    seen = []
    for _ in range(2):
        seen += [{name: p.detach().clone() for name, p in parameters.items()} for _ in here.run_epoch()]
    shares = torch.tensor([0.8**ago for ago in reversed(range(len(seen)))])
    expected = {
        name: sum(share * one[name] for share, one in zip(shares / shares.sum(), seen, strict=True)) for name in parameters
    }
    kept = dict(here.outcome().named_parameters())
    assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in expected.items())
    assert any(not torch.allclose(parameters[name], value, atol=1e-6) for name, value in expected.items())


def test_label_smoothing_is_in_the_loss_and_not_in_the_attack():
    recipe = replace(RECIPE, attack=ATTACK, label_smoothing=0.2, eps_ramp=0)
    here, plain = trainer(recipe), trainer(replace(recipe, label_smoothing=0.0))
    x, y, streams = first_batch(here)
    net = plain.net
    smooth = here.recipe.training_method.train_step(here.train_state, ATTACK, x, y, streams)
    adv = ATTACK(net.eval(), x, y, streams=streams.child("attack")).x
    assert torch.equal(smooth.examples, adv)
    target = 0.8 * F.one_hot(y, 4) + 0.2 / 4
    assert smooth.loss.item() == pytest.approx(-(target * net(adv).log_softmax(1)).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("piecewise", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [(1 + torch.tensor(torch.pi * i / 8).cos().item()) / 2 for i in range(8)]),
    ],
)
def test_schedules(schedule, expected):
    here = trainer(replace(RECIPE, batch_size=10, epochs=4, lr=0.01, schedule=schedule))
    rates = []
    for _ in range(4):
        rates.extend(here.train_state.schedule.get_last_lr()[0] for _ in here.run_epoch())
    assert [1.0, *(rate / 0.01 for rate in rates[:-1])] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": TRADES()}, r"TRADES needs a recipe whose attack is PGD, such as PGD\(steps=10\), got none"),
        ({"method": TRADES(), "attack": ATTACK, "clean_weight": 0.5}, "TRADES and clean_weight=0.5 exclude each other"),
        ({"method": Free(), "attack": ATTACK}, r"Free needs a recipe whose attack is FGSM\(\), got PGD\(steps=2"),
        ({"method": Free(), "attack": ONE, "clean_weight": 0.1}, "Free and clean_weight=0.1 exclude each other"),
        ({"method": NFGSM(), "attack": Noise(samples=1)}, r"NFGSM needs a recipe whose attack is FGSM\(\)"),
        ({"method": GradAlign()}, "GradAlign needs a recipe whose attack has a ball"),
        ({"method": GradAlign(), "attack": ONE, "compile": True}, "GradAlign and compile=True exclude each other"),
        ({"method": Distillation(), "attack": ONE}, r"Distillation and attack=FGSM\(ball=.*exclude each other"),
        ({"method": Distillation(), "label_smoothing": 0.1}, "Distillation and label_smoothing=0.1 exclude each other"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"ema": 1.0}, "ema must be between 0 and 1"),
        ({"awp": -0.1}, "awp must be from 0"),
        ({"early_stopping": 0}, "early_stopping must be at least 1 epoch"),
        ({"schedule": "cosin"}, "no schedule 'cosin'; did you mean cosine"),
        ({"on_collapse": "stopp"}, "no on_collapse 'stopp'; did you mean stop"),
    ],
)
def test_what_excludes_each_other_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


@pytest.mark.parametrize("text", ["TRADES(beta=-1)", "Free(replays=0)", "NFGSM(noise=-1)", "GradAlign(weight=-1)",
                                  "Distillation(temperature=0)"])  # fmt: skip
def test_wrong_numbers_of_methods_are_refused(text):
    with pytest.raises(ValueError, match="must"):
        parse(text, NAMES, "method")


def test_kl_needs_a_random_start_and_no_target():
    for text in ("FGSM(loss='kl')", "PGD(loss='kl', random_start=False)", "PGD(loss='kl', targeted=True)", "BIM(loss='kl')"):
        with pytest.raises(ValueError, match="use PGD with its random start and without targeted"):
            parse(text, NAMES, "attack")


# Of torch's compiler, which looks at every tensor that it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Free", None])
def test_a_compiled_network_learns_the_same(name, normed):  # noqa: F811
    base = replace(RECIPE, attack=ATTACK, eps_ramp=0) if name is None else of(name)
    recipe = replace(base, arch=normed, epochs=1, optimizer="sgd")
    plain, compiled = trainer(recipe), trainer(replace(recipe, compile=True))
    for here in (plain, compiled):
        list(here.run_epoch())
    assert compiled.net.state_dict().keys() == plain.net.state_dict().keys()
    for key, value in plain.net.state_dict().items():
        assert torch.allclose(compiled.net.state_dict()[key], value, atol=1e-4), key
    assert compiled.metrics[0]["gradient_passes"] == plain.metrics[0]["gradient_passes"]


def test_free_fits_balls_that_are_not_boxes():
    here = trainer(replace(RECIPE, attack=FGSM(ball=L2(eps=0.5)), method=Free(replays=2), eps_ramp=0))
    list(here.run_epoch())
    assert here.metrics[0]["delta_l2"] <= 0.5 + 1e-5


def test_training_text_of_before_still_reads():
    text = 'Training(arch="small_cnn", data="mnist5k", attack=PGD(steps=8, ball=Linf(eps=0.3)))'
    assert repr(parse(text, NAMES, "training")) == text.replace("Training(", "TrainingRecipe(")
    assert isinstance(parse(text, NAMES, "training"), TrainingRecipe)
    assert PGD(steps=8).steps == 8
