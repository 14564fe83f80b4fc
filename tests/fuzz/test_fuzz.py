"""Damaged and invented input: whatever is read gives a result or one sentence, never another error, and runs no foreign code.

A few examples of each run with the other tests; ``make fuzz`` takes many (``VIZROBUST_FUZZ`` is their number), seeded, and
ends within two minutes.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from vizrobust.attacks import NAMES as ATTACKS
from vizrobust.cli import COMMANDS, main
from vizrobust.data import load
from vizrobust.data.images import IMAGE_FILES, read_image
from vizrobust.features import recipes
from vizrobust.models import load_checkpoint
from vizrobust.models.checkpoints import read_checkpoint
from vizrobust.models.foreign_files import find_state, read_tensors
from vizrobust.models.references import builtin_names
from vizrobust.runs import RunFolder, read_rows, read_run
from vizrobust.spec import parse

EXAMPLES = int(os.environ.get("VIZROBUST_FUZZ", "12"))
few = settings(
    max_examples=EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
# What a reader may raise: the sentence for the person.
SENTENCES = (ValueError, FileNotFoundError)


def one_sentence(read: Callable[[], object]) -> None:
    """Run a reader: it gives something, or raises an error with a sentence in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except SENTENCES as error:
            assert str(error).strip(), type(error)  # noqa: PT017


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file cut off, with some of them changed, or with others in between."""
    kind = draw(st.sampled_from(["cut", "change", "insert"]))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:place]
    junk = draw(st.binary(min_size=1, max_size=40))
    if kind == "insert":
        return content[:place] + junk + content[place:]
    return content[:place] + junk + content[place + len(junk) :]


def as_bytes(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 9, 3), dtype=np.uint8))
PICTURES = {name: as_bytes(lambda file, name=name: PICTURE.save(file, name)) for name in ("PNG", "JPEG", "GIF", "TIFF", "BMP")}


@seed(0)
@few
@given(
    data=st.data(), kind=st.sampled_from(sorted(PICTURES)), suffix=st.sampled_from(IMAGE_FILES), channels=st.sampled_from([1, 3])
)
def test_damaged_images(tmp_path: Path, data: st.DataObject, kind: str, suffix: str, channels: int) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data.draw(damaged(PICTURES[kind])))
    one_sentence(lambda: read_image(str(path), channels))


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 6, 5), dtype=np.uint8), np.arange(12) % 3
    return {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}


NPZ = as_bytes(lambda file: np.savez(file, **arrays()))
VALUES = st.one_of(
    st.integers(-3, 2**40),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.none(),
    st.lists(st.integers(), max_size=3),
)


@seed(0)
@few
@given(data=st.data())
def test_damaged_arrays(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "x.npz").write_bytes(data.draw(damaged(NPZ)))
    one_sentence(lambda: load(f"npz:{tmp_path / 'x.npz'}"))


@seed(0)
@few
@given(name=st.sampled_from(["x_train", "y_train", "x_test", "y_test", "classes", "x_val"]), data=st.data())
def test_arrays_of_other_shapes_and_types(tmp_path: Path, name: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 13), max_size=4))
    dtype = data.draw(st.sampled_from(["uint8", "int64", "float32", "float16", "bool", "complex64", "U3", "datetime64[s]"]))
    np.savez(tmp_path / "x.npz", **{**arrays(), name: np.ones(shape).astype(dtype)})
    one_sentence(lambda: load(f"npz:{tmp_path / 'x.npz'}"))


BUILT_IN = Path(__file__).resolve().parents[2] / "vizrobust" / "models" / "builtin" / "mnist-k0.safetensors"
STATE = as_bytes(lambda file: torch.save({"model": {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3)}, "epoch": 3}, file))


@seed(0)
@few
@given(data=st.data())
def test_damaged_checkpoints_of_ours(tmp_path: Path, data: st.DataObject) -> None:
    content = BUILT_IN.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = data.draw(damaged(content[: 8 + size]))
    (tmp_path / "x.safetensors").write_bytes(head + content[8 + size :])
    one_sentence(lambda: load_checkpoint(str(tmp_path / "x.safetensors")).net())


@seed(0)
@few
@given(
    field=st.sampled_from(["arch", "input_shape", "classes", "normalization", "metrics", "attack_steps", "eps", "new"]),
    value=VALUES,
)
def test_descriptions_of_other_types(tmp_path: Path, field: str, value: object) -> None:
    from safetensors.torch import save_file

    from vizrobust.models.checkpoints import CheckpointInfo

    plain = json.loads(CheckpointInfo("small_cnn", (1, 8, 8), ("a", "b"), (0.0,), (1.0,)).to_json())
    plain[field] = value.decode("latin1") if isinstance(value, bytes) else value
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"vizrobust": json.dumps(plain)})
    one_sentence(lambda: read_checkpoint(tmp_path / "x.safetensors"))


@seed(0)
@few
@given(data=st.data())
def test_damaged_files_of_others(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "x.pt").write_bytes(data.draw(damaged(STATE)))
    one_sentence(lambda: find_state(read_tensors(tmp_path / "x.pt"), "x.pt"))


class Touch:
    """A pickle that writes a file when it is read carelessly."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"state_dict": Touch(str(tmp_path / "canary"))}, protocol))
    with pytest.raises(ValueError, match=r"pickled objects|not a torch file|damaged"):
        read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "canary").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@seed(0)
@few
@given(lines=st.lists(st.one_of(JSON.map(json.dumps).map(str.encode), st.binary(max_size=30)), max_size=4), run=JSON)
def test_run_folders_of_others(tmp_path: Path, lines: list[bytes], run: object) -> None:
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_bytes(b"\n".join([*lines, b""]))
    (folder / "run.json").write_text(json.dumps(run))
    one_sentence(lambda: read_rows(folder))
    one_sentence(lambda: read_run(folder))
    one_sentence(lambda: RunFolder(folder, "attack", {}).close())


SPEC_PARTS = ["pgd", "PGD", "(", ")", "steps=", "eps=", "8/255", "1e999", "ball=", "linf", ",", "+", "-", "*", "/", "'x'", "["]
CATALOGUES = {"attack": ATTACKS, "recipe": recipes.NAMES}


@seed(0)
@few
@given(parts=st.lists(st.sampled_from(SPEC_PARTS) | st.text(max_size=3), max_size=12), kind=st.sampled_from(sorted(CATALOGUES)))
def test_specs_of_random_parts(parts: list[str], kind: str) -> None:
    def read() -> None:
        found = parse("".join(parts), CATALOGUES[kind])
        assert parse(repr(found), CATALOGUES[kind]) == found

    one_sentence(read)


WORDS = [
    "--units",
    "--steps",
    "--eps",
    "--data",
    "--attack",
    "--layer",
    "--recipe",
    "--out",
    "--json",
    "--images",
    "--seed",
    "--help",
]


@seed(0)
@settings(few, max_examples=max(4, EXAMPLES // 4))
@given(
    name=st.sampled_from(COMMANDS),
    rest=st.lists(
        st.sampled_from([*WORDS, *builtin_names()[:2]]) | st.text("abz0-9=:/.\x1b", max_size=6), min_size=1, max_size=5
    ),
)
def test_command_lines_of_random_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rest: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # A checkpoint that is not there, so that nothing long is started.
    result = CliRunner().invoke(main, [name, "no-such-thing", *rest])
    assert result.exit_code in (0, 1, 2), (name, rest, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), (name, rest, result.exception)
    assert "\x1b" not in result.output
