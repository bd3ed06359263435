"""Small evaluations for tests: prompts written to a file, an agent of `players.py`, documents for one policy or two."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heldout.job.document import (
    AgentConfig,
    DataSource,
    InputChannel,
    JobConfigDocument,
    OutputDataConfig,
    evaluation_config_for,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.references import EndpointModel, EntryPoint
from heldout.pipeline.definition import EvaluationJobs, Surroundings, render
from heldout.pipeline.evaluation import Evaluation
from jobs import PLAYERS

AROUND = Surroundings("us-west-2", "000000000000", "arn:aws:iam::000000000000:role/test", "pipeline")


def write_prompts(folder: Path, prompts: Sequence[str]) -> Path:
    """A dataset of these prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = folder / "prompts.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return dataset


def document(folder: Path, url: str, prompts: Sequence[str], **hyperparameters: object) -> JobConfigDocument:
    """The document of a job of the scripted model at `url`."""
    return JobConfigDocument(
        agent_config=AgentConfig.of(EntryPoint(f"{PLAYERS}:play")),
        input_data_config=(InputChannel(data_source=DataSource.of(str(write_prompts(folder, prompts)))),),
        output_data_config=OutputDataConfig.at(str(folder)),
        evaluation_config=evaluation_config_for(
            EndpointModel((url,), "scripted"), Hyperparameters(hyperparameters), accept_eula=True
        ),
    )


def new_evaluation(folder: Path, jobs: EvaluationJobs, **settings: Any) -> Evaluation:
    """An evaluation in `folder`/evaluation, not yet begun."""
    return Evaluation.create(
        str(folder / "evaluation"), name="test", region="us-west-2", definition=render(jobs, AROUND), **settings
    )
