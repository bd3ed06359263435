"""Recorded trajectories as MLflow traces: the rollout is the root span, each turn is a child span.

Spans are built from the recordings and sent to the store directly. MLflow's own API (`MlflowClient.start_span`) uses the
process-wide tracer and tracking URI, and would mix traces of the user's application with ours. Checked against MLflow 3.17.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import pyarrow.compute as pc
import pyarrow.parquet as pq
from mlflow.entities import (
    AssessmentError,
    AssessmentSource,
    Feedback,
    Span,
    SpanType,
    TraceData,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from heldout.job.json_values import read_json, stored_json
from heldout.job.records import Turn
from heldout.job.rollout_ids import short_id
from heldout.report.message_text import content_text
from heldout.runs.recordings import RecordedTrajectory, RecordedTurn, Recordings
from heldout.runs.run import Run

_BATCH_TRAJECTORIES = 20
"""Trajectories in memory at the same time."""
_PREVIEW_CHARACTERS = 500
_TRACE_PREFIX = "tr-"
_NANOSECONDS = 1_000_000_000
_Assessed = float | bool | str


class LoggedTraces(NamedTuple):
    """Counts of the logged traces."""

    logged: int
    finished: int
    """Number of finished rollouts of the run."""

    @property
    def is_capped(self) -> bool:
        return self.logged < self.finished

    @property
    def text(self) -> str:
        return f"{self.logged} of {self.finished} rollouts, the first of each prompt first; all are in trajectories.parquet"


def log_traces(
    client: TracingClient, run: Run, *, experiment_id: str, run_id: str, run_name: str, max_traces: int, source: str
) -> LoggedTraces:
    """Logs the final attempts of up to `max_traces` finished rollouts. Logging a run again replaces its traces.

    The first rollout of every prompt comes before the second of any, so that two runs on the same prompts show the same rollouts.
    source: the agent that gave the rewards, as MLflow shows it.
    """
    if not run.rollouts_path.exists():
        return LoggedTraces(0, 0)
    chosen = _choose(run.rollouts_path, max_traces)
    target = _Target(experiment_id, run_id, run_name, source)
    _forget_others(
        client, target, {f"{_TRACE_PREFIX}{_id(run_id, choice.trajectory_id).hex()}" for choice in chosen.choices}
    )
    recordings = Recordings(run, run.folder)
    try:
        for start in range(0, len(chosen.choices), _BATCH_TRAJECTORIES):
            batch = chosen.choices[start : start + _BATCH_TRAJECTORIES]
            played = recordings.read([choice.trajectory_id for choice in batch])
            _send(client, experiment_id, [_Trace(p, c.started_at, target) for p, c in zip(played, batch, strict=True)])
    finally:
        recordings.close()
    return LoggedTraces(len(chosen.choices), chosen.finished)


class _Target(NamedTuple):
    experiment_id: str
    run_id: str
    run_name: str
    source: str


class _Choice(NamedTuple):
    trajectory_id: str
    started_at: datetime


class _Chosen(NamedTuple):
    choices: Sequence[_Choice]
    finished: int


def _choose(rollouts: Path, most: int) -> _Chosen:
    table = pq.read_table(rollouts, columns=["prompt_index", "rollout_index", "trajectory_id", "started_at"])
    order = pc.sort_indices(table, sort_keys=[("rollout_index", "ascending"), ("prompt_index", "ascending")])
    first = table.take(order.slice(0, most)).to_pylist()
    return _Chosen([_Choice(row["trajectory_id"], row["started_at"]) for row in first], table.num_rows)


def _forget_others(client: TracingClient, target: _Target, wanted: set[str]) -> None:
    """Deletes traces of an earlier logging of this run that are not logged again."""
    found = client.search_traces(locations=[target.experiment_id], run_id=target.run_id, include_spans=False)
    # A file store cannot replace a trace. In other stores a replaced trace keeps its users' notes.
    kept = set() if urlsplit(client.tracking_uri).scheme in ("", "file") else wanted
    stale = [trace.info.trace_id for trace in found if trace.info.trace_id not in kept]
    if stale:
        client.delete_traces(target.experiment_id, trace_ids=stale)


def _send(client: TracingClient, experiment_id: str, traces: Sequence["_Trace"]) -> None:
    kept = [client.start_trace(trace.info()) for trace in traces]
    spans = [trace.spans() for trace in traces]
    try:
        client.log_spans(experiment_id, [span for of_trace in spans for span in of_trace])
    except (NotImplementedError, MlflowException):
        # File stores and servers before MLflow 3.4 store the spans of a trace as an artifact.
        for info, of_trace in zip(kept, spans, strict=True):
            client._upload_trace_data(info, TraceData(of_trace))


class _Trace:
    """Builds the MLflow trace of one trajectory."""

    def __init__(self, played: RecordedTrajectory, started_at: datetime, target: _Target) -> None:
        self._played = played
        self._target = target
        self._start = int(started_at.timestamp() * _NANOSECONDS)
        self._id = _id(target.run_id, played.trajectory_id)
        self._trace_id = f"{_TRACE_PREFIX}{self._id.hex()}"

    def info(self) -> TraceInfo:
        played, target = self._played, self._target
        reply = played.turns[-1].reply if played.turns else None
        return TraceInfo(
            trace_id=self._trace_id,
            trace_location=TraceLocation.from_experiment_id(target.experiment_id),
            request_time=self._start // 1_000_000,
            execution_duration=int(played.seconds * 1_000),
            state=TraceState.ERROR if played.error else TraceState.OK,
            request_preview=self._preview(),
            response_preview=(played.error or content_text(reply or {}))[:_PREVIEW_CHARACTERS],
            client_request_id=played.trajectory_id,
            trace_metadata={"mlflow.sourceRun": target.run_id},
            tags={
                "mlflow.traceName": short_id(played.trajectory_id),
                "rollout": short_id(played.trajectory_id),
                "prompt_index": str(played.prompt_index),
                "rollout_index": str(played.rollout_index),
                "run_name": target.run_name,
                **({"flags": ", ".join(played.flags)} if played.flags else {}),
            },
            assessments=[self._feedback(name, value) for name, value in self._scores()],
        )

    def spans(self) -> list[Span]:
        """The rollout's span and one for each turn."""
        played = self._played
        root = self._span(
            "rollout",
            SpanType.AGENT,
            inputs=self._inputs(),
            outputs=self._outputs(),
            start=self._start,
            seconds=played.seconds,
            error=played.error,
            attributes={
                "attempt": played.attempt,
                "trajectory_id": played.trajectory_id,
                "printed": played.output or None,
            },
        )
        return [
            root,
            *(self._turn_span(turn, stored) for turn, stored in zip(played.turns, played.recorded_turns, strict=True)),
        ]

    def _turn_span(self, turn: RecordedTurn, stored: Turn) -> Span:
        """The span of a turn, with its new messages and its reply: as in the run, each message is stored once."""
        request = cast("dict[str, object]", read_json(stored.request)) if stored.request else {}
        return self._span(
            f"turn {turn.index}",
            SpanType.CHAT_MODEL,
            inputs={"messages": turn.messages, **request},
            outputs={
                "choices": [
                    {"index": i, "message": reply, "finish_reason": turn.finish_reason}
                    for i, reply in enumerate(turn.replies)
                ]
            },
            start=int(stored.started_at * _NANOSECONDS),
            seconds=turn.seconds,
            error=turn.error,
            number=turn.index + 1,
            attributes={
                "mlflow.chat.tokenUsage": _usage(turn),
                "mlflow.message.format": "openai",
                "continues_turn": turn.parent,
                "shared_messages": turn.shared_messages,
                "http_status": turn.status,
            },
        )

    def _span(
        self,
        name: str,
        kind: str,
        *,
        inputs: object,
        outputs: object,
        start: int,
        seconds: float,
        error: str | None,
        attributes: dict[str, object],
        number: int = 0,
    ) -> Span:
        """number: position of the span in its trace; 0 is the root."""
        values = {
            "mlflow.traceRequestId": self._trace_id,
            "mlflow.spanType": kind,
            "mlflow.spanInputs": inputs,
            "mlflow.spanOutputs": outputs,
        } | attributes
        return Span.from_dict(
            {
                "trace_id": _base64(self._id),
                "span_id": _base64(_span_id(number)),
                "parent_span_id": _base64(_span_id(0)) if number else None,
                "name": name,
                "start_time_unix_nano": start,
                "end_time_unix_nano": start + int(seconds * _NANOSECONDS),
                "events": [],
                "links": [],
                "status": {"code": "STATUS_CODE_ERROR" if error else "STATUS_CODE_OK", "message": error or ""},
                "attributes": {key: stored_json(value).decode() for key, value in values.items() if value is not None},
            }
        )

    def _inputs(self) -> dict[str, object]:
        return {"prompt": self._played.prompt} | ({"columns": self._played.columns} if self._played.columns else {})

    def _preview(self) -> str:
        """The prompt, with the rollout index from the second rollout on: MLflow pairs two runs' traces by this text."""
        rollout = f" · rollout {self._played.rollout_index}" if self._played.rollout_index else ""
        return f"{self._played.prompt[:_PREVIEW_CHARACTERS]}{rollout}"

    def _outputs(self) -> dict[str, object]:
        played = self._played
        if played.error is not None:
            return {"error": played.error, "error_kind": played.error_kind}
        outcome: dict[str, object] = {"reward": played.reward, "success": played.is_success}
        if len(played.rewards or ()) > 1:
            outcome["rewards"] = played.rewards
        given = {"metrics": played.metrics, "labels": played.labels, "returned": played.returned}
        return outcome | {name: fields for name, fields in given.items() if fields}

    def _scores(self) -> Iterator[tuple[str, _Assessed | None]]:
        """The agent's own come after reward and success; one with their name, or that of a number, is `agent/<name>`."""
        yield "reward", self._played.reward
        yield "success", self._played.is_success
        names = {"reward", "success"}
        for name, value in [*self._played.metrics.items(), *self._played.labels.items()]:
            unique = f"agent/{name}" if name in names else name
            while unique in names:
                unique += "_"
            names.add(unique)
            yield unique, _assessed(value)

    def _feedback(self, name: str, value: _Assessed | None) -> Feedback:
        played = self._played
        error = None if value is not None else AssessmentError(played.error_kind or "failed", played.error)
        feedback = Feedback(
            name=name,
            value=value,
            error=error,
            trace_id=self._trace_id,
            source=AssessmentSource(source_type="CODE", source_id=self._target.source),
            metadata={"mlflow.assessment.sourceRunId": self._target.run_id},
        )
        # MLflow draws a random id. With a constant one, logging again replaces the feedback.
        feedback.assessment_id = f"a-{hashlib.sha256(self._id + name.encode()).hexdigest()[:32]}"
        return feedback


def _assessed(value: object) -> _Assessed:
    """Returns a value that MLflow takes in feedback: numbers and texts as they are, anything else as JSON."""
    return value if isinstance(value, bool | float | str) else stored_json(value).decode()


def _id(run_id: str, trajectory_id: str) -> bytes:
    """16 bytes that identify a trajectory in an MLflow run; constant across loggings."""
    return hashlib.sha256(f"{run_id}/{trajectory_id}".encode()).digest()[:16]


def _span_id(number: int) -> bytes:
    """8 bytes, unique in the trace and not all zero."""
    return (number + 1).to_bytes(8)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _usage(turn: RecordedTurn) -> dict[str, int] | None:
    if turn.prompt_tokens is None and turn.response_tokens is None:
        return None
    sent, answered = turn.prompt_tokens or 0, turn.response_tokens or 0
    return {"input_tokens": sent, "output_tokens": answered, "total_tokens": sent + answered}
