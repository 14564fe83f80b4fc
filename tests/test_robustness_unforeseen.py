"""UAR from its definition, the published calibrations, and calibrations read from a run of `vizrobust calibrate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vizrobust.attacks import L2, PGD, UNFORESEEN, Elastic, Fog, family
from vizrobust.robustness.suites import (
    Calibration,
    calibration_for,
    mean_uar,
    packaged,
    read_calibrations,
    uar,
    unforeseen_ratio,
)

PUBLISHED = [calibration for calibration in packaged() if calibration.published]


class TestUAR:
    def test_it_is_a_ratio_of_sums_not_a_mean_of_ratios(self) -> None:
        found = calibration_for("cifar10", "Linf")
        assert found is not None
        # The accuracies of a network that is half as good at every size, and of one that is right at the first alone.
        assert found.uar([value / 2 for value in found.ata]) == pytest.approx(0.5)
        assert found.uar([1, 0, 0, 0, 0, 0]) == pytest.approx(1 / (0.9095 + 0.878 + 0.8159 + 0.7134 + 0.465 + 0.2311))
        assert found.uar([1] * 6) > 1

    @pytest.mark.parametrize(
        ("accuracies", "ata", "words"),
        [
            ([0.5], [0.5, 0.4], "got 1 for 2"),
            ([50.0], [90.0], "fractions from 0 to 1"),
            ([0.5], [-0.1], "fractions from 0 to 1"),
            ([0.0], [0.0], "above 0"),
            ([math.nan], [0.5], "fractions"),
        ],
    )
    def test_what_is_no_accuracy_is_refused(self, accuracies: list[float], ata: list[float], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            uar(accuracies, ata)

    def test_means_leave_out_what_training_has_seen_and_name_the_rest(self) -> None:
        scores = {"L2": 0.9, "Elastic": 0.2, "Fog": 0.4}
        assert mean_uar(scores, ["L2", "Linf"]) == (pytest.approx(0.3), ("Elastic", "Fog"))
        with pytest.raises(ValueError, match="training has seen L2, Elastic, Fog, and there are no others"):
            mean_uar(scores, list(scores))

    def test_foreseen_against_unforeseen_is_a_ratio(self) -> None:
        assert unforeseen_ratio(0.5, 0.1) == pytest.approx(0.2)
        assert unforeseen_ratio(0.5, 0.0) == 0
        assert unforeseen_ratio(0.0, 0.0) is None


class TestPublishedCalibrations:
    @pytest.mark.parametrize("calibration", PUBLISHED, ids=lambda c: f"{c.data}-{c.name}")
    def test_each_says_that_it_is_for_one_architecture_only(self, calibration: Calibration) -> None:
        arch = {"cifar10": "ResNet-56", "imagenet100": "ResNet-50"}[calibration.data]
        assert calibration.provenance.startswith(f"{arch} only. ")
        assert "Targeted at a uniformly random wrong class" in calibration.provenance
        assert "Kang et al. 2019" in calibration.provenance
        assert calibration_for(calibration.data, calibration.name) == calibration

    def test_every_attack_that_was_published_is_there_and_no_other(self) -> None:
        balls = {"Linf", "L2", "L1", "JPEG-Linf", "JPEG-L2", "JPEG-L1", "Elastic"}
        assert {c.name for c in PUBLISHED if c.data == "cifar10"} == balls
        assert {c.name for c in PUBLISHED if c.data == "imagenet100"} == balls | {"Fog", "Gabor", "Snow"}
        assert calibration_for("cifar10", "Fog") is None
        assert calibration_for("cifar100", "L2") is None

    def test_sizes_are_in_units_of_our_own(self) -> None:
        in_255 = {"Linf", "L2", "L1", "Fog", "Gabor"}
        published = {
            ("cifar10", "Linf"): [1, 2, 4, 8, 16, 32],
            ("cifar10", "L2"): [40, 80, 160, 320, 640, 2560],
            ("cifar10", "L1"): [195, 390, 780, 1560, 6240, 24960],
            ("cifar10", "Elastic"): [0.125, 0.25, 0.5, 1, 2, 8],
            ("imagenet100", "Fog"): [128, 256, 512, 2048, 4096, 8192],
            ("imagenet100", "Gabor"): [6.25, 12.5, 25, 400, 800, 1600],
            ("imagenet100", "Snow"): [0.0625, 0.125, 0.25, 2, 4, 8],
        }
        for (data, name), eps in published.items():
            found = calibration_for(data, name)
            assert found is not None
            assert found.eps == pytest.approx([value / 255 if name in in_255 else value for value in eps])

    def test_disagreements_of_the_source_are_told(self) -> None:
        gabor, sparse = calibration_for("imagenet100", "Gabor"), calibration_for("imagenet100", "L1")
        assert gabor is not None
        assert sparse is not None
        assert gabor.ata[1] == gabor.ata[2]
        assert "same number at the second and the third size" in gabor.provenance
        assert "9562.4, where the README has 9562.5" in sparse.provenance

    @pytest.mark.parametrize("calibration", PUBLISHED, ids=lambda c: f"{c.data}-{c.name}")
    def test_its_attacks_follow_the_published_protocol(self, calibration: Calibration) -> None:
        attacks = calibration.attacks()
        assert [attack.threat_model()[1] for attack in attacks] == list(calibration.eps)
        for attack in attacks:
            assert family(attack) == calibration.name
            assert attack.targeted
            assert attack.steps == 200
        alpha = attacks[3].alpha
        if calibration.name in ("Fog", "Gabor", "Snow"):
            assert alpha == 0.002236
        elif calibration.name in ("Linf", "L2", "L1"):
            assert alpha == pytest.approx(calibration.eps[3] / math.sqrt(200))
        else:
            assert alpha is None, "which is eps / sqrt(steps) for these"
        assert calibration.attacks(steps=50)[0].steps == 50


def row(**changes: Any) -> dict[str, Any]:
    """What `vizrobust calibrate` writes for an attack."""
    return {
        "format": 1, "name": "Elastic", "attack": "Elastic(steps=20)", "eps": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "ata": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "data": "mnist5k", "arch": "small_cnn", "protocol": "untargeted", "images": 300,
        "date": "2026-01-02",
    } | changes  # fmt: skip


class TestCalibrationsOfARun:
    def test_one_comes_before_the_packages_own(self, tmp_path: Path) -> None:
        (tmp_path / "calibrations").mkdir()
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "calibrations" / "elastic.json").write_text(json.dumps(row(data="cifar10")))
        ours = calibration_for("cifar10", "Elastic", tmp_path)
        assert ours is not None
        assert ours.provenance == "Networks of architecture small_cnn. Untargeted. 300 images, made 2026-01-02."
        assert not ours.published
        assert ours.attacks()[5] == Elastic(eps=0.6, steps=20)
        theirs = calibration_for("cifar10", "L2", tmp_path)
        assert theirs is not None
        assert theirs.published
        assert calibration_for("mnist5k", "Fog", tmp_path) is None

    def test_a_ball_keeps_pgds_own_steps_where_nothing_is_published(self, tmp_path: Path) -> None:
        file = tmp_path / "l2.json"
        file.write_text(json.dumps(row(name="L2", attack="PGD(steps=9, ball=L2())")))
        (found,) = read_calibrations(file)
        assert found.attacks()[0] == PGD(steps=9, ball=L2(eps=0.1))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"eps": [1, 2]}, "needs 6 eps and 6 ATA, got 2 and 6"),
            ({"eps": [0.1, 0.2, 0.2, 0.4, 0.5, 0.6]}, "eps must be above 0 and grow"),
            ({"eps": [0.0, 0.1, 0.2, 0.4, 0.5, 0.6]}, "eps must be above 0 and grow"),
            ({"ata": [90, 80, 70, 60, 50, 40]}, "ATA must be fractions"),
            ({"ata": [0, 0, 0, 0, 0, 0]}, "not all 0"),
            ({"attack": "Fog()"}, "listed as Fog, not Elastic"),
            ({"attack": "Foog()"}, "no attack 'Foog'; did you mean Fog"),
            ({"format": 2}, "its format is 2, and this version reads 1"),
            ({"eps": None}, "holds no calibration"),
        ],
    )
    def test_what_is_no_calibration_is_said_with_its_file(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        file = tmp_path / "c.json"
        file.write_text(json.dumps(row(**changes)))
        with pytest.raises(ValueError, match=words) as error:
            read_calibrations(file)
        assert str(file) in str(error.value)

    @pytest.mark.parametrize("text", ["", "[1, 2]", '{"format": 1}', "no json"])
    def test_a_file_of_something_else(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "c.json"
        file.write_text(text)
        with pytest.raises(ValueError, match="holds no calibration"):
            read_calibrations(file)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="vizrobust calibrate --out"):
            calibration_for("mnist5k", "L2", tmp_path / "none")


def test_calibrations_ship_with_the_package() -> None:
    assert len(PUBLISHED) == 17
    assert {family(thing()) for thing in UNFORESEEN.values()} > {"Elastic", "Fog"}
    assert family(Fog()) == "Fog"
