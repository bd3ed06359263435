"""Log lines of managed jobs, from CloudWatch Logs.

A job's streams are in the log group of its category, and their names begin with the job's name. Source: `LogStreamer`
of sagemaker-train 1.27 (its evaluator's `stream_logs` takes the category for the job's name, and finds none). Lines
arrive some seconds late, so an ended job is read for a while longer.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from heldout.backends.base import LogLine
from heldout.backends.sagemaker.account import Account, code_of, is_absent, message_of, pages
from heldout.pipeline.definition import JOB_LOG_GROUP

_LINES_A_LOOK = 5_000
_PAGES_A_LOOK = 50
"""The most pages of one stream: CloudWatch returns empty pages that continue."""
_LATE_SECONDS = 60.0
"""The time after a job's end in which lines may still arrive."""
_PAUSE_SECONDS = 60.0
"""The pause after CloudWatch could not be reached. Each attempt blocks the wait for seconds."""
_TRANSIENT = ("Throttling", "ThrottledException", "RequestLimitExceeded", "ServiceUnavailable", "Internal")
"""The beginnings of AWS error codes after which the same request may succeed later."""


class JobToLookAt(NamedTuple):
    """A job that has begun."""

    run: str
    """The name of its run."""
    arn: str
    ended_at: datetime | None


@dataclass(slots=True)
class _Seen:
    """The read position in the streams of one job."""

    tokens: dict[str, str] = field(default_factory=dict)
    """The next token of each stream."""
    is_done: bool = False


class JobLogs:
    """Reads each log line of some jobs once. clock: returns Unix time in seconds."""

    def __init__(self, account: Account, clock: Callable[[], float] = time.time) -> None:
        self._account = account
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._reported: set[str] = set()
        self._is_refused = False
        self._next_look_at = 0.0

    def new_lines(self, jobs: Sequence[JobToLookAt]) -> list[LogLine]:
        """The lines that these jobs logged since the last call, at most some thousand.

        A problem becomes one log line, once, and never an error: the wait for a job continues without its log.
        """
        if self._is_refused or self._clock() < self._next_look_at:
            return []
        lines: list[LogLine] = []
        for job in jobs:
            seen = self._seen.setdefault(job.arn, _Seen())
            most = _LINES_A_LOOK - len(lines)
            if seen.is_done or most <= 0:
                continue
            before, new = dict(seen.tokens), list[LogLine]()
            try:
                for line in self._new_of(job, seen, most):
                    new.append(line)  # one by one, so that lines before an error are kept
            except ClientError as error:
                return lines + new + self._refused(job, error)
            except BotoCoreError as error:
                self._next_look_at = self._clock() + _PAUSE_SECONDS
                problem = f"log lines are not shown while CloudWatch cannot be reached: {error}"
                return lines + new + self._say_once(job, problem)
            lines += sorted(new, key=lambda line: line.time)
            is_over = job.ended_at is not None and self._clock() - job.ended_at.timestamp() > _LATE_SECONDS
            seen.is_done = is_over and seen.tokens == before
        return lines

    def _new_of(self, job: JobToLookAt, seen: _Seen, most: int) -> Iterator[LogLine]:
        client = self._account.client("logs", is_glance=True)
        name = job.arn.rpartition("/")[2]
        listed = pages(
            client.describe_log_streams, token="nextToken", logGroupName=JOB_LOG_GROUP, logStreamNamePrefix=name
        )
        streams = [stream["logStreamName"] for page in listed for stream in page["logStreams"]]
        for stream in streams:
            for event in _new_events(client, stream, seen.tokens, max(1, most // len(streams))):
                yield LogLine(
                    datetime.fromtimestamp(event["timestamp"] / 1000, UTC), job.run, event["message"].rstrip()
                )

    def _refused(self, job: JobToLookAt, error: ClientError) -> list[LogLine]:
        if is_absent(error) or code_of(error).startswith(_TRANSIENT):
            return []  # the next call may succeed
        self._is_refused = True
        return self._say_once(
            job,
            f"log lines are not shown: {error.operation_name} was refused: {code_of(error)}: {message_of(error)} (waiting needs "
            f"logs:DescribeLogStreams and logs:GetLogEvents on log group {JOB_LOG_GROUP})",
        )

    def _say_once(self, job: JobToLookAt, text: str) -> list[LogLine]:
        if text in self._reported:
            return []
        self._reported.add(text)
        return [LogLine(datetime.fromtimestamp(self._clock(), UTC), job.run, text)]


def _new_events(client: Any, stream: str, tokens: dict[str, str], most: int) -> Iterator[Mapping[str, Any]]:
    """The events of a stream after its token in `tokens`, which advances. The same token again marks the end."""
    for _ in range(_PAGES_A_LOOK):
        if most <= 0:
            return
        token = tokens.get(stream)
        page = client.get_log_events(
            logGroupName=JOB_LOG_GROUP,
            logStreamName=stream,
            startFromHead=True,
            limit=most,
            **({} if token is None else {"nextToken": token}),
        )
        yield from page["events"]
        tokens[stream] = page["nextForwardToken"]
        most -= len(page["events"])
        if tokens[stream] == token:
            return
