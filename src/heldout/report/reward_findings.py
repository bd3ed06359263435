"""Findings from the rollout table alone: failures, rewards, turns and the agent's metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from heldout.job.hyperparameters import Hyperparameters
from heldout.metrics.agreement import agreement
from heldout.metrics.table import Groups
from heldout.report.finding import Finding, Weight, Wording, counted, finding
from heldout.report.rollout_rows import BoolArray, FloatArray, RolloutRows

_MANY_FAILURES = 0.05
"""Warn from this share of failed rollouts on: more can move a rate by as much as its interval."""
_MANY_FLAT_GROUPS = 0.25
"""Share of groups without a learning signal from which training on such prompts would waste a good part of its rollouts."""
_CLEAR_CORRELATION = 0.2
_SURE = 0.99
"""Confidence of the interval that must leave out 0: two correlations are looked at in every run, and one false finding in
fifty runs is few enough."""
_LEAST_PROMPTS = 10
"""With fewer prompts, too little is known about how they differ to trust an interval."""
_LIMIT_PILE = 2.0
"""A limit on turns shows as a pile at the highest number: so many times as many rollouts as at the number below."""
_MANY_AT_LIMIT = 0.05
_WORTH_TELLING = 0.02
"""Report a pattern from this share of rollouts on."""

_FLAGS = {
    "sampling_differs": (
        "the agent's model calls had other sampling parameters than the job's",
        "have the agent pass on inferenceParams, or set -H enforce_sampling=true",
    ),
    "bad_reply": (
        "had a model call whose reply, with status 200, was no completion (an error, no choices, no end)",
        "look at the model server's log; the agent got an error, and the call is no turn: heldout show RUN --trajectory ID",
    ),
    "no_model_call": (
        "were scored without a single model call",
        "check that the agent calls the model through metadata.baseUrl or metadata.endpoint",
    ),
    "reward_mismatch": (
        "reported one reward and returned another; the reported one counts",
        "have the agent return what it reports",
    ),
    "failed_after_reward": (
        "crashed, raised or timed out after their reward was in; the reward counts",
        "look at what they printed: heldout show RUN --trajectory ID",
    ),
    "ran_on_after_end": (
        "ran on after their reward was in and were cut off",
        "have the agent return once it has reported",
    ),
    "reward_count": (
        "had a list of rewards of another length than their turns",
        "report one reward, or one for each turn",
    ),
    "metric_dropped": (
        "returned metrics that are not finite numbers, or have no name; those were left out",
        "return finite numbers by name in the metrics object",
    ),
}
_COMPLETION_METRICS = (
    "completed",
    "complete",
    "is_completed",
    "is_complete",
    "finished",
    "is_finished",
    "done",
    "is_done",
)
"""Names of agent metrics that say whether the agent finished; above 0 means yes."""
_FAULT_WORDS = ("invalid", "malformed", "parse_error", "parse_failure", "format_error", "format_failure", "bad_format")
"""Parts of the names of agent metrics that count unreadable replies; above 0 is a format failure."""
_FORM_METRICS = ("format", "format_ok", "format_reward", "correct_format", "well_formed", "valid", "is_valid", "parsed")
"""Names of agent metrics that say whether replies had the right format; below 1 is a format failure."""
_FORMAT_ERRORS = r"JSONDecodeError|ValidationError|\bpars(e|ing)|\bmalformed|\b(bad|wrong|invalid) format"


def reward_findings(rows: RolloutRows, errors: Any, parameters: Hyperparameters) -> Iterator[Finding]:
    """Find everything that the rollout columns show. errors: the `error` column, a message or null each."""
    yield from _failures(rows)
    yield from _flagged(rows)
    yield from _greedy(rows, parameters)
    yield from _no_variance(rows)
    yield from _unsolved_prompts(rows)
    yield from _reward_and(rows, rows.response_tokens, "reward_and_length", "response tokens")
    yield from _reward_and(rows, rows.turns.astype(np.float64), "reward_and_turns", "turns")
    yield from _turn_limit(rows)
    yield from _completion(rows)
    yield from _format_failures(rows, errors)
    yield from _flat_groups(rows)


def _failures(rows: RolloutRows) -> Iterator[Finding]:
    num_failed = int(rows.is_failed.sum())
    if num_failed == 0 or num_failed < _MANY_FAILURES * rows.num_rollouts:
        return
    failed = rows.table.filter(pa.array(rows.is_failed))
    reasons = failed.group_by(["error_boundary", "error_kind"]).aggregate([([], "count_all")]).to_pylist()
    reasons.sort(key=lambda row: -row["count_all"])
    named = ", ".join(f"{r['error_boundary']}: {r['error_kind']} ({r['count_all']})" for r in reasons[:3])
    wording = Wording(
        "failures", "look at what they printed and raised: heldout show RUN --trajectory ID", Weight.DOUBT
    )
    seen = f"{counted(num_failed, rows.num_rollouts)} failed for good: {named}"
    yield finding(wording, seen, rows, rows.is_failed)


def _flagged(rows: RolloutRows) -> Iterator[Finding]:
    for flag, (seen, advice) in _FLAGS.items():
        mask = rows.has_flag(flag)
        if mask.any():
            text = f"{counted(int(mask.sum()), rows.num_rollouts)}: {seen}"
            yield finding(Wording(flag, advice, Weight.DOUBT), text, rows, mask)


def _greedy(rows: RolloutRows, parameters: Hyperparameters) -> Iterator[Finding]:
    if parameters.sampling_temperature == 0 and parameters.eval_group_size > 1:
        wording = Wording(
            "greedy_group",
            "set -H sampling_temperature to what you will serve with, or evaluate one rollout a prompt",
            Weight.DOUBT,
        )
        seen = (
            f"greedy sampling with {parameters.eval_group_size} rollouts a prompt: they are near copies of each other"
        )
        yield Finding(wording.kind, seen, wording.advice, rows.num_rollouts, (), wording.weight)


def _no_variance(rows: RolloutRows) -> Iterator[Finding]:
    rewards = rows.reward[rows.is_scored]
    if len(rewards) > 1 and np.ptp(rewards) == 0:
        wording = Wording(
            "no_variance",
            "such a run cannot tell policies apart: check the reward, or choose harder (or easier) prompts",
            Weight.DOUBT,
        )
        seen = f"all {len(rewards):,} scored rollouts have the reward {rewards[0]:g}"
        yield finding(wording, seen, rows, rows.is_scored)


def _flat_groups(rows: RolloutRows) -> Iterator[Finding]:
    """Find groups with equal rewards: group-relative training learns nothing from them."""
    rewards = rows.rewards_or_zero
    groups = Groups.of(rows.prompt_index)
    sizes = groups.count()
    several = sizes > 1
    is_flat = several & (groups.maximum(rewards) == groups.minimum(rewards))
    if not several.any() or is_flat.sum() < _MANY_FLAT_GROUPS * several.sum() or np.ptp(rewards) == 0:
        return
    solved = groups.count(rows.is_success) == sizes
    named = f"{int((is_flat & solved).sum()):,} always succeed, {int((is_flat & ~solved).sum()):,} do not"
    wording = Wording(
        "flat_groups",
        "such prompts give no learning signal: for training choose prompts that succeed now and then, raise the "
        "temperature, or give partial credit",
        Weight.NOTE,
    )
    seen = (
        f"{counted(int(is_flat.sum()), int(several.sum()), 'prompts')} have the same reward in every rollout ({named})"
    )
    yield finding(wording, seen, rows, is_flat[groups.of_row])


def _unsolved_prompts(rows: RolloutRows) -> Iterator[Finding]:
    groups = Groups.of(rows.prompt_index)
    unsolved = groups.count(rows.is_success) == 0
    if not unsolved.any() or unsolved.mean() < _WORTH_TELLING:
        return
    mask = unsolved[groups.of_row]
    first_of_prompt = np.zeros(rows.num_rollouts, dtype=np.bool_)
    first_of_prompt[np.unique(rows.prompt_index, return_index=True)[1]] = True
    wording = Wording(
        "complete_failure",
        "open one of each: a wrong environment or reward looks the same as a policy that cannot do it",
        Weight.DOUBT if unsolved.all() else Weight.PATTERN,
    )
    what = "no rollout succeeded" if unsolved.all() else "no rollout of the prompt succeeded"
    seen = f"{counted(int(unsolved.sum()), groups.num_prompts, 'prompts')} failed completely: {what}"
    shown = finding(wording, seen, rows, mask & first_of_prompt)
    yield Finding(shown.kind, shown.seen, shown.advice, int(mask.sum()), shown.trajectory_ids, shown.weight)


def _reward_and(rows: RolloutRows, values: FloatArray, kind: str, what: str) -> Iterator[Finding]:
    known = rows.is_scored & ~np.isnan(values)
    prompts = rows.prompt_index[known]
    num_prompts = len(np.unique(prompts))
    if num_prompts < _LEAST_PROMPTS:
        return
    compared = agreement(
        rows.reward[known], values[known], prompts, reward_threshold=0, score_threshold=0, confidence=_SURE
    )
    value, interval = compared.rank_correlation, compared.rank_interval
    if interval is None or abs(value) < _CLEAR_CORRELATION or interval[0] <= 0 <= interval[1]:
        return
    advice = (
        "check that the reward does not pay for length itself: open the longest ones"
        if value > 0
        else "the longest ones may be lost or cut: open them, and look at the token and turn limits"
    )
    seen = (
        f"reward {'rises' if value > 0 else 'falls'} with {what}: rank correlation {value:+.2f} "
        f"[{interval[0]:+.2f}, {interval[1]:+.2f}] over {int(known.sum()):,} rollouts of {num_prompts:,} prompts "
        f"(p < {1 - _SURE:.2g})"
    )
    longest = np.flatnonzero(known)[np.argsort(-values[known], kind="stable")[:5]]
    yield Finding(kind, seen, advice, int(known.sum()), rows.ids_at(longest), Weight.NOTE)


def _turn_limit(rows: RolloutRows) -> Iterator[Finding]:
    counts = np.bincount(rows.turns)
    limit = len(counts) - 1
    if limit < 2 or np.count_nonzero(counts) < 2:
        return
    at_limit = rows.turns == limit
    if counts[limit] < _LIMIT_PILE * counts[limit - 1] or at_limit.mean() < _MANY_AT_LIMIT:
        return
    wording = Wording(
        "turn_limit",
        "if that is the agent's limit, raise it and see whether they succeed; if they loop, it only costs tokens",
        Weight.PATTERN,
    )
    seen = (
        f"{counted(int(at_limit.sum()), rows.num_rollouts)} have {limit} turns, the most there are: it looks like a limit. "
        f"{rows.is_success[at_limit].mean():.0%} of them succeed, {rows.is_success[~at_limit].mean():.0%} of the others"
    )
    yield finding(wording, seen, rows, at_limit)


def _completion(rows: RolloutRows) -> Iterator[Finding]:
    name = next((name for name in rows.metrics if name.lower() in _COMPLETION_METRICS), None)
    if name is None:
        return
    known = ~np.isnan(rows.metrics[name])
    is_completed = known & (rows.metrics[name] > 0)
    total = int(known.sum())
    wrong = is_completed & ~rows.is_success
    if wrong.any() and wrong.mean() >= _WORTH_TELLING:
        wording = Wording(
            "completed_not_correct",
            "it finishes and believes it is done: check what ends a rollout, and whether the reward is too strict",
            Weight.PATTERN,
        )
        yield finding(
            wording, f"{counted(int(wrong.sum()), total)} completed ({name}) but did not succeed", rows, wrong
        )
    unfinished = known & ~is_completed & rows.is_success
    if unfinished.any():
        wording = Wording(
            "correct_not_completed",
            "a reward without an end is how a reward is gamed: read them, and rescore with heldout rescore",
            Weight.DOUBT,
        )
        seen = f"{counted(int(unfinished.sum()), total)} succeeded without completing ({name})"
        yield finding(wording, seen, rows, unfinished)


def _format_failures(rows: RolloutRows, errors: Any) -> Iterator[Finding]:
    masks: dict[str, BoolArray] = {}
    for name, values in rows.metrics.items():
        if any(word in name.lower() for word in _FAULT_WORDS):
            masks[name] = np.nan_to_num(values) > 0
        elif name.lower() in _FORM_METRICS:
            masks[name] = np.nan_to_num(values, nan=1.0) < 1
    unreadable: Any = pc.match_substring_regex(errors, _FORMAT_ERRORS, ignore_case=True)
    masks["error"] = np.asarray(unreadable.fill_null(False).to_numpy(), dtype=np.bool_) & rows.is_failed
    bad = np.logical_or.reduce(list(masks.values()))
    if bad.any() and bad.mean() >= _WORTH_TELLING:
        named = ", ".join(f"{name} ({int(mask.sum()):,})" for name, mask in masks.items() if mask.any())
        wording = Wording(
            "format_failures",
            "show the form in the system prompt, or make the agent's parser forgive what does not matter",
            Weight.PATTERN,
        )
        seen = f"{counted(int(bad.sum()), rows.num_rollouts)} had replies the agent could not read: {named}"
        yield finding(wording, seen, rows, bad)
