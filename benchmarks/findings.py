"""How often does each finding appear in a sound run?

Simulates runs of a policy, an agent and a reward with nothing wrong, of several kinds, and counts the runs with each finding of
`heldout.report.reward_findings`: false alarms. In some kinds hard prompts take more turns, in some a success ends the rollout, as
in real runs; in all of them longer rollouts have more tokens.

    python -m benchmarks.findings --runs 400
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measuring import verdict, write_results
from heldout.job.hyperparameters import Hyperparameters
from heldout.report.reward_findings import reward_findings
from heldout.report.rollout_rows import RolloutRows

MOST_FALSE_ALARMS = 0.05

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Difficulty = Callable[[np.random.Generator, int], FloatArray]
Turns = Callable[[np.random.Generator, FloatArray, FloatArray], IntArray]


@dataclass(frozen=True)
class Kind:
    """One kind of sound run."""

    difficulty: str
    turns: str
    num_prompts: int
    group_size: int
    is_graded: bool
    """Whether rewards have partial credit, 1 for a success."""

    @property
    def name(self) -> str:
        reward = "graded" if self.is_graded else "0 or 1"
        return f"{self.difficulty}, {self.turns}, {self.num_prompts} x {self.group_size}, {reward}"


DIFFICULTIES: dict[str, Difficulty] = {
    "even": lambda _rng, n: np.full(n, 0.5),
    "spread": lambda rng, n: rng.beta(2.0, 3.0, n),
    "low": lambda rng, n: rng.beta(0.6, 2.4, n),
    "high": lambda rng, n: rng.beta(4.0, 1.0, n),
    "always, never or between": lambda rng, n: rng.choice([0.0, 1.0, 0.3, 0.7], n, p=[0.3, 0.3, 0.2, 0.2]),
}
"""The success rate of each prompt."""
TURNS: dict[str, Turns] = {
    "one turn": lambda _rng, rate, _success: np.ones(len(rate), dtype=np.int64),
    "fixed": lambda _rng, rate, _success: np.full(len(rate), 5),
    "up to three": lambda rng, rate, _success: 1 + rng.binomial(2, 0.7, len(rate)),
    "harder is longer": lambda rng, rate, _success: 1 + rng.poisson(1 + 6 * (1 - rate)),
    "steps by difficulty": lambda _rng, rate, _success: 1 + np.floor(3 * (1 - rate)).astype(np.int64),
    "success ends it": lambda rng, _rate, success: 1 + rng.poisson(2 + 4 * (1 - success)),
    "geometric": lambda rng, rate, _success: rng.geometric(0.3, len(rate)),
}
"""Turns of each rollout. None of them has a limit."""
SIZES = ((10, 1), (12, 1), (10, 4), (30, 1), (30, 4), (100, 8), (400, 2))


def kinds() -> Iterator[Kind]:
    """Yield every kind of sound run."""
    for difficulty in DIFFICULTIES:
        for turns in TURNS:
            for num_prompts, group_size in SIZES:
                yield Kind(difficulty, turns, num_prompts, group_size, is_graded=(num_prompts + len(turns)) % 2 == 1)


def sound_run(kind: Kind, rng: np.random.Generator) -> RolloutRows:
    """Simulate one sound run."""
    n = kind.num_prompts * kind.group_size
    prompt_index = np.repeat(np.arange(kind.num_prompts), kind.group_size)
    rate = DIFFICULTIES[kind.difficulty](rng, kind.num_prompts)[prompt_index]
    is_success = rng.random(n) < rate
    reward = is_success.astype(np.float64)
    if kind.is_graded:
        reward = np.where(is_success, 1.0, np.round(0.9 * rng.beta(1 + 2 * rate, 2), 2))
    turns = TURNS[kind.turns](rng, rate, reward)
    prompts = rng.normal(0, 0.4, kind.num_prompts)[prompt_index]
    tokens: FloatArray = np.round(turns * np.exp(4 + prompts + rng.normal(0, 0.5, n) - 0.2 * reward))
    none = pa.nulls(n, pa.string())
    return RolloutRows(
        prompt_index=prompt_index,
        rollout_index=np.tile(np.arange(kind.group_size), kind.num_prompts),
        is_failed=np.zeros(n, dtype=np.bool_),
        reward=reward,
        is_success=is_success,
        turns=turns.astype(np.int64),
        prompt_tokens=tokens,
        response_tokens=tokens,
        seconds=tokens / 50,
        metrics={"completed": (is_success | (rng.random(n) < 0.8)).astype(np.float64)},
        table=pa.table(
            {
                "trajectory_id": [str(row) for row in range(n)],
                "status": ["scored"] * n,
                "error_boundary": none,
                "error_kind": none,
                "error": none,
                "flags": pa.array([[]] * n, pa.list_(pa.string())),
            }
        ),
    )


def false_alarms(kind: Kind, runs: int, seed: int) -> Counter[str]:
    """Count the sound runs of one kind that have each finding."""
    parameters = Hyperparameters({"eval_group_size": kind.group_size, "sampling_temperature": 1.0})
    counts: Counter[str] = Counter()
    for run in range(runs):
        rows = sound_run(kind, np.random.default_rng([seed, run]))
        counts.update({finding.kind for finding in reward_findings(rows, parameters)})
    return counts


def main() -> None:
    """Measure the false alarms of each finding and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="simulated runs of each kind")
    options = parser.parse_args()
    measured = {kind: false_alarms(kind, options.runs, seed) for seed, kind in enumerate(kinds())}
    found = sorted({name for counts in measured.values() for name in counts})
    checked = []
    for name in found:
        shares = {kind.name: counts[name] / options.runs for kind, counts in measured.items()}
        worst = max(shares, key=lambda kind: shares[kind])
        overall = sum(shares.values()) / len(shares)
        checked.append(
            verdict(f"{name}: mean {overall:.2%}, worst in '{worst}'", shares[worst], MOST_FALSE_ALARMS, at_most=True)
        )
    write_results("findings", {"runs_of_each_kind": options.runs, "kinds": len(measured), "targets": checked})


if __name__ == "__main__":
    main()
