"""CloudWatch Logs operations that read a job's log. There is one log group, with one stream for each job.

Source: the API reference of CloudWatch Logs, version 2014-03-28; checked against botocore's model and the `LogStreamer` of
sagemaker-train 1.27.
"""

import heapq
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from heldout.backends.local.run_log import Line
from heldout.errors import shown
from heldout.pipeline.definition import JOB_LOG_GROUP
from heldout.service.cloudwatch.log_events import Stream, job_of, matcher, stream_of
from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.sagemaker.jobs import find_job, jobs_named
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.operations import OperationTable, Params, Reply
from heldout.service.wire.paging import paged

OPERATIONS = OperationTable[Context]("logs")

_MAX_EVENTS = 10_000
_PAGE_BYTES = 1024 * 1024
_EVENT_OVERHEAD_BYTES = 26
"""The service's limits of a page. PutLogEvents counts the overhead for each event in addition to its text."""
_DESCRIBE_LIMIT = 50
"""The service's default page size of the Describe operations."""
_BACKWARD_SINCE_MS = 1_704_067_200_000
"""2024-01-01: the earliest startTime for which FilterLogEvents reads backward."""
_POSITION = re.compile(r"(?P<direction>[fb])/(?P<offset>\d{1,18})")
_AFTER = re.compile(r"(?P<direction>[fb])/(?P<time>\d{1,18})/(?P<start>\d{1,18})/(?P<stream>.+)")

Wanted = Callable[[Line], bool]
Key = tuple[int, str, int]
"""Time, stream and byte offset of an event: the sort order across streams."""
Event = tuple[Key, Line]


@OPERATIONS.operation("DescribeLogGroups")
def describe_log_groups(context: Context, params: Params) -> Reply:
    """Lists the log group if it passes the request's filters."""
    arn = _group_arn(context)
    group = {
        "logGroupName": JOB_LOG_GROUP,
        "creationTime": _milliseconds(REGISTRY_CREATED_AT.timestamp()),
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "logGroupArn": arn,
        "logGroupClass": "STANDARD",
    }
    is_listed = (
        JOB_LOG_GROUP.startswith(params.get("logGroupNamePrefix", ""))
        and params.get("logGroupNamePattern", "").lower() in JOB_LOG_GROUP.lower()
        and params.get("logGroupClass", "STANDARD") == "STANDARD"
        and any(_group_name(given) == JOB_LOG_GROUP for given in params.get("logGroupIdentifiers", (arn,)))
    )
    return _listed("logGroups", [group] if is_listed else [], params, {"": "logGroupName"})


@OPERATIONS.operation("DescribeLogStreams")
def describe_log_streams(context: Context, params: Params) -> Reply:
    """Lists the jobs' streams, by name or by the time of the last event."""
    _check_group(params)
    prefix, order = params.get("logStreamNamePrefix", ""), params.get("orderBy", "LogStreamName")
    if prefix and order == "LastEventTime":
        raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
    asked = {**params, "SortBy": order, "SortOrder": "Descending" if params.get("descending") else "Ascending"}
    keys = {"LogStreamName": "logStreamName", "LastEventTime": "sortTime", "": "logStreamName"}
    streams = {stream.name: stream for stream in _streams(context, prefix)}

    def described(entry: Reply) -> Reply:
        return _described(context, streams[entry["logStreamName"]])

    names: list[Reply] = [{"logStreamName": name} for name in streams]
    if order == "LastEventTime":
        return _listed("logStreams", map(described, names), asked, keys)
    return _listed("logStreams", names, asked, keys, described)


@OPERATIONS.operation("GetLogEvents")
def get_log_events(context: Context, params: Params) -> Reply:
    """Returns a page of a stream and the tokens of the next and previous pages. At an end of the stream the token repeats."""
    _check_group(params)
    stream = _stream(context, params["logStreamName"])
    position = _position(params)
    start_time, end_time = params.get("startTime", 0), params.get("endTime")

    def wanted(line: Line) -> bool:
        return line.time_ms >= start_time and (end_time is None or line.time_ms < end_time)

    limit = params.get("limit", _MAX_EVENTS)
    page = (_page_after if position.is_forward else _page_before)(stream, position.offset, wanted, limit)
    return {
        "events": [stream.event(line) for line in page.lines],
        "nextForwardToken": f"f/{page.end}",
        "nextBackwardToken": f"b/{page.start}",
    }


@OPERATIONS.operation("FilterLogEvents")
def filter_log_events(context: Context, params: Params) -> Reply:
    """Returns a page of the events of all streams that pass the request's filters, by time."""
    _check_group(params)
    streams = _filtered_streams(context, params)
    after = _after(params)
    is_forward = params.get("startFromHead", True) if after is None else after.is_forward
    if not is_forward and params.get("startTime", 0) < _BACKWARD_SINCE_MS:
        raise _invalid("startFromHead=false needs a startTime on or after 2024-01-01")
    events = _matching(streams, params)
    limit = params.get("limit", _MAX_EVENTS)
    if is_forward:
        found = _first((event for event in events if after is None or event[0] > after.key), limit)
    else:
        found = _last((event for event in events if after is None or event[0] < after.key), limit)
        found.events.reverse()
    by_name = {stream.name: stream for stream in streams}
    reply: Reply = {"events": [by_name[key[1]].event(line) for key, line in found.events], "searchedLogStreams": []}
    if found.has_more:
        time, stream, start = found.events[-1][0]
        reply["nextToken"] = f"{'f' if is_forward else 'b'}/{time}/{start}/{stream}"
    return reply


class _Page(NamedTuple):
    """A page of one stream."""

    lines: list[Line]
    start: int
    """Byte offset of the page's first line."""
    end: int
    """Byte offset after the page's last line."""


class _Events(NamedTuple):
    """A page of several streams."""

    events: list[Event]
    has_more: bool
    """Whether more events follow in the direction of reading."""


class _Position(NamedTuple):
    """A position in one stream and the direction of reading."""

    is_forward: bool
    offset: int | None
    """Bytes; None for the log's beginning (forward) or end (backward)."""


class _After(NamedTuple):
    """The last event of the previous page and the direction of reading."""

    is_forward: bool
    key: Key


def _page_after(stream: Stream, offset: int | None, wanted: Wanted, limit: int) -> _Page:
    start = offset or 0
    found, num_bytes, end = list[Line](), 0, start
    for line in stream.lines(start):
        if wanted(line):
            num_bytes += _size(line)
            if found and (len(found) == limit or num_bytes > _PAGE_BYTES):
                break
            found.append(line)
        end = line.end
    return _Page(found, start, end)


def _page_before(stream: Stream, offset: int | None, wanted: Wanted, limit: int) -> _Page:
    end = offset or 0

    def earlier() -> Iterator[Event]:
        nonlocal end
        for line in stream.lines():
            if offset is not None and line.end > offset:
                return
            end = offset or line.end
            if wanted(line):
                yield (line.time_ms, stream.name, line.start), line

    found = [line for _, line in _last(earlier(), limit).events]
    return _Page(found, found[0].start if found else end, end)


def _first(events: Iterable[Event], limit: int) -> _Events:
    """The first page of events."""
    found, num_bytes = list[Event](), 0
    for event in events:
        num_bytes += _size(event[1])
        if found and (len(found) == limit or num_bytes > _PAGE_BYTES):
            return _Events(found, has_more=True)
        found.append(event)
    return _Events(found, has_more=False)


def _last(events: Iterable[Event], limit: int) -> _Events:
    """The last page of events, earliest first."""
    found, num_bytes, has_more = deque[Event](), 0, False
    for event in events:
        found.append(event)
        num_bytes += _size(event[1])
        while len(found) > 1 and (len(found) > limit or num_bytes > _PAGE_BYTES):
            num_bytes -= _size(found.popleft()[1])
            has_more = True
    return _Events(list(found), has_more)


def _size(line: Line) -> int:
    return line.end - line.start + _EVENT_OVERHEAD_BYTES


def _matching(streams: Iterable[Stream], params: Params) -> Iterator[Event]:
    """Events of these streams that match the request's times and pattern, earliest first."""
    has_terms = matcher(params.get("filterPattern", ""))
    start_time, end_time = params.get("startTime", 0), params.get("endTime")

    def of(stream: Stream) -> Iterator[Event]:
        for line in stream.lines():
            is_in_time = line.time_ms >= start_time and (end_time is None or line.time_ms <= end_time)
            if is_in_time and has_terms(line.text):
                yield (line.time_ms, stream.name, line.start), line

    return heapq.merge(*map(of, streams), key=lambda event: event[0])


def _filtered_streams(context: Context, params: Params) -> list[Stream]:
    if "logStreamNames" in params and "logStreamNamePrefix" in params:
        raise _invalid("logStreamNames and logStreamNamePrefix cannot be given together")
    if "logStreamNames" in params:
        return [_stream(context, name) for name in dict.fromkeys(params["logStreamNames"])]
    return _streams(context, params.get("logStreamNamePrefix", ""))


def _position(params: Params) -> _Position:
    """The position that a token encodes. Without a token: the last page, or the first with `startFromHead`."""
    token = params.get("nextToken")
    if token is None:
        return _Position(params.get("startFromHead", False), None)
    found = _POSITION.fullmatch(token)
    if found is None:
        raise _invalid(f"The specified nextToken is invalid: {shown(token)}")
    return _Position(found["direction"] == "f", int(found["offset"]))


def _after(params: Params) -> _After | None:
    token = params.get("nextToken")
    if token is None:
        return None
    found = _AFTER.fullmatch(token)
    if found is None:
        raise _invalid(f"The specified nextToken is invalid: {shown(token)}")
    return _After(found["direction"] == "f", (int(found["time"]), found["stream"], int(found["start"])))


def _streams(context: Context, prefix: str) -> list[Stream]:
    """Streams whose names begin with `prefix`."""
    job = prefix.partition("/")[0]
    streams = [stream_of(found) for found in jobs_named(context, job)]
    return [stream for stream in streams if stream.name.startswith(prefix)]


def _stream(context: Context, name: str) -> Stream:
    job = job_of(name)
    found = None if job is None else find_job(context, job)
    if found is None:
        raise ServiceError("ResourceNotFoundException", f"The specified log stream does not exist: {shown(name, 200)}")
    return stream_of(found)


def _described(context: Context, stream: Stream) -> Reply:
    extent = stream.extent()
    return {
        "logStreamName": stream.name,
        "creationTime": stream.created_ms,
        "firstEventTimestamp": extent.first_ms,
        "lastEventTimestamp": extent.last_ms,
        "lastIngestionTime": extent.last_ms,
        "sortTime": extent.last_ms or 0,  # not in the reply: a sort key for streams that may be empty
        "arn": f"{_group_arn(context)}:log-stream:{stream.name}",
        "storedBytes": extent.num_bytes,
    }


def _listed(
    member: str,
    items: Iterable[Reply],
    params: Params,
    sort_keys: Mapping[str, str],
    view: Callable[[Reply], Reply] | None = None,
) -> Reply:
    """Calls `paged` with this service's parameter names and error code."""
    asked = {name: value for name, value in params.items() if name != "limit"}
    try:
        return paged(member, items, asked | {"maxResults": params.get("limit", _DESCRIBE_LIMIT)}, sort_keys, view=view)
    except ServiceError as error:
        raise _invalid(error.message) from error


def _check_group(params: Params) -> None:
    given = [params[name] for name in ("logGroupName", "logGroupIdentifier") if name in params]
    if len(given) != 1:
        raise _invalid("exactly one of logGroupName and logGroupIdentifier must be given")
    if _group_name(given[0]) != JOB_LOG_GROUP:
        raise ServiceError(
            "ResourceNotFoundException",
            f"The specified log group does not exist: {shown(given[0], 200)}; the one here is {JOB_LOG_GROUP!r}",
        )


def _group_name(identifier: str) -> str:
    """The name in a group's name or ARN."""
    return identifier.partition(":log-group:")[2].removesuffix(":*") if identifier.startswith("arn:") else identifier


def _group_arn(context: Context) -> str:
    return f"arn:aws:logs:{context.region}:{context.account}:log-group:{JOB_LOG_GROUP}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _invalid(message: str) -> ServiceError:
    return ServiceError("InvalidParameterException", message)
