"""`vizrobust train` on the command line: several attacks, and one sentence for what cannot be."""

import json

import pytest
from click.testing import CliRunner

from vizrobust.attacks import L2, PGD, Linf
from vizrobust.cli import main
from vizrobust.cli.train import MIXES as OFFERED
from vizrobust.models import load_checkpoint
from vizrobust.training import MIXES, seen, session

TRAIN = ["train", "--data", "digits", "--arch", "small_cnn"]
PGD_, FGSM_ = ["--attack", "PGD"], ["--attack", "FGSM"]


def run(*args):
    return CliRunner().invoke(main, [*TRAIN, *map(str, args)])


def test_train_against_two_attacks(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "TESTED_IMAGES", 50)
    two = ["--attack", "PGD", "--attack", "PGD(ball=L2(eps=0.5))", "--mix", "random"]
    done = run(*two, "--steps", 1, "--epochs", 1, "--out", tmp_path / "t", "--quiet", "--json")
    assert done.exit_code == 0, done.output
    epoch, last = (json.loads(line) for line in done.stdout.splitlines())
    assert len(epoch["val_robust_each"]) == 2
    assert 0 <= last["robust"] <= last["clean"] <= 1
    about = load_checkpoint(str(tmp_path / "t")).about
    linf, l2 = seen(about.training)
    assert (linf.steps, l2) == (1, PGD(steps=1, ball=L2(0.5)))
    assert isinstance(linf.ball, Linf)
    assert linf.ball.eps is not None  # the data set's


def test_the_mixes_that_are_offered_are_those_there_are():
    assert tuple(MIXES) == OFFERED


BAD = {
    "two without mix": ([*PGD_, *FGSM_], 2, "2 attacks need --mix avg, max or random"),
    "mix of one": ([*PGD_, "--mix", "max"], 2, "--mix max needs two --attack or more, got 1"),
    "mix of none": (["--steps", 3, "--mix", "avg"], 2, "--mix avg needs two --attack or more, got 0"),
    "unknown mix": ([*PGD_, *FGSM_, "--mix", "mean"], 2, "'mean' is not one of 'avg', 'max', 'random'"),
    "one eps for two": ([*PGD_, *FGSM_, "--mix", "avg", "--eps", 0.1], 2, "write each one's norm and radius in its SPEC"),
    "one norm for two": ([*PGD_, *FGSM_, "--mix", "avg", "--norm", "L2"], 2, "write each one's norm and radius in its SPEC"),
    "one of two without eps": ([*PGD_, "--attack", "PGD(ball=L2())", "--mix", "avg"], 1, "PGD with L2 has no eps"),
    "standard with attack": ([*PGD_, "--steps", 0], 2, "--steps 0 is standard training, without an --attack"),
    "unknown attack": (["--attack", "pgdd"], 1, "no attack 'pgdd'; did you mean PGD"),
    "a ball": (["--attack", "Linf(eps=0.3)"], 1, "'Linf(eps=0.3)' is not an attack"),
    "negative eps": (["--steps", 1, "--eps", -0.1], 1, "eps must not be negative, got -0.1"),
    "negative steps": (["--attack", "PGD(steps=-1)"], 1, "PGD: steps must not be negative, got -1"),
    "eps above 1": (["--steps", 1, "--eps", 8], 1, "eps 8 is above 1"),
    "no such class": (["--attack", "PGD(targeted=True, target=12)"], 1, "the network has classes 0 to 9"),
    "unknown norm": (["--steps", 1, "--norm", "L7"], 1, "no norm 'L7'"),
    "norm without eps": (["--steps", 1, "--norm", "L2"], 1, "give --eps"),
    "unknown optimizer": (["--steps", 1, "--optimizer", "adamw"], 1, "no optimizer 'adamw'; did you mean adam?"),
    "unknown augment": (["--steps", 1, "--augment", "flip"], 1, "no augment 'flip'"),
    "negative ramp": (["--steps", 1, "--eps-ramp", -1], 1, "eps_ramp must not be negative, got -1"),
    "no epochs": (["--steps", 1, "--epochs", 0], 1, "epochs must be at least 1, got 0"),
    "zero rate": (["--steps", 1, "--lr", 0], 1, "lr must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_no_folder(case, tmp_path):
    args, code, words = BAD[case]
    done = run(*args, "--out", tmp_path / "t", "--quiet")
    assert done.exit_code == code
    assert words in done.output
    sentences = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1
    assert done.output.rstrip().endswith(sentences[0])
    assert list(tmp_path.iterdir()) == []
