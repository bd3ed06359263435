"""The summary that the evaluator prints when it starts an evaluation, or in a dry run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from heldout.pipeline.definition import Shape
from heldout.pipeline.request import EvaluationRequest, Tracking

_RULE = "─" * 60


class Summary(NamedTuple):
    """What is evaluated and where, line by line."""

    lines: Mapping[str, str | None]
    """The value of each title. A title with None is left out."""

    @classmethod
    def of(cls, request: EvaluationRequest, *, output: str, region: str, tracking: Tracking | None) -> Self:
        """The summary of a request. output: the place of the evaluation. tracking: None prints `off`."""
        played = request.policies.evaluated
        base = request.policies.base
        return cls(
            {
                "Model": (base or played).label,
                "Fine-tuned": played.text if request.shape is not Shape.BASE_ONLY else None,
                "Eval mode": request.shape,
                "Dataset": str(request.dataset),
                "Agent": request.agent.text,
                "Output": output,
                "Region": region,
                "MLflow": "off" if tracking is None else tracking.uri,
            }
        )

    def print_started(self, arn: str) -> None:
        """Prints the summary of an evaluation that was started."""
        self._print()
        print(f"  Pipeline execution started: {arn}\n")

    def print_dry_run(self, definition: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
        """Prints the summary, the pipeline definition and the warnings of a dry run. Returns the definition as JSON."""
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
