"""Opens the results of runs and evaluations: numbers, findings, tables, trajectories."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
from rich.console import RenderableType

from heldout.backends.local.evaluation_index import locate
from heldout.backends.results import run_document, run_results
from heldout.datasets.columns import column_names, read_rows
from heldout.errors import InputError, MetricError, RunError
from heldout.execution import Execution
from heldout.job.card import RunCard
from heldout.job.hyperparameters import Hyperparameters
from heldout.metrics.catalog import resolve
from heldout.metrics.summary import Summary
from heldout.pipeline.evaluation import Evaluation
from heldout.report.finding import Finding
from heldout.report.rollout_rows import RolloutRows
from heldout.report.run_analysis import RunAnalysis, analyze
from heldout.report.slices import slices
from heldout.results.records import ComparisonResult, MetricValue, Printable, SliceTable, Trajectory, compared
from heldout.runs.frames import Frame, FrameKind, TableName, batches_of, prompts_of, table_of
from heldout.runs.recordings import Message, open_recordings, open_tables
from heldout.runs.remote_mirror import open_run
from heldout.runs.run import JobStatus, Run


class RunResults(Printable):
    """The results of one run: a policy's rollouts of one dataset.

    Numbers and findings are computed at their first use and kept; `load` again for those of a run that still plays. They raise
    RunError when no rollout has ended yet or files are missing or damaged.
    """

    def __init__(self, run: Run, *, training: str | None = None) -> None:
        """training: a dataset that the policy was trained on; a finding names its prompts among the held-out ones."""
        self.run = run
        self._training = training

    @property
    def name(self) -> str:
        """The run's name in its evaluation: the candidate's, such as `tuned`."""
        return self.run.state.run_name

    @property
    def evaluation_name(self) -> str:
        return self.run.state.name

    @property
    def location(self) -> str:
        """The run's folder or `s3://` URI."""
        return self.run.location

    @property
    def status(self) -> str:
        """InProgress, Completed, Failed or Stopped."""
        return str(self.run.state.status)

    @property
    def is_partial(self) -> bool:
        """Whether the run ended, or was read, before all of its rollouts were played."""
        return self.run.state.status is not JobStatus.COMPLETED

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.run.document.hyperparameters

    @property
    def card(self) -> RunCard | None:
        """Versions and hashes of everything that took part; None for a run of an older version."""
        return self.run.state.card

    @property
    def summary(self) -> Summary:
        """All numbers of the run, with counts of scored, failed and missing rollouts, and the confidence of the intervals."""
        return self._analysis.summary

    @cached_property
    def metrics(self) -> Mapping[str, MetricValue]:
        """Metrics with their intervals, by their names in `metrics.json`. A number that is unknown is absent; see `notes`."""
        summary = self.summary
        return _metrics(summary.metrics, summary.intervals, summary.notes)

    @property
    def notes(self) -> Mapping[str, str]:
        """By metric: why it is absent, why it has no interval, or how to read it."""
        return self.summary.notes

    def metric(self, name: str) -> MetricValue:
        """Returns one metric by any of its names, such as `pass@1` or `eval/reward/pass_at_1`.

        Raises MetricError for an unknown name, or with the reason why the run lacks this number.
        """
        known = resolve(name, self.metrics.keys() | self.notes.keys(), problem="is not one of this run's")
        if known not in self.metrics:
            raise MetricError(f"metric {known!r} is not known: {self.notes[known]}")
        return self.metrics[known]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What to know before trusting the numbers, the most serious first."""
        return tuple(self._analysis.findings)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the dataset's columns except the prompt, in the order in which they first appear."""
        return tuple(column_names(read_rows(self.run.prompts_path)[1]))

    def rollouts(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row a rollout, by prompt and rollout: the columns of `rollouts.parquet` and the run's name as `run`.

        frame: `"pandas"`, `"polars"` or `"arrow"`. columns: columns of the dataset to join, each as `dataset.<name>`; `"prompt"`
        joins the prompt's text. For a table too large for memory see `batches`. Raises MissingExtra when the library is not
        installed, InputError for an unknown column, RunError when no rollout has ended.
        """
        return table_of(self._by_name, "rollouts", frame, columns=columns)

    def trajectories(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row a turn (model call): the columns of `trajectories.parquet`; see `rollouts`.

        Messages are JSON text, each stored once; `trajectory` and `conversation` rebuild them.
        """
        return table_of(self._by_name, "trajectories", frame, columns=columns)

    def attempts(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row an attempt, failed ones included: the columns of `attempts.parquet`; see `rollouts`."""
        return table_of(self._by_name, "attempts", frame, columns=columns)

    def prompts(self, frame: FrameKind = "pandas") -> Frame:
        """Returns a row a prompt in the dataset's order: `run`, `prompt_index`, `prompt`, and each `dataset.<name>`."""
        return prompts_of(self._by_name, frame)

    def batches(self, table: TableName = "rollouts", *, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yields the rows of `rollouts`, `trajectories` or `attempts`, a few thousand in memory at a time.

        Rows come in the order in which rollouts ended, without the column `run`. columns: see `rollouts`.
        """
        return batches_of(self.run, table, columns=columns)

    def iter_trajectories(self) -> Iterator[Trajectory]:
        """Yields each finished rollout's deciding attempt in the order in which they ended, a few in memory at a time."""
        with open_recordings(self.run) as recordings:
            for recorded in recordings.stream():
                yield Trajectory.of(recorded)

    def trajectory(self, trajectory_id: str) -> Trajectory:
        """Returns one attempt with what its agent printed. Raises RunError for an unknown id, naming the nearest."""
        with open_recordings(self.run) as recordings:
            return Trajectory.of(recordings.read([trajectory_id])[0])

    def conversation(self, trajectory_id: str, turn: int | None = None) -> list[Message]:
        """Rebuilds a conversation as a list of OpenAI chat messages, the model's last reply included.

        trajectory_id: as in the tables. turn: a model call, from 0; by default the last one. The list is empty when the model
        was never called. Raises RunError for an unknown id, InputError for a turn that there is not.
        """
        recorded = self.trajectory(trajectory_id)
        if turn is None:
            return recorded.messages
        if not 0 <= turn < len(recorded.turns):
            raise InputError(f"turn is {turn!r}; trajectory {trajectory_id} has {len(recorded.turns)}, counted from 0")
        return recorded.conversation(turn)

    def slices(self, column: str) -> SliceTable:
        """Returns the results for each value of a column of the dataset. Raises InputError for an unknown column."""
        settings = self.run.metric_settings
        with open_tables(self.run) as folder:
            found = slices(self.run.prompts_path, RolloutRows.read(folder), column, settings)
        return SliceTable(column, tuple(found), settings.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `heldout show --json` prints of a run: numbers, intervals, counts and findings."""
        return run_document(self.run, training=self._training)

    def __rich__(self) -> RenderableType:
        return run_results(self.run, training=self._training)

    def __repr__(self) -> str:
        return f"RunResults({self.location!r}, status={self.status!r})"

    @cached_property
    def _analysis(self) -> RunAnalysis:
        return analyze(self.run, training=self._training)

    @property
    def _by_name(self) -> dict[str, Run]:
        return {self.name: self.run}


class EvaluationResults(Printable):
    """The results of an evaluation: its runs and their comparison, on this machine or in AWS."""

    def __init__(self, execution: Execution, *, training: str | None = None) -> None:
        """training: see `RunResults`."""
        self._execution = execution
        self._training = training

    @property
    def name(self) -> str:
        return self._execution.name

    @property
    def arn(self) -> str:
        return self._execution.arn

    @property
    def location(self) -> str:
        """The evaluation's folder or `s3://` URI."""
        return self._execution.path

    @property
    def status(self) -> str:
        """Executing, Stopping, Stopped, Failed or Succeeded."""
        return self._execution.status.overall_status

    @cached_property
    def runs(self) -> Mapping[str, RunResults]:
        """The runs that have begun, by name, the baseline's first.

        A managed job whose output holds no run is absent; `metrics` has the numbers that it logged to MLflow.
        """
        return {name: RunResults(run, training=self._training) for name, run in self._execution.runs().items()}

    @property
    def metrics(self) -> Mapping[str, Mapping[str, MetricValue]]:
        """Each run's metrics, by the run's name and the metric's; see `RunResults.metrics`."""
        found = self._execution.metrics
        return {
            name: _metrics(one["metrics"], one.get("intervals", {}), one.get("notes", {}))
            for name, one in found.items()
        }

    @property
    def findings(self) -> Mapping[str, tuple[Finding, ...]]:
        """Each run's findings, by the run's name; see `RunResults.findings`."""
        return {name: run.findings for name, run in self._played.items()}

    @cached_property
    def comparison(self) -> "ComparisonResult | None":
        """The evaluated model against the baseline; None before both have rollouts, and when their runs share no prompt."""
        pair = self._execution.pair()
        if pair is None or not all(run.has_rollouts for run in pair):
            return None
        try:
            return compared(*pair)
        except MetricError:
            return None

    def only_run(self) -> RunResults:
        """Returns the run of an evaluation that has one. Raises RunError when there are several, or none has begun."""
        if len(self.runs) == 1:
            return next(iter(self.runs.values()))
        if not self.runs:
            raise RunError(f"evaluation {self.location} has begun no run yet")
        names = " or ".join(run.location for run in self.runs.values())
        raise RunError(f"evaluation {self.location} has {len(self.runs)} runs; name one: {names}")

    def rollouts(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row a rollout of every run, `run` holding the run's name; see `RunResults.rollouts`."""
        return table_of(self._run_folders, "rollouts", frame, columns=columns)

    def trajectories(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row a turn (model call) of every run; see `RunResults.trajectories`."""
        return table_of(self._run_folders, "trajectories", frame, columns=columns)

    def attempts(self, frame: FrameKind = "pandas", *, columns: Sequence[str] = ()) -> Frame:
        """Returns a row an attempt of every run; see `RunResults.attempts`."""
        return table_of(self._run_folders, "attempts", frame, columns=columns)

    def prompts(self, frame: FrameKind = "pandas") -> Frame:
        """Returns a row a prompt of every run; see `RunResults.prompts`."""
        return prompts_of(self._run_folders, frame)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `heldout show --json` prints of an evaluation: status, each run's numbers, and the comparison."""
        return self._execution.to_dict()

    def __rich__(self) -> RenderableType:
        return self._execution.__rich__()

    def __repr__(self) -> str:
        return f"EvaluationResults({self.location!r}, status={self.status!r})"

    @property
    def _played(self) -> Mapping[str, RunResults]:
        return {name: run for name, run in self.runs.items() if run.run.has_rollouts}

    @property
    def _run_folders(self) -> Mapping[str, Run]:
        return {name: run.run for name, run in self.runs.items()}


Place = str | os.PathLike[str] | RunResults | EvaluationResults | Execution
"""A local path, an `s3://` URI, an evaluation's ARN, a result of `load`, or a started evaluation."""


def load(place: Place, *, training: str | None = None) -> RunResults | EvaluationResults:
    """Opens the results of a run or an evaluation.

    training: a dataset that the policy was trained on; a finding names its prompts among the held-out ones. An evaluation's
    status is read at once, numbers at their first use. Raises RunError when there is neither a run nor an evaluation,
    ReferenceProblem for an ARN that is known neither here nor in AWS, CloudError or StorageError when a service refuses.
    """
    if isinstance(place, RunResults | EvaluationResults):
        return place
    if isinstance(place, Execution):
        return EvaluationResults(place, training=training)
    location = locate(place)
    if location.startswith("arn:") or Evaluation.is_known(location):
        return EvaluationResults(Execution.get(location), training=training)
    return RunResults(open_run(location), training=training)


def load_run(place: Place, *, training: str | None = None) -> RunResults:
    """Opens the results of a run, or of the only run of an evaluation. Raises as `load`, and RunError for several runs."""
    found = load(place, training=training)
    return found.only_run() if isinstance(found, EvaluationResults) else found


def _metrics(
    values: Mapping[str, float], intervals: Mapping[str, Sequence[float]], notes: Mapping[str, str]
) -> dict[str, MetricValue]:
    return {
        name: MetricValue(
            name, value, None if (ends := intervals.get(name)) is None else (ends[0], ends[1]), notes.get(name, "")
        )
        for name, value in values.items()
    }
