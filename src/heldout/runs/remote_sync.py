"""Merges a remote run into this machine's folder without losing a finished rollout.

One start of the job on one machine writes a journal segment under a unique name, and the segment never changes once it is in
the remote place. The run is therefore the union of all segments, and no machine overwrites another's rollouts. If two machines
played the same rollout, because one died or was cut off before it copied it, the first segment in name order counts. Segments
that only this machine has come last.

    remote.json     in the folder: the versions of the remote files that the local ones are copies of, and the last claim
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from pydantic import ValidationError

from heldout.errors import RunError, StorageError
from heldout.runs.journal import drop_torn_tail, is_intact, segments
from heldout.runs.run import JobState, JobStatus, Run, write_whole
from heldout.storage import Storage, open_atomic
from heldout.storage.claim import CLAIM_FILE

log = logging.getLogger(__name__)

SEEN_FILE = "remote.json"
_FETCHING_FILE = "fetching"
_JOB = "job.json"
_TRIES = 5
"""How often a fetch is tried again when the run changes during it: a run that completes replaces its journal by tables."""


class Seen:
    """The version of each remote file, by name, that this machine last read or wrote."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SEEN_FILE

    def get(self, name: str) -> str | None:
        return self._read().get(name)

    def note(self, name: str, version: str | None) -> None:
        if version is not None:
            write_whole(self._path, orjson.dumps({**self._read(), name: version}))

    def _read(self) -> dict[str, str]:
        try:
            known = orjson.loads(self._path.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return known if isinstance(known, dict) else {}


@contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Lets one process at a time update a folder; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _FETCHING_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Removes the files that fetching leaves in the folder."""
    for name in (SEEN_FILE, _FETCHING_FILE):
        (folder / name).unlink(missing_ok=True)


def end_writer(storage: Storage, token: str) -> None:
    """Ends the journal of the writer `token`, which has lost its claim: every later segment of it is refused.

    A writer creates its segments in the order of their numbers, beginning behind all that it found. An empty object under its
    next name stops it there, even if it has already passed its last look at the claim.

    Raises StorageError when the place refuses.
    """
    sizes = {file.name: file.size for file in storage.list("journal")}
    own = [name for name in sizes if name.endswith(f"-{token}.jsonl")]
    if own and sizes[max(own)] == 0:
        return
    number = max(map(_number, own or sizes), default=0)
    for _ in range(_TRIES):
        name = f"journal/{number + 1:06d}-{token}.jsonl"
        if storage.replace(name, b"", None) is not None:
            return
        found = storage.describe(name)
        if found is not None and found.size == 0:
            return
        number += found is not None  # the writer was faster; without a file the refusal was a passing one
    raise StorageError(f"{storage.location} refuses to end the journal of a lost machine; try again")


def catch_up(storage: Storage, folder: Path, *, writer: str | None = None) -> None:
    """Fetches other machines' progress of a run into its folder here. No process but the caller may work on the run.

    writer: token of the caller's claim. Segments that only this machine has then get names of this writer.
    Raises RunError when there is no such run, StorageError when the place refuses.
    """
    for _ in range(_TRIES):
        before = _version(storage)
        try:
            return _catch_up(storage, folder, writer)
        except StorageError:
            # A listed file is gone or was replaced during the read: the run ended meanwhile.
            if _version(storage) == before:
                raise
    raise StorageError(f"{storage.location} keeps changing while it is read; try again")


def _catch_up(storage: Storage, folder: Path, writer: str | None) -> None:
    sizes = {file.name: file.size for file in storage.list() if file.name != CLAIM_FILE}
    names = set(sizes)
    here = Run.open(folder).state if (folder / _JOB).exists() else None
    found = storage.read_version(_JOB)
    if found is None:
        if here is not None:  # it was not copied yet, or was removed there: the local folder has all of it
            if writer is not None:
                _move_behind(folder / "journal", set(), {name for name in names if name.startswith("journal/")}, writer)
            return
        if "rollouts.parquet" not in names:
            raise RunError(f"no run at {storage.location!r}: it has no {_JOB}")
        _fetch(storage, sorted(name for name in names if not name.startswith("journal/")), folder)
        return
    try:
        there = JobState.model_validate_json(found.data)
    except ValidationError as error:
        raise RunError(f"{storage.location}/{_JOB} is not a job's state: {error.errors()[0]['msg']}") from error
    if here is not None and (here.arn, here.created_at) != (there.arn, there.created_at):
        _empty(folder)  # the remote run is another one: the old one was removed there
        here = None
    seen = Seen(folder)
    is_newer = here is None or seen.get(_JOB) != found.version
    copied = {name for name in names if name.startswith("journal/")}
    if there.status is JobStatus.COMPLETED:
        if is_newer:
            _fetch(storage, sorted(names - copied - {_JOB}), folder)
    elif here is not None and here.status is JobStatus.COMPLETED:
        return  # the local run is done, its copy is still to be made
    else:
        ends = {name for name in copied if sizes[name] == 0}
        copied -= ends
        _join_journals(storage, copied, ends, folder, writer)
        others = names - copied - ends - {_JOB} if not copied else {"prompts.parquet"} & names
        _fetch(storage, sorted(name for name in others if here is None or not (folder / name).exists()), folder)
    if is_newer:
        # Last: a fetch that was cut short leaves no run, or an older state, and is repeated.
        write_whole(folder / _JOB, found.data)
        seen.note(_JOB, found.version)
    if there.status is JobStatus.COMPLETED:
        shutil.rmtree(folder / "journal", ignore_errors=True)  # every rollout is in the tables


def _version(storage: Storage) -> str | None:
    found = storage.read_version(_JOB)
    return None if found is None else found.version


def _fetch(storage: Storage, names: list[str], folder: Path) -> None:
    for name in names:
        with storage.open(name) as source, open_atomic(folder / name) as copy:
            shutil.copyfileobj(source, copy, 1024 * 1024)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in {"lock", _FETCHING_FILE}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _join_journals(storage: Storage, copied: set[str], ends: set[str], folder: Path, writer: str | None) -> None:
    """Makes the local journal the union of the local and the remote segments, with each rollout finished once.

    copied: names of the remote segments. ends: names of the empty objects of `end_writer`.
    """
    journal, seen = folder / "journal", Seen(folder)
    _move_behind(journal, copied, ends, writer)
    known = hashlib.sha256("\n".join(sorted(copied | ends)).encode()).hexdigest()
    if seen.get("journal") == known:
        return
    _fetch(storage, sorted(name for name in copied if not (folder / name).exists()), folder)
    for name in ends:  # they count for the numbers of later segments
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if repeated := _drop_repeated(journal):
        log.warning("%s: %d rollouts were played on two machines; each counts once", storage.location, repeated)
    seen.note("journal", known)


def _move_behind(journal: Path, copied: set[str], ends: set[str], writer: str | None) -> None:
    """Numbers the segments that only this machine has behind all remote ones. writer: see `catch_up`."""
    ours = [path for path in segments(journal) if f"journal/{path.name}" not in copied]
    number = max(map(_number, copied | ends), default=0)
    for path in ours:
        drop_torn_tail(path)
        if path.stat().st_size == 0:
            if f"journal/{path.name}" not in ends:
                path.unlink()
            continue
        if writer is None and int(path.name[:6]) > number:
            continue
        number += 1
        path.rename(journal / (f"{number:06d}{path.name[6:]}" if writer is None else f"{number:06d}-{writer}.jsonl"))


def _number(name: str) -> int:
    """The number in the name of a segment, with or without its folder."""
    return int(name.rpartition("/")[2][:6])


def _drop_repeated(journal: Path) -> int:
    """Removes from later segments the rollouts that an earlier one has finished; returns how many were finished twice."""
    files = segments(journal)
    if len({path.name[6:] for path in files}) < 2:  # one writer alone
        return 0
    finals: dict[int, int] = {}  # number of the rollout -> hash of the id of its final attempt: a million fit
    repeated = 0
    for path in files:
        kept: list[bytes] = []
        is_changed = False
        with path.open("rb") as file:
            for line in file:
                if not is_intact(line):
                    kept.append(line)  # the reader names the damage
                    continue
                record = orjson.loads(line)
                rollout, attempt = record["prompt"] << 32 | record["rollout"], hash(record["id"])
                if finals.get(rollout, attempt) != attempt:
                    is_changed = True
                    repeated += record["final"] and not record["amends"]
                    continue
                if record["final"]:
                    finals[rollout] = attempt
                kept.append(line)
        if is_changed:
            write_whole(path, b"".join(kept))
    return repeated
