"""Log lines of managed jobs, as CloudWatch Logs has them.

A job's streams are those of its category's group whose names begin with the job's. Source: `LogStreamer` of sagemaker-train 1.27
(its evaluator's `stream_logs` takes the category for the job's name, and finds none). Lines come to CloudWatch some seconds late,
so a job that has ended is looked at a while longer.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from heldout.backends.base import LogLine
from heldout.backends.sagemaker.account import Account, code_of, is_absent, pages, words_of
from heldout.pipeline.definition import JOB_LOG_GROUP

_LINES_A_LOOK = 5_000
_PAGES_A_LOOK = 50
"""Of one stream: CloudWatch gives pages that are empty and go on."""
_LATE_SECONDS = 60.0
"""How long after its end lines of a job may still come in."""
_PAUSE_SECONDS = 60.0
"""Before another look where CloudWatch could not be reached: each such look takes seconds that who waits would wait longer."""
_TRANSIENT = ("Throttling", "ThrottledException", "RequestLimitExceeded", "ServiceUnavailable", "Internal")
"""What AWS's codes begin with where the same request may work later."""


class JobToLookAt(NamedTuple):
    """A job that has begun."""

    run: str
    """The name of its run."""
    arn: str
    ended_at: datetime | None


@dataclass(slots=True)
class _Seen:
    """How far one job's streams were read."""

    tokens: dict[str, str] = field(default_factory=dict)
    """By stream, where to go on."""
    is_done: bool = False


class JobLogs:
    """The log lines of some jobs, each given once. clock: seconds since 1970."""

    def __init__(self, account: Account, clock: Callable[[], float] = time.time) -> None:
        self._account = account
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._told: set[str] = set()
        self._is_refused = False
        self._next_look_at = 0.0

    def new_lines(self, jobs: Sequence[JobToLookAt]) -> list[LogLine]:
        """What these jobs logged since the last call, some thousand lines at most; a job that has logged nothing has none.

        Raises nothing: who waits for a job goes on without its lines, and is told why in one of them, once.
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
                    new.append(line)  # one by one: what was read before an error is not read again
            except ClientError as error:
                return lines + new + self._refused(job, error)
            except BotoCoreError as error:
                self._next_look_at = self._clock() + _PAUSE_SECONDS
                told = f"log lines are not shown while CloudWatch cannot be reached: {error}"
                return lines + new + self._say_once(job, told)
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
            return []  # there may be more at the next look
        self._is_refused = True
        return self._say_once(
            job,
            f"log lines are not shown: {error.operation_name} was refused: {code_of(error)}: {words_of(error)} (who waits needs "
            f"logs:DescribeLogStreams and logs:GetLogEvents on log group {JOB_LOG_GROUP})",
        )

    def _say_once(self, job: JobToLookAt, text: str) -> list[LogLine]:
        if text in self._told:
            return []
        self._told.add(text)
        return [LogLine(datetime.fromtimestamp(self._clock(), UTC), job.run, text)]


def _new_events(client: Any, stream: str, tokens: dict[str, str], most: int) -> Iterator[Mapping[str, Any]]:
    """The events of a stream from its token in `tokens` on, which moves along; the same again says that there are no more."""
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
