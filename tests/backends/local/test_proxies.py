"""Agents reach the Job Runtime where the environment sends HTTP through a proxy."""

import json
from pathlib import Path

import pytest

from tests.support.agents_support import AGENTS
from tests.support.jobs import played, rows

DEAD_PROXY = "http://127.0.0.1:9"
"""Nothing listens on the discard port."""


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_an_openai_agent_reaches_its_base_url_past_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, DEAD_PROXY)
    run = await played(tmp_path, ["say ok"], agent=f"{AGENTS / 'openai_agent.py'}:solve", rollout_max_retries=0)
    (row,) = rows(run)
    assert (row["status"], row["turns"]) == ("scored", 2)


async def test_hosts_that_need_no_proxy_already_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", DEAD_PROXY)
    monkeypatch.setenv("no_proxy", "intranet.example, .local")
    monkeypatch.setenv("NO_PROXY", "10.0.0.7")
    source = (
        "import os\n"
        "def play(payload):\n"
        "    print(os.environ['no_proxy'], os.environ['NO_PROXY'], sep='|')\n"
        "    return {'reward': 1}\n"
    )
    (tmp_path / "agent.py").write_text(source)
    run = await played(tmp_path, ["p"], agent=f"{tmp_path / 'agent.py'}:play")
    printed = rows(run, "attempts")[0]["output"].strip().split("|")
    assert printed == ["intranet.example,.local,10.0.0.7,127.0.0.1"] * 2


async def test_an_environment_without_a_proxy_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    source = (
        "import json, os\ndef play(payload):\n    print(json.dumps(sorted(os.environ)))\n    return {'reward': 1}\n"
    )
    (tmp_path / "agent.py").write_text(source)
    run = await played(tmp_path, ["p"], agent=f"{tmp_path / 'agent.py'}:play")
    names = json.loads(rows(run, "attempts")[0]["output"])
    assert not {"no_proxy", "NO_PROXY"} & set(names)
