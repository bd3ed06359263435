"""`heldout` for evaluations in AWS: started, waited for, shown."""

import contextlib
import sys

import typer

from heldout.cli.output import EXIT_INTERRUPTED, print_json
from heldout.evaluator import MultiTurnRLEvaluator


def evaluate(evaluator: MultiTurnRLEvaluator, *, as_json: bool) -> None:
    """Starts it and waits until it is done; interrupted, it is left to go on. as_json: only JSON on standard output."""
    told_on = sys.stderr if as_json else sys.stdout
    with contextlib.redirect_stdout(told_on):
        execution = evaluator.evaluate()
        try:
            execution.wait()
        except KeyboardInterrupt:
            arn = execution.arn
            print(
                f"the evaluation goes on; look at it or stop it with: heldout show {arn}, heldout stop {arn}",
                file=sys.stderr,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(execution.to_dict())
    else:
        execution.show_results()
