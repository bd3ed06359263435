"""Small evaluations for tests: of the jobs of one policy or two."""

from pathlib import Path
from typing import Any

from heldout.pipeline.definition import EvaluationJobs, Surroundings, render
from heldout.pipeline.evaluation import Evaluation

AROUND = Surroundings("us-west-2", "000000000000", "arn:aws:iam::000000000000:role/test", "pipeline")


def new_evaluation(folder: Path, jobs: EvaluationJobs, **settings: Any) -> Evaluation:
    """An evaluation in `folder`/evaluation, not yet begun."""
    return Evaluation.create(
        str(folder / "evaluation"), name="test", region="us-west-2", definition=render(jobs, AROUND), **settings
    )
