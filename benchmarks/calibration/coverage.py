"""Do the 95% intervals hold the truth 95% of the time, and how wide are they?"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from benchmarks.calibration.simulation import REWARDS, Cell, Mixture, draw_rewards, draw_successes
from heldout.metrics.beta_binomial import SUCCESS_RATE, CountTables, Quantity
from heldout.metrics.intervals import mean_limits, rate_limits, why_no_mean_interval
from heldout.metrics.pass_k import pass_at_k_by_prompt, pass_power_k_by_prompt
from heldout.metrics.table import FloatArray, IntArray

CONFIDENCE = 0.95
NORMAL = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Coverage:
    """What came of the intervals of one setting."""

    name: str
    num_prompts: int
    coverage: float
    """Share of the intervals that hold the truth; evaluations without an interval are left out."""
    no_interval: float
    """Share of evaluations that get a reason in place of an interval."""
    width: float
    """Mean width over that of an interval that knows the true standard error."""
    naive: float
    """Coverage of rate +- 1.96 standard errors that take rollouts for independent."""
    clustered: float
    """Coverage of mean +- 1.96 clustered standard errors."""


def rate_coverage(cell: Cell, repeats: int, rng: np.random.Generator) -> Coverage:
    """Coverage for the success rate."""
    successes = draw_successes(cell, repeats, rng)
    rates = successes / cell.group_size
    limits = rate_limits(rates, count_tables(successes, cell.group_size), SUCCESS_RATE, CONFIDENCE)
    naive = np.sqrt(rates.mean(axis=1) * (1 - rates.mean(axis=1)) / cell.num_prompts / cell.group_size)
    name = f"{cell.difficulty}, rate {cell.rate:g}, {cell.group_size} rollouts, correlation {cell.correlation:g}"
    return _judge(name, limits, rates, cell.rate, cell.standard_error, naive)


def pass_k_coverage(cell: Cell, quantity: Quantity, repeats: int, rng: np.random.Generator) -> Coverage:
    """Coverage for pass@k or pass^k."""
    successes = draw_successes(cell, repeats, rng)
    sizes = np.full(successes.size, cell.group_size)
    by_prompt = pass_power_k_by_prompt if quantity.is_power else pass_at_k_by_prompt
    values = by_prompt(successes.ravel(), sizes, quantity.k).reshape(successes.shape)
    limits = rate_limits(values, count_tables(successes, cell.group_size), quantity, CONFIDENCE)
    truth = true_pass_k(cell, quantity)
    error = float(values.std(ddof=1) / np.sqrt(cell.num_prompts))
    word = "pass^" if quantity.is_power else "pass@"
    name = f"{word}{quantity.k}, rate {cell.rate:g}, {cell.group_size} rollouts, correlation {cell.correlation:g}"
    return _judge(name, limits, values, truth, error, np.full(repeats, np.nan))


def mixture_coverage(
    mixture: Mixture, num_prompts: int, group_size: int, quantity: Quantity, repeats: int, rng: np.random.Generator
) -> Coverage:
    """Coverage for the success rate, pass@k or pass^k where some prompts always or never succeed."""
    successes = rng.binomial(group_size, mixture.draw((repeats, num_prompts), rng))
    sizes = np.full(successes.size, group_size)
    by_prompt = pass_power_k_by_prompt if quantity.is_power else pass_at_k_by_prompt
    values = by_prompt(successes.ravel(), sizes, quantity.k).reshape(successes.shape)
    limits = rate_limits(values, count_tables(successes, group_size), quantity, CONFIDENCE)
    truth = mixture.power_mean(quantity.k) if quantity.is_power else mixture.any_mean(quantity.k)
    error = float(values.std(ddof=1) / np.sqrt(num_prompts))
    word = f"{'pass^' if quantity.is_power else 'pass@'}{quantity.k}"
    name = f"{mixture.name}: {word}, {group_size} rollouts"
    return _judge(name, limits, values, truth, error, np.full(repeats, np.nan))


def reward_coverage(kind: str, num_prompts: int, repeats: int, rng: np.random.Generator) -> Coverage:
    """Coverage for a mean reward."""
    rewards = draw_rewards(kind, repeats, num_prompts, rng)
    known = np.array([why_no_mean_interval(values) is None for values in rewards])
    limits = np.full((repeats, 2), np.nan)
    limits[known] = mean_limits(rewards[known], CONFIDENCE)
    truth, spread = REWARDS[kind]
    return _judge(kind, limits, rewards, truth, spread / np.sqrt(num_prompts), np.full(repeats, np.nan))


def count_tables(successes_RP: IntArray, group_size: int) -> CountTables:
    """One table for each repeat."""
    num_prompts = np.stack([(successes_RP == c).sum(axis=1) for c in range(group_size + 1)], axis=1)
    return CountTables(tuple((c, group_size) for c in range(group_size + 1)), num_prompts.astype(np.float64))


def _judge(
    name: str, limits: FloatArray, values: FloatArray, truth: float, true_error: float, naive_errors: FloatArray
) -> Coverage:
    num_prompts = values.shape[1]
    means = values.mean(axis=1)
    clustered_errors = values.std(axis=1) / np.sqrt(num_prompts)
    known = ~np.isnan(limits[:, 0])
    low, high = limits[known].T
    return Coverage(
        name=name,
        num_prompts=num_prompts,
        coverage=float(((low <= truth) & (truth <= high)).mean()),
        no_interval=float(1 - known.mean()),
        width=float((high - low).mean() / (2 * NORMAL * true_error)),
        naive=float((np.abs(means - truth) <= NORMAL * naive_errors).mean()),
        clustered=float((np.abs(means - truth) <= NORMAL * clustered_errors).mean()),
    )


def true_pass_k(cell: Cell, quantity: Quantity) -> float:
    """Of beta-distributed success rates."""
    k, rate = quantity.k, cell.rate if quantity.is_power else 1 - cell.rate
    if cell.correlation == 0:
        all_alike = rate**k
    else:
        precision = 1 / cell.correlation - 1
        a, b = rate * precision, (1 - rate) * precision
        all_alike = float(np.exp(special.betaln(a + k, b) - special.betaln(a, b)))
    return all_alike if quantity.is_power else 1 - all_alike
