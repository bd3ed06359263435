"""Every error Heldout raises on purpose. One line each: the thing, its value, what was expected, the way out.

    HeldoutError                    any of the below
    ├── InputError (ValueError)     what the user gave cannot be used; the command line exits with 2
    │   ├── DatasetError            a prompt dataset cannot be read
    │   ├── HyperparameterError     a hyperparameter's name or value
    │   ├── ReferenceProblem        a model, agent, dataset or output that names nothing usable
    │   ├── RunError                a run folder that is missing, locked or not what was asked for
    │   ├── MetricError             numbers were asked for that the rollouts cannot give
    │   └── MissingExtra (ImportError)  a feature whose optional packages are not installed
    ├── StorageError (OSError)      reading or writing an output failed
    ├── CloudError (RuntimeError)   AWS refused a request, or could not be reached
    ├── WaitTimeout (TimeoutError)  the wait for an evaluation timed out; the evaluation continues
    └── JobFailed (RuntimeError)    the job could not be finished (exit 1)
        └── NothingScored           every rollout of the job was played, and all failed

What goes wrong inside one rollout is data (`heldout.job.records.Failure`), never an exception that leaves the engine.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class HeldoutError(Exception):
    """Any error Heldout raises on purpose; `str(error)` is one line to show a person."""


class InputError(HeldoutError, ValueError):
    """What the user gave cannot be used. Nothing was started or written."""


class DatasetError(InputError):
    """A prompt dataset cannot be read; the message names the file and the line."""


class HyperparameterError(InputError):
    """A hyperparameter has an unknown name or a value out of its type or range."""


class ReferenceProblem(InputError):
    """A model, agent, dataset or output reference names nothing usable."""


class RunError(InputError):
    """A run folder is missing, in use, or not what was asked for."""


class MetricError(InputError):
    """Numbers were asked for that these rollouts cannot give."""


class MissingExtra(InputError, ImportError):
    """A feature needs packages that are not installed; the message has the install command."""


class StorageError(HeldoutError, OSError):
    """Reading or writing an output failed."""


class CloudError(HeldoutError, RuntimeError):
    """AWS, or what speaks its protocols, refused a request or could not be reached; the message names operation and code."""


class WaitTimeout(HeldoutError, TimeoutError):
    """The wait for an evaluation timed out; the evaluation continues."""


class JobFailed(HeldoutError, RuntimeError):
    """The job could not be finished; what was finished before is kept."""


class NothingScored(JobFailed):
    """Every rollout of the job was played, and all failed."""

    def __init__(self, message: str, *, retryable: int = 0) -> None:
        """retryable: how many of the failures a machine or a server caused, which can be played again."""
        super().__init__(message)
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {"retryable": self.retryable}


def did_you_mean(value: str, names: Iterable[str]) -> str:
    """The end of an error line: ` Did you mean 'x'?`, or the empty string when no name is near `value`."""
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: object, width: int = 80) -> str:
    """`repr(value)` cut to `width` characters, for error lines."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"
