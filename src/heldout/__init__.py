"""Heldout evaluates multi-turn RL agents on prompts they have not seen.

The few names most programs need; each is loaded when it is first used, so that `import heldout` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from heldout.errors import HeldoutError, InputError
from heldout.version import __version__

if TYPE_CHECKING:
    from heldout.evaluator import MultiTurnRLEvaluator
    from heldout.execution import Execution
    from heldout.job.document import JobConfigDocument
    from heldout.job.hyperparameters import Hyperparameters
    from heldout.results import EvaluationResults, RunResults, compare, gate, load, load_run, plan, rank, rescore

__all__ = [
    "EvaluationResults",
    "Execution",
    "HeldoutError",
    "Hyperparameters",
    "InputError",
    "JobConfigDocument",
    "MultiTurnRLEvaluator",
    "RunResults",
    "__version__",
    "compare",
    "gate",
    "load",
    "load_run",
    "plan",
    "rank",
    "rescore",
]

_MODULES = {
    "EvaluationResults": "heldout.results",
    "Execution": "heldout.execution",
    "Hyperparameters": "heldout.job.hyperparameters",
    "JobConfigDocument": "heldout.job.document",
    "MultiTurnRLEvaluator": "heldout.evaluator",
    "RunResults": "heldout.results",
    "compare": "heldout.results",
    "gate": "heldout.results",
    "load": "heldout.results",
    "load_run": "heldout.results",
    "plan": "heldout.results",
    "rank": "heldout.results",
    "rescore": "heldout.results",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'heldout' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
