"""The time that a test may take: more than five seconds of an ordinary processor and it belongs to the slow tests."""

from __future__ import annotations

import os
import time
from collections.abc import Generator

import pytest

LIMIT = 5.0
# The same work costs more processor time on a machine that does other things too: caches and clock are shared. The
# allowance covers that, so that a test under the limit does not fail by chance.
ALLOWANCE = 1.6
# Seconds that `COUNTED` takes on a server's processor of 2023; one that takes longer may take as much longer for a test.
ORDINARY, COUNTED = 0.06, 1_000_000


def processor_seconds() -> float:
    """What this process and its ended children have spent, which waiting for others does not change."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def slowness() -> float:
    """How many times as long as an ordinary processor this one takes just now; 1 for a faster one."""
    taken = []
    for _ in range(3):
        before, total = time.process_time(), 0
        for number in range(COUNTED):
            total += number
        taken.append(time.process_time() - before)
    return max(1.0, min(taken) / ORDINARY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test of the default suite that passes and takes too long; fixtures do not count."""
    before = processor_seconds()
    result = yield
    spent = processor_seconds() - before
    # `make fuzz` takes as many examples as two minutes allow.
    limited = "VIZROBUST_FUZZ" not in os.environ and item.get_closest_marker("slow") is None
    if limited and spent > LIMIT * ALLOWANCE and spent > LIMIT * ALLOWANCE * slowness():
        pytest.fail(f"took {spent:.1f} processor seconds, over {LIMIT:g}: make it smaller or mark it slow", pytrace=False)
    return result
