"""Two processes learn what one learns, and go on bit for bit where they were killed."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import forks
from tests.test_training import ATTACK, CODE, RECIPE, tiny
from vizrobust.attacks import FGSM, Linf
from vizrobust.compute import Compute
from vizrobust.models import load_checkpoint
from vizrobust.parallel import Processes
from vizrobust.runs import read_rows, read_run
from vizrobust.training import METRICS_FILE, TRADES, Distillation, Free, train
from vizrobust.training.data_parallel import SharedBatchNorm, all_reduce_mean, shard_of, share_statistics

ROOT = Path(__file__).parent.parent
# Batches of 9: parts of 5 and 4 images, and a last batch of 2.
BASE = replace(RECIPE, batch_size=9, attack=ATTACK, eps_ramp=0, optimizer="sgd", lr=0.05)
RECIPES = {
    "pgd": BASE,
    "clean part, awp and average": replace(BASE, clean_weight=0.3, awp=0.02, ema=0.7, optimizer="adam", lr=1e-3),
    "trades": replace(BASE, method=TRADES()),
    "free": replace(BASE, method=Free(replays=2), attack=FGSM(Linf(0.1))),
    "distillation": replace(BASE, method=Distillation(temperature=5.0), attack=None),
    # Whole batches of 10: normalizing a batch of 2 makes +-1 of any rounding.
    "batchnorm": replace(BASE, arch="CODE:normed", batch_size=10, lr=0.01),
    "fewer images than processes": replace(BASE, batch_size=19, epochs=1),
}
# What two processes can do to a recipe: normalize over both, share weights that are moved and averaged. The other five
# are slow.
QUICK = ("clean part, awp and average", "batchnorm")
REST = tuple(name for name in RECIPES if name not in QUICK)
DRIVER = """
import os, signal, sys
import torch._dynamo  # as the first optimizer does, here once for both
from dataclasses import replace
from pathlib import Path
from tests.test_training import tiny
from tests.test_training_processes import RECIPES, at
from vizrobust.compute import Compute
from vizrobust.training import Progress, train

def run():
    root, names, fatal = Path(sys.argv[1]), sys.argv[2].split("|"), sys.argv[3]
    compute = Compute("cpu", threads=1)
    for name in names:
        for item in train(at(RECIPES[name], root), tiny(), compute, root / name, measure=False, checkpoint_every=1):
            if name == fatal and isinstance(item, Progress) and (item.epoch, item.batch, compute.processes.rank) == (2, 2, 1):
                os.kill(os.getpid(), signal.SIGKILL)
"""


def at(recipe, root):
    """With the path of the code that a recipe's network comes from."""
    return replace(recipe, arch=recipe.arch.replace("CODE", str(root.parent / "mine.py")))


def launch(root, names, fatal=""):
    """By torchrun, which ends the others where one dies."""
    driver = root.parent / "driver.py"
    driver.write_text(DRIVER + "\nrun()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver), str(root)]
    command += ["|".join(names), fatal]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "mine.py").write_text(CODE)
    return home


def learned(home, names):
    """The folders of one process and of two that have each learned by these recipes."""
    one, two = home / "one", home / "two"
    compute = Compute("cpu", threads=1)
    for name in names:
        list(train(at(RECIPES[name], one), tiny(), compute, one / name, measure=False))
    forks.together(DRIVER, str(two), "|".join(names), "", cwd=home)
    return one, two


@pytest.fixture(scope="module")
def quick(home):
    return learned(home, QUICK)


@pytest.fixture(scope="module")
def rest(home):
    return learned(home, REST)


def state(folder, name):
    return load_checkpoint(str(folder / name), at(RECIPES[name], folder).arch).state


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_learn_what_one_learns(quick, name):
    check_the_same_was_learned(*quick, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_so_they_do_by_the_other_recipes(rest, name):
    check_the_same_was_learned(*rest, name)


def check_the_same_was_learned(one, two, name):
    a, b = state(one, name), state(two, name)
    assert a.keys() == b.keys()
    assert max(float((a[key].double() - b[key].double()).abs().max()) for key in a) < 1e-5
    for row, other in zip(read_rows(one / name, METRICS_FILE), read_rows(two / name, METRICS_FILE), strict=True):
        numbers, words = ({key: one for key, one in row.items() if isinstance(one, str) is kind} for kind in (False, True))
        assert {key: one for key, one in other.items() if key not in words} == pytest.approx(numbers, rel=1e-3)
        assert {key: other[key] for key in words} == words
        assert other["gradient_passes"] == row["gradient_passes"]
    assert read_run(two / name)["processes"] == 2


def test_batchnorm_counts_each_batch_once(quick):
    _, two = quick
    counted = {int(v) for key, v in state(two, "batchnorm").items() if key.endswith("num_batches_tracked")}
    assert counted == {2 * 2}


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_go_on_bit_for_bit(home, rest):
    _, two = rest
    root = home / "killed"
    done = launch(root, REST, "free")
    assert done.returncode != 0
    assert (root / "free" / "part.pt").is_file()
    assert not (root / "free" / "checkpoint.safetensors").exists()
    done = launch(root, REST)
    assert done.returncode == 0, done.stderr
    for name in REST:
        a, b = state(two, name), state(root, name)
        assert all(torch.equal(a[key], b[key]) for key in a), name
        assert (two / name / METRICS_FILE).read_text() == (root / name / METRICS_FILE).read_text()


def test_another_number_of_processes_is_refused_with_the_reason(quick):
    name, (_, two) = QUICK[0], quick
    (two / name / "checkpoint.safetensors").rename(two / "kept")
    try:
        with pytest.raises(ValueError, match="was begun with 2 processes, now there are 1: gradients summed in another order"):
            next(train(RECIPES[name], tiny(), Compute("cpu"), two / name))
    finally:
        (two / "kept").rename(two / name / "checkpoint.safetensors")


def test_parts_are_a_partition_and_their_shares_are_one():
    for n in range(1, 12):
        for size in range(1, 5):
            parts = [shard_of(torch.arange(n), Processes(rank, size)) for rank in range(size)]
            assert sum(share for _, share in parts) == pytest.approx(1)
            if n >= size:
                assert sorted(torch.cat([own for own, _ in parts]).tolist()) == list(range(n))


class Threads(Processes):
    """One of two processes that are threads of this one; `table` is where they meet."""

    def __init__(self, rank, table, barrier):
        super().__init__(rank, 2)
        for name, value in (("table", table), ("barrier", barrier)):
            object.__setattr__(self, name, value)

    def sum(self, tensor):
        self.table[self.rank] = tensor.detach()
        self.barrier.wait()
        total = self.table[0] + self.table[1]
        self.barrier.wait()
        return total


def on_both(job):
    """What `job` returns for each of two processes."""
    table, barrier = [None, None], threading.Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: job(Threads(rank, table, barrier)), range(2)))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_shared_statistics_are_those_of_parts_that_differ(momentum, mean):
    generator = torch.Generator().manual_seed(0)
    parts = [mean + torch.randn(5, 3, 4, 6, generator=generator), mean + 3 - 2 * torch.randn(2, 3, 4, 6, generator=generator)]
    weight = torch.randn(7, 3, 4, 6, generator=generator)
    plain, both = torch.nn.BatchNorm2d(3, momentum=momentum).double(), torch.cat(parts).double().requires_grad_()
    expected = plain(both)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), both)

    def job(process):
        shared, x = torch.nn.BatchNorm2d(3, momentum=momentum), parts[process.rank].clone().requires_grad_()
        share_statistics(shared, process)
        assert isinstance(shared, SharedBatchNorm)
        out = shared(x)
        (gradient,) = torch.autograd.grad((out * weight.split([5, 2])[process.rank]).sum(), x)
        return out.detach(), gradient, shared

    (out, gradient, shared), (out_other, gradient_other, _) = on_both(job)
    near = {"atol": 1e-6 + 1e-7 * mean, "rtol": 1e-6}
    assert torch.allclose(torch.cat((out, out_other)).double(), expected, **near)
    assert torch.allclose(torch.cat((gradient, gradient_other)).double(), wanted, **near)
    for key, value in plain.state_dict().items():
        assert torch.allclose(shared.state_dict()[key].double(), value.double(), **near), key
    assert torch.allclose(shared.eval()(parts[0]).double(), plain.eval()(both)[:5], **(near | {"rtol": 1e-5}))


class Pretended(Processes):
    """Two processes in one, the second holding what the first holds."""

    def __init__(self):
        super().__init__(0, 2)

    def sum(self, tensor):
        return 2 * tensor


def test_gradients_meet_by_their_shares():
    found = all_reduce_mean([torch.ones(2, 3), torch.arange(4.0)], 0.5, Pretended())
    assert [tuple(one.shape) for one in found] == [(2, 3), (4,)]
    assert torch.equal(found[1], torch.arange(4.0))
