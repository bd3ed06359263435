"""Metrics in the words and units of the report."""

from heldout.report.numbers import number, percent
from heldout.report.sanitizing import visible

_RATES = ("eval/reward/pass_", "eval/reward/zero_frac")
_LABELS = {
    "eval/reward/mean": "mean reward",
    "eval/reward/std": "spread of rewards (std)",
    "eval/reward/zero_frac": "share of zero rewards",
    "eval/turns/mean": "turns a rollout",
    "eval/tokens/prompt_mean": "prompt tokens a turn",
    "eval/tokens/response_mean": "response tokens a turn",
    "eval/logprob/nz_mean": "log-probability a token",
}
OF_AGENT = "agent: "
"""Before the agents' own metrics: one that is called `turns` or `reward` cannot be mistaken for what Heldout counted."""


def label(name: str) -> str:
    """What a metric is called."""
    if name in _LABELS:
        return _LABELS[name]
    for prefix, symbol in (("eval/reward/pass_at_", "pass@"), ("eval/reward/pass_power_", "pass^")):
        if name.startswith(prefix):
            k = name.removeprefix(prefix)
            return "success rate (pass@1)" if symbol == "pass@" and k == "1" else f"{symbol}{k}"
    if name.startswith("agent/"):
        return f"{OF_AGENT}{visible(name.removeprefix('agent/').replace('_', ' ')) or '(no name)'}"
    return visible(name.removeprefix("eval/").replace("_", " "))


def is_rate(name: str) -> bool:
    """Whether a metric is a share, shown as a percentage."""
    return name.startswith(_RATES)


def shown(name: str, value: float) -> str:
    """A metric's value in its unit."""
    return percent(value) if is_rate(name) else number(value)


def shown_interval(name: str, interval: tuple[float, float] | None) -> str:
    """Both ends in the metric's unit; empty when there is no interval."""
    if interval is None:
        return ""
    return f"{shown(name, interval[0])} to {shown(name, interval[1])}"
