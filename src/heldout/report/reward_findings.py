"""Findings from the rollout table alone: failures, rewards, turns and the agent's metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from heldout.job.hyperparameters import Hyperparameters
from heldout.metrics.association import within_prompts
from heldout.metrics.table import Groups
from heldout.report.finding import Finding, Weight, Wording, counted, finding, predicts_failure
from heldout.report.rollout_rows import BoolArray, FloatArray, IntArray, RolloutRows

_MANY_FAILURES = 0.05
"""Warn from this share of failed rollouts on: more can move a rate by as much as its interval."""
_NEARLY_ALL_FLAT = 0.9
_LEAST_GROUP = 4
_LEAST_FLAT = 20
"""Groups without a learning signal are reported only if nearly all groups lack it: easy and impossible prompts give any run some.
In smaller groups equal rewards are often chance."""
_CLEAR_ASSOCIATION = 0.2
_SURE = 0.99
"""Confidence of the interval that must leave out 0. Several associations are looked at in every run."""
_LEAST_PROMPTS = 10
"""With fewer prompts, too little is known about how they differ to trust an interval."""
_LOW_RATE, _LIKENESS = 0.1, 0.3
"""A run of one outcome is surprising if a policy that succeeds this often, on prompts whose rollouts correlate this much, would
show both outcomes in 19 of 20 runs."""
_RARE = 0.05
_SHORT_RATE = 0.2
"""The same for rewards that never reach the threshold: with partial credit, a lower rate would be a different finding."""
_LIMIT_PILE = 2.0
"""A limit on turns shows as a pile at the highest number: so many times as many rollouts as at the number below."""
_MANY_AT_LIMIT = 0.05
_WORTH_TELLING = 0.02
"""Report a pattern from this share of rollouts on."""

_FLAGS = {
    "sampling_differs": (
        "made model calls with other sampling parameters than the job's",
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


def reward_findings(rows: RolloutRows, parameters: Hyperparameters) -> Iterator[Finding]:
    """Finds everything that the rollout columns show."""
    yield from _failures(rows)
    yield from _flagged(rows)
    yield from _greedy(rows, parameters)
    yield from _no_variance(rows)
    yield from _no_success(rows)
    yield from _threshold_unreached(rows, parameters)
    yield from _failing_prompts(rows)
    yield from _rewards_length(rows, rows.response_tokens, "reward_and_length", "response tokens", alike=rows.turns)
    yield from _rewards_length(rows, rows.turns.astype(np.float64), "reward_and_turns", "turns")
    yield from _turn_limit(rows)
    yield from _completion(rows)
    yield from _format_failures(rows)
    yield from _flat_groups(rows)


def _failures(rows: RolloutRows) -> Iterator[Finding]:
    num_failed = int(rows.is_failed.sum())
    if num_failed == 0 or num_failed < _MANY_FAILURES * rows.num_rollouts:
        return
    reasons = rows.failures
    named = "; ".join(map(str, reasons[:3]))
    hint = next((reason.hint for reason in reasons if reason.hint), "")
    advice = "look at what they printed and raised: heldout show RUN --trajectory ID"
    wording = Wording("failures", f"{hint}; {advice}" if hint else advice, Weight.DOUBT)
    seen = f"{counted(num_failed, rows.num_rollouts)} failed for good: {named}"
    yield finding(wording, seen, rows, rows.is_failed)


def _flagged(rows: RolloutRows) -> Iterator[Finding]:
    for flag, (seen, advice) in _FLAGS.items():
        mask = rows.has_flag(flag)
        if mask.any():
            text = f"{counted(int(mask.sum()), rows.num_rollouts)} {seen}"
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
    if len(rewards) > 1 and np.ptp(rewards) == 0 and _is_telling(rows):
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
    several = sizes >= _LEAST_GROUP
    is_flat = several & (groups.maximum(rewards) == groups.minimum(rewards))
    if several.sum() < _LEAST_FLAT or is_flat.sum() < _NEARLY_ALL_FLAT * several.sum() or np.ptp(rewards) == 0:
        return
    solved = groups.count(rows.is_success) == sizes
    named = f"{int((is_flat & solved).sum()):,} always succeed, {int((is_flat & ~solved).sum()):,} do not"
    wording = Wording(
        "flat_groups",
        "further rollouts of such prompts say little: to evaluate, play more prompts instead; to train, choose prompts that "
        "succeed now and then, raise the temperature, or give partial credit",
        Weight.NOTE,
    )
    seen = (
        f"{counted(int(is_flat.sum()), int(several.sum()), 'prompts')} have the same reward in every rollout ({named})"
    )
    yield finding(wording, seen, rows, is_flat[groups.of_row])


def _no_success(rows: RolloutRows) -> Iterator[Finding]:
    """Finds a run in which nothing succeeds though it is large enough to show it."""
    if (
        not rows.is_scored.any()
        or rows.is_success.any()
        or rows.reward[rows.is_scored].max() > 0
        or not _is_telling(rows)
    ):
        return
    first_of_prompt = np.zeros(rows.num_rollouts, dtype=np.bool_)
    first_of_prompt[np.unique(rows.prompt_index, return_index=True)[1]] = True
    wording = Wording(
        "complete_failure",
        "open one of each prompt: a wrong environment or reward looks the same as a policy that cannot do it",
        Weight.DOUBT,
    )
    seen = f"no rollout succeeded: 0 of {rows.num_rollouts:,} on {len(np.unique(rows.prompt_index)):,} prompts"
    shown = finding(wording, seen, rows, first_of_prompt)
    yield Finding(shown.kind, shown.seen, shown.advice, rows.num_rollouts, shown.trajectory_ids, shown.weight)


def _threshold_unreached(rows: RolloutRows, parameters: Hyperparameters) -> Iterator[Finding]:
    """Finds rewards that stop short of the threshold everywhere: a reward of another scale, or one of partial credit only."""
    rewards = rows.reward[rows.is_scored]
    if not len(rewards) or rows.is_success.any() or rewards.max() <= 0 or not _is_telling(rows, _SHORT_RATE):
        return
    threshold = parameters.success_threshold
    at_best = rows.is_scored & (rows.reward == rewards.max())
    wording = Wording(
        "threshold_unreached",
        f"if less is a success in your environment, evaluate with -H success_threshold={rewards.max():g} or lower",
        Weight.DOUBT,
    )
    seen = f"no reward reaches success_threshold {threshold:g}: the {len(rewards):,} rewards end at {rewards.max():g}"
    yield finding(wording, seen, rows, at_best)


def _failing_prompts(rows: RolloutRows) -> Iterator[Finding]:
    """Finds prompts all of whose rollouts failed for good, where chance would not do that."""
    groups = Groups.of(rows.prompt_index)
    failed, sizes = groups.count(rows.is_failed), groups.count()
    is_lost = (failed == sizes) & (sizes > 1)
    if not is_lost.any() or is_lost.all():
        return
    # As if failures fell on rollouts at random, with one more of them: Poisson's chance of at least one such prompt.
    share = (failed.sum() - failed[is_lost].sum() + 1) / (sizes.sum() + 1)
    if 1 - np.exp(-float((share ** sizes[sizes > 1]).sum())) > _RARE:
        return
    mask = is_lost[groups.of_row]
    wording = Wording(
        "failing_prompts",
        "open one of each: something about these prompts breaks the agent or the environment, not the policy",
        Weight.DOUBT,
    )
    seen = f"{counted(int(is_lost.sum()), groups.num_prompts, 'prompts')} failed for good in every rollout"
    yield finding(wording, seen, rows, mask)


def _is_telling(rows: RolloutRows, rate: float = _LOW_RATE) -> bool:
    """Whether a run of this size would show both outcomes for this success rate or 1 minus it: a beta-binomial."""
    a, b = (mean * (1 / _LIKENESS - 1) for mean in (rate, 1 - rate))
    sizes = Groups.of(rows.prompt_index).count()
    drawn = np.arange(int(sizes.max(initial=0)))
    log_none = np.concatenate([[0.0], np.cumsum(np.log((b + drawn) / (a + b + drawn)))])
    return float(log_none[sizes].sum()) <= float(np.log(_RARE))


def _rewards_length(
    rows: RolloutRows, values: FloatArray, kind: str, what: str, *, alike: IntArray | None = None
) -> Iterator[Finding]:
    """Finds a reward that rises with length among rollouts of the same prompt. A reward that falls with length is normal: an
    agent may stop when it succeeds, and a model may reason longer when it is lost."""
    known = rows.is_scored & ~np.isnan(values)
    found = within_prompts(
        rows.reward[known],
        values[known],
        rows.prompt_index[known],
        confidence=_SURE,
        least_prompts=_LEAST_PROMPTS,
        alike=None if alike is None else alike[known],
    )
    if found is None or found.gamma < _CLEAR_ASSOCIATION or found.interval[0] <= 0:
        return
    advice = "check that the reward does not pay for length itself: open the longest ones"
    like = "" if alike is None else " and as many turns"
    seen = (
        f"reward rises with {what} among rollouts of the same prompt{like}: gamma {found.gamma:+.2f} "
        f"[{found.interval[0]:+.2f}, {found.interval[1]:+.2f}] on {found.num_prompts:,} prompts (p < {1 - _SURE:.2g})"
    )
    longest = np.flatnonzero(known)[np.argsort(-values[known], kind="stable")[:5]]
    yield Finding(kind, seen, advice, int(known.sum()), rows.ids_at(longest), Weight.NOTE)


def _turn_limit(rows: RolloutRows) -> Iterator[Finding]:
    """Finds a pile at the highest number of turns whose rollouts succeed less often than others of the same prompt."""
    counts = np.bincount(rows.turns)
    limit = len(counts) - 1
    if limit < 2 or np.count_nonzero(counts) < 2:
        return
    at_limit = rows.turns == limit
    if counts[limit] < _LIMIT_PILE * counts[limit - 1] or at_limit.mean() < _MANY_AT_LIMIT:
        return
    if not predicts_failure(rows, at_limit):
        return
    wording = Wording(
        "turn_limit",
        "if the agent stops there, play some rollouts with a higher limit: if they then succeed, the limit is too low; if they "
        "loop, it only saves tokens",
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
    if wrong.any() and wrong.mean() >= _WORTH_TELLING and predicts_failure(rows, is_completed, known):
        wording = Wording(
            "completed_not_correct",
            "rollouts that it calls done succeed less often: check what ends a rollout, and whether the reward is too strict",
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


def _format_failures(rows: RolloutRows) -> Iterator[Finding]:
    masks: dict[str, BoolArray] = {}
    for name, values in rows.metrics.items():
        if any(word in name.lower() for word in _FAULT_WORDS):
            masks[name] = np.nan_to_num(values) > 0
        elif name.lower() in _FORM_METRICS:
            masks[name] = np.nan_to_num(values, nan=1.0) < 1
    unreadable: Any = pc.match_substring_regex(rows.table["error"], _FORMAT_ERRORS, ignore_case=True)
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
