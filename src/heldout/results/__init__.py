"""Reads and judges evaluations from Python: load, compare, rank, gate, plan and rescore.

    run = heldout.load_run("runs/guess/base-model-eval")
    run.metric("eval/reward/pass_at_1")         a value with its interval
    run.rollouts(columns=["level"])             a data frame, joined with a column of the dataset
    print(heldout.compare("runs/guess"))        the table that `heldout compare` prints

The commands `heldout show`, `compare`, `gate`, `plan` and `rescore` call these functions. Nothing here prints, and nothing runs
an agent or a model. A place is a local path, an `s3://` URI, the ARN of an evaluation, or a result of `load`.
"""

from heldout.results.judging import compare, gate, plan, rank, rescore
from heldout.results.loading import EvaluationResults, Place, RunResults, load, load_run
from heldout.results.records import (
    ComparisonResult,
    GateReport,
    MetricValue,
    PlanResult,
    RankingResult,
    RescoringResult,
    SliceTable,
    Trajectory,
)

__all__ = [
    "ComparisonResult",
    "EvaluationResults",
    "GateReport",
    "MetricValue",
    "Place",
    "PlanResult",
    "RankingResult",
    "RescoringResult",
    "RunResults",
    "SliceTable",
    "Trajectory",
    "compare",
    "gate",
    "load",
    "load_run",
    "plan",
    "rank",
    "rescore",
]
