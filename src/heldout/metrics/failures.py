"""Failures of one run: counted by reason, with the most common message of each and a hint for common problems."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MESSAGE_CHARACTERS = 160
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+(\.\d+)?", re.IGNORECASE)
"""Parts of a message that differ between rollouts: addresses, ids, numbers."""
_HINTS = (
    (r"ModuleNotFoundError|No module named", "install the module where heldout runs: agents are imported there"),
    (
        r"KeyError",
        "the agent reads a field that is not there: the dataset's columns are payload['metadata']['columns']",
    ),
    (
        r"Connection refused|ConnectError|Cannot connect|unreachable",
        "check that the model server runs and --model names its URL",
    ),
    (r"\b(401|403)\b|api.?key|unauthorized|forbidden", "check the credentials that the model server asks for"),
    (
        r"\b404\b|model .*not (found|exist)",
        "check the model's name, and the end of the URL: often /v1",
    ),
    (r"\b429\b|rate.?limit", "lower -H rollout_max_concurrency: the server refuses calls at this rate"),
    (
        r"context.?(length|window)|maximum context|too many tokens",
        "the conversation outgrows the model: shorten it, or lower max_tokens",
    ),
    (r"timed? ?out|no reward was reported within", "raise -H rollout_timeout, or lower -H rollout_max_concurrency"),
    (r"reported no reward|no_reward", "have the agent return {'reward': NUMBER}"),
    (r"too many open files|EMFILE", "raise the limit on open files (ulimit -n), or lower -H rollout_max_concurrency"),
    (
        r"JSONDecodeError|ValidationError",
        "the agent could not read a reply: open one with heldout show RUN --trajectory ID",
    ),
)
"""Pattern of `kind: message`, and the advice."""


@dataclass(frozen=True, slots=True)
class FailureReason:
    """All failures of one kind at one boundary."""

    boundary: str
    """`agent`, `policy`, `reward` or `harness`."""
    kind: str
    """A short stable word, such as `raised` or `timeout`."""
    count: int
    message: str
    """The most common message, one line; messages that differ only in numbers and ids count as one, shown by their first."""
    message_count: int

    @property
    def hint(self) -> str:
        """Advice for a common problem; empty for any other."""
        text = f"{self.kind}: {self.message}"
        return next((advice for pattern, advice in _HINTS if re.search(pattern, text, re.IGNORECASE)), "")

    def __str__(self) -> str:
        """`agent: raised (4), 3 of them KeyError: 'answer'`."""
        if not self.message:
            return f"{self.boundary}: {self.kind} ({self.count:,})"
        share = "all" if self.count == self.message_count else f"{self.message_count:,} of them"
        which = "" if self.count == 1 else f"{share} "
        return f"{self.boundary}: {self.kind} ({self.count:,}), {which}{self.message}"


def count_reasons(failures: Iterable[tuple[str, str, str]]) -> tuple[FailureReason, ...]:
    """Counts failures by boundary and kind, the most common first. failures: each a boundary, a kind and a message."""
    counter = FailureCounter()
    for boundary, kind, message in failures:
        counter.add(boundary, kind, message)
    return counter.reasons


class FailureCounter:
    """Failures so far; memory grows by the number of different messages of each kind, up to a thousand."""

    _MOST_MESSAGES = 1_000

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._messages: dict[tuple[str, str], Counter[str]] = {}
        self._first: dict[tuple[str, str, str], str] = {}

    def add(self, boundary: str, kind: str, message: str) -> None:
        """Counts one failure."""
        key, line = (boundary, kind), " ".join(message.split())[:_MESSAGE_CHARACTERS]
        alike = _VARYING.sub("#", line)
        self._counts[key] += 1
        messages = self._messages.setdefault(key, Counter())
        if alike in messages or len(messages) < self._MOST_MESSAGES:
            messages[alike] += 1
            self._first.setdefault((*key, alike), line)

    @property
    def total(self) -> int:
        """All failures."""
        return self._counts.total()

    @property
    def reasons(self) -> tuple[FailureReason, ...]:
        """By boundary and kind, the most common first."""
        found = []
        for (boundary, kind), count in self._counts.most_common():
            alike, times = self._messages[boundary, kind].most_common(1)[0]
            found.append(FailureReason(boundary, kind, count, self._first[boundary, kind, alike], times))
        return tuple(found)
