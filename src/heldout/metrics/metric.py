"""A row of the metric catalog: its names, unit, range and direction, and the pure function that computes it.

A metric's function takes a run's tables (`MetricTables`) and returns one of these:

    float        a count, a least or greatest value, a spread: it has no interval
    RowMean      the mean over rollouts or turns
    PromptMean   the mean over prompts of one value for each prompt
    RatioMean    a mean over rows that are known only as one sum and one count for each prompt
    Absent       nothing, and the reason
    None         nothing, where another metric's reason says why

The three means hold what each prompt contributes, so `heldout.metrics.summary` derives their intervals and
`heldout.metrics.comparison` pairs them between runs. A function therefore computes no interval and no p-value.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property

from heldout.metrics.beta_binomial import Quantity
from heldout.metrics.sample import Sample
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import FloatArray, Groups, IntArray, RolloutTable, TurnTable

SHARE = "share"
"""The unit of rates and probabilities: in [0, 1], shown as a percentage."""


@dataclass(frozen=True)
class MetricTables:
    """What a metric is computed from: the finished rollouts of one run."""

    rollouts: RolloutTable
    turns: TurnTable | None
    """None where model calls are not at hand, as in a comparison: metrics of turns are then absent."""
    settings: MetricSettings
    agent_metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    """By name, shape (num_rollouts,); NaN where the agent gave none."""
    seconds: float | None = None
    """Wall-clock seconds of the evaluation; None when unknown."""
    agent_retries: IntArray | None = None
    """Shape (num_rollouts,): attempts before the deciding one that the agent or the model failed, not a machine or a server. None
    when unknown."""

    @cached_property
    def sample(self) -> Sample:
        """The rollouts that count under `settings.failed_rollouts`, with their rewards and successes."""
        return Sample.of(self.rollouts, self.settings)

    @cached_property
    def groups(self) -> Groups:
        """All finished rollouts by prompt, failed ones included."""
        return Groups.of(self.rollouts.prompt_index)


@dataclass(frozen=True, slots=True)
class RowMean:
    """The mean of one value for each row (a rollout or a turn); the rows of a prompt belong together."""

    values: FloatArray
    """Shape (num_rows,), at least one, no NaN."""
    groups: Groups
    """The prompts of the rows."""
    note: str = ""
    """What a reader must know, such as how many rows have no value."""
    is_reward: bool = False
    """Whether it averages rewards, which are at least the success threshold wherever a rollout succeeds."""


@dataclass(frozen=True, slots=True)
class PromptMean:
    """The mean over prompts of one value for each prompt."""

    values: FloatArray
    """Shape (num_prompts,), at least one, no NaN."""
    prompt_index: IntArray
    """Shape (num_prompts,), sorted, each once."""
    successes: IntArray | None = None
    """For a rate: successful rollouts of each prompt, shape (num_prompts,)."""
    sizes: IntArray | None = None
    """For a rate: rollouts of each prompt, shape (num_prompts,)."""
    quantity: Quantity | None = None
    """For a rate: what the values estimate."""
    note: str = ""
    is_reward: bool = False
    """Whether it averages rewards, which are at least the success threshold wherever a rollout succeeds."""


@dataclass(frozen=True, slots=True)
class RatioMean:
    """The mean over rows that are known by their sum and count for each prompt, such as the tokens of a prompt's turns."""

    value: float
    sums: FloatArray
    """Shape (num_prompts,)."""
    counts: FloatArray
    """Shape (num_prompts,)."""
    prompt_index: IntArray
    """Shape (num_prompts,), sorted, each once."""

    @property
    def is_reward(self) -> bool:
        """Never: rewards are known one by one."""
        return False


@dataclass(frozen=True, slots=True)
class Absent:
    """A metric that these tables cannot give."""

    reason: str


Mean = RowMean | PromptMean | RatioMean
Result = float | Mean | Absent | None


class Direction(StrEnum):
    """Which way a metric is better."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "neither"
    """More is not better and not worse, or depends on the task."""


class Section(Enum):
    """Parts of the table of a run, from top to bottom."""

    REWARDS = 1
    SUCCESS = 2
    TURNS = 3
    AGENT = 4
    LOG_PROBABILITIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. A new one is a row of this kind in `heldout.metrics.catalog` and the function that it names."""

    name: str
    """On the wire: in metrics.json, comparison.json and MLflow. A path such as `eval/turns/mean`."""
    label: str
    """In reports and comparisons: `turns a rollout`."""
    meaning: str
    """One sentence without a full stop."""
    compute: Callable[[MetricTables], Result]
    """A pure function."""
    unit: str
    """In the plural, such as `turns`; `SHARE` for a rate; empty where each agent decides."""
    low: float | None = None
    """The least value that is possible. Intervals end there."""
    high: float | None = None
    """The greatest value that is possible. Intervals end there."""
    direction: Direction = Direction.NEITHER
    short_name: str = ""
    """In the table of a run, where the label is longer: `turns`."""
    aliases: tuple[str, ...] = ()
    """Further names that a person may type."""
    section: Section | None = None
    """Where the table of a run shows it. None: only metrics.json, the report's list of all metrics and MLflow have it."""
    is_hidden_when_absent: bool = False
    """Whether the table of a run has no row for it when it is absent; otherwise the row holds a dash and the reason."""
    is_compared: bool = False
    """Whether two runs are compared by it. Each such metric makes the corrected p-values of the others larger."""

    @property
    def heading(self) -> str:
        """Its name in the table of a run."""
        return self.short_name or self.label

    @property
    def is_share(self) -> bool:
        """Whether it is shown as a percentage."""
        return self.unit == SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Metrics that differ in one parameter, such as pass@k in k."""

    parameter: str
    """Its name: `k`."""
    member: Callable[[str], Metric]
    """The metric for a value of the parameter; its wire name contains the value."""
    values: Callable[[MetricTables], Iterable[str]]
    """The values that these tables ask for, in order."""

    @property
    def pattern(self) -> Metric:
        """The member for `{k}`: its names show where the value stands. It cannot be computed."""
        return self.member("{" + self.parameter + "}")

    def find(self, name: str) -> Metric | None:
        """The member with this wire name; None when it is none of this family's."""
        before, _, after = self.pattern.name.partition("{" + self.parameter + "}")
        if not (name.startswith(before) and name.endswith(after)):
            return None
        found = self.member(name[len(before) : len(name) - len(after)])
        return found if found.name == name else None
