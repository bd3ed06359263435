"""What is made of runs once they are played: reports, the comparison, and their copies in a remote place."""

import orjson

from heldout.errors import MetricError
from heldout.pipeline.evaluation import Evaluation
from heldout.rollouts.comparing import compare_runs, comparison_document, prompt_texts
from heldout.rollouts.mirror import Mirror
from heldout.rollouts.run import BASE_RUN, FINE_TUNED_RUN, Run
from heldout.storage import is_remote

COMPARISON_FILE = "comparison.json"


async def finish_run(run: Run) -> None:
    """Writes what a run that is done has beside its numbers."""


async def publish(run: Run) -> None:
    """Copies a run whose place is remote there: of one that is not done, also what it needs to be resumed elsewhere."""
    if is_remote(run.location):
        await Mirror(run, run.location, kms_key=run.kms_key).finish()


def compare_evaluation(evaluation: Evaluation) -> None:
    """Writes `comparison.json` of an evaluation that has two runs; notes why not, where they cannot be compared."""
    runs = evaluation.runs()
    if BASE_RUN not in runs or FINE_TUNED_RUN not in runs:
        return
    try:
        comparison = compare_runs(runs[BASE_RUN], runs[FINE_TUNED_RUN])
    except MetricError as error:
        evaluation.note(f"no comparison: {error}")
        return
    document = comparison_document(comparison, prompt_texts(comparison, runs[BASE_RUN]))
    evaluation.write(COMPARISON_FILE, orjson.dumps(document, option=orjson.OPT_INDENT_2))
