"""A run folder: locked, written atomically, and continued where an earlier process stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np
from PIL import Image, PngImagePlugin

from vizrobust.legacy import present
from vizrobust.parallel import SINGLE, Processes
from vizrobust.requests import ParameterError

Row = dict[str, Any]
ROW_TEXT, RUN_TEXT = "vizrobust", "vizrobust-run"


class RunFolder:
    """A locked folder that holds the rows of one command and continues where an earlier process stopped.

    `identity` is everything that the rows depend on and that must not change within the folder (not the checkpoints,
    units and seeds: those may grow); `record` is what is worth knowing besides. Opening a folder with another identity
    raises ``ValueError`` that names the difference and leaves the folder as it is; a folder that another process writes
    raises `Taken`, or with `wait` is waited for. `content` is the hash of the person's own data: rows of other
    content stay in the file, but are not among `rows`; `outdated` counts them. With `folder` None the rows stay in memory
    (`RunFolder.memory`).

    With `folds` its rows may be of networks with BatchNorm folded (`vizrobust.models.folding`), as run.json then says; a
    folder that an earlier version began goes on with plain networks.

    Of several `processes` that open it together the main one reads and writes: no file has two writers, and the folder
    need not be on a disk that all machines see. The others get the rows that were there and keep what is added in
    memory, so that all know the same. Where the folder is taken, all of them raise `Taken`.
    """

    def __init__(
        self, folder: Path | str | None, command: str, identity: Mapping[str, Any], record: Mapping[str, Any] | None = None,
        processes: Processes = SINGLE, *, wait: bool = False, content: str = "", folds: bool = False,
    ) -> None:  # fmt: skip
        self.folder = Path() if folder is None else Path(folder)
        self.writes = processes.main and folder is not None
        self.content, self.folds = content, folds
        described = json.loads(json.dumps({"command": command, "identity": dict(identity)}))
        self.info: dict[str, Any] = {**described, **json.loads(json.dumps(dict(record or {})))}
        self._rows_file = self.folder / "rows.jsonl"
        self._release: Callable[[], object] = lambda: None
        taken: Taken | None = None
        whole: list[Row] = []
        if self.writes:
            try:
                self._open(described, wait)
                whole = read_rows(self.folder)
            except Taken as error:
                taken = error.with_traceback(None)
            except BaseException:
                self.close()  # the error's traceback would hold the lock
                raise
        there = self._present(whole)
        taken, there, self.outdated, self.folds = processes.broadcast((taken, there, len(whole) - len(there), self.folds))
        if taken:
            raise taken
        self._known = None if self.writes and processes.size == 1 else there

    @classmethod
    def memory(
        cls, command: str = "", identity: Mapping[str, Any] | None = None, processes: Processes = SINGLE, folds: bool = False
    ) -> RunFolder:  # fmt: skip
        """A run without files: what is added is known until the object goes.

        >>> run = RunFolder.memory()
        >>> run.cached({"unit": 3}, lambda: {"score": 0.5}), run.cached({"unit": 3}, lambda: {"score": 9.0})
        ({'unit': 3, 'score': 0.5}, {'unit': 3, 'score': 0.5})
        """
        return cls(None, command, identity or {}, None, processes, folds=folds)

    def _open(self, described: Mapping[str, Any], wait: bool) -> None:
        self._refuse_foreign(described)
        make_folder(self.folder)
        for name in (LOCK_FILE, "run.json", "rows.jsonl"):
            if (self.folder / name).is_symlink():
                raise ValueError(f"{str(self.folder / name)!r} is a link; a run writes only files of its own, so remove it")
        # Called once: by `close`, or when nobody holds the object any more.
        self._release = weakref.finalize(self, _Lock.take(self.folder, wait).release)
        # Once more under the lock: another process may have written the folder in between.
        old = self._refuse_foreign(described)
        for left in self.folder.rglob(".*.tmp"):  # of killed processes
            left.unlink(missing_ok=True)
        self.folds = self.folds and (old is None or old.get("folded", False))
        self.info = {**(old or {}), **self.info, **({"folded": True} if self.folds else {})}
        write_json(self.folder / "run.json", self.info)
        _drop_incomplete_row(self._rows_file)

    def _refuse_foreign(self, described: Mapping[str, Any]) -> dict[str, Any] | None:
        """The run.json that is there; ``ValueError`` where the folder belongs to another run or to something else."""
        old = read_run(self.folder)
        if old is not None:
            _refuse_other(self.folder, old, described)
        elif self.folder.is_dir() and any(not item.name.startswith(".") for item in self.folder.iterdir()):
            raise ParameterError("folder %r holds other files; give {out} a new or empty folder", str(self.folder))
        return old

    def close(self) -> None:
        """Let another process write the folder."""
        self._release()

    def remember(self, key: str, entries: Mapping[str, Any]) -> None:
        """Add entries to a table of run.json that grows with the run, such as its checkpoints."""
        self.info[key] = {**self.info.get(key, {}), **json.loads(json.dumps(dict(entries)))}
        if self.writes:
            write_json(self.folder / "run.json", self.info)

    def rows(self) -> list[Row]:
        return self._present(read_rows(self.folder)) if self._known is None else list(self._known)

    def _present(self, rows: list[Row]) -> list[Row]:
        """The rows of the content that the run has now."""
        return [row for row in rows if row.get("content", "") == self.content]

    def cached(self, key: Mapping[str, Any], compute: Callable[[], Row]) -> Row:
        """The row whose fields equal `key`; where there is none, the one that `compute` makes is added under that key."""
        wanted = json.loads(json.dumps(dict(key)))
        found = next((row for row in self.rows() if all(row.get(name) == value for name, value in wanted.items())), None)
        return self.add({**wanted, **compute()}) if found is None else found

    def add(self, row: Row) -> Row:
        """Append a row; it is on disk when this returns."""
        row = {**row, "content": self.content} if self.content else row
        if self._known is not None:
            self._known.append(json.loads(json.dumps(row)))
        if self.writes:
            with self._rows_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return row

    def amend(self, amended: Callable[[Row], Row]) -> None:
        """Write the rows anew where `amended` changes one that the run has now; all others stay as they are."""
        if all(amended(row) == row for row in self.rows()):
            return
        if self._known is not None:
            self._known[:] = map(amended, self._known)
        if self.writes:
            write_rows(self._rows_file, [amended(row) if self._present([row]) else row for row in read_rows(self.folder)])

    def add_image(self, row: Row, image: np.ndarray[Any, Any], name: str) -> Row:
        """Save the picture first and its row second, so that a row always has its picture; returns the row.

        The PNG carries both the row and what the whole run was made with, so that it can be made again by itself.
        """
        full = {**row, "image": name}
        if self.writes:
            own = {row.get("checkpoint"): self.info.get("checkpoints", {}).get(row.get("checkpoint"))}
            write_png(self.folder / name, image, picture_texts(full, {**self.info, "checkpoints": own}))
        return self.add(full)


def default_folder(command: str, identity: Mapping[str, Any]) -> Path:
    """``runs/<command>-<8 hex digits of the identity>``."""
    return Path("runs") / f"{command}-{digest(identity)}"


def digest(x: Any) -> str:
    """8 hex digits that name a JSON value."""
    return hashlib.sha256(json.dumps(x, sort_keys=True).encode()).hexdigest()[:8]


def file_sha256(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str) -> str:
    """A text as a file name: letters, digits, dot, underscore and minus."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "x"


def read_run(folder: Path | str) -> dict[str, Any] | None:
    """The folder's run.json, or None where there is none. Raises ``ValueError`` if it cannot be read."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ParameterError("%r is not readable (%s); give {out} another folder", str(path), error) from error
    if not isinstance(info, dict) or not isinstance(info.get("identity"), dict):
        raise ParameterError("%r was not written by vizrobust; give {out} another folder", str(path))
    return info


def read_rows(folder: Path | str, name: str = "rows.jsonl") -> list[Row]:
    """All complete rows of a run folder's file, in the order in which they were written."""
    path = Path(folder) / name
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line) if line else {}
        except ValueError as error:
            raise ParameterError(
                "%r, line %s, is damaged; remove that line, or give {out} another folder", str(path), number
            ) from error
        if not isinstance(row, dict):
            raise ParameterError("%r, line %s, is no row; remove that line, or give {out} another folder", str(path), number)
        rows += [row] if line else []
    return rows


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ParameterError("%r is a file, not a folder; give {out} another name", str(folder)) from error


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well; otherwise nothing is left."""
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path | str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all. A full disk raises the ``OSError`` that says so, whoever writes."""
    noted: list[OSError] = []
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            write(cast(IO[bytes], _Noting(file, noted)))
    except Exception as error:
        # torch and Pillow hide why a write failed.
        told = noted[0] if noted else error
        if isinstance(told, OSError) and told.errno is not None and told.filename is None:
            told.filename = str(path)
        if told is error:
            raise
        raise told from error


class _Noting:
    """A file that notes why a write failed. It has no number, so that every byte goes through it."""

    def __init__(self, file: IO[bytes], noted: list[OSError]) -> None:
        self._file, self._noted = file, noted

    def __getattr__(self, name: str) -> Any:
        if name == "fileno":
            raise AttributeError(name)
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self._noted.append(error)
            raise


def write_text(path: Path | str, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path | str, rows: list[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_png(path: Path | str, image: np.ndarray[Any, Any], texts: Mapping[str, str]) -> None:
    """A (H, W) or (H, W, 3) uint8 picture, with an opacity (H, W, 2) or (H, W, 4), with text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    picture = Image.fromarray(image)
    write_atomic(path, lambda file: picture.save(file, format="PNG", pnginfo=chunks))


def picture_texts(row: Row, run: Mapping[str, Any]) -> dict[str, str]:
    """The text chunks of a picture: its row, and the run.json that it was made with."""
    return {key: json.dumps(text, ensure_ascii=False) for key, text in ((ROW_TEXT, row), (RUN_TEXT, run))}


def write_gif(path: Path | str, frames: Sequence[np.ndarray[Any, Any]]) -> None:
    """Pictures of one size, (H, W, 1) or (H, W, 3) uint8, as a GIF of three seconds that rests on the last and starts again."""
    pictures = [Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame) for frame in frames]
    each = max(20, round(3000 / len(pictures)))  # browsers slow down what is faster than 50 frames a second
    pauses = [each] * (len(pictures) - 1) + [1500]
    write_atomic(
        path, lambda file: pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=pauses, loop=0)
    )


def _refuse_other(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old.get("command") != new["command"]:
        raise ParameterError(
            "folder %r holds a run of %r, not of %r; give {out} another folder", str(folder), old.get("command"), new["command"]
        )
    before, after = present(old["identity"]), present(new["identity"])
    for key in [*after, *(key for key in before if key not in after)]:
        if before.get(key) != after.get(key):
            raise ParameterError(
                "folder %r holds another run: %s was %r, now %r; give {out} another folder",
                str(folder), key, before.get(key), after.get(key),
            )  # fmt: skip


def _drop_incomplete_row(path: Path) -> None:
    """Cut what a killed process left after the last line break."""
    if not path.is_file():
        return
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) != len(content):
        write_atomic(path, lambda file: file.write(complete))


if sys.platform != "win32":  # On Windows nothing stops a second process.
    import fcntl

LOCK_FILE = ".lock"


class Taken(ParameterError):
    """Another process is writing the folder."""


class _Lock:
    """This process's lock on a folder, shared by all that open the folder within the process.

    The operating system releases it when the process ends, however it ends.
    """

    held: ClassVar[dict[Path, _Lock]] = {}

    def __init__(self, folder: Path, file: IO[str] | None) -> None:
        self.folder, self.file, self.users = folder, file, 1

    @classmethod
    def take(cls, folder: Path | str, wait: bool = False) -> _Lock:
        key = Path(folder).resolve()
        if key in cls.held:
            cls.held[key].users += 1
            return cls.held[key]
        cls.held[key] = cls(key, None if sys.platform == "win32" else _locked_file(Path(folder), wait))
        return cls.held[key]

    def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.held.pop(self.folder, None)
            if self.file is not None:
                self.file.close()


def _locked_file(folder: Path, wait: bool) -> IO[str]:
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        file.seek(0)
        writer = file.read().strip() or "another process"
        file.close()
        raise Taken(
            "%r is being written by %s; wait for it ({wait}), or give {out} another folder", str(folder), writer
        ) from error
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
