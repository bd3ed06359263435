"""Small evaluations for tests, with the jobs of one policy or two."""

from pathlib import Path
from typing import Any

from heldout.pipeline.definition import BASE_STEP, FINE_TUNED_STEP, EvaluationJobs, Surroundings, render
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus, StepState, StepStatus
from heldout.runs.run import Run

AROUND = Surroundings("us-west-2", "000000000000", "arn:aws:iam::000000000000:role/test", "pipeline")


def new_evaluation(folder: Path, jobs: EvaluationJobs, **settings: Any) -> Evaluation:
    """An evaluation in `folder`/evaluation, not yet begun."""
    return Evaluation.create(
        str(folder / "evaluation"), name="test", region="us-west-2", definition=render(jobs, AROUND), **settings
    )


def finished_evaluation(folder: Path, base: Run, fine_tuned: Run) -> Evaluation:
    """An evaluation in `folder`, which holds both runs: done, its comparison not yet written."""
    definition = render(EvaluationJobs(base.document, fine_tuned.document), AROUND)
    evaluation = Evaluation.create(str(folder), name="test", region="us-west-2", definition=definition)
    for name, run in ((BASE_STEP, base), (FINE_TUNED_STEP, fine_tuned)):
        evaluation.update_step(
            StepState(
                name=name,
                kind="Job",
                status=StepStatus.SUCCEEDED,
                started_at=1.0,
                ended_at=2.0,
                run_name=run.state.run_name,
            )
        )
    evaluation.update(status=ExecutionStatus.SUCCEEDED, ended_at=2.0)
    return evaluation
