"""What a request is: a frozen dataclass whose fields are a command's parameters, each with its help, kind and role."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vizrobust.spec import spec, unknown

MARK = ":sae="
HASH = re.compile(r"#([0-9a-f]{8})$")


class DictionaryLayer(NamedTuple):
    """The parts of a layer's name: the `layer` itself, the dictionary's `file` and the first digits of its sha256."""

    layer: str
    file: str = ""
    sha256: str = ""


def parts_of(name: str) -> DictionaryLayer:
    """A layer's name in its parts; `file` is empty for a layer as it is.

    >>> parts_of("conv2"), parts_of("conv2:sae=d.safetensors#0a1b2c3d")[1:]
    (DictionaryLayer(layer='conv2', file='', sha256=''), ('d.safetensors', '0a1b2c3d'))
    """
    layer, _, rest = name.partition(MARK)
    found = HASH.search(rest)
    return DictionaryLayer(layer, HASH.sub("", rest), found.group(1) if found else "")


def pinned(name: str) -> str:
    """The name with the hash of its dictionary's content, so that rows under this name never answer for another dictionary.

    >>> pinned("conv2")
    'conv2'
    """
    layer, file, sha256 = parts_of(name)
    if MARK not in name or sha256:
        return name
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {file!r}, the dictionary of layer {name!r}; vizrobust dictionary makes one")
    with path.open("rb") as opened:
        return f"{layer}{MARK}{file}#{hashlib.file_digest(opened, 'sha256').hexdigest()[:8]}"


def pinned_in(text: str) -> str:
    """The text of an objective with every layer's name in it `pinned`.

    >>> pinned_in('Channel(layer="conv2")')
    'Channel(layer="conv2")'
    """
    return re.sub(rf"(?<=[\"'])[^\"']*{MARK}[^\"']*(?=[\"'])", lambda found: pinned(found.group()), text)


def with_hashes(field: str, value: Any) -> Any:
    """The value of a request's field, with the layers' names in it `pinned`.

    >>> with_hashes("layers", ("conv1", "conv2")), with_hashes("units", "3,4")
    (('conv1', 'conv2'), '3,4')
    """
    if field == "objective" and isinstance(value, str):
        return pinned_in(value)
    if field in ("layer", "layers"):
        return pinned(value) if isinstance(value, str) else tuple(map(pinned, value)) if isinstance(value, tuple) else value
    return value


# Asking torch for these would make every --help slow; a test compares them with compute.py.
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
SPLITS = ("train", "val", "test")
ROLES = ("identity", "grows", "view")


class ParameterError(ValueError):
    """A parameter that cannot be used, in one sentence: the value, what was expected, the next step.

    `template` names parameters in braces; ``str`` shows them as Python writes them, the command line as options.
    `values` fill the ``%s`` of the template.

    >>> error = ParameterError("{images} must be at least 1, got %s", 0)
    >>> print(error, "|", error.text("--{}".format))
    images must be at least 1, got 0 | --images must be at least 1, got 0
    """

    def __init__(self, template: str, *values: object) -> None:
        self.template, self.values = template, values
        super().__init__(self.text(str))

    def text(self, show: Callable[[str], str]) -> str:
        """The sentence, with each parameter's name as `show` writes it, also in errors among the values."""
        shown = named_parameters(self.template, show)
        values = tuple(value.text(show) if isinstance(value, ParameterError) else value for value in self.values)
        return shown % values if values else shown


class MissingFileError(ParameterError, FileNotFoundError):
    """Something that is not on this machine, with the parameter that says where it is or that it may be fetched."""


def named_parameters(template: str, show: Callable[[str], str]) -> str:
    """A template with its ``{parameter}`` names replaced by what `show` makes of them."""
    return re.sub(r"\{([a-z_][a-z_0-9]*)\}", lambda match: show(match.group(1)), template)


def numbers(text: str, name: str = "numbers") -> tuple[int, ...]:
    """Whole numbers with commas between them.

    >>> numbers("0,1,8")
    (0, 1, 8)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"{{{name}}} %r is not a list of numbers such as 0,1,2,4,8, nor one such as 8", text) from None


def fraction(text: str) -> float:
    """A number, also written as a fraction; ``ValueError`` where it is none.

    >>> fraction("3/4"), fraction("0.3")
    (0.75, 0.3)
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError as error:
        raise ValueError(str(error)) from error


def fractions(text: str, name: str = "fractions") -> tuple[float, ...]:
    """Numbers with commas between them, also written as fractions.

    >>> fractions("0.3,3/4")
    (0.3, 0.75)
    """
    try:
        return tuple(map(fraction, text.split(",")))
    except ValueError:
        raise ParameterError(f"{{{name}}} %r is not a list of numbers such as 2/255,8/255", text) from None


def names(text: str, _name: str = "names") -> tuple[str, ...]:
    """Names with commas between them; ``none`` is none of them.

    >>> names("fgsm, fast"), names("none")
    (('fgsm', 'fast'), ())
    """
    return () if text.strip().lower() == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def sides(text: str, name: str = "sides") -> tuple[int, ...]:
    """Sides of images in pixels, in rising order and each once.

    >>> sides("28, 7,14,7")
    (7, 14, 28)
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise ParameterError(
                f"{{{name}}} %s: %r is not a number of pixels; write whole numbers from 1 on, e.g. 7,14,28", text, part
            )
    return tuple(sorted({int(part) for part in parts}))


def position(text: str, name: str = "position") -> tuple[int, int]:
    """A row and a column.

    >>> position("3,4")
    (3, 4)
    """
    try:
        y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"{{{name}}} %r is not a row and a column such as 3,4", text) from None
    return y, x


FIGURES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


def figure_format(path: Path | str) -> str:
    """The format of a figure by the end of its name. Raises ``ValueError`` for all but PNG, SVG and PDF.

    >>> figure_format("curve.svg")
    'svg'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FIGURES:
        raise ValueError(f"cannot draw {str(path)!r}: a figure ends in {', '.join(FIGURES)}, so give it one of these endings")
    return FIGURES[suffix]


# How the text of a field of this kind is read, also in Python.
READERS: dict[str, Callable[[str, str], Any]] = {
    "numbers": numbers, "fractions": fractions, "names": names, "sides": sides, "position": position,
}  # fmt: skip


def param(
    default: Any = dataclasses.MISSING, help: str = "", *, role: str = "identity", kind: str = "", choices: Sequence[str] = (),  # noqa: A002
    flag: str = "", metavar: str = "", argument: bool = False, aliases: Sequence[str] = (), least: float | None = None,
    cli: bool = True,
) -> Any:  # fmt: skip
    """A field of a request.

    `role`: rows depend on an ``identity`` field; a run folder may hold several values of one that ``grows``; a ``view``
    changes what is shown. `kind` says how text is read (``fraction``: 8/255; ``numbers``: 0,1,8; ``names``: fgsm,fast;
    ``attack``, ``recipe``, ``objective``: a spec; ``file``, ``folder``; ``figure``: a file with one of the endings of
    `FIGURES`). `flag` is the option's name where it is not the field's, `aliases` are older names that are still
    understood; an `argument` stands without an option's name. `least` is the smallest number allowed. A field with `cli`
    False is for Python alone.
    """
    if role not in ROLES:
        raise ValueError(unknown(role, ROLES, "role"))
    about = {
        "help": help, "role": role, "kind": kind, "choices": tuple(choices), "flag": flag, "metavar": metavar,
        "argument": argument, "aliases": tuple(aliases), "least": least, "cli": cli,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


@spec
@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of one command. Its text reads back; an impossible combination raises `ParameterError` when it is made."""

    @classmethod
    def spell_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with texts read where a field's kind says how, and with the hashes of dictionaries in layers' names."""
        kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(cls)}
        read = {
            name: READERS[kinds[name]](value, name) if isinstance(value, str) and kinds.get(name) in READERS else value
            for name, value in values.items()
        }
        return {name: with_hashes(name, value) for name, value in read.items()}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["kind"] == "model" and field.default is dataclasses.MISSING and value == ():
                raise ParameterError(f"{{{field.name}}} is empty; give at least one checkpoint")
            least = field.metadata["least"]
            if least is not None and value is not None and value < least:
                raise ParameterError(f"{{{field.name}}} must be at least %s, got %s", least, value)
            if field.metadata["kind"] == "figure" and value:
                figure_format(value)  # before minutes of work
            choices = field.metadata["choices"]
            for one in value if isinstance(value, tuple) else (value,):
                if choices and one is not None and one not in choices:
                    raise ParameterError(unknown(str(one), choices, f"{{{field.name}}}").replace("%", "%%"))
        self.check()

    def check(self) -> None:
        """Refuse what cannot go together, before anything heavy is loaded."""

    def identity(self) -> dict[str, Any]:
        """The fields that rows depend on and that are the same for all rows of a run folder; they name the folder."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.metadata["role"] == "identity"
        }


@spec
@dataclass(frozen=True, kw_only=True)
class Seeded(Request):
    """A request whose rows depend on random numbers and on the precision of the computation."""

    seed: int = param(0, "Seed of all random numbers.")
    precision: str = param("fp32", "bf16 is autocast to bfloat16.", choices=PRECISIONS)


@spec
@dataclass(frozen=True, kw_only=True)
class OnSplit(Seeded):
    """A request that looks at checkpoints on the images of a split."""

    models: tuple[Any, ...] = param(kind="model", role="grows", argument=True, help="Checkpoints: names, files, run folders.")
    data: Any = param(None, "Data set (vizrobust list data); default: the checkpoint's own.", kind="data")
    images: int = param(1000, "Use the first N images of the split.", role="grows", least=1)
    split: str = param("test", "train, val or test.", choices=SPLITS)
    batch_size: int | None = param(None, "Recorded: an image's result is bit-equal at one batch size.", least=1)


@spec
@dataclass(frozen=True, kw_only=True)
class Worded(Request):
    """A request whose units may get words for labels."""

    clip: Any = param(
        None, "A CLIP network for words: MODEL:FILE by open_clip's name, MODEL@TAG:FILE, or a folder of its format.",
        role="grows", metavar="MODEL:FILE|DIR",
    )  # fmt: skip
    words: Any = param(None, "With --clip: a text file, one word or phrase a line.", kind="file", role="grows")

    def check(self) -> None:
        super().check()
        if (self.clip is None) != (self.words is None):
            raise ParameterError("{clip} and {words} go together: a CLIP network, and the words to choose from")


@spec
@dataclass(frozen=True, kw_only=True)
class OnImages(OnSplit):
    """A request that evaluates checkpoints on the images of a split, within a ball."""

    eps: float | None = param(
        None, "Radius of the attack's ball in [0, 1] pixels; default: the data set's.", kind="fraction", role="grows"
    )
    norm: str | None = param(None, "Norm of the attack's ball: Linf, L2, L1 or L0.", role="grows", metavar="NAME")
