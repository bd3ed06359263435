"""The records of the public API: numbers with their intervals, trajectories, comparisons, gates, plans.

Each prints as the table that the terminal shows, and gives the JSON that the command prints.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self
from xml.etree import ElementTree

from rich.console import RenderableType
from rich.text import Text

from heldout.errors import InputError
from heldout.metrics.comparison import Comparison
from heldout.metrics.gates import GateResult
from heldout.metrics.planning import NextRollouts, Plan
from heldout.metrics.ranking import Ranking
from heldout.report import comparison_tables
from heldout.report.console import text_of
from heldout.report.numbers import interval_text, number
from heldout.report.rescoring_table import rescored as rescoring_table
from heldout.report.slices import Slice
from heldout.report.terminal import slice_table
from heldout.report.trajectory import trajectory as trajectory_text
from heldout.rescoring.scores import Rescored, agreement_document
from heldout.runs.comparison import compare_runs, comparison_document, prompt_texts
from heldout.runs.planning import PilotPlan
from heldout.runs.recordings import RecordedTrajectory
from heldout.runs.run import Run


class Printable:
    """A result that prints as the table that the terminal shows, in color on a terminal through `rich.print`."""

    __slots__ = ()

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        return text_of(self)


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number of a run."""

    name: str
    """Its name in `metrics.json`, such as `eval/reward/pass_at_1`."""
    value: float
    interval: tuple[float, float] | None
    """Low and high end at the run's confidence; None for a number that has no interval."""
    note: str
    """Why the interval is missing or says little; empty when there is nothing to add."""

    def __str__(self) -> str:
        return f"{number(self.value)} {interval_text(self.interval)}".rstrip()


@dataclass(frozen=True)
class Trajectory(Printable, RecordedTrajectory):
    """One attempt at a rollout: its prompt, its turns, and its outcome."""

    @classmethod
    def of(cls, recorded: RecordedTrajectory) -> Self:
        """Makes a recorded trajectory printable."""
        return cls(**_values(recorded))

    def to_dict(self) -> dict[str, Any]:
        """Returns what `heldout show --trajectory --json` prints; each turn holds its whole `conversation`."""
        turns = [{**asdict(turn), "conversation": self.conversation(turn.index)} for turn in self.turns]
        rest = {name: value for name, value in _values(self).items() if name not in ("turns", "recorded_turns")}
        return {**rest, "turns": turns}

    def __rich__(self) -> RenderableType:
        return trajectory_text(self)


@dataclass(frozen=True)
class SliceTable(Printable):
    """A run's results for each value of a column of the dataset."""

    column: str
    slices: tuple[Slice, ...]
    """The most common value first; of a number with many values, each quarter in order."""
    confidence: float
    """Of each slice's own interval, such as 0.95."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the column and its slices; `heldout show --slice --json` prints the slices."""
        return {"column": self.column, "slices": [asdict(one) for one in self.slices]}

    def __rich__(self) -> RenderableType:
        return slice_table(self.slices, self.column, self.confidence)


@dataclass(frozen=True)
class ComparisonResult(Printable, Comparison):
    """Two runs on the prompts they share: verdict, differences with intervals and p-values, and the prompts that moved."""

    prompts: Mapping[str, str] = field(repr=False)
    """Text, by `PromptMove.key`, of the prompts that moved most."""

    @classmethod
    def of(cls, comparison: Comparison, prompts: Mapping[str, str]) -> Self:
        """Makes a comparison printable. prompts: see the field."""
        return cls(**_values(comparison), prompts=prompts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `comparison.json`, which `heldout compare --json` prints."""
        return comparison_document(self, self.prompts)

    def __rich__(self) -> RenderableType:
        return comparison_tables.comparison(self, self.prompts)


@dataclass(frozen=True)
class RankingResult(Printable, Ranking):
    """Runs in order of a metric; runs that the prompts cannot separate are tied."""

    @classmethod
    def of(cls, ranking: Ranking) -> Self:
        """Makes a ranking printable."""
        return cls(**_values(ranking))

    def to_dict(self) -> dict[str, Any]:
        """Returns what `heldout compare --json` prints of more than two runs."""
        runs = [{"run": r.name, "rank": r.rank, "value": r.value, "tied_with": list(r.tied_with)} for r in self.runs]
        return {"metric": self.metric, "prompts": self.num_prompts, "runs": runs, "notes": list(self.notes)}

    def __rich__(self) -> RenderableType:
        return comparison_tables.ranking(self)


@dataclass(frozen=True)
class GateReport(Printable):
    """The conditions checked on a run. It is true when all of them hold."""

    name: str
    """The evaluation's name."""
    conditions: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every condition holds."""
        return all(one.passed for one in self.conditions)

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Returns `passed` and the `conditions`; `heldout gate --json` prints the conditions."""
        conditions = [
            {"requirement": c.requirement, "passed": c.passed, "reason": c.reason, "flip_chance": c.flip_chance}
            for c in self.conditions
        ]
        return {"passed": self.passed, "conditions": conditions}

    def write_junit(self, path: str | os.PathLike[str]) -> None:
        """Writes the conditions as test cases of a JUnit XML file. Raises InputError when it cannot be written."""
        failed = sum(not one.passed for one in self.conditions)
        suite = ElementTree.Element(
            "testsuite", name="heldout gate", tests=str(len(self.conditions)), failures=str(failed)
        )
        for one in self.conditions:
            case = ElementTree.SubElement(suite, "testcase", classname=self.name, name=one.requirement)
            if not one.passed:
                ElementTree.SubElement(case, "failure", message=one.explanation)
        try:
            ElementTree.ElementTree(suite).write(os.fspath(path), encoding="utf-8", xml_declaration=True)
        except OSError as error:
            raise InputError(f"junit {str(path)!r} cannot be written: {error.strerror}") from error

    def __rich__(self) -> RenderableType:
        return Text(str(self), no_wrap=True, overflow="ignore")

    def __str__(self) -> str:
        return "\n".join(f"{'pass' if c.passed else 'FAIL'}  {c.requirement}: {c.explanation}" for c in self.conditions)


@dataclass(frozen=True)
class PlanResult(Printable, Plan):
    """Prompts and rollouts that an evaluation needs to show a difference."""

    pilot_detectable: float | None = None
    """The smallest true difference that the pilot itself could have shown; None without one, or with too few prompts."""
    next_rollouts: NextRollouts | None = None
    """What more prompts or larger groups would gain over the pilot; None without one."""

    @classmethod
    def of(cls, planned: PilotPlan) -> Self:
        """Makes a plan printable."""
        return cls(
            **_values(planned.plan), pilot_detectable=planned.pilot_detectable, next_rollouts=planned.next_rollouts
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what `heldout plan --json` prints."""
        options = [
            {"group_size": o.group_size, "prompts": o.num_prompts, "rollouts": o.num_rollouts, "power": o.power}
            for o in self.options
        ]
        best, following, known = self.recommended, self.next_rollouts, self.uncertainty
        return {
            "difference": self.difference,
            "power": self.power,
            "confidence": self.confidence,
            "options": options,
            "recommended": None if best is None else {"group_size": best.group_size, "prompts": best.num_prompts},
            "advice": self.advice,
            "uncertainty": None
            if known is None
            else {"confidence": known.confidence, "prompts": list(known.num_prompts), "power": list(known.power)},
            "pilot_detectable": self.pilot_detectable,
            "next": None if following is None else {"prompt_share": following.prompt_share, "advice": following.advice},
        }

    def __rich__(self) -> RenderableType:
        return comparison_tables.plan(self, self.pilot_detectable, self.next_rollouts)


@dataclass(frozen=True)
class RescoringResult(Printable, Rescored):
    """Scores of an independent scorer, and how far they agree with the rewards."""

    @classmethod
    def of(cls, rescored: Rescored) -> Self:
        """Makes the result of a rescoring printable."""
        return cls(**_values(rescored))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `agreement-<scorer>.json`, which `heldout rescore --json` prints."""
        return agreement_document(self)

    def __rich__(self) -> RenderableType:
        return rescoring_table(self)


def compared(base: Run, fine_tuned: Run, *, margin: float | None = None) -> ComparisonResult:
    """Compares two runs; see `heldout.runs.comparison.compare_runs`."""
    comparison = compare_runs(base, fine_tuned, margin=margin)
    return ComparisonResult.of(comparison, prompt_texts(comparison, fine_tuned))


def _values(record: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass by name, not copied."""
    return {one.name: getattr(record, one.name) for one in fields(record)}
