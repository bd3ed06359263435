"""Are Heldout's own error bars right? Simulated evaluations with known truth: coverage and width of the intervals, false
alarms of the comparison, power of plans. Writes results to JSON, and the tables and picture of docs/explanation/statistics.md.

    python -m benchmarks.calibration [--repeats 4000] [--parts rates size ...] [--folder benchmarks/results/calibration]
"""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import scipy

from benchmarks.calibration.comparisons import (
    Difference,
    Power,
    Size,
    difference_coverage,
    move_coverage,
    power_of_plan,
    size_of,
)
from benchmarks.calibration.coverage import (
    Coverage,
    mixture_coverage,
    pass_k_coverage,
    rate_coverage,
    reward_coverage,
    true_pass_k,
)
from benchmarks.calibration.looking import Looking, looking
from benchmarks.calibration.simulation import MIXTURES, REWARDS, Cell, Difficulty
from heldout.metrics.beta_binomial import Quantity

NUM_PROMPTS = (10, 20, 30, 100)
GROUP_SIZES = (1, 4, 16, 64)
RATES = (0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99)
CORRELATIONS = (0.0, 0.1, 0.3, 0.6, 0.9)


def main() -> None:
    """Runs the parts asked for and writes each to a JSON file of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4_000, help="most simulated evaluations for each setting")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/calibration"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        began = time.process_time()
        part = PARTS[name](options.repeats)
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "repeats": options.repeats,
            "cpu_seconds": round(time.process_time() - began, 1),
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
            "settings": [dataclasses.asdict(row) for row in part],
        }
        path = options.folder / f"{name}.json"
        path.write_text(json.dumps(result, indent=1))
        print(f"{name}: {len(part)} settings in {result['cpu_seconds']} s of CPU, written to {path}", flush=True)


def _rates(repeats: int) -> list[Coverage]:
    cells = [
        Cell(num_prompts, size, rate, correlation)
        for num_prompts, size, rate, correlation in product(NUM_PROMPTS, GROUP_SIZES, RATES, CORRELATIONS)
        if size > 1 or correlation == 0
    ]
    return [rate_coverage(cell, repeats, _rng(i)) for i, cell in enumerate(cells)]


def _other_difficulty(repeats: int) -> list[Coverage]:
    kinds: tuple[Difficulty, ...] = ("logit-normal", "two kinds", "settled")
    cells = [
        Cell(num_prompts, size, rate, correlation, kind)
        for kind, num_prompts, size, rate, correlation in product(
            kinds, (10, 20, 30, 300, 3000), (4, 64), (0.02, 0.1, 0.5), (0.1, 0.3, 0.6)
        )
    ]
    return [rate_coverage(cell, min(repeats, 2_000), _rng(i)) for i, cell in enumerate(cells)]


def _pass_k(repeats: int) -> list[Coverage]:
    quantities = [Quantity(k, is_power) for k, is_power in product((2, 4, 16), (False, True))]
    cells = [
        (Cell(num_prompts, size, rate, correlation), quantity)
        for num_prompts, size, rate, correlation, quantity in product(
            (30, 100), (4, 16), (0.1, 0.3, 0.7), (0.0, 0.3, 0.9), quantities
        )
        if quantity.k <= size
    ]
    cells = [  # nearer to 0 or 1 every simulated evaluation may have the same value
        (cell, quantity) for cell, quantity in cells if 0.02 <= true_pass_k(cell, quantity) <= 0.98
    ]
    return [pass_k_coverage(cell, quantity, min(repeats, 2_000), _rng(i)) for i, (cell, quantity) in enumerate(cells)]


def _rewards(repeats: int) -> list[Coverage]:
    return [
        reward_coverage(kind, num_prompts, repeats, _rng(i))
        for i, (kind, num_prompts) in enumerate(product(REWARDS, (10, 20, 30, 100, 300)))
    ]


def _sizes(repeats: int) -> list[Size]:
    settings = list(product((10, 30, 100), (1, 4, 16), (0.1, 0.5), (0.3,), (0.0, 0.8)))
    return [
        size_of(Cell(num_prompts, size, rate, correlation), likeness, repeats, _rng(i))
        for i, (num_prompts, size, rate, correlation, likeness) in enumerate(settings)
    ]


def _differences(repeats: int) -> list[Difference]:
    changes = ((0.1, 0.1), (0.5, 0.1), (0.5, 0.3), (0.8, 0.1))
    settings = list(product((10, 30, 100), (4, 16), changes, (0.3,), (0.0, 0.8, 1.0)))
    return [
        difference_coverage(Cell(num_prompts, size, rate, correlation), change, likeness, min(repeats, 2_000), _rng(i))
        for i, (num_prompts, size, (rate, change), correlation, likeness) in enumerate(settings)
    ]


def _edges(repeats: int) -> list[Difference]:
    """Differences near 0 and 1: also of rates from 0 itself, of which no prompt is harder than another."""
    from_zero = [(0.0, change, size, 0.0, 0.0) for change, size in product((0.03, 0.97), (1, 4))]
    changes = ((0.97, 0.02), (0.99, -0.02), (0.97, 0.0), (0.9, 0.08), (0.02, 0.03))
    others = [
        (rate, change, size, correlation, likeness)
        for (rate, change), size, (correlation, likeness) in product(changes, (1, 4, 16), ((0.0, 0.0), (0.3, 1.0)))
        if size > 1 or correlation == likeness
    ]
    settings = [*product((10, 30, 50, 100), from_zero), *product((10, 30, 100), others)]
    return [
        difference_coverage(Cell(num_prompts, size, rate, correlation), change, likeness, min(repeats, 2_000), _rng(i))
        for i, (num_prompts, (rate, change, size, correlation, likeness)) in enumerate(settings)
    ]


def _moves(repeats: int) -> list[Difference]:
    shares = ((0.0, 0.02), (0.01, 0.03), (0.05, 0.1), (0.1, 0.3))
    settings = list(product((10, 30, 100, 300), shares, (0.5, 0.9)))
    return [
        move_coverage(gains, losses, both * (1 - gains - losses), num_prompts, min(repeats, 2_000), _rng(i))
        for i, (num_prompts, (gains, losses), both) in enumerate(settings)
    ]


def _mixtures(repeats: int) -> list[Coverage]:
    ks = ((1, False), (2, True), (4, True), (8, True), (4, False), (8, False))
    settings = [
        (mixture, num_prompts, size, Quantity(k, is_power))
        for mixture, (num_prompts, size), (k, is_power) in product(
            MIXTURES, ((10, 8), (20, 4), (20, 8), (30, 4), (30, 8), (50, 4), (100, 8)), ks
        )
        if k <= size
    ]
    return [mixture_coverage(*setting, min(repeats, 2_000), _rng(i)) for i, setting in enumerate(settings)]


def _powers(repeats: int) -> list[Power]:
    changes = ((0.1, 0.1), (0.5, 0.1), (0.5, 0.2), (0.8, 0.1), (0.9, 0.08), (0.97, 0.02))
    settings = list(product(changes, (1, 4, 16), (0.3,), (0.0, 0.8, 1.0)))
    return [
        power_of_plan(rate, difference, size, correlation, likeness, min(repeats, 2_000), _rng(i))
        for i, ((rate, difference), size, correlation, likeness) in enumerate(settings)
    ]


def _lookings(repeats: int) -> list[Looking]:
    settings = list(product((20, 100, 300), (1, 4, 16), (0.05, 0.2, 0.5, 0.9), (0.0, 0.3, 0.9)))
    cells = [
        Cell(num_prompts, size, rate, correlation)
        for num_prompts, size, rate, correlation in settings
        if size > 1 or correlation == 0
    ]
    return [looking(cell, min(repeats, 2_000), _rng(i)) for i, cell in enumerate(cells)]


def _rng(setting: int) -> np.random.Generator:
    return np.random.default_rng([20, setting])


PARTS: dict[str, Callable[[int], Sequence[Coverage | Size | Difference | Power | Looking]]] = {
    "rates": _rates,
    "other_difficulty": _other_difficulty,
    "pass_k": _pass_k,
    "rewards": _rewards,
    "size": _sizes,
    "difference": _differences,
    "edges": _edges,
    "moves": _moves,
    "mixtures": _mixtures,
    "power": _powers,
    "looking": _lookings,
}


if __name__ == "__main__":
    main()
