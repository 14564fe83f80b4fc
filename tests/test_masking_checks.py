"""Every masking check on a network built to trip it, and on sound ones that must not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from tests.masked_networks import (
    CLASSES,
    IMAGES,
    SAFE,
    WIDE,
    Clamped,
    Cratered,
    Decoys,
    Dropping,
    Hot,
    Jumpy,
    Labelled,
    OfTheBatch,
    Purifying,
    Quantised,
    Rippled,
    Rooted,
    Shattered,
    Softmax,
    Sound,
    TwoFaced,
    Undefined,
    Undifferentiable,
    split,
)
from vizrobust.attacks import FGSM, L1, L2, PGD, Linf, Noise
from vizrobust.compute import Compute
from vizrobust.data import head, load
from vizrobust.models import load_checkpoint
from vizrobust.robustness.masking import (
    CHECKS,
    DECIDING,
    HIDDEN,
    NOT_ROBUST,
    OVERFITTED,
    SOUND,
    AttackBudget,
    Check,
    MaskingAttacks,
    NetworkUnderTest,
    diagnose,
    diagnosis_of,
    extension_of,
)

LITTLE = AttackBudget(steps=10, restarts=2, queries=60, noise_samples=100, probes=40)
LESS = AttackBudget(steps=20, restarts=1, queries=50, noise_samples=5, probes=25)


@cache
def context(build: Callable[[], nn.Module], eps: float) -> MaskingAttacks:
    """Shared, so that no attack is run twice on a network."""
    return MaskingAttacks(
        NetworkUnderTest(build(), split(), Linf(eps), (PGD(steps=10),)), Compute("cpu"), LITTLE, batch_size=IMAGES
    )


@cache
def mnist(name: str, source: str | None = None) -> MaskingAttacks:
    quantised = name == "quantised"
    net = load_checkpoint("mnist-k0" if quantised else name).net()
    subject = NetworkUnderTest(
        Quantised(net) if quantised else net, head(load("mnist5k").test, 25), Linf(0.3), (PGD(steps=1),), source
    )  # fmt: skip
    return MaskingAttacks(subject, Compute("cpu"), LESS, batch_size=25)


def trained_mode() -> nn.Module:
    return nn.Sequential(Sound(), nn.Dropout(0.5)).train()


TRIPPED: list[tuple[str, Callable[[], nn.Module], float]] = [
    ("training_attack_gap", Jumpy, SAFE),
    ("margin_loss_finds_more", Decoys, WIDE),
    ("black_box_beats_white_box", Quantised, WIDE),
    ("random_noise_finds_more", Cratered, SAFE),
    ("decision_attack_finds_more", Quantised, WIDE),
    ("unbounded_attack_fails", Quantised, SAFE),
    ("one_step_beats_many", Rippled, WIDE),
    ("larger_eps_helps", Jumpy, SAFE),
    ("unavailable_gradients", Quantised, SAFE),
    ("unstable_predictions", Jumpy, SAFE),
    ("silent_success", Jumpy, SAFE),
    ("incomplete_optimisation", Shattered, SAFE),
    ("judged_is_differentiated", TwoFaced, SAFE),
    ("square_beats_all_gradients", Quantised, WIDE),
    ("randomised", Dropping, SAFE),
    ("softmax_output", Softmax, SAFE),
    ("optimisation_in_forward", Purifying, SAFE),
    ("batch_norm_mode", OfTheBatch, SAFE),
    ("nonfinite_values", Rooted, SAFE),
    ("zero_gradient_coordinates", Clamped, SAFE),
    ("cross_entropy_underflow", Hot, SAFE),
    ("plain_cross_entropy_fails", Hot, WIDE),
    ("gradient_cosine", Shattered, SAFE),
    ("local_linearity", Rippled, SAFE),
    ("promised_too_little", Clamped, SAFE),
]
# The same checks on another network.
ALSO_TRIPPED: list[tuple[str, Callable[[], nn.Module], float]] = [
    ("unbounded_attack_fails", Undifferentiable, SAFE),
    ("unavailable_gradients", Undifferentiable, SAFE),
    ("unstable_predictions", Dropping, SAFE),
    ("batch_norm_mode", trained_mode, SAFE),
    ("nonfinite_values", Undefined, SAFE),
]
# One-step training is planted by training: these trip on built-in checkpoints.
TRIPPED_ON_MNIST = [
    ("training_attack_gap", "mnist-k1", None),
    ("fell_short", "mnist-k1", None),
    ("gradient_cosine", "mnist-k1", None),
    ("local_linearity", "mnist-k1", None),
    ("transfer_finds_more", "quantised", "mnist-k0"),
]


@pytest.mark.parametrize(
    ("name", "build", "eps"),
    [*TRIPPED, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALSO_TRIPPED)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_check_trips_on_the_network_built_for_it(name: str, build: Callable[[], nn.Module], eps: float) -> None:
    _tripped(CHECKS[name](context(build, eps)))


@pytest.mark.parametrize(("name", "net", "source"), TRIPPED_ON_MNIST)
def test_a_check_trips_on_what_training_has_planted(name: str, net: str, source: str | None) -> None:
    _tripped(CHECKS[name](mnist(net, source)))


def _tripped(check: Check) -> None:
    assert check.flagged, check
    assert check.advice
    assert check.value is not None
    assert check.counts


def test_every_check_is_tripped_by_something() -> None:
    assert {name for name, *_ in TRIPPED + TRIPPED_ON_MNIST} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("eps", [SAFE, WIDE])
def test_nothing_trips_on_a_linear_network(name: str, eps: float) -> None:
    check = CHECKS[name](context(Sound, eps))
    assert not check.flagged, check
    assert bool(check.advice) == (name == "transfer_finds_more"), "it was skipped and says what it needs"
    assert check.evidence
    assert not any(character in check.evidence for character in "[]")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("net", ["mnist-k0", "mnist-k8"])
def test_nothing_trips_on_standard_and_on_sound_training(name: str, net: str) -> None:
    own = mnist(net)
    assert not CHECKS[name](own).flagged, CHECKS[name](own)


# One network for each verdict and each way to hide; the others are slow.
VERDICTS = [
    (Sound, SAFE, SOUND),
    (Sound, WIDE, NOT_ROBUST),
    pytest.param(Hot, SAFE, SOUND, marks=pytest.mark.slow),
    # Its gradients are sound and other tools do not see them, as after defensive distillation.
    (Hot, WIDE, HIDDEN),
    pytest.param(Quantised, SAFE, HIDDEN, marks=pytest.mark.slow),
    (Quantised, WIDE, HIDDEN),
    pytest.param(Undifferentiable, WIDE, HIDDEN, marks=pytest.mark.slow),
    pytest.param(Shattered, WIDE, HIDDEN, marks=pytest.mark.slow),
    (Decoys, WIDE, HIDDEN),
    (Jumpy, SAFE, OVERFITTED),
]


@pytest.mark.parametrize(("build", "eps", "name"), VERDICTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_verdicts(build: Callable[[], nn.Module], eps: float, name: str) -> None:
    assert diagnosis_of(context(build, eps)).verdict.name == name


def test_an_attack_on_decisions_finds_out_a_network_that_gives_labels() -> None:
    """No image is safe where all pixels can be grey, yet noise for a gradient leads nowhere, nor do scores that never rise."""

    def verdict(decision_images: int) -> str:
        subject = NetworkUnderTest(Labelled(), split(), Linf(0.55), (PGD(steps=10),))
        budget = replace(LITTLE, queries=300, noise_samples=5, decision_images=decision_images)
        return diagnosis_of(MaskingAttacks(subject, Compute("cpu"), budget, batch_size=IMAGES)).verdict.name

    assert verdict(0) == SOUND
    assert verdict(20) == HIDDEN


def test_outputs_that_are_not_finite_are_neither_misclassified_nor_robust() -> None:
    own = context(Undefined, SAFE)
    assert own.survives["pgd"].all(), "no attack finds a misclassified point"
    assert not own.survives["all"].any()
    assert own.undefined.all()
    verdict = diagnosis_of(own, (CHECKS["nonfinite_values"](own),)).verdict
    assert (verdict.undecided, verdict.images) == (True, None)
    assert verdict.sentence.startswith(f"undecided: outputs are not finite on {IMAGES} of {IMAGES} images")
    assert extension_of(own) is None


def test_gradients_that_are_not_finite_leave_the_other_pixels_their_gradient() -> None:
    rooted = context(Rooted, WIDE)
    assert not context(Sound, WIDE).survives["pgd"].any()
    # A pixel that arrives at black stays there.
    assert rooted.survives["pgd"].double().mean() < 0.2
    assert not any(math.isnan(CHECKS[name](rooted).value or 0) for name in CHECKS)


def test_a_random_network_is_probed_the_same_among_other_images() -> None:
    few, many = (
        MaskingAttacks(NetworkUnderTest(Dropping(), split(20), Linf(SAFE)), Compute("cpu"), replace(LITTLE, probes=probes))
        for probes in (3, 7)
    )
    assert torch.equal(few.trajectory.loss, many.trajectory.loss[:, :3])
    names = ("first_order_drop", "linear", "fgsm", "pgd")
    assert all(torch.equal(getattr(few.first_order, name), getattr(many.first_order, name)[:3]) for name in names)


def test_a_standard_network_is_not_masked_for_what_one_step_leaves() -> None:
    """Rippled at WIDE leaves far more to its "training attack" than to the strongest; without one there is no gap."""
    own = MaskingAttacks(NetworkUnderTest(Jumpy(), split(), Linf(SAFE), ()), Compute("cpu"), LITTLE, batch_size=IMAGES)
    assert own.survives.get("training attacks") is None
    check = CHECKS["training_attack_gap"](own)
    assert check.flagged is None
    assert "not adversarially trained" in check.evidence


def test_training_on_noise_is_no_attack_to_have_overfitted_to() -> None:
    """Noise breaks nobody, so its gap to the strongest attack would call every such network masked."""
    trained = (Noise(samples=1, ball=Linf(WIDE)),)
    own = MaskingAttacks(NetworkUnderTest(Sound(), split(), Linf(WIDE), trained), Compute("cpu"), LITTLE, batch_size=IMAGES)
    assert own.training_attacks == ()
    assert "searches for nothing" in CHECKS["training_attack_gap"](own).evidence
    assert diagnosis_of(own).verdict.name == NOT_ROBUST


def test_one_step_stands_for_an_unknown_training() -> None:
    own = MaskingAttacks(NetworkUnderTest(Sound(), split(20), Linf(SAFE)), Compute("cpu"), LITTLE, batch_size=20)
    assert own.training_attacks == (FGSM(ball=Linf(SAFE)),)
    assert "unknown" in CHECKS["training_attack_gap"](own).evidence


def test_the_attack_of_training_is_taken_to_the_ball_of_evaluation() -> None:
    def attacks(*trained) -> tuple:
        return MaskingAttacks(NetworkUnderTest(Sound(), split(5), Linf(0.25), trained), Compute("cpu"), LITTLE).training_attacks

    assert attacks(PGD(steps=7, ball=Linf(0.125), alpha=0.0625)) == (PGD(steps=7, ball=Linf(0.25), alpha=0.125),)
    assert attacks(PGD(steps=7, ball=L2(1.0))) == (PGD(steps=7, ball=Linf(0.25)),)
    assert attacks(PGD(steps=7, ball=L2(1.0)), FGSM(ball=Linf(0.1))) == (FGSM(ball=Linf(0.25)),)


def test_attacks_after_pgd_meet_only_what_it_left() -> None:
    own = context(Quantised, WIDE)
    assert bool((own.survives["all"] <= own.survives["pgd"]).all())
    asked: list[int] = []
    fresh = MaskingAttacks(NetworkUnderTest(Sound(), split(), Linf(WIDE), ()), Compute("cpu"), LITTLE, batch_size=IMAGES)
    fresh.evaluate = lambda attack, indices: (
        asked.append(-1 if indices is None else len(indices)),
        fresh._evaluate(attack, indices),
    )[1]
    assert not fresh.survives["pgd"].any()
    assert not (fresh.survives["margin loss"] & fresh.survives["pgd"]).any()
    assert asked == [-1, 150], "the unchanged images, PGD on all, and nothing for the margin loss to do"


def test_survivors_are_those_asked_for_whatever_was_asked_before() -> None:
    def fresh() -> MaskingAttacks:
        return MaskingAttacks(NetworkUnderTest(Sound(), split(), Linf(WIDE), ()), Compute("cpu"), LITTLE, batch_size=IMAGES)

    attack, first_half = FGSM(ball=Linf(WIDE)), torch.arange(len(split())) < 75
    whole, half, other = (fresh().survivors(attack, among) for among in (None, first_half, ~first_half))
    assert not whole.any()
    assert torch.equal(half, fresh().clean & ~first_half)
    for order in itertools.permutations([(None, whole), (first_half, half), (~first_half, other)]):
        own = fresh()
        assert all(torch.equal(own.survivors(attack, among), expected) for among, expected in order)


def test_advice_names_parameters_as_templates() -> None:
    check = CHECKS["transfer_finds_more"](context(Sound, SAFE))
    assert "{transfer_from}" in check.advice
    assert "with transfer_from" in check.row()["advice"]


def test_what_more_restarts_find_is_not_hidden() -> None:
    """Jumpy is broken by any point in a few, so another round of anything finds more, PGD's own restarts too."""
    own = context(Jumpy, SAFE)
    others = own.survives["pgd"] & ~(
        own.survives["margin loss"] & own.survives["noise"] & own.survives["square"] & own.survives["hopskipjump"]
    )
    assert not (own.survives["pgd, more restarts"] & ~own.survives["pgd"]).any()
    assert bool((own.survives["pgd"] & ~own.survives["pgd, more restarts"]).any()), "some are found"
    assert bool((own.survives["pgd"] & ~own.survives["pgd, more restarts"] <= others).all()), "of those that others broke"
    retried = PGD(steps=10, ball=Linf(SAFE), restarts=10)
    assert torch.equal(own.survives["pgd, more restarts"][others], own.survivors(retried)[others])


def test_the_network_is_given_back_as_it_was() -> None:
    net = trained_mode()
    flags = [module.training for module in net.modules()]
    state = torch.random.get_rng_state()
    own = MaskingAttacks(
        NetworkUnderTest(net, split(10), Linf(SAFE), ()), Compute("cpu"), AttackBudget(2, 1, 5, 2, 5), batch_size=5
    )
    list(diagnose(own))
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_random_network_is_diagnosed_the_same_twice() -> None:
    def rows() -> dict:
        own = MaskingAttacks(
            NetworkUnderTest(Dropping(), split(20), Linf(WIDE), ()), Compute("cpu"), AttackBudget(3, 1, 5, 2, 10), batch_size=10
        )
        return diagnosis_of(own, tuple(diagnose(own))).row()

    once = rows()
    torch.rand(3)
    assert rows() == once
    assert "EOT" in once["sentence"]


@pytest.mark.parametrize("ball", [L2(2.0), L1(10.0)], ids=repr)
def test_other_balls(ball) -> None:
    own = MaskingAttacks(
        NetworkUnderTest(Sound(), split(), ball, (PGD(steps=3),)),
        Compute("cpu"),
        AttackBudget(5, 1, 20, 3, 20),
        batch_size=IMAGES,
    )
    checks = {name: CHECKS[name](own) for name in (*DECIDING, "gradient_cosine", "local_linearity", "larger_eps_helps")}
    assert not any(check.flagged for check in checks.values())
    assert (checks["black_box_beats_white_box"].flagged is None) == isinstance(ball, L1)


def test_a_network_that_is_never_right_is_refused() -> None:
    images = split(10)
    images = type(images)(images.pixels, (images.labels + 1) % CLASSES)
    with pytest.raises(ValueError, match="classifies none of 10 images correctly"):
        list(diagnose(MaskingAttacks(NetworkUnderTest(Sound(), images, Linf(SAFE)), Compute("cpu"), LITTLE)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trained", "expected"),
    [
        ("mnist-k0", (), NOT_ROBUST),
        ("mnist-k1", (PGD(steps=1),), OVERFITTED),
        ("mnist-k2", (PGD(steps=2),), OVERFITTED),
        ("mnist-fgsm", (FGSM(),), OVERFITTED),
    ],
)
def test_the_built_in_sweep(name: str, trained: tuple, expected: str) -> None:
    subject = NetworkUnderTest(load_checkpoint(name).net(), head(load("mnist5k").test, 500), Linf(0.3), trained)
    assert diagnosis_of(MaskingAttacks(subject, Compute("cpu"), batch_size=50)).verdict.name == expected
