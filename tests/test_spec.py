"""Specs: what is written reads back, nothing is evaluated, and errors name the way out."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Protocol, runtime_checkable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import assert_refused
from vizrobust.spec import lookup, named, parse, spec, unknown, vary


@runtime_checkable
class Shape(Protocol):
    @property
    def side(self) -> float: ...


@spec
@dataclass(frozen=True)
class Square:
    side: float = 1.0


@spec
@dataclass(frozen=True)
class Sum:
    """A thing that can be added, weighted and subtracted, as objectives can."""

    parts: tuple[float, ...] = ()

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.parts + other.parts) if isinstance(other, Sum) else NotImplemented

    def __mul__(self, weight: float) -> Sum:
        return Sum(tuple(weight * part for part in self.parts)) if isinstance(weight, int | float) else NotImplemented

    __rmul__ = __mul__

    def __sub__(self, other: Sum) -> Sum:
        return self + -1 * other if isinstance(other, Sum) else NotImplemented


@spec
@dataclass(frozen=True)
class Box:
    label: str
    shape: Shape = Square()
    count: int = 3
    rate: float | None = None
    firm: bool = False
    sides: tuple[float, ...] = ()
    inner: Box | None = None


# A class defined in a test module resolves its own annotations from there.
NAMES = named(Square, Sum, Box)

numbers = st.floats(allow_nan=False) | st.integers(-510, 510).map(lambda k: k / 255)
squares = st.builds(Square, side=numbers)


def boxes(inner: st.SearchStrategy[Box | None]) -> st.SearchStrategy[Box]:
    return st.builds(
        Box,
        label=st.text(),
        shape=squares,
        count=st.integers(),
        rate=st.none() | numbers,
        firm=st.booleans(),
        sides=st.lists(numbers, max_size=3).map(tuple),
        inner=inner,
    )


@given(boxes(st.none() | boxes(st.none())))
def test_what_is_written_reads_back(box: Box) -> None:
    assert parse(repr(box), NAMES) == box


@given(boxes(st.none()))
def test_equal_specs_have_equal_texts(box: Box) -> None:
    assert repr(parse(repr(box), NAMES)) == repr(box)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (-8 / 255, "-8/255"),
        (0.5 / 255, repr(0.5 / 255)),
        (0.2, "0.2"),  # exactly 51/255 too: the shorter text is what a person would write
        (0.3, "0.3"),
        (0.0, "0.0"),
        (2, "2.0"),
        (math.inf, "inf"),
        (1e308, "1e+308"),
        (math.nextafter(8 / 255, 1), repr(math.nextafter(8 / 255, 1))),
    ],
)
def test_floats_are_shown_as_a_person_would_write_them(value: float, text: str) -> None:
    assert repr(Square(side=value)) == f"Square(side={text})"


def test_every_multiple_of_a_255th_reads_back_exactly() -> None:
    for k in range(1, 511):
        shown = repr(Square(side=k / 255))
        assert parse(shown, NAMES).side == k / 255
        assert len(shown) <= len(f"Square(side={k / 255!r})"), "never longer than the float's own text"


def test_defaults_are_left_out() -> None:
    assert repr(Box("a")) == 'Box(label="a")'
    assert repr(Box("a", count=4, shape=Square(2))) == 'Box(label="a", shape=Square(side=2.0), count=4)'
    assert repr(Box("a", sides=(1,), rate=0)) == 'Box(label="a", rate=0.0, sides=(1,))'


def test_numbers_take_the_type_of_their_field() -> None:
    box = Box("a", rate=1)
    assert type(box.rate) is float
    assert repr(box) == repr(Box("a", rate=1.0))
    assert hash(box) == hash(Box("a", rate=1.0))


def test_specs_are_frozen_and_compare_by_value() -> None:
    assert Square(2) == Square(2.0) != Square(3)
    with pytest.raises(FrozenInstanceError):
        Square().side = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("square", Square()),
        ("SQUARE()", Square()),
        ("Square(2)", Square(2)),
        ("  Square( side = 1/2 )  ", Square(0.5)),
        ("Square(side=-3/255)", Square(-3 / 255)),
        ("Square(side=0.5*2 - 1/4)", Square(0.75)),
        ("Box('a', sides=[1, 2/4])", Box("a", sides=(1, 0.5))),
        ('box(label="it\'s", shape=square(side=inf))', Box("it's", shape=Square(math.inf))),
        ("Sum((1, 2)) + 2 * Sum((3,)) - Sum((4,)) * 0.5", Sum((1, 2, 6, -2.0))),
        ("-Sum((1,))", Sum((-1,))),
        ("7", 7),
        ("(1, 'a', None)", (1, "a", None)),
    ],
)
def test_the_grammar(text: str, expected: object) -> None:
    assert parse(text, NAMES) == expected


HOSTILE = [
    "__import__('os').system('true')",
    "Square.__class__",
    "Square().side",
    "Square.__init__.__globals__",
    "[x for x in (1, 2)]",
    "(lambda: 1)()",
    "Square(side=(lambda: 1)())",
    "Box(label=f'{1}')",
    "Square(*(1, 2))",
    "Square(**{'side': 1})",
    "Square()()",
    "(1, 2)[0]",
    "{}",
    "{1, 2}",
    "x := 3",
    "1 if True else 2",
    "1 < 2",
    "not True",
    "9**9**9",
    "9 // 2",
    "1 << 9",
    "~1",
    "+Square",
    "...",
    "1j",
    "b'a'",
    "yield 1",
    "print",
    "eval('1')",
    "import os",
    "",
    "Square(",
    "Square)",
    "Square() Square()",
    "\0",
    "a" * 100_000 + "()",
    "(" * 100_000,
    "(" * 150 + "1" + ")" * 150 + "()",
    "-" * 100_000 + "1",
    "1" + "+1" * 100_000,
    "Square(" * 5_000 + ")" * 5_000,
    "1" * 10_000,
    "'a' * 9999999999999",
    "(1,) * 9999999999999",
    "'a' + 'b'",
    "-'a'",
    "-Square()",
    "Square() + 1",
    "Square() * Square()",
    "1 / 0",
    "1 / 'a'",
    "None + 1",
    "Square() / 2",
    "1" + "0" * 400 + " / 3",
    "Square(side=1" + "0" * 400 + ")",
    "Square(side=1, side=2)",
    "Square(1, side=2)",
    "Square(1, 2)",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text, NAMES)


@given(st.text(alphabet="Squareide(=,)12/.+-*'\" [inf]", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        parse(text, NAMES)
    except ValueError as error:
        assert str(error)  # noqa: PT017  any other exception fails the test


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Sqare()", "no spec 'Sqare'; did you mean Square?"),
        ("zzz", "no spec 'zzz'; there are: Square, Sum, Box"),
        ("Box('a', shape=Sqare)", "no name 'Sqare'; did you mean Square?"),
        ("Square(sid=2)", "no field of Square 'sid'; did you mean side?"),
        ("Box('a', count=2.5)", "Box: count must be a whole number, got 2.5"),
        ("Box('a', count=2.0)", "Box: count must be a whole number, got 2.0"),
        ("Box('a', count=True)", "Box: count must be a whole number, got True"),
        ("Box('a', firm=1)", "Box: firm must be True or False, got 1"),
        ("Box('a', rate='fast')", 'Box: rate must be a number, got "fast"'),
        ("Box(1)", "Box: label must be a string, got 1"),
        ("Box()", "Box needs label"),
        ("Box('a', inner=Square())", "Box: inner must be Box, got Square()"),
        ("Box('a', shape=Sum())", "Box: shape must be Shape, got Sum()"),
        ("Box('a', shape=(1,))", "Box: shape must be Shape, got (1,)"),
        ("Box('a', sides=Square())", "Box: sides must be tuple, got Square()"),
        ("Square(side=None)", "Square: side must be a number, got None"),
        ("Square(side=inf - inf)", "Square: side must be a number, got nan"),
        ("Square(1, 2)", "Square takes 1 values (side), got 2"),
        ("Square(1, side=2)", "Square: side is given twice"),
        ("Square(side=1, side=2)", "a field of Square is given twice"),
        ("Square(side=1/0)", "a/b is for two numbers with b not 0"),
        ("Square(side=eps/16)", "no name 'eps'; there are: Square, Sum, Box; a field takes a number such as 8/255"),
        ("Square.side", "write it like Name(field=value)"),
    ],
)
def test_errors_name_the_value_and_the_next_step(text: str, said: str) -> None:
    assert_refused(lambda: parse(text, NAMES), said)


@pytest.mark.parametrize(
    "text",
    [
        "Sum((1,))" + " + Sum((1,))" * 10_000,
        "Sum((1,))" + " + Sum((1,))" * 600,
        "Sum((" + "1, " * 10_000 + "))",
        "Box('a', inner=" * 10_000 + "None" + ")" * 10_000,
        "Box('a', inner=" * 110 + "None" + ")" * 110,
        "-" * 10_000 + "1",
        "(" * 110 + "1" + ",)" * 110,
    ],
    ids=lambda text: f"{text[:16]} {len(text)}",
)
def test_a_spec_that_is_too_deep_or_too_long_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse(text, NAMES)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_long_sums_are_read_without_recursion() -> None:
    assert parse("Sum((1,))" + " + Sum((1,))" * 300, NAMES) == Sum((1,) * 301)


def test_a_spec_that_is_too_deep_to_show_cannot_be_made() -> None:
    box = Box("a")
    for _ in range(99):
        box = Box("a", inner=box)
    with pytest.raises(ValueError, match=r"^Box holds specs inside each other on more than 100 levels"):
        Box("a", inner=box)
    assert parse(repr(box), NAMES) == box


def test_lookup_takes_any_case_and_suggests() -> None:
    assert lookup({"PGD": 1}, "pgd", "attack") == 1
    assert lookup({"a": 1, "A": 2}, "A", "letter") == 2
    with pytest.raises(ValueError, match=r"^no attack 'pgdd'; did you mean PGD\?$"):
        lookup({"PGD": 1}, "pgdd", "attack")
    assert unknown("x", [], "thing") == "no thing 'x'; there are: none"


def test_vary_changes_a_field_wherever_it_is() -> None:
    box = Box("a", shape=Square(2), inner=Box("b", count=1))
    varied = vary(box, side=5)
    assert varied == Box("a", shape=Square(5), inner=Box("b", shape=Square(5), count=1))
    assert box.shape == Square(2), "the original is as it was"
    # A field that is named itself wins over what is inside it.
    assert vary(box, inner=None, count=9) == Box("a", shape=Square(2), count=9)
    assert vary(box, where_present=True, nothing=1, side=5) == varied
    with pytest.raises(ValueError, match=r"^no field of Box\(.* 'sid'; did you mean side"):
        vary(box, sid=5)
    with pytest.raises(ValueError, match="count must be a whole number"):
        vary(box, count=1.5)
