"""The function of each metric in the catalog: from a run's tables to a value, with what each prompt contributes to it.

Pure, and without intervals: see `heldout.metrics.metric` for what a function may return. Every standard deviation divides by
n, not n - 1, as the hosted service does. A rollout that failed for good counts as reward 0 and no success, or not at all
(`MetricSettings.failed_rollouts`). Sources of the formulas: docs/explanation/statistics.md.
"""

from dataclasses import replace

import numpy as np

from heldout.metrics.beta_binomial import Quantity
from heldout.metrics.metric import Absent, MetricTables, PromptMean, RatioMean, Result, RowMean
from heldout.metrics.pass_k import pass_at_k_by_prompt, pass_power_k_by_prompt
from heldout.metrics.sample import Sample
from heldout.metrics.table import FloatArray, Groups, IntArray, RolloutTable, TurnTable


def mean_reward(tables: MetricTables) -> Result:
    """Mean over rollouts that count."""
    sample = tables.sample
    if sample.num_rollouts == 0:
        return _nothing_counts(tables)
    return RowMean(sample.rewards, sample.groups, is_reward=True)


def min_reward(tables: MetricTables) -> Result:
    """Least reward of a rollout."""
    return float(tables.sample.rewards.min()) if tables.sample.num_rollouts else None


def max_reward(tables: MetricTables) -> Result:
    """Greatest reward of a rollout."""
    return float(tables.sample.rewards.max()) if tables.sample.num_rollouts else None


def std_reward(tables: MetricTables) -> Result:
    """Standard deviation over rollouts."""
    return _spread(tables.sample.rewards, "rollout")


def zero_reward_share(tables: MetricTables) -> Result:
    """Share of rollouts with reward exactly 0."""
    sample = tables.sample
    return RowMean((sample.rewards == 0).astype(np.float64), sample.groups) if sample.num_rollouts else None


def pass_at(tables: MetricTables, k: int) -> Result:
    """Pass@k: the mean over prompts of `pass_at_k_by_prompt`."""
    return _pass(tables.sample, k, is_power=False) if tables.sample.num_rollouts else _nothing_counts(tables)


def first_attempt_success(tables: MetricTables) -> Result:
    """The success rate as if no attempt that the agent or the model failed had been played again; None if it is the same."""
    retries, rollouts = tables.agent_retries, tables.rollouts
    if retries is None or not (retries > 0).any():
        return None
    first = Sample.of(replace(rollouts, is_scored=rollouts.is_scored & (retries == 0)), tables.settings)
    unchanged = np.array_equal(first.successes, tables.sample.successes) and np.array_equal(
        first.sizes, tables.sample.sizes
    )
    return None if unchanged else _pass(first, 1, is_power=False)


def pass_power(tables: MetricTables, k: int) -> Result:
    """Pass^k: the mean over prompts of `pass_power_k_by_prompt`."""
    return _pass(tables.sample, k, is_power=True) if tables.sample.num_rollouts else _nothing_counts(tables)


def _nothing_counts(tables: MetricTables) -> Absent:
    return Absent("no rollout to count: " + _why_empty(tables.rollouts))


def _pass(sample: Sample, k: int, *, is_power: bool) -> Result:
    if sample.num_rollouts == 0:
        return None
    largest = int(sample.sizes.max())
    if k > largest:
        return Absent(f"k = {k} needs {k} rollouts of a prompt; the largest group has {largest}")
    known = sample.sizes >= k
    successes, sizes = sample.successes[known], sample.sizes[known]
    by_prompt = pass_power_k_by_prompt if is_power else pass_at_k_by_prompt
    left_out = int((~known).sum())
    return PromptMean(
        by_prompt(successes, sizes, k),
        sample.groups.prompt_index[known],
        successes,
        sizes,
        Quantity(k, is_power=is_power),
        note=f"{left_out} prompts with fewer than {k} rollouts are left out" if left_out else "",
    )


def succeeded_rollouts(tables: MetricTables) -> Result:
    """Rollouts whose reward is at least the success threshold."""
    rollouts = tables.rollouts
    reward = np.nan_to_num(rollouts.reward, nan=-np.inf)
    return float((rollouts.is_scored & (reward >= tables.settings.least_success)).sum())


def failed_rollouts(tables: MetricTables) -> Result:
    """Rollouts that failed for good."""
    return float((~tables.rollouts.is_scored).sum())


def num_prompts(tables: MetricTables) -> Result:
    """Prompts with at least one finished rollout."""
    return float(tables.groups.num_prompts)


def rollouts_per_prompt(tables: MetricTables) -> Result:
    """Finished rollouts over prompts."""
    prompts = tables.groups.num_prompts
    return tables.rollouts.num_rollouts / prompts if prompts else None


def success_threshold(tables: MetricTables) -> Result:
    """The job's setting."""
    return tables.settings.success_threshold


def mean_reward_within_groups(tables: MetricTables) -> Result:
    """Mean over prompts of the group's mean reward."""
    sample = tables.sample
    if sample.num_rollouts == 0:
        return None
    return PromptMean(sample.reward_means, sample.groups.prompt_index, is_reward=True)


def min_reward_within_groups(tables: MetricTables) -> Result:
    """Mean over prompts of the group's least reward."""
    sample = tables.sample
    return _one_a_prompt(sample.groups, sample.groups.minimum(sample.rewards)) if sample.num_rollouts else None


def max_reward_within_groups(tables: MetricTables) -> Result:
    """Mean over prompts of the group's greatest reward."""
    sample = tables.sample
    if sample.num_rollouts == 0:
        return None
    return replace(_one_a_prompt(sample.groups, sample.groups.maximum(sample.rewards)), is_reward=True)


def _one_a_prompt(groups: Groups, values: FloatArray) -> RowMean:
    return RowMean(values, Groups(groups.prompt_index, np.arange(groups.num_prompts)))


def std_reward_within_groups(tables: MetricTables) -> Result:
    """Mean over prompts with two rollouts or more of the group's standard deviation."""
    sample = tables.sample
    if sample.num_rollouts == 0:
        return None
    several = sample.sizes > 1
    if not several.any():
        return Absent("one rollout a prompt: no spread within groups")
    deviations = np.square(sample.rewards - sample.reward_means[sample.groups.of_row])
    spreads = np.sqrt(sample.groups.sum(deviations) / sample.sizes)
    return PromptMean(spreads[several], sample.groups.prompt_index[several])


def mean_turns(tables: MetricTables) -> Result:
    """Mean over finished rollouts, failed ones included."""
    turns = tables.rollouts.turns
    return RowMean(turns.astype(np.float64), tables.groups) if len(turns) else None


def min_turns(tables: MetricTables) -> Result:
    """Fewest turns of a rollout."""
    return float(tables.rollouts.turns.min()) if tables.rollouts.num_rollouts else None


def max_turns(tables: MetricTables) -> Result:
    """Most turns of a rollout."""
    return float(tables.rollouts.turns.max()) if tables.rollouts.num_rollouts else None


def mean_prompt_tokens(tables: MetricTables) -> Result:
    """Mean over turns whose prompt tokens are known."""
    return None if tables.turns is None else _mean_tokens(tables, tables.turns.prompt_tokens)


def mean_response_tokens(tables: MetricTables) -> Result:
    """Mean over turns whose response tokens are known."""
    return None if tables.turns is None else _mean_tokens(tables, tables.turns.response_tokens)


def _mean_tokens(tables: MetricTables, tokens: FloatArray) -> Result:
    assert tables.turns is not None
    if len(tokens) == 0:
        return Absent("no model call was made")
    known = ~np.isnan(tokens)
    if not known.any():
        return Absent("the policy gave no token counts")
    return RowMean(tokens[known], Groups.of(_prompts_of(tables.turns, tables.rollouts)[known]))


def min_response_tokens(tables: MetricTables) -> Result:
    """Fewest response tokens of a turn."""
    lengths = _response_lengths(tables)
    return float(lengths.min()) if len(lengths) else None


def max_response_tokens(tables: MetricTables) -> Result:
    """Most response tokens of a turn."""
    lengths = _response_lengths(tables)
    return float(lengths.max()) if len(lengths) else None


def std_response_tokens(tables: MetricTables) -> Result:
    """Standard deviation over turns whose response tokens are known."""
    return _spread(_response_lengths(tables), "turn")


def _response_lengths(tables: MetricTables) -> FloatArray:
    if tables.turns is None:
        return np.empty(0)
    tokens = tables.turns.response_tokens
    return tokens[~np.isnan(tokens)]


def mean_logprob(tables: MetricTables) -> Result:
    """Mean over response tokens whose log-probability is not exactly 0."""
    turns = tables.turns
    if turns is None:
        return None
    if _num_logprobs(turns) == 0:
        return Absent("the policy gave no log-probabilities")
    count = float(turns.logprob_nz_count.sum())
    if count == 0:
        return Absent("every token has log-probability 0")
    groups = Groups.of(_prompts_of(turns, tables.rollouts))
    sums, counts = groups.sum(turns.logprob_nz_sum), groups.sum(turns.logprob_nz_count.astype(np.float64))
    return RatioMean(float(turns.logprob_nz_sum.sum()) / count, sums, counts, groups.prompt_index)


def min_logprob(tables: MetricTables) -> Result:
    """Least log-probability of a response token."""
    turns = _with_nonzero_logprobs(tables)
    return None if turns is None else float(np.nanmin(turns.logprob_nz_min))


def max_logprob(tables: MetricTables) -> Result:
    """Greatest log-probability of a response token that is not exactly 0."""
    turns = _with_nonzero_logprobs(tables)
    return None if turns is None else float(np.nanmax(turns.logprob_nz_max))


def std_logprob(tables: MetricTables) -> Result:
    """Standard deviation over response tokens whose log-probability is not exactly 0."""
    turns = _with_nonzero_logprobs(tables)
    if turns is None:
        return None
    count = float(turns.logprob_nz_count.sum())
    mean = float(turns.logprob_nz_sum.sum()) / count
    return float(np.sqrt(max(turns.logprob_nz_squares.sum() / count - mean**2, 0.0)))


def zero_logprob_count(tables: MetricTables) -> Result:
    """Response tokens whose log-probability is exactly 0."""
    turns = tables.turns
    return None if turns is None or _num_logprobs(turns) == 0 else float(turns.logprob_zero_count.sum())


def zero_logprob_share(tables: MetricTables) -> Result:
    """Share of response tokens whose log-probability is exactly 0."""
    turns = tables.turns
    if turns is None or (tokens := _num_logprobs(turns)) == 0:
        return None
    return float(turns.logprob_zero_count.sum()) / float(tokens)


def zero_logprobs_per_prompt(tables: MetricTables) -> Result:
    """Response tokens whose log-probability is exactly 0, over prompts with a model call."""
    turns = tables.turns
    if turns is None or _num_logprobs(turns) == 0:
        return None
    return float(turns.logprob_zero_count.sum()) / len(np.unique(_prompts_of(turns, tables.rollouts)))


def evaluation_seconds(tables: MetricTables) -> Result:
    """Wall-clock seconds of the evaluation."""
    return tables.seconds


def agent_mean(tables: MetricTables, name: str) -> Result:
    """Mean of a number that the agent reported, over the rollouts that reported it."""
    values = tables.agent_metrics[name]
    known = np.isfinite(values)
    if not known.any():
        return Absent("no rollout gave a number")
    note = "" if known.all() else f"from the {int(known.sum())} of {len(values)} rollouts that gave one"
    return RowMean(values[known], Groups.of(tables.rollouts.prompt_index[known]), note)


def _why_empty(rollouts: RolloutTable) -> str:
    if rollouts.num_rollouts == 0:
        return "none has finished"
    return f"all {rollouts.num_rollouts} failed, and failed rollouts are excluded"


def _spread(values: FloatArray, row: str) -> Result:
    if len(values) == 0:
        return None
    return float(values.std()) if len(values) > 1 else Absent(f"one {row}: no spread")


def _prompts_of(turns: TurnTable, rollouts: RolloutTable) -> IntArray:
    """The prompt of each turn, shape (num_turns,)."""
    return rollouts.prompt_index[turns.rollout_row]


def _num_logprobs(turns: TurnTable) -> int:
    return int(turns.logprob_zero_count.sum() + turns.logprob_nz_count.sum())


def _with_nonzero_logprobs(tables: MetricTables) -> TurnTable | None:
    turns = tables.turns
    return turns if turns is not None and turns.logprob_nz_count.any() else None
