"""A metric of your own: the share of rollouts that take three turns or more and still earn no reward.

One function and one row. The entry point in pyproject.toml names the row; once the package is installed, the metric is in
metrics.json, the table, the report, MLflow and `heldout metrics`, and gates and comparisons take its name:

    pip install ./examples/extending/metric
    heldout gate RUN --require "wasted <= 0.2"
"""

import numpy as np

from heldout.metrics.metric import SHARE, Direction, Metric, MetricTables, Result, RowMean, Section

LONG = 3
"""Turns from which a rollout counts as long."""


def wasted_share(tables: MetricTables) -> Result:
    """Share of finished rollouts with `LONG` turns or more and no reward above 0; absent before the first has finished."""
    rollouts = tables.rollouts
    if rollouts.num_rollouts == 0:
        return None
    is_wasted = (rollouts.turns >= LONG) & ~(rollouts.reward > 0)  # a failed rollout's reward is NaN
    return RowMean(is_wasted.astype(np.float64), tables.groups)


WASTED = Metric(
    name="custom/wasted_frac",
    label="share of wasted rollouts",
    short_name="wasted",
    meaning=f"Share of rollouts that take {LONG} turns or more and earn no reward",
    compute=wasted_share,
    unit=SHARE,
    low=0,
    high=1,
    direction=Direction.LOWER,
    section=Section.REWARDS,
    is_compared=True,
)
