"""Simulated evaluations with known truth."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from heldout.metrics.table import FloatArray, IntArray

Difficulty = Literal["beta", "logit-normal", "two kinds", "settled"]
"""How prompts' success rates are distributed: smoothly, with heavier tails, as two kinds of prompt, or with some prompts whose
rollouts all end alike among others that are all equally hard."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Prompts that always succeed, prompts that never do, and others with a beta-distributed rate."""

    name: str
    always: float
    never: float
    a: float
    b: float

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
        """True success rates."""
        place = rng.random(shape)
        between = rng.beta(self.a, self.b, shape)
        return np.where(place < self.always, 1.0, np.where(place < self.always + self.never, 0.0, between))

    def power_mean(self, k: int) -> float:
        """Mean over prompts of p^k: pass^k."""
        return self.always + (1 - self.always - self.never) * _beta_power_mean(self.a, self.b, k)

    def any_mean(self, k: int) -> float:
        """Mean over prompts of 1 - (1 - p)^k: pass@k."""
        return 1 - self.never - (1 - self.always - self.never) * _beta_power_mean(self.b, self.a, k)


def _beta_power_mean(a: float, b: float, k: int) -> float:
    return float(np.exp(special.betaln(a + k, b) - special.betaln(a, b)))


MIXTURES = (
    Mixture("always, never, or evenly in between", 0.3, 0.4, 1.0, 1.0),
    Mixture("always, never, or near a half", 0.1, 0.3, 4.0, 4.0),
    Mixture("a fifth always, the rest near 0.3", 0.2, 0.0, 30.0, 70.0),
    Mixture("a fifth never, the rest near 0.7", 0.0, 0.2, 70.0, 30.0),
    Mixture("mostly always, the rest evenly", 0.7, 0.0, 1.0, 1.0),
    Mixture("tau-bench airline, GPT-4o", 0.187, 0.163, 19.0, 34.0),
)
"""The last is fitted by maximum likelihood to the rewards of GPT-4o with tool calling in 4 trials of each of the 50 airline
tasks of tau-bench (Yao et al. 2024, arXiv:2406.12045): historical_trajectories/gpt-4o-airline.json of
github.com/sierra-research/tau-bench, commit 59a200c; 14, 12, 10, 4 and 10 tasks with 0 to 4 successes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulated setting."""

    num_prompts: int
    group_size: int
    rate: float
    correlation: float
    """Between rollouts of one prompt."""
    difficulty: Difficulty = "beta"

    @property
    def standard_error(self) -> float:
        """True standard error of the success rate."""
        shared = self.correlation + (1 - self.correlation) / self.group_size
        return float(np.sqrt(self.rate * (1 - self.rate) * shared / self.num_prompts))


def draw_successes(cell: Cell, repeats: int, rng: np.random.Generator) -> IntArray:
    """Successes of each prompt, shape (repeats, num_prompts)."""
    return rng.binomial(cell.group_size, draw_rates(cell, repeats, rng))


def draw_rates(cell: Cell, repeats: int, rng: np.random.Generator) -> FloatArray:
    """True success rate of each prompt, shape (repeats, num_prompts): mean `rate`, variance correlation * rate * (1 - rate)."""
    shape = (repeats, cell.num_prompts)
    if cell.difficulty == "beta" and cell.correlation > 0:  # several times faster than by quantiles
        precision = 1 / cell.correlation - 1
        return rng.beta(cell.rate * precision, (1 - cell.rate) * precision, shape)
    return rates_at(cell, rng.random(shape))


def rates_at(cell: Cell, quantiles: FloatArray) -> FloatArray:
    """Prompts' success rates at quantiles of their distribution in [0, 1], same shape."""
    rate, correlation = cell.rate, cell.correlation
    if correlation == 0:
        return np.full(quantiles.shape, rate)
    if cell.difficulty == "beta":
        precision = 1 / correlation - 1
        return np.asarray(special.betaincinv(rate * precision, (1 - rate) * precision, quantiles))
    if cell.difficulty == "two kinds":
        return _two_kinds(rate, correlation, quantiles)
    if cell.difficulty == "settled":
        settled = np.where(quantiles < correlation * rate, 1.0, 0.0)
        return np.where(quantiles < correlation, settled, rate)
    middle, spread = _logit_normal(rate, correlation)
    rates = special.expit(middle + spread * special.ndtri(np.clip(quantiles, 1e-12, 1 - 1e-12)))
    return np.asarray(rates)


def _two_kinds(rate: float, correlation: float, quantiles: FloatArray) -> FloatArray:
    """A few prompts with a much higher (or, for rates above a half, lower) rate than the rest, whose rate is 0 (or 1)."""
    rare = min(rate, 1 - rate)
    height = rare + correlation * (1 - rare)
    rates = np.where(quantiles > 1 - rare / height, height, 0.0)
    return rates if rate <= 0.5 else 1 - rates


def _logit_normal(rate: float, correlation: float) -> tuple[float, float]:
    """Mean and spread, on the logit scale, of the distribution with this mean and variance."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(301)
    weights = weights / weights.sum()

    def miss(parameters: FloatArray) -> FloatArray:
        rates = special.expit(parameters[0] + np.exp(parameters[1]) * nodes)
        mean = weights @ rates
        variance = weights @ np.square(rates) - mean**2
        return np.array(
            [special.logit(mean) - special.logit(rate), np.log(variance / (mean * (1 - mean)) / correlation)]
        )

    found = optimize.root(miss, [2 * special.logit(rate), 1.0])
    if not found.success:
        raise RuntimeError(f"no logit-normal distribution has mean {rate} and correlation {correlation}")
    return float(found.x[0]), float(np.exp(found.x[1]))


REWARDS: dict[str, tuple[float, float]] = {
    "normal": (0.0, 1.0),
    "exponential": (1.0, 1.0),
    "exponential, long tail below": (-1.0, 1.0),
    "gamma, shape 1/2": (0.5, 0.5**0.5),
    "beta(0.3, 3)": (1 / 11, (0.3 * 3 / (3.3**2 * 4.3)) ** 0.5),
    "beta(5, 0.5)": (10 / 11, (5 * 0.5 / (5.5**2 * 6.5)) ** 0.5),
    "partial credit in quarters, mostly 0": (0.2, (0.2 * 0.8 * (1 / 3.5 + (1 - 1 / 3.5) / 4)) ** 0.5),
    "bonus of 5 in a tenth of prompts": (0.95, (0.1 * 25 + 0.9 / 3 - 0.95**2) ** 0.5),
    "exponential in a tenth of prompts, else 0": (0.1, (0.1 * 2 - 0.1**2) ** 0.5),
    "lognormal, sigma 0.7": (np.exp(0.245), (np.expm1(0.49) * np.exp(0.49)) ** 0.5),
    "lognormal, sigma 1": (np.exp(0.5), (np.expm1(1) * np.exp(1)) ** 0.5),
}
"""Mean reward of a prompt: name to true mean and standard deviation over prompts."""


def draw_rewards(name: str, repeats: int, num_prompts: int, rng: np.random.Generator) -> FloatArray:
    """Mean reward of each prompt, shape (repeats, num_prompts)."""
    shape = (repeats, num_prompts)
    match name:
        case "normal":
            return rng.standard_normal(shape)
        case "exponential":
            return rng.exponential(size=shape)
        case "exponential, long tail below":
            return -rng.exponential(size=shape)
        case "gamma, shape 1/2":
            return rng.gamma(0.5, size=shape)
        case "beta(0.3, 3)":
            return rng.beta(0.3, 3, size=shape)
        case "beta(5, 0.5)":
            return rng.beta(5, 0.5, size=shape)
        case "partial credit in quarters, mostly 0":
            return rng.binomial(4, rng.beta(0.5, 2, size=shape)) / 4
        case "bonus of 5 in a tenth of prompts":
            return np.where(rng.random(shape) < 0.1, 5.0, rng.random(shape))
        case "exponential in a tenth of prompts, else 0":
            return np.where(rng.random(shape) < 0.1, rng.exponential(size=shape), 0.0)
        case "lognormal, sigma 0.7":
            return rng.lognormal(0, 0.7, size=shape)
        case "lognormal, sigma 1":
            return rng.lognormal(0, 1, size=shape)
    raise KeyError(name)
