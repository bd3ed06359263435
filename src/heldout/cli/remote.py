"""Evaluations that run outside the command's process: started, waited for, shown."""

import contextlib
import sys

import typer

from heldout.backends.base import Prepared
from heldout.cli.output import EXIT_INTERRUPTED, print_json
from heldout.execution import Execution


def evaluate(prepared: Prepared, *, as_json: bool) -> None:
    """Starts an evaluation and waits for its end. An interrupted wait leaves it running. as_json: prints only JSON on
    standard output."""
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        started = prepared.start()
        prepared.summary.print_started(started.arn)
        execution = Execution(started)
        try:
            execution.wait()
        except KeyboardInterrupt:
            arn = execution.arn
            print(
                f"the evaluation continues; show or stop it with: heldout show {arn}, heldout stop {arn}",
                file=sys.stderr,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(execution.to_dict())
    else:
        execution.show_results()
