"""Reads trajectories from a run's Parquet files: a few by their ids, or all of them as a stream."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heldout.datasets.prompts import PromptReader
from heldout.errors import RunError, did_you_mean, shown
from heldout.job.conversations import conversation
from heldout.job.json_values import read_json
from heldout.job.records import ANSWERED, Prompt, Turn
from heldout.job.rollout_ids import parse_short_id
from heldout.metrics.table import IntArray
from heldout.runs.journal_index import JournalIndex
from heldout.runs.run import JobStatus, Run
from heldout.runs.tables import check_tables, write_tables

Message = dict[str, Any]
"""One message of a conversation in the OpenAI chat format: `role`, `content`, `tool_calls` and so on."""

_BATCH_ROWS = 512
"""Rows read at once. A turn may hold a whole document, so few are in memory together."""
_NEAR_IDS = 20_000
"""Ids searched for the nearest to a mistyped one."""


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One model call."""

    index: int
    """From 0, in the order the calls were made."""
    parent: int | None
    """Index of the earlier turn whose conversation this one continues; None for a conversation of its own."""
    shared_messages: int
    """Messages of the parent's conversation, its reply included, with which this one begins."""
    messages: list[Message]
    """The messages sent since the parent's reply; the whole conversation for a turn without a parent."""
    replies: list[Message]
    """The model's messages, one for each choice; empty when the call failed."""
    finish_reason: str | None
    prompt_tokens: int | None
    response_tokens: int | None
    logprobs: tuple[float, ...] | None
    """Log-probability of each response token in nats; None when the policy gave none."""
    seconds: float
    status: int
    """HTTP status; 200 for a call that worked."""
    error: str | None

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, in full or in part."""
        return self.status == ANSWERED

    @property
    def reply(self) -> Message | None:
        """The model's message: of the first choice, when there were several."""
        return self.replies[0] if self.replies else None


@dataclass(frozen=True)
class RecordedTrajectory:
    """One recorded attempt at a rollout. A scorer is called with one."""

    prompt: str
    """The prompt, as the agent received it."""
    columns: dict[str, Any]
    """The other columns of the prompt's row in the dataset."""
    prompt_index: int
    """Row number in the dataset, from 0."""
    rollout_index: int
    trajectory_id: str
    attempt: int
    """From 1."""
    is_final: bool
    """Whether this attempt decided the rollout; False for a failed attempt that was retried."""
    reward: float | None
    """Sum of `rewards`; None when the attempt failed."""
    rewards: tuple[float, ...] | None
    """As reported: one value, or one for each turn."""
    is_success: bool
    """Whether the reward reached the job's success threshold."""
    error: str | None
    """Why the attempt failed; None when it was scored."""
    error_kind: str | None
    """The failure in one word, such as `timeout`."""
    metrics: dict[str, float]
    """The agent's own metrics: finite numbers."""
    flags: tuple[str, ...]
    """Irregularities that did not fail the attempt."""
    turns: tuple[RecordedTurn, ...]
    """Every model call, failed ones included."""
    seconds: float
    labels: dict[str, Any] = field(default_factory=dict)
    """The agent's metrics that are not numbers: texts, lists and objects, by name."""
    returned: dict[str, Any] = field(default_factory=dict)
    """What else the agent returned, by field; see `RETURNED_BYTES` in `heldout.job.received`."""
    output: str = ""
    """What the agent printed; empty unless the trajectory was read by its id."""
    recorded_turns: tuple[Turn, ...] = field(default=(), repr=False)
    """The turns as stored, each message once."""

    @property
    def counted_turns(self) -> str:
        """The number of answered and failed model calls, in words."""
        answered = sum(turn.is_answered for turn in self.turns)
        failed = len(self.turns) - answered
        turns = f"{answered} turn{'' if answered == 1 else 's'}"
        return f"{turns}, {failed} failed call{'' if failed == 1 else 's'}" if failed else turns

    @property
    def messages(self) -> list[Message]:
        """The conversation of the last turn, its reply included; empty when the model was never called."""
        return self.conversation(len(self.turns) - 1) if self.turns else []

    def conversation(self, index: int) -> list[Message]:
        """Rebuilds the messages sent in turn `index`, and the reply. Raises KeyError if there is no such turn."""
        return [*conversation(self.recorded_turns, index), *self.turns[index].replies[:1]]


class Recordings:
    """The recorded trajectories of one run. Not for use by several threads at once."""

    def __init__(self, run: Run, tables: Path) -> None:
        """`tables`: the folder that holds the Parquet files, see `open_recordings`."""
        self._tables = tables
        self._prompts = _Prompts(run.prompts_path)

    def stream(self) -> Iterator[RecordedTrajectory]:
        """Yields the deciding attempt of every finished rollout, in the order in which they ended; a few in memory at a time.

        Raises RunError if the run's files do not belong together.
        """
        turns = _TurnGroups(self._tables / "trajectories.parquet")
        with pq.ParquetFile(self._tables / "rollouts.parquet") as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield self._trajectory(row, turns.of(row["trajectory_id"], row["turns"]))

    def read(self, trajectory_ids: Sequence[str]) -> list[RecordedTrajectory]:
        """Reads the trajectories with these ids, of any attempt, in this order, with the agents' output.

        A short id (`12.3`) names the deciding attempt of a rollout.
        Raises RunError for an id that is not in the run, naming the nearest.
        """
        check_tables(self._tables, ("attempts",))
        trajectory_ids = [self._long_id(one) for one in trajectory_ids]
        wanted = pa.array(trajectory_ids, pa.string())
        attempts = self._rows("attempts", wanted)
        for trajectory_id in trajectory_ids:
            if trajectory_id not in attempts:
                raise RunError(self._unknown(trajectory_id))
        rollouts = self._rows("rollouts", wanted)
        turns = self._turns(wanted)
        return [
            self._trajectory(attempts[i] | rollouts.get(i, {}), turns.get(i, []), attempts[i]) for i in trajectory_ids
        ]

    def close(self) -> None:
        """Closes the run's files."""
        self._prompts.close()

    def _long_id(self, text: str) -> str:
        """The id of the deciding attempt that a short id names; any other text as it is."""
        place = parse_short_id(text)
        if place is None:
            return text
        chosen = (pc.field("prompt_index") == place.prompt_index) & (pc.field("rollout_index") == place.rollout_index)
        found = pq.read_table(self._tables / "rollouts.parquet", columns=["trajectory_id"], filters=chosen)
        return str(found["trajectory_id"][0].as_py()) if found.num_rows else text

    def _rows(self, table: str, wanted: Any) -> dict[str, dict[str, Any]]:
        rows = _matching(self._tables / f"{table}.parquet", wanted)
        return {row["trajectory_id"]: row for row in rows}

    def _turns(self, wanted: Any) -> dict[str, list[dict[str, Any]]]:
        turns: dict[str, list[dict[str, Any]]] = {}
        for row in _matching(self._tables / "trajectories.parquet", wanted):
            turns.setdefault(row["trajectory_id"], []).append(row)
        return turns

    def _unknown(self, trajectory_id: str) -> str:
        with pq.ParquetFile(self._tables / "attempts.parquet") as file:
            batch = next(file.iter_batches(columns=["trajectory_id"], batch_size=_NEAR_IDS), None)
        ids = [] if batch is None else [str(i) for i in batch["trajectory_id"].to_pylist()]
        started = [i for i in ids if i.startswith(trajectory_id)]
        near = f" Did you mean {started[0]!r}?" if started else did_you_mean(trajectory_id, ids)
        return f"no trajectory {shown(trajectory_id)} in this run.{near or ' Its ids are in rollouts.parquet.'}"

    def _trajectory(
        self, row: Mapping[str, Any], turns: Iterable[Mapping[str, Any]], attempt: Mapping[str, Any] | None = None
    ) -> RecordedTrajectory:
        prompt = self._prompts.read(row["prompt_index"])
        recorded = tuple(_turn(turn) for turn in turns)
        rewards = row.get("rewards")
        return RecordedTrajectory(
            prompt=prompt.text,
            columns=_object(prompt.columns),
            prompt_index=row["prompt_index"],
            rollout_index=row["rollout_index"],
            trajectory_id=row["trajectory_id"],
            attempt=row["attempts"] if attempt is None else attempt["attempt"],
            is_final=attempt is None or attempt["is_final"],
            reward=row.get("reward"),
            rewards=None if rewards is None else tuple(rewards),
            is_success=bool(row.get("success")),
            error=row["error"],
            error_kind=row["error_kind"],
            metrics={name: value for name, value in (row.get("metrics") or {}).items() if value is not None},
            flags=tuple(row.get("flags") or ()),
            labels=_object(row.get("labels")),
            returned=_object(row.get("returned")),
            turns=tuple(_parsed(turn) for turn in recorded),
            seconds=row["seconds"],
            output="" if attempt is None else attempt["output"],
            recorded_turns=recorded,
        )


@contextmanager
def open_recordings(run: Run) -> Iterator[Recordings]:
    """Opens the run's trajectories; leaving the context closes them."""
    with open_tables(run) as folder:
        recordings = Recordings(run, folder)
        try:
            yield recordings
        finally:
            recordings.close()


@contextmanager
def open_tables(run: Run) -> Iterator[Path]:
    """Yields the folder with the run's Parquet files; for a run that is not done, a temporary one made from its journal.

    Raises RunError when no rollout has ended yet, or when the files are missing or damaged.
    """
    if run.prompts_path.exists():
        PromptReader(run.prompts_path).close()
    if run.state.status is JobStatus.COMPLETED or not run.has_journal:
        if run.state.status is not JobStatus.COMPLETED and not run.rollouts_path.exists():
            raise RunError(
                f"run {run.location} holds no finished rollout; continue with: heldout resume {run.location}"
            )
        check_tables(run.folder)
        yield run.folder
        return
    with tempfile.TemporaryDirectory(prefix="heldout-") as folder:
        group_size = run.document.hyperparameters.eval_group_size
        write_tables(run, JournalIndex.of(run.journal_folder, group_size), Path(folder))
        yield Path(folder)


class _Prompts:
    """Prompts by their row number in the dataset: 8 bytes a prompt, and the row groups that PromptReader keeps."""

    def __init__(self, path: Path) -> None:
        self._reader = PromptReader(path)
        indices: IntArray = pq.read_table(path, columns=["prompt_index"])["prompt_index"].to_numpy()
        self._order = np.argsort(indices, kind="stable")
        self._sorted = indices[self._order]

    def read(self, prompt_index: int) -> Prompt:
        place = int(np.searchsorted(self._sorted, prompt_index))
        if place == len(self._sorted) or self._sorted[place] != prompt_index:
            raise RunError(f"the run's prompts.parquet has no prompt {prompt_index}, but a rollout of it was recorded")
        return self._reader.read(int(self._order[place]))

    def close(self) -> None:
        self._reader.close()


class _TurnGroups:
    """The turns of deciding attempts, in the order of their rollouts in rollouts.parquet."""

    def __init__(self, path: Path) -> None:
        self._rows = self._read(path)
        self._next = next(self._rows, None)

    def of(self, trajectory_id: str, num_turns: int) -> list[dict[str, Any]]:
        turns: list[dict[str, Any]] = []
        while self._next is not None and self._next["trajectory_id"] == trajectory_id:
            turns.append(self._next)
            self._next = next(self._rows, None)
        answered = sum(turn["status"] == ANSWERED for turn in turns)
        if answered != num_turns:
            raise RunError(
                f"trajectories.parquet has {answered} turns of trajectory {trajectory_id} and rollouts.parquet has "
                f"{num_turns}; the two files are not of one run; copy the whole folder again"
            )
        return turns

    @staticmethod
    def _read(path: Path) -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.filter(batch["is_final"]).to_pylist()


def _matching(path: Path, wanted: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows with one of the wanted trajectory ids; reads only the row groups that hold one."""
    with pq.ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            ids = file.read_row_group(number, columns=["trajectory_id"])["trajectory_id"]
            found = pc.is_in(ids, value_set=wanted)
            if pc.any(found).as_py():
                yield from file.read_row_group(number).filter(found).to_pylist()


def _turn(row: Mapping[str, Any]) -> Turn:
    logprobs = row["logprobs"]
    return Turn(
        index=row["turn"],
        parent=row["parent"],
        shared_messages=row["shared_messages"],
        messages=row["messages"].encode(),
        request=(row["request"] or "").encode(),
        reply=(row["reply"] or "").encode(),
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        response_tokens=row["response_tokens"],
        logprobs=None if logprobs is None else tuple(logprobs),
        started_at=row["started_at"].timestamp(),
        seconds=row["seconds"],
        status=row["status"],
        error=row["error"],
    )


def _parsed(turn: Turn) -> RecordedTurn:
    return RecordedTurn(
        index=turn.index,
        parent=turn.parent,
        shared_messages=turn.shared_messages,
        messages=_messages(turn.messages),
        replies=_messages(turn.reply),
        finish_reason=turn.finish_reason,
        prompt_tokens=turn.prompt_tokens,
        response_tokens=turn.response_tokens,
        logprobs=turn.logprobs,
        seconds=turn.seconds,
        status=turn.status,
        error=turn.error,
    )


def _object(text: str | None) -> dict[str, Any]:
    return cast("dict[str, Any]", read_json(text)) if text else {}


def _messages(text: bytes) -> list[Message]:
    """Parses a JSON array of messages. A value that is no object becomes the content of a message of role `unknown`."""
    values: Any = read_json(text or b"[]")
    return [value if isinstance(value, dict) else {"role": "unknown", "content": value} for value in values]
