"""Results of a managed job without tables of rollouts, rendered for a terminal or a notebook."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from heldout.backends.sagemaker.job_steps import JobStep


def nothing_to_show(step: JobStep, unread: str | None, problem: str | None) -> RenderableType:
    """A line that there are no metrics, with the problems of reading the output and MLflow, if there were any."""
    why = "and it logged nothing to MLflow" if problem is None else f"and MLflow could not be read: {problem}"
    return f"{step.run_name}: {f'no rollouts in {step.output}' if unread is None else unread}, {why}"


def logged_results(step: JobStep, unread: str | None, logged: Mapping[str, Any]) -> RenderableType:
    """The metrics that a job logged to MLflow. unread: the problem of reading its output, if there was one."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", header_style="dim")
    table.add_column("value", header_style="dim", justify="right")
    for name, value in sorted(logged["metrics"].items()):
        table.add_row(name, f"{value:.4g}")
    note = "! logged by the service; without a table of rollouts there are no intervals"
    return Group(f"{step.run_name} (MLflow)", table, note if unread is None else f"{note}: {unread}")
