"""All numbers of a run from its tables: the names of the wire contract, an interval for each mean and rate, and a reason for
each number that cannot be had."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from heldout.metrics.beta_binomial import Quantity
from heldout.metrics.intervals import Interval, mean_interval, rate_interval, why_no_mean_interval
from heldout.metrics.pass_k import pass_at_k_by_prompt, pass_power_k_by_prompt
from heldout.metrics.sample import OVERFLOW, Sample, linearized
from heldout.metrics.settings import MetricSettings
from heldout.metrics.table import FloatArray, Groups, IntArray, RolloutTable, TurnTable


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. A metric that these rollouts cannot give is not in `metrics`; `notes` says why."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Low and high end, for each mean and rate that has one."""
    notes: dict[str, str]
    """By metric: why it, or its interval, is missing or says little."""
    no_interval: dict[str, str]
    """By metric that could have an interval and has none: the reason, which stands in `notes` too."""
    num_prompts: int
    """Prompts with at least one finished rollout."""
    scored: int
    failed: int
    missing: int | None
    """Rollouts planned and not finished; None when the plan was not given."""
    confidence: float


def summarize(
    rollouts: RolloutTable,
    turns: TurnTable | None,
    settings: MetricSettings,
    *,
    agent_metrics: Mapping[str, FloatArray] | None = None,
    seconds: float | None,
    expected_rollouts: int | None = None,
) -> Summary:
    """Every metric of a run.

    agent_metrics: by name, shape (num_rollouts,), NaN where the agent gave none; they become `agent/<name>`.
    seconds: wall-clock time of the evaluation; None when unknown. expected_rollouts: how many the job planned.
    Names and meanings: docs/statistics.md. Every `std` divides by n, not n - 1. A number that would be beyond what a float
    can hold is left out, with a note.
    """
    page = _Page(settings.confidence)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        _add_all(page, rollouts, turns, settings, agent_metrics or {})
    page.leave_out_overflows()
    if seconds is not None:
        page.metrics["timing_s/eval"] = seconds
    scored = int(rollouts.is_scored.sum())
    return Summary(
        metrics=page.metrics,
        intervals=page.intervals,
        notes=page.notes,
        no_interval=page.no_interval,
        num_prompts=len(np.unique(rollouts.prompt_index)),
        scored=scored,
        failed=rollouts.num_rollouts - scored,
        missing=None if expected_rollouts is None else expected_rollouts - rollouts.num_rollouts,
        confidence=settings.confidence,
    )


def _add_all(
    page: "_Page",
    rollouts: RolloutTable,
    turns: TurnTable | None,
    settings: MetricSettings,
    agent_metrics: Mapping[str, FloatArray],
) -> None:
    _add_counts(page, rollouts, settings)
    sample = Sample.of(rollouts, settings)
    if sample.num_rollouts == 0:
        page.notes["eval/reward/mean"] = "no rollout to count: " + _why_empty(rollouts)
    else:
        _add_rewards(page, sample)
        _add_pass_k(page, sample, settings)
        _add_groups(page, sample)
    _add_turn_counts(page, rollouts)
    if turns is not None:
        prompts_of_turns = rollouts.prompt_index[turns.rollout_row]
        _add_tokens(page, turns, prompts_of_turns)
        _add_logprobs(page, turns, prompts_of_turns)
    for name, values in agent_metrics.items():
        _add_agent_metric(page, name, values, rollouts.prompt_index)


@dataclass(slots=True)
class _Page:
    """The numbers as they are worked out."""

    confidence: float
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)

    def add_mean(self, name: str, values: FloatArray, *, least: float = -math.inf) -> None:
        """A metric that is the mean over prompts of values of any size, shape (num_prompts,); least: as in `keep`."""
        self.metrics[name] = float(values.mean())
        self.keep(name, mean_interval(values, self.confidence), values, least=least)

    def keep(self, name: str, interval: Interval | None, values: FloatArray, *, least: float = -math.inf) -> None:
        """The interval of a metric that has the prompts' `values`, shape (num_prompts,), or why there is none.

        least: what the quantity cannot be below. An interval cut off there holds the truth as often as the whole one.
        """
        if interval is not None:
            self.intervals[name] = (max(interval.low, least), interval.high)
        elif (reason := why_no_mean_interval(values)) is not None:
            self.notes[name] = self.no_interval[name] = reason

    def leave_out_overflows(self) -> None:
        for name in [name for name, value in self.metrics.items() if not math.isfinite(value)]:
            del self.metrics[name]
            self.intervals.pop(name, None)
            self.no_interval.pop(name, None)
            self.notes[name] = OVERFLOW
        for name in [name for name, ends in self.intervals.items() if not all(map(math.isfinite, ends))]:
            del self.intervals[name]
            self.notes[name] = self.no_interval[name] = f"no interval: {OVERFLOW}"


def _add_counts(page: _Page, rollouts: RolloutTable, settings: MetricSettings) -> None:
    succeeded = rollouts.is_scored & (np.nan_to_num(rollouts.reward, nan=-np.inf) >= settings.success_threshold)
    num_prompts = len(np.unique(rollouts.prompt_index))
    page.metrics["eval/reward/succeeded_rollouts"] = float(succeeded.sum())
    page.metrics["eval/reward/failed_rollouts"] = float((~rollouts.is_scored).sum())
    page.metrics["eval/reward/num_prompts"] = float(num_prompts)
    if num_prompts:
        page.metrics["eval/reward/rollouts_per_prompt"] = rollouts.num_rollouts / num_prompts
    page.metrics["eval/reward/success_threshold"] = settings.success_threshold


def _why_empty(rollouts: RolloutTable) -> str:
    if rollouts.num_rollouts == 0:
        return "none has finished"
    return f"all {rollouts.num_rollouts} failed, and failed rollouts are excluded"


def _add_rewards(page: _Page, sample: Sample) -> None:
    rewards = sample.rewards
    _add_ratio(page, "eval/reward/mean", sample.groups, rewards)
    page.metrics["eval/reward/min"] = float(rewards.min())
    page.metrics["eval/reward/max"] = float(rewards.max())
    if len(rewards) > 1:
        page.metrics["eval/reward/std"] = float(rewards.std())
    else:
        page.notes["eval/reward/std"] = "one rollout: no spread"
    _add_ratio(page, "eval/reward/zero_frac", sample.groups, (rewards == 0).astype(np.float64), ends=(0.0, 1.0))


def _add_pass_k(page: _Page, sample: Sample, settings: MetricSettings) -> None:
    largest = int(sample.sizes.max())
    for k in settings.pass_k_values:
        for name, by_prompt in (("pass_at", pass_at_k_by_prompt), ("pass_power", pass_power_k_by_prompt)):
            metric = f"eval/reward/{name}_{k}"
            if k > largest:
                page.notes[metric] = f"k = {k} needs {k} rollouts of a prompt; the largest group has {largest}"
                continue
            known = sample.sizes >= k
            successes, sizes = sample.successes[known], sample.sizes[known]
            values = by_prompt(successes, sizes, k)
            page.metrics[metric] = float(values.mean())
            quantity = Quantity(k, is_power=name == "pass_power")
            interval = rate_interval(values, page.confidence, successes=successes, sizes=sizes, quantity=quantity)
            page.keep(metric, interval, values)
            _note_pass_k(page, metric, sample, int((~known).sum()), k)


def _note_pass_k(page: _Page, metric: str, sample: Sample, left_out: int, k: int) -> None:
    notes = [page.notes[metric]] if metric in page.notes else []
    if left_out:
        notes.append(f"{left_out} prompts with fewer than {k} rollouts are left out")
    if sample.is_success.all() and metric in page.intervals:
        notes.append("all rollouts succeeded: the interval is what this many prompts can rule out")
    if not sample.is_success.any() and metric in page.intervals:
        notes.append("no rollout succeeded: the interval is what this many prompts can rule out")
    if notes:
        page.notes[metric] = "; ".join(notes)


def _add_groups(page: _Page, sample: Sample) -> None:
    groups, rewards = sample.groups, sample.rewards
    means = sample.reward_means
    each = Groups(groups.prompt_index, np.arange(groups.num_prompts))
    page.add_mean("eval/reward/mean_within_groups", means)
    _add_ratio(page, "eval/reward/min_within_groups", each, groups.minimum(rewards))
    _add_ratio(page, "eval/reward/max_within_groups", each, groups.maximum(rewards))
    several = sample.sizes > 1
    if several.any():
        deviations = np.square(rewards - means[groups.of_row])
        page.add_mean("eval/reward/std_within_groups", np.sqrt(groups.sum(deviations) / sample.sizes)[several], least=0)
    else:
        page.notes["eval/reward/std_within_groups"] = "one rollout a prompt: no spread within groups"


def _add_turn_counts(page: _Page, rollouts: RolloutTable) -> None:
    if rollouts.num_rollouts == 0:
        return
    _add_ratio(page, "eval/turns/mean", Groups.of(rollouts.prompt_index), rollouts.turns.astype(np.float64), least=0)
    page.metrics["eval/turns/min"] = float(rollouts.turns.min())
    page.metrics["eval/turns/max"] = float(rollouts.turns.max())


def _add_tokens(page: _Page, turns: TurnTable, prompt_index: IntArray) -> None:
    known = ~np.isnan(turns.prompt_tokens)
    unknown = "the policy gave no token counts" if len(known) else "no model call was made"
    if known.any():
        _add_ratio(page, "eval/tokens/prompt_mean", Groups.of(prompt_index[known]), turns.prompt_tokens[known], least=0)
    else:
        page.notes["eval/tokens/prompt_mean"] = unknown
    known = ~np.isnan(turns.response_tokens)
    if not known.any():
        page.notes["eval/tokens/response_mean"] = unknown
        return
    lengths = turns.response_tokens[known]
    _add_ratio(page, "eval/tokens/response_mean", Groups.of(prompt_index[known]), lengths, least=0)
    page.metrics["eval/tokens/response_min"] = float(lengths.min())
    page.metrics["eval/tokens/response_max"] = float(lengths.max())
    if len(lengths) > 1:
        page.metrics["eval/tokens/response_std"] = float(lengths.std())
    else:
        page.notes["eval/tokens/response_std"] = "one turn: no spread"


def _add_logprobs(page: _Page, turns: TurnTable, prompt_index: IntArray) -> None:
    tokens = turns.logprob_zero_count + turns.logprob_nz_count
    if not tokens.any():
        page.notes["eval/logprob/nz_mean"] = "the policy gave no log-probabilities"
        return
    groups = Groups.of(prompt_index)
    zero_count = float(turns.logprob_zero_count.sum())
    page.metrics["eval/logprob/zero_count"] = zero_count
    page.metrics["eval/logprob/zero_per_group"] = zero_count / groups.num_prompts
    page.metrics["eval/logprob/zero_frac"] = zero_count / float(tokens.sum())
    count = float(turns.logprob_nz_count.sum())
    if count == 0:
        page.notes["eval/logprob/nz_mean"] = "every token has log-probability 0"
        return
    mean = float(turns.logprob_nz_sum.sum()) / count
    page.metrics["eval/logprob/nz_mean"] = mean
    page.metrics["eval/logprob/nz_min"] = float(np.nanmin(turns.logprob_nz_min))
    page.metrics["eval/logprob/nz_max"] = float(np.nanmax(turns.logprob_nz_max))
    page.metrics["eval/logprob/nz_std"] = float(np.sqrt(max(turns.logprob_nz_squares.sum() / count - mean**2, 0.0)))
    sums, counts = groups.sum(turns.logprob_nz_sum), groups.sum(turns.logprob_nz_count.astype(np.float64))
    by_prompt = linearized(sums, counts)
    page.keep("eval/logprob/nz_mean", mean_interval(by_prompt, page.confidence), by_prompt)


def _add_agent_metric(page: _Page, name: str, values: FloatArray, prompt_index: IntArray) -> None:
    known = np.isfinite(values)
    if known.any():
        _add_ratio(page, f"agent/{name}", Groups.of(prompt_index[known]), values[known])
        if not known.all():
            page.notes.setdefault(
                f"agent/{name}", f"from the {int(known.sum())} of {len(values)} rollouts that gave one"
            )
    else:
        page.notes[f"agent/{name}"] = "no rollout gave a number"


def _add_ratio(
    page: _Page,
    name: str,
    groups: Groups,
    values: FloatArray,
    *,
    ends: tuple[float, float] | None = None,
    least: float = -math.inf,
) -> None:
    """A mean over rows, whose groups may differ in size, shape of values (num_rows,); least: as in `_Page.keep`.

    ends: the two values there can be; a mean of values that turn out to be two, such as rewards of 0 and 1, is a rate too.
    """
    sizes = groups.count()
    by_prompt = linearized(groups.sum(values), sizes.astype(np.float64))
    page.metrics[name] = float(values.mean())
    low, high = ends if ends is not None else (float(values.min()), float(values.max()))
    if low < high and bool(((values == low) | (values == high)).all()):
        successes = groups.count(values == high)
        rates = (by_prompt - low) / (high - low)
        interval = rate_interval(rates, page.confidence, successes=successes, sizes=sizes)
        if interval is not None:
            interval = Interval(low + interval.low * (high - low), low + interval.high * (high - low))
        page.keep(name, interval, by_prompt)
    else:
        page.keep(name, mean_interval(by_prompt, page.confidence), by_prompt, least=least)
