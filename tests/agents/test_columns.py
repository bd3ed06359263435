"""The other columns of a dataset's row, which agents get in `metadata.columns`."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from heldout.backends.local.job import play_rollouts
from heldout.job.document import (
    AgentConfig,
    DataSource,
    EvaluationConfig,
    InputChannel,
    JobConfigDocument,
    OutputDataConfig,
)
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.kinds.agentcore import AgentCoreRuntime
from heldout.job.kinds.base import AgentReference
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.kinds.http_agent import AgentContainer
from heldout.job.kinds.lambda_function import LambdaAgent
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.runs.run import Run
from tests.support.agents_support import served
from tests.support.aws_agents import LAMBDA_ARN, RUNTIME_ARN, aws_agents, free_port
from tests.support.jobs import rows, write_prompts

AGENT = """
def play(payload):
    columns = payload["metadata"]["columns"]
    is_right = columns == {"answer": 42, "units": ["m", "km"], "source": None}
    return {"reward": float(is_right)}
"""


async def played(folder: Path, agent: AgentReference, **columns: object) -> list[dict[str, Any]]:
    """Rollout rows of one prompt whose row has these other columns."""
    async with ScriptedServer() as server:
        document = JobConfigDocument(
            agent_config=AgentConfig(
                agent=agent,
                runtime_url=f"http://127.0.0.1:{free_port()}"
                if isinstance(agent, AgentCoreRuntime | LambdaAgent)
                else None,
            ),
            input_data_config=(
                InputChannel(data_source=DataSource.of(str(write_prompts(folder, ["How far?"], **columns)))),
            ),
            output_data_config=OutputDataConfig.at(str(folder)),
            evaluation_config=EvaluationConfig.of(
                EndpointModel((server.url,), "scripted"), Hyperparameters({"eval_group_size": 1}), accept_eula=True
            ),
        )
        run = Run.create(folder / "run", name="test", run_name="base", region="us-west-2", document=document)
        await play_rollouts(run, PlayContext())
    return rows(run)


async def test_an_agent_function_gets_the_other_columns_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    agent = EntryPoint(f"{tmp_path / 'agent.py'}:play")
    [row] = await played(tmp_path, agent, answer=42, units=["m", "km"], source=None)
    assert row["reward"] == 1.0


async def test_a_container_gets_the_other_columns_of_its_row(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/ping":
            return web.json_response({"status": "Healthy"})
        seen.append(json.loads(await request.read()))
        return web.json_response({"reward": 1.0})

    async with served(answer) as url:
        await played(tmp_path, AgentContainer(url), answer="42 km")
    assert [payload["metadata"]["columns"] for payload in seen] == [{"answer": "42 km"}]


async def test_without_other_columns_an_agent_gets_an_empty_object(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(
        'def play(payload):\n    return {"reward": len(payload["metadata"]["columns"])}\n'
    )
    [row] = await played(tmp_path, EntryPoint(f"{tmp_path / 'agent.py'}:play"))
    assert row["reward"] == 0.0


@pytest.mark.parametrize("agent", [AgentCoreRuntime(RUNTIME_ARN), LambdaAgent(LAMBDA_ARN)], ids=["agentcore", "lambda"])
async def test_an_agent_in_aws_gets_no_columns_as_in_the_hosted_service(
    agent: AgentReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    async def answer(payload: dict[str, Any]) -> web.StreamResponse:
        seen.append(payload)
        return web.json_response({"reward": 1.0})

    async with aws_agents(monkeypatch, answer):
        await played(tmp_path, agent, answer="secret")
    assert [("columns" in payload["metadata"], "secret" in json.dumps(payload)) for payload in seen] == [(False, False)]
