"""What was written before a renaming reads as the new thing, and nothing else changes its meaning."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vizrobust import legacy
from vizrobust.spec import named, parse, spec


@spec
@dataclass(frozen=True)
class BIM:
    steps: int = 10
    project: bool = True


@spec
@dataclass(frozen=True)
class SharedLowFrequency:
    inner: BIM = BIM()
    group_size: int = 4
    cutoff: float = 4.0


def plain(step_size: float = 0.1) -> BIM:
    return BIM(steps=round(1 / step_size))


NEW = named(BIM, SharedLowFrequency, plain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ISM", BIM()),
        ("ism(steps=3, project=False)", BIM(3, project=False)),
        ("Shared(inner=ISM(steps=2), faces=2, cycles=1/2)", SharedLowFrequency(BIM(2), 2, 0.5)),
        ("SharedLowFrequency(group_size=2)", SharedLowFrequency(group_size=2)),
        ("plain(rate=1/2)", BIM(2)),
    ],
)
def test_old_texts_read_as_the_new_things(text: str, expected: object) -> None:
    assert parse(text, NEW) == expected
    assert parse(repr(expected), NEW) == expected


def test_an_old_name_that_the_catalogue_still_has_is_its_own() -> None:
    @spec
    @dataclass(frozen=True)
    class ISM:
        steps: int = 1

    assert parse("ISM", named(ISM, BIM)) == ISM()


def test_an_old_default_is_filled_in_for_the_old_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(legacy.DEFAULTS, "ISM", {"steps": 7})
    assert parse("ism", NEW) == BIM(7)
    assert parse("ISM(steps=3)", NEW) == parse("ISM(3)", NEW) == BIM(3)
    assert parse("BIM", NEW) == BIM(10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EoT", "no spec 'EoT'"),  # its new name is not in this catalogue
        ("Shared(faces=2, group_size=3)", "no field of SharedLowFrequency 'faces'"),
        ("BIM(retries=2)", "no field of BIM 'retries'"),
    ],
)
def test_what_has_no_new_name_is_refused_as_written(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse(text, NEW)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("old", "now", "same"),
    [
        ("Recipe('p', optimizer=Ascent(rate=1/255))", "Recipe('p', optimizer=NormalizedAscent(step_size=1/255))", True),
        (
            "Channel(layer='c') - 2 * Diversity(layer='c', faces=3)",
            "Channel(layer='c') - 2 * Diversity(layer='c', group_size=3)",
            True,
        ),
        ("ISM(steps=3)", "BIM(steps=4)", False),
        ("12e45678", "13e45678", False),  # hashes that Python reads as numbers
        ("0x10", "16", False),
        ("runs/a (1)/b", "runs/a (2)/b", False),
    ],
)
def test_old_and_new_texts_of_one_spec_compare_as_equal(old, now, same):
    assert (legacy.present([old]) == legacy.present([now])) is same
    assert (legacy.present({"a": {"b": old}}) == legacy.present({"a": {"b": now}})) is same
