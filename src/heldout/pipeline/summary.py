"""What the evaluator says of an evaluation when it is started, or would be."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from heldout.pipeline.definition import Shape
from heldout.pipeline.request import EvaluationRequest, Tracking

_RULE = "─" * 60


class Said(NamedTuple):
    """The summary, line by line."""

    lines: Mapping[str, str | None]
    """By title; None is left out."""

    @classmethod
    def of(cls, request: EvaluationRequest, *, output: str, region: str, mlflow: Tracking | None) -> Self:
        """output: where the evaluation goes."""
        played = request.policies.evaluated
        base = request.policies.base
        return cls(
            {
                "Model": (base or played).label,
                "Fine-tuned": played.text if request.shape is not Shape.BASE_ONLY else None,
                "Eval mode": request.shape,
                "Dataset": request.dataset,
                "Agent": request.agent.text,
                "Output": output,
                "Region": region,
                "MLflow": "off" if mlflow is None else mlflow.uri,
            }
        )

    def started(self, arn: str) -> None:
        """Prints it for an evaluation that was started."""
        self._print()
        print(f"  Pipeline execution started: {arn}\n")

    def dry_run(self, definition: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
        """Prints it for one that was not, with its pipeline definition, which is returned as JSON."""
        text = json.dumps(definition, indent=2)
        self._print()
        print("  Dry run: nothing was started; the pipeline definition would be\n")
        print(text)
        for note in notes:
            print(f"! {note}")
        return text

    def _print(self) -> None:
        print(f"\n{_RULE}\n  MTRL Evaluation Job\n{_RULE}")
        for name, value in self.lines.items():
            if value is not None:
                print(f"  {name:<15}: {value}")
        print(_RULE)
