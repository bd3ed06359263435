"""A backend that plays evaluations in the calling process: `evaluate()` returns when the evaluation is over.

It serves tests and debuggers. It is this module and one entry point in the package that holds it:

    [project.entry-points."heldout.backends"]
    in-process = "in_process_backend:InProcessBackend"

Then `MultiTurnRLEvaluator(..., backend="in-process")` and `heldout evaluate --backend in-process` use it.
"""

import contextlib

from heldout.backends.local.backend import LocalBackend
from heldout.backends.local.evaluation import run_to_end
from heldout.errors import HeldoutError
from heldout.pipeline.evaluation import Evaluation
from heldout.rollouts.context import PlayContext


class InProcessBackend(LocalBackend):
    """Evaluations in folders, played by the process that starts or resumes them."""

    name = "in-process"

    def launch(self, evaluation: Evaluation) -> None:
        """Plays the remaining steps, then returns. A failure is in the status of the evaluation, as for any other backend."""
        with contextlib.suppress(HeldoutError):
            run_to_end(self.play(evaluation, PlayContext(note=print)))
