"""A managed job's numbers for a person, where its output has no tables that ours could be made from."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from heldout.backends.sagemaker.job_steps import JobStep


def logged_results(step: JobStep, logged: Mapping[str, Any] | None) -> RenderableType:
    """The metrics that a job logged to MLflow; or that there are none."""
    if logged is None:
        return (
            f"{step.run_name}: no run folder in {step.output}, and no metrics that could be read from MLflow; see the job in "
            "the SageMaker console"
        )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", header_style="dim")
    table.add_column("value", header_style="dim", justify="right")
    for name, value in sorted(logged["metrics"].items()):
        table.add_row(name, f"{value:.4g}")
    note = "! logged by the service; without a table of rollouts there are no intervals"
    return Group(f"{step.run_name} (MLflow)", table, note)
