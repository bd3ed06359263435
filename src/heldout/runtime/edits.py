"""What the job changes in a model call: the served model's name, a seed, log-probabilities, its sampling. Nothing else.

Pure functions on parsed JSON; requests and replies are those of OpenAI's chat completions and completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import orjson

_SEED_STEP = 0x9E3779B1
"""Odd, so that the calls of a trajectory walk through all 2**31 seeds before one comes again."""
_SEED_MASK = 0x7FFFFFFF
"""Seeds stay within what every server takes: 31 bits."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """What the job decides about each model call. None: the job says nothing, and the agent's value stands."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    enforce_sampling: bool = False
    """Write the three into every call, instead of only counting the calls that differ."""
    wants_logprobs: bool = False
    """Ask the policy for the log-probability of each token, and keep it from an agent that did not ask."""


class EditedCall(NamedTuple):
    """A request as it goes to the policy, and what has to be taken out of the reply again."""

    body: bytes
    is_streamed: bool
    hides_logprobs: bool
    hides_usage: bool
    """Whether the last, usage-only chunk of a streamed reply is there only because we asked for it."""


class CallEditor:
    """Writes the job's decisions into model calls. One for a job; it keeps nothing between calls."""

    def __init__(self, rules: CallRules) -> None:
        self._rules = rules
        decided = (("temperature", rules.temperature), ("top_p", rules.top_p), ("max_tokens", rules.max_tokens))
        self._sampling = tuple((name, value) for name, value in decided if value is not None)

    def edit(
        self,
        request: Mapping[str, object],
        *,
        asked: Mapping[str, object],
        model_name: str,
        seed: int | None,
        call_number: int,
        must_stream: bool = False,
    ) -> EditedCall:
        """The request to send to the policy.

        request: as the agent sent it, without what it asked. asked: a chat's `messages`, or a plain completion's `prompt`.
        model_name: what the policy is served under.
        seed: of the trajectory; call_number: of this call in it, from 0. must_stream: stream even if the agent's body does
        not say so (the operation does).
        """
        edited = {**request, "model": model_name, **asked}
        if seed is not None and request.get("seed") is None:
            edited["seed"] = (seed + _SEED_STEP * call_number) & _SEED_MASK
        hides_logprobs = self._rules.wants_logprobs and request.get("logprobs") in (None, False)
        if hides_logprobs:
            # A completion takes a number here: how many alternatives to tell beside each token.
            edited["logprobs"] = True if "messages" in asked else 1
        if self._rules.enforce_sampling:
            for name, value in self._sampling:
                edited[_spelling(name, request)] = value
        is_streamed = must_stream or request.get("stream") is True
        hides_usage = is_streamed and not _asks_for_usage(request)
        if is_streamed:
            edited["stream"] = True
        if hides_usage:
            options = request.get("stream_options")
            edited["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return EditedCall(orjson.dumps(edited), is_streamed, hides_logprobs, hides_usage)

    def differences(self, request: Mapping[str, object]) -> list[tuple[str, object, float]]:
        """The sampling parameters in which a request departs from the job's: name, the agent's value, the job's.

        Empty where the job enforces its own.
        """
        if self._rules.enforce_sampling:
            return []
        sent = ((name, request.get(_spelling(name, request)), value) for name, value in self._sampling)
        return [(name, theirs, ours) for name, theirs, ours in sent if theirs != ours]


def without_logprobs(reply: dict[str, object]) -> bytes:
    """A reply, or a chunk of one, as an agent would have had it without asking for log-probabilities: they are null."""
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and "logprobs" in choice:
            choice["logprobs"] = None
    return orjson.dumps(reply)


def _spelling(name: str, request: Mapping[str, object]) -> str:
    """OpenAI renamed max_tokens; the agent's choice between the two stands, since servers differ in which they take."""
    is_renamed = name == "max_tokens" and request.get("max_completion_tokens") is not None
    return "max_completion_tokens" if is_renamed else name


def _asks_for_usage(request: Mapping[str, object]) -> bool:
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
