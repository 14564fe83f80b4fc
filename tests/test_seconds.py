"""A test of the default suite that takes too long fails, and one that waits or is marked slow does not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests import seconds


class Item:
    """As much of a test as the hook asks for."""

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None


def called(item: Item, work: Callable[[], object], limit: float, slow: float = 1.0) -> object:
    """What pytest is given when the test has done its work, on a processor that is so many times as slow as an ordinary one."""
    # Not for longer, since the hook itself watches over this test too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seconds, "LIMIT", limit)
        patch.setattr(seconds, "slowness", lambda: slow)
        hook = seconds.pytest_runtest_call(item)
        next(hook)
        work()
        with pytest.raises(StopIteration) as ended:
            hook.send("result")
    return ended.value.value


def work_hard() -> None:
    until = time.process_time() + 0.12
    while time.process_time() < until:
        pass


def let_another_work() -> None:
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.12: pass"], check=True)


@pytest.mark.parametrize("work", [work_hard, let_another_work])
def test_too_much_work_fails_also_in_another_process(work: Callable[[], None]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"took 0\.\d processor seconds, over 0.05: make it smaller or mark it slow"):
        called(Item(), work, limit=0.05)
    assert called(Item("slow"), work, limit=0.05) == "result"


def test_waiting_and_the_allowance_are_fine() -> None:
    assert called(Item(), lambda: time.sleep(0.3), limit=0.1) == "result"
    assert called(Item(), work_hard, limit=0.1) == "result"


def test_a_slow_processor_may_take_longer() -> None:
    assert called(Item(), work_hard, limit=0.05, slow=3) == "result"
    assert seconds.slowness() >= 1
