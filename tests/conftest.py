"""What several tests share: tiny networks whose axes all differ, a CPU, and the folder of real data."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.seconds import pytest_runtest_call  # noqa: F401
from vizrobust import plugins
from vizrobust.attacks import Attack, State
from vizrobust.compute import Compute, ask_for_repeatable
from vizrobust.data import Split
from vizrobust.models import CheckpointInfo, Normalized, architecture, evaluating, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.robustness.smallest_eps import Evaluated

# What pytest collects stays to the end. To look through it for garbage again and again takes a quarter of that time.
gc.disable()
# One thread in each worker and in the processes that tests start; tests that are about threads set their own.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

SHAPE = (3, 20, 16)  # channels, height and width differ from each other and from every batch size used
CLASSES = 7
ask_for_repeatable()  # As every computation of ours does, before a test that starts with a product of its own.
# Collecting the example package would put it on the path of every test, as if it were installed.
collect_ignore = ["example_package"]
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever opens a page is marked `browser`, before marks choose what runs."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


def pytest_collection_finish() -> None:
    """From here on garbage is looked for, among what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_code_of_others() -> Iterator[None]:
    """What a test takes from other packages and files is forgotten after it; run.json records what a process has taken."""
    before = plugins.used()
    yield
    plugins._used.clear()
    plugins._used.update(before)


@pytest.fixture(scope="session")
def compute() -> Compute:
    return Compute("cpu")


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Five images of SHAPE with labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, *SHAPE, generator=generator), torch.tensor([0, 3, 6, 2, 1])


def make_net(arch: str = "small_cnn", shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Normalized(architecture(arch, shape, classes)(), [0.4] * shape[0], [0.3] * shape[0]).eval()


_FOLDER = tempfile.TemporaryDirectory(prefix="vizrobust-tests-")
atexit.register(_FOLDER.cleanup)


@cache
def net_file(shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, seed: int = 1) -> str:
    """A checkpoint file that holds `make_net`'s small network; a name, so that attacks can be written down with it."""
    path = Path(_FOLDER.name, f"{'x'.join(map(str, shape))}-{classes}-{seed}.safetensors")
    names = tuple(f"class {k}" for k in range(classes))
    info = CheckpointInfo("small_cnn", shape, names, (0.4,) * shape[0], (0.3,) * shape[0])
    save_checkpoint(path, body_state(make_net("small_cnn", shape, classes, seed)), info)
    return str(path)


def refilled(attack: Attack, net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[State, State]:
    """All images after so many steps: side by side from the start, and with some that came later into the slots of others.

    The engine does the latter: the second state's rows were at different steps in every pass.
    """
    (walk,) = attack.runs(net, x)

    def begun(items: list[int]) -> State:
        return walk.start(net, x[items], y[items], Streams(0, items, "attack"))

    def walked(state: State, count: int) -> State:
        for _ in range(count):
            walk.step(net, state)
        return state

    n = len(x)
    with evaluating(net):
        undisturbed = walked(begun(list(range(n))), steps)
        others = [*range(1, n), 0]
        # Rows 1 and 3 hold other images at first, which make room after two steps.
        state = walked(begun([others[k] if k in (1, 3) else k for k in range(n)]), 2)
        fresh = begun(list(range(n)))
        for key, value in fresh.items():
            state[key] = state[key].index_copy(0, torch.tensor([1, 3]), value[[1, 3]])
        state = walked(state, steps - 2)
        late = {key: value.clone() for key, value in walked(dict(state), 2).items()}
    mixed = {key: value.index_copy(0, torch.tensor([1, 3]), late[key][[1, 3]]) for key, value in state.items()}
    return undisturbed, mixed


def assert_refused(make: Callable[[], object], said: str) -> None:
    """With a ValueError whose text is one line and has these words."""
    with pytest.raises(ValueError, match=r"\S") as error:
        make()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


class Unasked(nn.Module):
    """A network under attack by queries alone: what it is shown is kept, to be asked for a gradient is an error."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        self.seen.append(x.clone())
        return self.net(x)


def streams_of(n: int) -> Streams:
    return Streams(0, range(n), "attack")


def batch_of(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of SHAPE of which no pixel is saturated, with labels."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *SHAPE, generator=generator, dtype=dtype), torch.randint(CLASSES, (n,), generator=generator)


def assert_the_same_at_one_batch_size(attack: Attack, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """In batches of six an image of eleven ends bit for bit the same, whatever the other images and wherever it stands."""
    compute = Compute("cpu")
    net = compute.place(net)

    def attacked(items: list[int]) -> torch.Tensor:
        index = torch.tensor(items)
        return attack(net, compute.images(x[index]), y[index], streams=Streams(0, items, "attack")).x

    first = attacked([0, 1, 2, 3, 4, 5])
    order = [3, 0, 5, 1, 4, 2]
    assert torch.equal(attacked(order), first[order]), "permutation"
    others = attacked([7, 2, 8, 0, 9, 10])
    assert torch.equal(others[[1, 3]], first[[2, 0]]), "other images in the batch"
    padded = attacked([4, 5, 5, 5, 5, 5])
    assert torch.equal(padded, first[[4, 5, 5, 5, 5, 5]]), "padding"


def assert_alone_as_in_a_batch(attack: Attack, net: nn.Module, x: torch.Tensor, y: torch.Tensor, items: Iterable[int]) -> None:
    """In float64 an image's result does not depend on the images beside it."""
    together = attack(net, x, y, streams=streams_of(len(x)))
    assert together.x.dtype == torch.float64
    for k in items:
        alone = attack(net, x[k : k + 1], y[k : k + 1], streams=Streams(0, [k], "attack"))
        assert (alone.x[0] - together.x[k]).abs().max() <= 1e-9
        assert (alone.loss[:, 0] - together.loss[:, k]).abs().max() <= 1e-9


def on_network(net: nn.Module, images: Split, compute: Compute, seed: int = 0) -> Evaluated:
    """`evaluate` and `merge_results` on a network and a split, as `smallest_eps` asks for them."""
    return lambda attack, **how: merge_results(attack, evaluate(net, attack, images, compute, seed, **how))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What training measures for its own sake, after each epoch and at its end, is kept short."""
    monkeypatch.setattr("vizrobust.training.loop.MONITOR_STEPS", 1)
    monkeypatch.setattr("vizrobust.training.training_runs.TESTED_STEPS", 2)
    monkeypatch.setattr("vizrobust.training.training_runs.TESTED_IMAGES", 30)


@pytest.fixture
def net() -> nn.Module:
    return make_net()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and checkpoints, beside the project or where VIZROBUST_SHARED says."""
    folder = Path(os.environ.get("VIZROBUST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "checkpoints").is_dir():
        pytest.skip("the shared data and checkpoints are not on this machine")
    return folder


def until(page: Any, condition: str) -> None:
    """Wait for it from here: the page's own security policy forbids what playwright's waiting would evaluate in it."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came true: {condition}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield opened
        opened.close()
