"""Rescoring: scores the recorded trajectories of a run with an independent scorer and compares the scores with the rewards.

No model is called. It adds two files to the run:

    scores-<scorer>.parquet   a row a rollout: reward, score, the scorer's metrics, its error
    agreement-<scorer>.json   confusion at the thresholds, rank correlation, the largest disagreements first
"""

import asyncio
import math
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from heldout.errors import InputError
from heldout.job.json_values import clean_text
from heldout.job.received import MetricNames
from heldout.metrics.agreement import Agreement, agreement
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import Summary, summarize
from heldout.metrics.table import FloatArray, RolloutTable
from heldout.rescoring.scorer import Score, Scorer, ScorerFunction
from heldout.rescoring.scores import Disagreement, Rescored, agreement_document
from heldout.runs.recordings import RecordedTrajectory, Recordings, open_tables
from heldout.runs.run import Run, write_whole
from heldout.storage import open_atomic

DEFAULT_CONCURRENCY = 16
"""Calls of an async scorer at once: what an ordinary API key allows a judge."""
_NAMED_DISAGREEMENTS = 50
_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY

OnProgress = Callable[[int, int], None]
"""Called with the number of rollouts scored so far and the number to score."""


def rescore(
    run: Run,
    scorer: str | ScorerFunction,
    *,
    threshold: float | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: OnProgress | None = None,
) -> Rescored:
    """Scores every rollout of `run` that has a reward, and writes both files.

    scorer: a function, or `file.py:function`. It takes a RecordedTrajectory and returns a number, optionally with metrics; see
    `heldout.rescoring.scorer`. threshold: a rollout is a success to the scorer when its score is at least this; by default the
    job's success threshold. concurrency: calls of an async scorer at once; a scorer that is not async is called one at a time.
    Earlier files of the same scorer are replaced, each whole or not at all. Raises ReferenceProblem when the scorer cannot be
    loaded, RunError when the run holds no finished rollout, InputError for a concurrency below 1 or a threshold that is not
    finite.
    """
    if concurrency < 1:
        raise InputError(f"concurrency is {concurrency}; it must be an integer from 1 up")
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"threshold is {threshold}; it must be a finite number: the score of a success")
    loaded = Scorer.load(scorer) if isinstance(scorer, str) else Scorer.of(scorer)
    with open_tables(run) as tables:
        columns: Any = pq.read_table(tables / "rollouts.parquet", columns=_ROLLOUT_COLUMNS)
        scores = _Scores(columns.num_rows)
        recordings = Recordings(run, tables)
        try:
            limit = concurrency if loaded.is_async else 1
            total = columns.num_rows - columns["reward"].null_count
            _run_to_its_end(_score_all(recordings, loaded, scores, limit, total, on_progress or _no_progress))
        finally:
            recordings.close()
    return _written(run, loaded.name, columns, scores, threshold)


def _no_progress(_done: int, _total: int) -> None: ...


def _run_to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end, in a thread of its own if an event loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, work).result()


_ROLLOUT_COLUMNS = ["prompt_index", "rollout_index", "trajectory_id", "reward", "turns"]


@dataclass(slots=True)
class _Scores:
    """Scores by the row of their rollout in rollouts.parquet: 8 bytes a rollout and metric."""

    num_rollouts: int
    values: "array[float]" = field(init=False)
    metrics: "dict[str, array[float]]" = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    names: MetricNames = field(default_factory=MetricNames)

    def __post_init__(self) -> None:
        self.values = self._blank()

    def _blank(self) -> "array[float]":
        return array("d", [math.nan]) * self.num_rollouts

    def put(self, place: int, score: Score) -> None:
        self.values[place] = score.value
        if score.error is not None:
            self.errors[place] = clean_text(score.error)
        for name, value in self.names.accepted(score.metrics).items():
            if name not in self.metrics:
                self.metrics[name] = self._blank()
            self.metrics[name][place] = value

    @property
    def score(self) -> FloatArray:
        """Shape (num_rollouts,)."""
        return _numbers(self.values)

    @property
    def metric_columns(self) -> dict[str, FloatArray]:
        """The scorer's metrics by name, each shape (num_rollouts,)."""
        return {name: _numbers(values) for name, values in self.metrics.items()}


def _numbers(values: "array[float]") -> FloatArray:
    return np.frombuffer(values) if len(values) else np.empty(0)


async def _score_all(
    recordings: Recordings, scorer: Scorer, scores: _Scores, limit: int, total: int, on_progress: OnProgress
) -> None:
    done = 0

    async def score(place: int, trajectory: RecordedTrajectory) -> None:
        nonlocal done
        scores.put(place, await scorer.score(trajectory))
        done += 1
        on_progress(done, total)

    async with asyncio.TaskGroup() as group:
        working: set[asyncio.Task[None]] = set()
        for place, trajectory in enumerate(recordings.stream()):
            if trajectory.reward is None:
                continue
            if len(working) == limit:
                _, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            working.add(group.create_task(score(place, trajectory)))


def _written(run: Run, name: str, columns: Any, scores: _Scores, threshold: float | None) -> Rescored:
    rescored = _compared(run, name, columns, scores, threshold)
    with open_atomic(rescored.scores_path) as file:
        pq.write_table(_score_table(columns, scores), file, compression="zstd")
    write_whole(rescored.agreement_path, orjson.dumps(agreement_document(rescored), option=_JSON))
    return rescored


def _score_table(columns: Any, scores: _Scores) -> Any:
    errors = [scores.errors.get(place) for place in range(scores.num_rollouts)]
    table = columns.drop_columns(["turns"])
    table = table.append_column("score", _nullable(scores.score))
    table = table.append_column("error", pa.array(errors, pa.string()))
    named = {name: _nullable(values) for name, values in scores.metric_columns.items()}
    if named:
        table = table.append_column("metrics", pa.StructArray.from_arrays(list(named.values()), list(named)))
    return table


def _nullable(values: FloatArray) -> Any:
    return pa.array(values, mask=np.isnan(values))


def _compared(run: Run, name: str, columns: Any, scores: _Scores, threshold: float | None) -> Rescored:
    settings = run.metric_settings
    score = scores.score
    reward: FloatArray = np.asarray(columns["reward"].to_numpy(), dtype=np.float64)
    least = settings.success_threshold if threshold is None else threshold
    compared: Agreement | None = None
    if np.isfinite(score).any():
        compared = agreement(
            reward,
            score,
            columns["prompt_index"].to_numpy(),
            reward_threshold=settings.success_threshold,
            score_threshold=least,
            confidence=settings.confidence,
        )
    summary = _summary(columns, reward, score, settings)
    return Rescored(
        scorer=name,
        scores_path=run.folder / f"scores-{name}.parquet",
        agreement_path=run.folder / f"agreement-{name}.json",
        scored=int(np.isfinite(score).sum()),
        errors=dict(Counter(scores.errors.values()).most_common()),
        skipped=int(columns["reward"].null_count),
        score_mean=summary.metrics.get("agent/score"),
        score_interval=summary.intervals.get("agent/score"),
        reward_threshold=settings.success_threshold,
        score_threshold=least,
        agreement=compared,
        disagreements=_disagreements(columns, compared, reward, score),
        confidence=settings.confidence,
    )


def _summary(columns: Any, reward: FloatArray, score: FloatArray, settings: MetricSettings) -> Summary:
    """Summarizes the run with the score as an agent metric, so that its mean gets the same kind of interval."""
    rollouts = RolloutTable(
        prompt_index=columns["prompt_index"].to_numpy(),
        rollout_index=columns["rollout_index"].to_numpy().astype(np.int64),
        is_scored=np.isfinite(reward),
        reward=reward,
        turns=columns["turns"].to_numpy().astype(np.int64),
    )
    return summarize(rollouts, None, settings, agent_metrics={"score": score}, seconds=None)


def _disagreements(
    columns: Any, compared: Agreement | None, reward: FloatArray, score: FloatArray
) -> tuple[Disagreement, ...]:
    if compared is None:
        return ()
    places = compared.disagreements[:_NAMED_DISAGREEMENTS]
    rows = columns.take(pa.array(places)).to_pylist()
    return tuple(
        Disagreement(row["trajectory_id"], row["prompt_index"], row["rollout_index"], float(reward[p]), float(score[p]))
        for p, row in zip(places, rows, strict=True)
    )
