"""Runs for tests of reports, findings and rescoring, written to disk as a job writes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from heldout.datasets.prompts import PromptSource, copy_prompts
from heldout.job.document import (
    AgentConfig,
    DataSource,
    EvaluationConfig,
    InputChannel,
    JobConfigDocument,
    OutputDataConfig,
    StoppingCondition,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.records import Attempt, Boundary, Failure, Turn
from heldout.runs.journal import encode
from heldout.runs.results import write_results
from heldout.runs.run import Run

Message = Mapping[str, Any]


def call(name: str, arguments: object) -> Message:
    """A reply that calls a tool; arguments that are text go in as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


@dataclass(frozen=True)
class Play:
    """One rollout: what the model said, turn by turn, and what came of it."""

    reward: float | None = 1.0
    says: Sequence[str | Message] = ("ok",)
    hears: str = "go on"
    finish: str = "stop"
    failure: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    output: str = ""
    tokens: int = 5
    logprobs: tuple[float, ...] | None = None

    def attempt(self, prompt: str, prompt_index: int, rollout_index: int) -> Attempt:
        failed = self.failure or self.reward is None
        return Attempt(
            prompt_index=prompt_index,
            rollout_index=rollout_index,
            number=1,
            trajectory_id=f"{prompt_index}-{rollout_index}-1-abcdefabcdefabcdefabcdefabcdef",
            is_final=True,
            failure=Failure(Boundary.AGENT, "raised", self.failure or "boom") if failed else None,
            rewards=None if failed or self.reward is None else (self.reward,),
            metrics=tuple(sorted(self.metrics.items())),
            flags=self.flags,
            turns=tuple(self._turn(index, prompt) for index in range(len(self.says))),
            output=self.output,
            started_at=1_700_000_000.0,
            seconds=1.5,
        )

    def _turn(self, index: int, prompt: str) -> Turn:
        said = self.says[index]
        reply = {"role": "assistant", "content": said} if isinstance(said, str) else said
        heard = {"role": "user", "content": prompt if index == 0 else self.hears}
        return Turn(
            index=index,
            parent=index - 1 if index else None,
            shared_messages=2 * index,
            messages=orjson.dumps([heard]),
            request=b"" if index else b'{"model":"default"}',
            reply=orjson.dumps([reply]),
            finish_reason=self.finish if index == len(self.says) - 1 else "stop",
            prompt_tokens=10 * (index + 1),
            response_tokens=self.tokens,
            logprobs=self.logprobs,
            started_at=1_700_000_000.0 + index,
            seconds=0.1,
            status=200,
            error=None,
        )


def written_run(
    folder: Path,
    groups: Sequence[Sequence[Play]],
    *,
    prompts: Sequence[str] = (),
    columns: Sequence[Mapping[str, object]] = (),
    run_name: str = "base-model-eval",
    is_done: bool = True,
    **hyperparameters: object,
) -> Run:
    """A run in `folder`: group p holds the rollouts of prompt p. Not done: what was played is in the journal still."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [prompts[p] if p < len(prompts) else f"prompt {p}" for p in range(len(groups))]
    rows = [{"prompt": text, **(columns[p] if p < len(columns) else {})} for p, text in enumerate(texts)]
    dataset = folder.with_name(f"{folder.name}.jsonl")
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, object] = {
        "eval_group_size": max(map(len, groups)),
        "sampling_temperature": 1.0,
        "pass_k_values": [1, 2, 4],
    }
    run = Run.create(
        folder,
        name="test",
        run_name=run_name,
        region="us-west-2",
        document=_document(dataset, Hyperparameters(settings | hyperparameters)),
    )
    count = copy_prompts(PromptSource(str(dataset)), run.prompts_path)
    run.update(num_prompts=count.number, dataset_hash=count.content_hash, evaluation_seconds=12.0)
    attempts = [play.attempt(texts[p], p, r) for p, group in enumerate(groups) for r, play in enumerate(group)]
    run.journal_folder.mkdir()
    (run.journal_folder / "000001.jsonl").write_bytes(b"".join(encode(attempt) for attempt in attempts))
    if is_done:
        write_results(run, is_partial=False)
        run.complete(incomplete=False)
    return run


def _document(dataset: Path, parameters: Hyperparameters) -> JobConfigDocument:
    return JobConfigDocument(
        agent_config=AgentConfig(agent=EntryPoint("agent.py:play")),
        input_data_config=(InputChannel(data_source=DataSource.of(str(dataset))),),
        output_data_config=OutputDataConfig(local_output_path=str(dataset.parent)),
        evaluation_config=EvaluationConfig.of(
            EndpointModel(("http://127.0.0.1:8000/v1",), "model"), parameters, accept_eula=True
        ),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=3600),
    )
