"""One run as the report needs it: rows, numbers, findings and settings, collected once."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
import pyarrow.parquet as pq

from heldout.metrics.catalog import pass_at, pass_power
from heldout.metrics.failures import FailureReason
from heldout.metrics.settings import MetricSettings
from heldout.metrics.summary import Summary, summarize
from heldout.report.card_rows import CardRow, card_rows
from heldout.report.charts import Curve
from heldout.report.labels import heading
from heldout.report.rollout_rows import RolloutRows
from heldout.report.run_analysis import analyze
from heldout.report.sanitizing import one_line
from heldout.report.slices import Slice, columns_of, slices
from heldout.runs.recordings import RecordedTrajectory, Recordings, open_tables
from heldout.runs.run import JobStatus, Run

_POINTS = 14
"""The most points of a curve, evenly spread on the chart's logarithmic scale of k."""
_MOST_SLICE_COLUMNS = 4
_MOST_SLICE_VALUES = 12
_TEXT_CHARACTERS = 160
_NAME_CHARACTERS = 40
_HASH_DIGITS = 16
"""Length of the prompt hash in prompts.parquet."""


@dataclass(frozen=True, slots=True)
class Rescoring:
    """The content of `agreement-<scorer>.json`."""

    scorer: str
    document: dict[str, Any]


class KeyedPrompt(NamedTuple):
    """A prompt and the dataset rows that contain it."""

    text: str
    indices: tuple[int, ...]


class PolicyView:
    """A run that is open for reading. Leaving the context closes it."""

    def __init__(self, run: Run, name: str, style: str, training: str | None = None) -> None:
        """name: the policy's name on the page. style: `base` or `tuned`, its class in the charts."""
        self.run = run
        self.name = name
        self.style = style
        self._training = training
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            tables = self._stack.enter_context(open_tables(self.run))
            self.settings: MetricSettings = self.run.metric_settings
            self.rows = RolloutRows.read(tables)
            self.summary, self.findings = analyze(self.run, training=self._training)
            self._recordings = Recordings(self.run, tables)
            self._stack.callback(self._recordings.close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_partial(self) -> bool:
        return self.run.state.status is not JobStatus.COMPLETED

    @property
    def title(self) -> str:
        return f"{self.run.state.name}/{self.run.state.run_name}"

    def trajectories(self, ids: list[str]) -> list[RecordedTrajectory]:
        """Read these trajectories."""
        return self._recordings.read(ids)

    def facts(self) -> list[tuple[str, str]]:
        """Describe the model, the agent, the dataset and the settings."""
        document, state = self.run.document, self.run.state
        parameters = document.hyperparameters
        group = parameters.eval_group_size
        started = datetime.fromtimestamp(state.started_at or state.created_at, UTC)
        return [
            ("model", one_line(document.model.description, _TEXT_CHARACTERS)),
            ("agent", one_line(document.agent_config.agent.text, _TEXT_CHARACTERS)),
            ("prompts", one_line(document.prompts.data_source.dataset, _TEXT_CHARACTERS)),
            ("rollouts", f"{group} of each prompt, {self.rows.num_rollouts:,} finished"),
            (
                "sampling",
                f"temperature {parameters.sampling_temperature:g}, top p {parameters.top_p:g}, "
                f"at most {parameters.max_tokens:,} tokens a reply",
            ),
            ("success", f"a reward of {parameters.success_threshold:g} or more"),
            ("failed rollouts", "left out" if self.settings.failed_rollouts == "exclude" else "count as reward 0"),
            ("started", started.strftime("%Y-%m-%d %H:%M UTC")),
            ("took", _duration(state.evaluation_seconds)),
        ]

    def card(self) -> tuple[CardRow, ...]:
        """Lists versions and hashes of everything that took part; empty for a run of an older version."""
        return () if self.run.state.card is None else card_rows(self.run.state.card)

    @cached_property
    def curves(self) -> tuple[Curve, Curve]:
        """Compute pass@k and pass^k for k from 1 to the size of the largest group."""
        counts = np.unique(self.rows.prompt_index, return_counts=True)[1]
        largest = int(counts.max()) if len(counts) else 1
        ks = tuple(int(k) for k in np.unique(np.round(np.geomspace(1, largest, _POINTS))))
        settings = replace(self.settings, pass_k_values=ks)
        summary = summarize(self.rows.rollout_table(), None, settings, seconds=None)
        return _curve(summary, ks, pass_at, self.style), _curve(summary, ks, pass_power, f"{self.style} power")

    def failures(self) -> tuple[FailureReason, ...]:
        """Returns the reasons of failed rollouts, the most common first."""
        return self.rows.failures

    def slices(self) -> list[tuple[str, list[Slice]]]:
        """Compute results by those dataset columns that divide the prompts into a few slices."""
        if not self.run.prompts_path.exists():
            return []
        found: list[tuple[str, list[Slice]]] = []
        for column in columns_of(self.run.prompts_path):
            if len(found) == _MOST_SLICE_COLUMNS:
                break
            parts = slices(self.run.prompts_path, self.rows, column, self.settings)
            if 2 <= len(parts) <= _MOST_SLICE_VALUES:
                found.append((one_line(column, _NAME_CHARACTERS), parts))
        return found

    def rescorings(self) -> list[Rescoring]:
        """Read the independent scores of this run's trajectories."""
        documents = [orjson.loads(path.read_bytes()) for path in sorted(self.run.folder.glob("agreement-*.json"))]
        return [Rescoring(str(document["scorer"]), document) for document in documents]

    def prompts(self, keys: Iterable[str]) -> dict[str, KeyedPrompt]:
        """Map a comparison's prompt keys (the SHA-256 of the text, or its beginning) to the run's prompts."""
        wanted = {key[:_HASH_DIGITS]: key for key in keys}
        found: dict[str, KeyedPrompt] = {}
        with pq.ParquetFile(self.run.prompts_path) as file:
            for batch in file.iter_batches(columns=["prompt_hash", "prompt_index", "prompt"]):
                rows = zip(
                    *(batch[name].to_pylist() for name in ("prompt_hash", "prompt_index", "prompt")), strict=True
                )
                for short, index, text in rows:
                    if key := wanted.get(str(short)):
                        before = found.get(key, KeyedPrompt(str(text), ()))
                        found[key] = KeyedPrompt(before.text, (*before.indices, int(index or 0)))
        return found


def _curve(summary: Summary, ks: tuple[int, ...], metric: Callable[[int | str], str], style: str) -> Curve:
    """metric: the wire name for each k."""
    known = [k for k in ks if metric(k) in summary.metrics]
    return Curve(
        name=heading(metric("k")),
        style=style,
        k=tuple(known),
        values=tuple(summary.metrics[metric(k)] for k in known),
        bands=tuple(summary.intervals.get(metric(k)) for k in known),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
