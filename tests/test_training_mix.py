"""Training against several attacks: which examples are learnt from, what is recorded, and that it resumes bit for bit."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from tests.test_training import ATTACK, CODE, RECIPE, passes, run_all, same_weights, tiny, trainer
from vizrobust.attacks import FGSM, L2, PGD, Elastic, Linf
from vizrobust.compute import Compute
from vizrobust.models import builtin_names, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.spec import parse
from vizrobust.training import MIX_MODES, NAMES, MultiAttack, Progress, TrainingRecipe, attacks_seen, train, trained_checkpoint
from vizrobust.training.examples import attacks_of, examples
from vizrobust.training.loop import monitor_attacks

BOTH = (PGD(steps=2, ball=Linf(eps=0.05)), PGD(steps=3, ball=L2(eps=0.8)))


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE)
    return f"{path}:normed"


def first_batch(recipe):
    """The first batch's images, labels and attack streams, with a network of one's own in the state it then has."""
    mine = trainer(recipe)
    order = Streams(recipe.seed, [0], "order").permutation(20)[0][:8]
    streams = Streams(recipe.seed, [f"0/{i}" for i in order.tolist()], "train").child("attack")
    mine.net.eval()
    return mine.net, mine.data.train.take(order), mine.data.train.labels[order], streams


def each_alone(net, x, y, streams):
    return [attack(net, x, y, streams=streams.child(f"attack {k}")).x for k, attack in enumerate(BOTH)]


def losses(net, x, y):
    with torch.no_grad():
        return -torch.log_softmax(net(x).double(), 1)[torch.arange(len(y)), y]


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_avg_is_the_mean_of_the_attacks_losses_in_one_pass(normed, clean_weight):
    recipe = replace(RECIPE, arch=normed, attack=MultiAttack(BOTH, "avg"), clean_weight=clean_weight, eps_ramp=0, seed=3)
    here = trainer(recipe)
    progress = next(here.run_epoch())

    net, x, y, streams = first_batch(recipe)
    parts = [*each_alone(net, x, y, streams), *([x] if clean_weight else [])]
    net.train()
    a, b, *clean = losses(net, torch.cat(parts), y.repeat(len(parts))).split(8)
    expected = (1 - clean_weight) * (a.mean() + b.mean()) / 2 + (clean_weight * clean[0].mean() if clean else 0)
    assert progress.loss == pytest.approx(float(expected), abs=1e-5)
    assert {int(v) for key, v in here.net.state_dict().items() if key.endswith("num_batches_tracked")} == {1}


@pytest.mark.parametrize("how", MIX_MODES)
def test_the_passes_of_a_batch(how):
    """avg and max pay for both attacks, max for looking at what they found; random pays for one an image."""
    here = trainer(replace(RECIPE, attack=MultiAttack(BOTH, how)))
    found = passes(here.net)
    next(here.run_epoch())
    attacking = sum(size for training, size, gradient in found if not training and gradient)
    looking = [size for training, size, gradient in found if not training and not gradient]
    learning = [size for training, size, _ in found if training]
    k1, k2 = (attack.steps for attack in BOTH)
    if how == "random":
        assert k1 * 8 <= attacking <= k2 * 8
        assert (attacking - k1 * 8) % (k2 - k1) == 0
    else:
        assert attacking == (k1 + k2) * 8
    assert looking == ([8, 8] if how == "max" else [])
    assert learning == [16 if how == "avg" else 8]


def test_max_takes_the_example_of_highest_cross_entropy():
    recipe = replace(RECIPE, attack=MultiAttack(BOTH, "max"))
    net, x, y, streams = first_batch(recipe)
    found = each_alone(net, x, y, streams)
    worst = torch.stack([losses(net, adv, y) for adv in found]).argmax(0)
    mixed = examples(recipe.attack, net, x, y, streams)
    assert mixed.shape == x.shape
    for i, k in enumerate(worst.tolist()):
        assert torch.equal(mixed[i], found[k][i])


def test_max_chooses_by_image_not_by_batch():
    class TwoKinds(torch.nn.Module):
        """Of dark images one pixel counts, which L2 moves far; of bright ones the mean, which L-inf moves far."""

        def forward(self, x):
            whole = x.mean((1, 2, 3))
            counts = torch.where(whole.detach() < 0.5, x[:, 0, 0, 0], whole)
            return torch.stack((0 * counts, counts), 1)

    dark = torch.tensor([True, False, False, True, False, True])
    x = torch.where(dark.reshape(-1, 1, 1, 1), 0.3, 0.6).expand(6, 3, 8, 12).contiguous()
    y, streams, attacks = torch.zeros(6, dtype=torch.int64), Streams(0, range(6), "attack"), (FGSM(L2(0.3)), FGSM(Linf(0.05)))
    mixed = MultiAttack(attacks, "max")(TwoKinds(), x, y, streams=streams)
    by_l2, by_linf = (attack(TwoKinds(), x, y, streams=streams).x for attack in attacks)
    for i in range(6):
        assert torch.equal(mixed[i], by_l2[i] if dark[i] else by_linf[i])
        assert not torch.equal(by_l2[i], by_linf[i])


def test_random_draws_one_attack_for_each_image_from_its_own_stream():
    recipe = replace(RECIPE, attack=MultiAttack(BOTH, "random"))
    net = trainer(recipe).net.double().eval()
    x, y = tiny(40).train.take(torch.arange(40)).double(), tiny(40).train.labels
    streams = Streams(0, range(40), "attack")
    mixed = examples(recipe.attack, net, x, y, streams)
    found = each_alone(net, x, y, streams)
    # In float64 the other images of a batch do not show.
    took = torch.stack([(mixed - one).abs().amax((1, 2, 3)) < 1e-9 for one in found])
    assert bool((took.sum(0) == 1).all())
    assert 10 <= int(took[0].sum()) <= 30
    some = torch.tensor([31, 4, 17])
    again = examples(recipe.attack, net, x[some], y[some], streams.take(some))
    assert torch.allclose(again, mixed[some], atol=1e-9)
    other = examples(recipe.attack, net, x, y, Streams(0, [f"1/{i}" for i in range(40)], "attack"))
    assert not torch.allclose(other, mixed, atol=1e-3)


def test_two_attacks_of_a_mix_do_not_start_at_the_same_point():
    same = PGD(steps=0, ball=Linf(eps=0.1))
    net, x, y, streams = first_batch(RECIPE)
    one, two = examples(MultiAttack((same, same), "avg"), net, x, y, streams).chunk(2)
    assert not torch.allclose(one, two, atol=0.01)


def test_eps_of_every_attack_rises_in_its_own_units():
    here = trainer(replace(RECIPE, attack=MultiAttack((*BOTH, FGSM(Linf(0.2))), "avg"), epochs=4, eps_ramp=3))
    found = []
    for epoch in range(4):
        here.metrics = [{}] * epoch
        found.append([attack.ball.eps for attack in attacks_of(here.attack_now())])
    expected = [[part * eps for eps in (0.05, 0.8, 0.2)] for part in (0.25, 0.5, 0.75, 1)]
    assert [pytest.approx(row) for row in expected] == found
    assert here.attack_now().mode == "avg"


def test_a_mix_is_watched_under_each_of_its_balls():
    here = trainer(replace(RECIPE, attack=MultiAttack((*BOTH, PGD(steps=5, ball=BOTH[0].ball)), "random"), eps_ramp=0))
    list(here.run_epoch())
    (row,) = here.metrics
    assert row["eps"] == [0.05, 0.8, 0.05]
    assert len(row["val_robust_each"]) == 2  # the two with the same ball are one
    assert row["val_robust"] <= min(row["val_robust_each"])
    assert row["delta_linf"] <= 0.8
    assert monitor_attacks(None, 0.3) == (PGD(steps=10, ball=Linf(eps=0.3)),)
    assert monitor_attacks(PGD(steps=7, ball=L2(eps=1.0), restarts=3), 0.3) == (PGD(steps=10, ball=L2(eps=1.0)),)


def test_attacks_without_a_ball_are_trained_against_and_watched_as_they_are():
    elastic = Elastic(eps=1.5, steps=2)
    here = trainer(replace(RECIPE, attack=MultiAttack((BOTH[0], elastic), "max"), epochs=2, eps_ramp=1))
    list(here.run_epoch())
    (row,) = here.metrics
    assert row["eps"] == [0.025, 0.75]
    assert len(row["val_robust_each"]) == 2
    assert monitor_attacks(here.recipe.attack, 0.3) == (PGD(steps=10, ball=BOTH[0].ball), Elastic(eps=1.5, steps=10))
    assert here.recipe.attack_steps == 2
    assert attacks_seen(repr(here.recipe)) == (BOTH[0], elastic)


def test_the_norms_of_avg_are_means_over_all_examples():
    here = trainer(replace(RECIPE, attack=MultiAttack((FGSM(Linf(0.02)), FGSM(Linf(0.04))), "avg"), eps_ramp=0))
    list(here.run_epoch())
    assert here.metrics[0]["delta_linf"] == pytest.approx(0.03, abs=1e-4)


@pytest.mark.parametrize("how", MIX_MODES)
def test_a_mix_goes_on_to_the_same_weights_and_the_checkpoint_says_what_it_has_seen(tmp_path, monkeypatch, how):
    for module, name in (
        (import_module("vizrobust.training.loop"), "MONITOR_STEPS"),
        (import_module("vizrobust.training.training_runs"), "TESTED_STEPS"),
    ):
        monkeypatch.setattr(module, name, 1)
    compute = Compute("cpu")
    recipe = replace(RECIPE, attack=MultiAttack(BOTH, how), clean_weight=0.5, augment="crop", epochs=2)
    rows, expected = run_all(recipe, tmp_path / "whole", compute)
    interrupted = train(recipe, tiny(), compute, tmp_path / "parts")
    for item in interrupted:
        if isinstance(item, Progress) and (item.epoch, item.batch) == (2, 2):
            break
    interrupted.close()
    torch.rand(3)
    again, found = run_all(recipe, tmp_path / "parts", compute)
    assert same_weights(found, expected)
    assert again == rows[1:]
    about = trained_checkpoint(tmp_path / "parts").info
    assert attacks_seen(about.training) == BOTH
    assert parse(about.training, NAMES) == recipe
    assert (about.attack_steps, about.norm, about.eps) == (3, "Linf + L2", None)


def test_what_old_texts_have_seen():
    assert attacks_seen("") == ()
    assert attacks_seen(repr(RECIPE)) == ()
    assert attacks_seen(repr(replace(RECIPE, attack=ATTACK))) == (ATTACK,)
    for name in builtin_names():
        about = load_checkpoint(name).info
        attacks = attacks_seen(about.training)
        assert len(attacks) == (about.attack_steps != 0)
        assert all(attack.ball.eps == about.eps for attack in attacks)
        recipe = parse(about.training, NAMES)
        assert isinstance(recipe, TrainingRecipe)
        # Written before the renaming.
        assert repr(recipe).removeprefix("TrainingRecipe") == about.training.removeprefix("Training")
    with pytest.raises(ValueError, match=r"'FGSM' is no recipe"):
        attacks_seen("FGSM")


@pytest.mark.parametrize(
    ("attacks", "how", "sentence"),
    [
        (BOTH, "mean", r"no mix 'mean'; did you mean max"),
        (BOTH[:1], "avg", r"MultiAttack: give two attacks or more, got 1; a single one needs no MultiAttack"),
        ((BOTH[0], Linf(0.1)), "avg", r"MultiAttack: Linf\(eps=0.1\) is not an attack"),
        ((BOTH[0], MultiAttack(BOTH, "avg")), "max", r"MultiAttack: MultiAttack\(.*\) is not an attack"),
    ],
)
def test_a_bad_mix_is_refused(attacks, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        MultiAttack(attacks, how)


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (PGD(steps=1, ball=Linf(0.1), targeted=True, target=4), r"target class 4 does not exist: the network has classes 0 to 3"),
        (PGD(steps=1), r"has no eps"),
        (MultiAttack((ATTACK, PGD(steps=1, ball=L2())), "max"), r"L2\(\) has no eps"),
    ],
)
def test_an_attack_that_does_not_fit_leaves_no_folder(tmp_path, attack, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(train(replace(RECIPE, attack=attack), tiny(), Compute("cpu"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
