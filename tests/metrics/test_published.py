"""Numbers that others published, from their own data, to the printed digits."""

import numpy as np
import pytest

from heldout.metrics.intervals import mean_interval
from heldout.metrics.pass_k import pass_at_k, pass_power_k
from heldout.metrics.planning import Spread, plan
from heldout.metrics.sample import linearized

# Successes in 4 trials of each of the 50 airline tasks by GPT-4o with tool calling, counted from
# historical_trajectories/gpt-4o-airline.json of github.com/sierra-research/tau-bench (commit 59a200c).
TAU_BENCH_AIRLINE_GPT_4O = [
    *[0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 4, 2, 0, 2, 1, 1, 4, 0, 4, 3, 0, 0, 4],
    *[0, 2, 2, 0, 1, 2, 2, 0, 0, 3, 4, 4, 3, 4, 1, 3, 2, 4, 1, 2, 2, 2, 1, 4, 4],
]


@pytest.mark.parametrize(("k", "printed"), [(1, "0.420"), (2, "0.273"), (3, "0.220"), (4, "0.200")])
def test_tau_bench_airline_table(k: int, printed: str) -> None:
    """The row "TC (gpt-4o)" of the airline leaderboard (Yao et al. 2024, arXiv:2406.12045, and the repository's README)."""
    successes = np.array(TAU_BENCH_AIRLINE_GPT_4O)
    assert f"{pass_power_k(successes, np.full(50, 4), k):.3f}" == printed


def test_human_eval_example() -> None:
    """The worked example of the code of Chen et al. 2021 (arXiv:2107.03374): 6 samples of one task, pass@1 0.5."""
    assert pass_at_k(np.array([3]), np.array([6]), 1) == 0.5


# Grade point averages of the 4 students in each of 5 suites out of 100: Lohr, Sampling: Design and Analysis, example 5.2.
SUITES = np.array(
    [
        [3.08, 2.60, 3.44, 3.04],
        [2.36, 3.04, 3.28, 2.68],
        [2.00, 2.56, 2.52, 1.88],
        [3.00, 2.88, 3.44, 3.64],
        [2.68, 1.92, 3.28, 3.20],
    ]
)


def test_lohrs_clustered_standard_error() -> None:
    """Mean 2.826 with standard error 0.164, a twentieth of all suites having been sampled."""
    values = linearized(SUITES.sum(axis=1), np.full(5, 4.0))
    error = values.std(ddof=1) / np.sqrt(5) * np.sqrt(1 - 5 / 100)
    assert (f"{values.mean():.3f}", f"{error:.3f}") == ("2.826", "0.164")


def test_the_interval_is_about_lohrs_mean() -> None:
    interval = mean_interval(SUITES.mean(axis=1), 0.95)
    assert interval is not None
    assert interval.low < 2.826 < interval.high


def test_millers_number_of_questions() -> None:
    """Miller 2024 (arXiv:2411.00640), section 5: 969 questions to see 3 points with power 0.8 when the variance of the true
    differences is 1/9. His formula takes normal quantiles; Student's ask for 2 more."""
    normal = (1.959964 + 0.841621) ** 2 * Spread(between=1 / 9, within=0.0).error(1, 1) ** 2 / 0.03**2
    assert f"{normal:.0f}" == "969"
    assert plan(Spread(between=1 / 9, within=0.0), 0.03, group_sizes=[1]).options[0].num_prompts == 971
