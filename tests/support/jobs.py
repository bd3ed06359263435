"""Small jobs for tests: prompts written to a file, an agent of `scripted_agents.py`, a scripted model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from heldout.backends.local.job import play_rollouts
from heldout.job.document import (
    DEFAULT_RUNTIME_SECONDS,
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
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending, StopSwitch
from heldout.runs.run import Run

PLAYERS = Path(__file__).parent / "scripted_agents.py"


def write_prompts(folder: Path, prompts: Sequence[str], **columns: object) -> Path:
    """A dataset of these prompts. columns: the same values in each row."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = folder / "prompts.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": prompt, **columns}) + "\n" for prompt in prompts))
    return dataset


def document(
    folder: Path,
    model_url: str,
    prompts: Sequence[str],
    *,
    agent: str = f"{PLAYERS}:play",
    max_runtime: int = DEFAULT_RUNTIME_SECONDS,
    **hyperparameters: object,
) -> JobConfigDocument:
    """The document of a job of `agent` and the scripted model at `model_url`, with prompts and output in `folder`."""
    return JobConfigDocument(
        agent_config=AgentConfig(agent=EntryPoint(agent)),
        input_data_config=(InputChannel(data_source=DataSource.of(str(write_prompts(folder, prompts)))),),
        output_data_config=OutputDataConfig.at(str(folder)),
        evaluation_config=EvaluationConfig.of(
            EndpointModel((model_url,), "scripted"), Hyperparameters(hyperparameters), accept_eula=True
        ),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=max_runtime),
    )


def new_run(folder: Path, model_url: str, prompts: Sequence[str], **settings: Any) -> Run:
    """A run in `folder`/run, not yet begun. settings: see `document`."""
    given = document(folder, model_url, prompts, **settings)
    return Run.create(folder / "run", name="test", run_name="base-model-eval", region="us-west-2", document=given)


async def played(folder: Path, prompts: Sequence[str], **settings: Any) -> Run:
    """A run played to its end against a scripted model of its own."""
    async with ScriptedServer() as server:
        run = new_run(folder, server.url, prompts, **settings)
        await play_rollouts(run, PlayContext())
    return run


async def played_with(run: Run, switch: StopSwitch | None = None) -> Ending:
    """Plays a run as it stands, from its files."""
    return await play_rollouts(Run.open(run.folder), PlayContext(switch=switch or StopSwitch()))


def rows(run: Run, table: str = "rollouts") -> list[dict[str, Any]]:
    """The rows of one of a run's Parquet files, which are in the order in which rollouts ended, by prompt."""
    read = pq.read_table(run.folder / f"{table}.parquet").to_pylist()
    return sorted(read, key=lambda row: (row["prompt_index"], row["rollout_index"]))


def by_prompt(run: Run, prompts: Sequence[str], table: str = "rollouts") -> Mapping[str, dict[str, Any]]:
    """The row of each prompt's one rollout."""
    return {prompts[row["prompt_index"]]: row for row in rows(run, table)}
