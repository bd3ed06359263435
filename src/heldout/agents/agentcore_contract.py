"""The AgentCore HTTP contract from the caller's side: the meaning of an agent's answers."""

import json

from heldout.agents.base import InvocationResult, Outcome
from heldout.exhaustion import exhausted_resource_in

_SHOWN_CHARACTERS = 500
"""How much of an error body a message quotes: enough for a reason, little enough for one line."""


def read_answer(status: int, content_type: str, body: bytes) -> InvocationResult:
    """Parses an answer: RETURNED with the parsed body, or the reason in one line with RAISED, EXHAUSTED or DISCONNECTED.

    An error is a status from 400 up, or the object `{"error": ..., "error_type": ...}` that bedrock-agentcore 1.x (and our
    worker) sends as the last event when a stream breaks off. NaN and Infinity become floats; the check of
    rewards is elsewhere. An empty answer has the body None.
    """
    if status >= 400:
        return _failed(_parsed(body)) or _raised(f"answered {status}: {_start_of(body)}")
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return _read_events(body)
    if not body.strip():
        return InvocationResult(Outcome.RETURNED)
    try:
        return InvocationResult(Outcome.RETURNED, body=json.loads(body))
    except (ValueError, RecursionError):
        return _raised(f"answered something that is not JSON: {_start_of(body)}")


def says_busy(ping: bytes) -> bool:
    """Whether an answer to GET /ping is HealthyBusy: the agent still works in the background."""
    try:
        answer = json.loads(ping)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("status") == "HealthyBusy"


def one_line(text: str) -> str:
    """Folds line breaks and runs of blanks in `text`, and cuts it to fit a line of a report."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"


def _raised(message: str) -> InvocationResult:
    resource = exhausted_resource_in(message)
    if resource is None:
        return InvocationResult(Outcome.RAISED, message=one_line(message))
    return InvocationResult(Outcome.EXHAUSTED, message=one_line(f"out of {resource}: {message}"))


def _read_events(body: bytes) -> InvocationResult:
    answer: object = None
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = (line.removeprefix(b"data:") for line in event.split(b"\n") if line.startswith(b"data:"))
        try:
            answer = json.loads(b"\n".join(lines))
        except (ValueError, RecursionError):
            continue  # not JSON: a comment, a keep-alive, `[DONE]`
    return _failed(answer) or InvocationResult(Outcome.RETURNED, body=answer)


def _parsed(body: bytes) -> object:
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer


def _failed(answer: object) -> InvocationResult | None:
    match answer:
        case {
            "error": str(error),
            "error_type": str(kind),
            "harness_failure": ("exhausted" | "disconnected") as outcome,
        }:
            return InvocationResult(Outcome(outcome), message=one_line(f"{kind}: {error}"))
        case {"error": str(error), "error_type": str(kind)}:
            return _raised(f"{kind}: {error}")
        case _:
            return None


def _start_of(body: bytes) -> str:
    return body[: 4 * _SHOWN_CHARACTERS].decode(errors="replace") or "(empty)"
