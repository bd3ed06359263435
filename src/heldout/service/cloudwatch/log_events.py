"""Log events: the lines of each job's `runner.log` as a CloudWatch stream, and the filter patterns that select among them.

Nothing is copied: the log file is read for each request. A stream exists as long as its job does.
"""

import functools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from heldout.backends.local.run_log import Line, lines_of
from heldout.errors import shown
from heldout.service.sagemaker.job_views import Job
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.operations import Reply

_SUFFIX = "/runner"
"""A stream's name is its job's name and this suffix: clients look streams up by prefix."""
_TERM = re.compile(r'\s*(?P<sign>[?-]?)(?:"(?P<phrase>(?:[^"\\]|\\.)*)"|(?P<word>\w+))(?=\s|$)')


class Extent(NamedTuple):
    """Times and size of a stream's events. Times are Unix milliseconds; None if the stream is empty."""

    first_ms: int | None
    last_ms: int | None
    num_bytes: int


class Stream(NamedTuple):
    """The log stream of one job."""

    job: str
    created_ms: int
    log: Path
    run: str
    """The run name that marks the job's lines in the log."""

    @property
    def name(self) -> str:
        return self.job + _SUFFIX

    def lines(self, start: int = 0) -> Iterator[Line]:
        """The job's lines from byte `start` of the log. Blank lines are skipped: CloudWatch has no empty events."""
        return (line for line in lines_of(self.log, start) if line.run == self.run and line.text.strip())

    def extent(self) -> Extent:
        size = self.log.stat().st_size if self.log.exists() else 0
        return _extent(self, size)

    def event(self, line: Line) -> Reply:
        """A line as an event of GetLogEvents and FilterLogEvents."""
        return {
            "logStreamName": self.name,
            "timestamp": line.time_ms,
            "ingestionTime": line.time_ms,
            "message": line.text,
            # Digits only, like CloudWatch's, and stable across requests.
            "eventId": f"{line.time_ms:014d}{zlib.crc32(self.name.encode()):010d}{line.start:012d}",
        }


def stream_of(job: Job) -> Stream:
    """The stream of a job."""
    return Stream(job.name, round(job.created_at * 1000), job.log, job.run_name)


def job_of(stream: str) -> str | None:
    """The name of the job that a stream name belongs to; None for a name of another form."""
    return stream.removesuffix(_SUFFIX) if stream.endswith(_SUFFIX) else None


@functools.lru_cache(maxsize=256)
def _extent(stream: Stream, size: int) -> Extent:
    """size: bytes in the log. It is part of the cache key, so that a longer log is read again."""
    times, num_bytes = list[int](), 0
    for line in stream.lines():
        times = [*times[:1], line.time_ms]
        num_bytes += len(line.text.encode())
    return Extent(times[0] if times else None, times[-1] if times else None, num_bytes)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Compiles a filter pattern to a test of a line. Terms are case-sensitive; an empty pattern matches every line.

        ERROR timeout       both terms
        "not logged"        this phrase
        ERROR -retried      the first term and not the second
        ?ERROR ?WARN        at least one of the terms

    Patterns for JSON (`{ $.a = 1 }`), columns (`[a, b]`) and regular expressions (`%a%`) are not supported.
    Source: "Filter pattern syntax" in the CloudWatch Logs user guide.
    Raises ServiceError (InvalidParameterException) for an unsupported pattern.
    """
    signed = list(_terms(pattern.strip()))
    wanted, unwanted, any_of = ([term for sign, term in signed if sign == which] for which in ("", "-", "?"))
    if any_of and (wanted or unwanted):
        raise _refused(pattern, "terms with ? cannot be combined with other terms")

    def matches(text: str) -> bool:
        return (
            all(term in text for term in wanted)
            and not any(term in text for term in unwanted)
            and (not any_of or any(term in text for term in any_of))
        )

    return matches


def _terms(pattern: str) -> Iterator[tuple[str, str]]:
    """The sign (`?`, `-` or empty) and the text of each term."""
    position = 0
    while position < len(pattern):
        term = _TERM.match(pattern, position)
        if term is None:
            raise _refused(pattern, 'terms are words or double-quoted phrases: ERROR "not found" -retried')
        yield term["sign"], term["word"] if term["phrase"] is None else re.sub(r"\\(.)", r"\1", term["phrase"])
        position = term.end()


def _refused(pattern: str, expected: str) -> ServiceError:
    return ServiceError("InvalidParameterException", f"filterPattern {shown(pattern)} is not supported; {expected}")
