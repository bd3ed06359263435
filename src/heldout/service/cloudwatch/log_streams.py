"""The log of each job as a stream of events: the lines of `runner.log` that are about the job, read each time they are asked for.

Nothing is copied: a stream is there as long as its job is, and its file outlives both.
"""

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from heldout.backends.local.run_log import Line, lines_of
from heldout.service.operations import Reply
from heldout.service.sagemaker.job_views import Job

_SUFFIX = "/runner"
"""Of a stream's name after its job's: clients look for streams by the beginning of their names."""


class Extent(NamedTuple):
    """What there is in a stream. Times in milliseconds; None while it is empty."""

    first_ms: int | None
    last_ms: int | None
    num_bytes: int


class Stream(NamedTuple):
    """One job's."""

    job: str
    created_ms: int
    log: Path
    run: str
    """The name by which the log tells the job's lines from others."""

    @property
    def name(self) -> str:
        return self.job + _SUFFIX

    def lines(self, start: int = 0) -> Iterator[Line]:
        """Its lines from a place in the log on, without blank ones, which are no events."""
        return (line for line in lines_of(self.log, start) if line.run == self.run and line.text.strip())

    def extent(self) -> Extent:
        size = self.log.stat().st_size if self.log.exists() else 0
        return _extent(self, size)

    def event(self, line: Line) -> Reply:
        """A line as GetLogEvents and FilterLogEvents have it."""
        return {
            "logStreamName": self.name,
            "timestamp": line.time_ms,
            "ingestionTime": line.time_ms,
            "message": line.text,
            # Of digits alone, as CloudWatch's are, and the same each time.
            "eventId": f"{line.time_ms:014d}{zlib.crc32(self.name.encode()):010d}{line.start:012d}",
        }


def stream_of(job: Job) -> Stream:
    """The stream of a job."""
    return Stream(job.name, round(job.created_at * 1000), job.log, job.run_name)


def job_named(stream: str) -> str | None:
    """The job whose stream has this name; None: no job's has."""
    return stream.removesuffix(_SUFFIX) if stream.endswith(_SUFFIX) else None


@functools.lru_cache(maxsize=256)
def _extent(stream: Stream, size: int) -> Extent:
    """size: of the log, so that one that has grown is read again."""
    times, num_bytes = list[int](), 0
    for line in stream.lines():
        times = [*times[:1], line.time_ms]
        num_bytes += len(line.text.encode())
    return Extent(times[0] if times else None, times[-1] if times else None, num_bytes)
