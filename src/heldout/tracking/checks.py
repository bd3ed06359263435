"""Whether an MLflow store can be logged to, as far as can be told in a moment: before a job, not after its hours.

MLflow itself is not imported here: it takes longer to load than a job takes to its first model call.
"""

import re
import ssl
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from heldout.errors import ReferenceProblem, shown
from heldout.tracking.connection import without_password

_SCHEMES = frozenset({"sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "arn"})
"""Of MLflow 3's tracking stores; packages can add more."""
_ANSWERS_WITHIN_SECONDS = 5.0
_NAMED_BY = "--mlflow, mlflow_resource_arn or MLFLOW_TRACKING_URI"


def check_store(uri: str) -> None:
    """Raises ReferenceProblem when `uri` is no store's, or names a server that does not answer.

    A server answers when it says anything in HTTP: what it thinks of this user or of a certificate shows when it is logged to.
    """
    scheme = "databricks" if re.fullmatch(r"databricks(-\w+)?", uri) else urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _check_server(without_password(uri))
    elif scheme not in _SCHEMES and not (scheme and entry_points(group="mlflow.tracking_store", name=scheme)):
        raise ReferenceProblem(
            f"MLflow tracking URI {shown(without_password(uri))} is of no kind that MLflow has; expected http://host:port, "
            f"sqlite:///path/mlflow.db, a SageMaker MLflow ARN or 'off' ({_NAMED_BY})"
        )


def _check_server(address: str) -> None:
    # Some milliseconds that only those who name a server have to wait.
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"{address.rstrip('/')}/health", timeout=_ANSWERS_WITHIN_SECONDS):
            return
    except HTTPError as error:
        error.close()
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, ssl.SSLError):
            words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise ReferenceProblem(
                f"no MLflow server answers at {shown(address)}: {words}; start it, or give another place or 'off' ({_NAMED_BY})"
            ) from error
