"""What someone else logged to MLflow, read back."""

from pathlib import Path

from heldout.tracking.connection import connected


def logged_metrics(tracking_uri: str, run_id: str) -> dict[str, float]:
    """The latest value of every metric of a run. The plugin for SageMaker ARNs finds its credentials by itself.

    Raises MissingExtra without MLflow or the plugin for SageMaker ARNs, StorageError when the store refuses or has no such run.
    """
    with connected(tracking_uri, Path.cwd()) as store:
        return {name: float(value) for name, value in store.client.get_run(run_id).data.metrics.items()}
