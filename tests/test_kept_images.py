"""Adversarial images that are kept: read back bit for bit, in 8 bits inside the ball, and judged where somebody cheats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vizrobust as vr
from tests.test_attack_cli import EPS, printed, rows, trained  # noqa: F401
from tests.test_cli import run
from vizrobust.attacks import BALLS, L2, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.models import load_checkpoint
from vizrobust.robustness.evaluation_runs import AdversarialImages, eight_bit, rounded

N = 40


def arrays_of(file: str) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


ATTACK = ("--attack", "PGD(steps=5)", "--eps", EPS, "--images", N)


def test_saved_images_are_read_back_with_the_same_predictions_bit_for_bit(trained: str) -> None:  # noqa: F811
    (row,) = rows(trained, *ATTACK, "--save", "kept.npz")
    arrays, data = arrays_of("kept.npz"), load("npz:kept.npz")
    x, clean = data.test.take(torch.arange(N)), load("digits").test.take(torch.arange(N))
    assert torch.equal(x, torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2))
    assert torch.equal(torch.from_numpy(arrays["x_clean"]).permute(0, 3, 1, 2), clean.float() / (255 if clean.max() > 1 else 1))
    assert data.classes == load("digits").classes
    (again,) = rows(
        trained, "--data", "npz:kept.npz", "--attack", "PGD(steps=0, random_start=False)", "--eps", EPS, "--images", N
    )
    right = arrays["predictions"] == arrays["y_test"]
    assert again["clean"] == right.mean() == row["accuracy"]
    assert arrays["norms"].max() <= EPS + 1e-6
    about = json.loads(str(arrays["about"]))
    assert about["attack"] == row["attack"]
    (judged,) = rows(trained, "--from", "kept.npz")
    assert (judged["accuracy"], judged["clean"], judged["outside"]) == (row["accuracy"], row["clean"], [])


def test_it_is_the_same_from_python(tmp_path: Path) -> None:
    found = vr.robust_accuracy("mnist-k0", attack="fgsm", eps=0.1, images=20)
    found.save(tmp_path / "kept.npz")
    assert torch.equal(load(f"npz:{tmp_path}/kept.npz").test.take(torch.arange(20)), found.adversarial)


def test_8_bit_files_hold_what_the_table_says(trained: str) -> None:  # noqa: F811
    (row,) = rows(trained, *ATTACK, "--save-png", "kept")
    files = sorted(Path("kept").glob("*/*.png"), key=lambda file: file.stem)
    assert [int(file.stem) for file in files] == list(range(N))
    x = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])[:, None].float() / 255
    test = load("digits").test
    net = load_checkpoint(trained).net().eval()
    assert [file.parent.name for file in files] == [load("digits").classes[label] for label in test.labels[:N]]
    right = (net(test.take(torch.arange(N))).argmax(1) == test.labels[:N]) & (net(x).argmax(1) == test.labels[:N])
    assert row["eight_bit"] == pytest.approx(float(right.float().mean()))
    assert "after 8-bit rounding" in printed(trained, *ATTACK, "--save-png", "again")


@pytest.mark.parametrize("name", BALLS)
def test_rounding_stays_inside_the_ball_and_near(name: str) -> None:
    ball = BALLS[name]({"Linf": 0.03, "L2": 0.5, "L1": 2.0, "L0": 5}[name])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (50, 3, 5, 4), generator=generator).float() / 255
    adv = ball.project_image(x, x + 0.3 * torch.randn(x.shape, generator=generator))
    found = rounded(ball, x, adv)
    assert torch.equal((found * 255).round() / 255, found)
    assert (ball.norm(found - x) <= ball.eps + 1e-6).all()
    assert ((found - adv).abs() <= 1 / 255 + 1e-6).all()


def test_what_rounding_brings_back_is_attacked_again_in_the_grid() -> None:
    class Fine(torch.nn.Module):
        """Wrong from a brightness of 10.2 levels on: 10.4 rounds to 10, which is right, and 11 is inside the ball."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lead = (x.flatten(1).mean(1) - 10.2 / 255) * 255
            return torch.stack((-lead, lead), 1)

    x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    attack = PGD(steps=20, eps=11.5 / 255, random_start=False)
    kept = AdversarialImages(x, x + 10.4 / 255, y, 1 - y, torch.ones(3), torch.arange(3))
    found = eight_bit(Fine(), attack, kept, Compute("cpu"))
    assert (found.predictions == 1).all()
    assert torch.equal(found.adversarial * 255, torch.full_like(x, 11.0))
    assert (Linf().norm(found.adversarial - x) <= attack.ball.eps).all()


class TestFrom:
    def test_images_outside_the_ball_break_nothing_and_are_named(self, trained: str) -> None:  # noqa: F811
        rows(trained, *ATTACK, "--save", "kept.npz")
        arrays = arrays_of("kept.npz")
        arrays["x_test"][7] = 1 - arrays["x_test"][7]
        np.savez("cheat.npz", **arrays)
        said = run("attack", trained, "--from", "cheat.npz", "--json")
        (row,) = [json.loads(line) for line in said.stdout.splitlines()]
        assert row["outside"] == [7]
        assert "1 of 40 images leave Linf(eps=0.15): 7" in said.stderr
        (wider,) = rows(trained, "--from", "cheat.npz", "--eps", 1)
        assert wider["outside"] == []
        assert wider["accuracy"] <= row["accuracy"]

    def test_another_norm_is_measured_in_it(self, trained: str) -> None:  # noqa: F811
        rows(trained, *ATTACK, "--save", "kept.npz")
        (row,) = rows(trained, "--from", "kept.npz", "--norm", "L2", "--eps", 0.2)
        arrays = arrays_of("kept.npz")
        norms = L2().norm(torch.from_numpy(arrays["x_test"] - arrays["x_clean"]))
        assert row["outside"] == (norms > 0.2).nonzero()[:, 0].tolist()

    def test_images_that_cannot_be_compared_are_refused(self, trained: str) -> None:  # noqa: F811
        x = np.random.default_rng(0).random((5, 8, 8), dtype=np.float32)
        np.savez("labels.npz", x_test=x, y_test=(load("digits").test.labels[:5].numpy() + 1) % 10)
        said = run("attack", trained, "--from", "labels.npz")
        assert said.exit_code == 1
        assert "has other labels than digits test for 5 of 5 images" in said.output
        np.savez("places.npz", x_test=x, y_test=np.zeros(5, int), indices=np.arange(5) + 100_000)
        assert "holds image 100004; digits test has" in run("attack", trained, "--from", "places.npz").output
        for extra in (("--minimal",), ("--attack", "pgd"), ("--save", "x.npz")):
            assert run("attack", trained, "--from", "labels.npz", *extra).exit_code == 2
        assert run("attack", trained, "--save", "x.npz", "--attack", "pgd", "--attack", "fgsm").exit_code == 2
