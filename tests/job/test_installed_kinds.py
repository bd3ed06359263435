"""Kinds of model and agent that another package adds, used through the command line of a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installed_package import install

ECHO = Path(__file__).parents[2] / "examples" / "extending" / "policy_kind"
AGENT = """
import json
import urllib.request


def play(payload):
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": payload["prompt"]}]}).encode()
    url = payload["metadata"]["baseUrl"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        reply = json.load(answer)["choices"][0]["message"]["content"]
    return {"reward": float(reply == "you said " + payload["prompt"])}
"""
FIXED_AGENT = """
from dataclasses import dataclass

from heldout.agents.base import InvocationResult, Outcome
from heldout.job.kinds.base import AgentReference, Form, RuntimeReach, Section


class FixedAgentConfig(Section):
    reward: float


@dataclass(frozen=True, slots=True)
class FixedAgent(AgentReference):
    reward: float

    forms = (Form("fixed://REWARD", "an agent that returns REWARD"),)
    section = "FixedAgentConfig"
    stored = FixedAgentConfig
    maker = "heldout_fixed:make"
    reach = RuntimeReach.LOOPBACK

    @classmethod
    def parse(cls, text):
        return cls(float(text.removeprefix("fixed://"))) if text.startswith("fixed://") else None

    @classmethod
    def from_section(cls, section):
        return cls(section.reward)

    def to_section(self):
        return FixedAgentConfig(reward=self.reward)

    @property
    def text(self):
        return f"fixed://{self.reward:g}"


class Player:
    def __init__(self, reward):
        self.reward = reward

    async def start(self): ...

    async def stop(self): ...

    async def invoke(self, invocation):
        return InvocationResult(Outcome.RETURNED, {"reward": self.reward})

    async def is_busy(self):
        return False


def make(agent, settings):
    return Player(agent.reward)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages, beside prompts and an agent in the working directory."""
    install(ECHO, tmp_path / "site")
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    (fixed / "heldout_fixed.py").write_text(FIXED_AGENT)
    (fixed / "pyproject.toml").write_text(
        '[project]\nname = "heldout-fixed"\nversion = "1.0"\n'
        '[project.entry-points."heldout.agents"]\nfixed = "heldout_fixed:FixedAgent"\n'
    )
    install(fixed, tmp_path / "site")
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    return tmp_path / "site"


def heldout(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that sees the packages of `site`, started in the folder above it."""
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_STATE_HOME": str(site.parent / "state")}
    command = [str(Path(sys.executable).with_name("heldout")), *arguments]
    return subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def evaluate(site: Path, model: str, agent: str = "agent.py:play") -> subprocess.CompletedProcess[str]:
    return heldout(
        site,
        *("evaluate", "--model", model, "--agent", agent, "--dataset", "prompts.jsonl", "--output", "out"),
        *("--name", "first", "--mlflow", "off", "--json", "-H", "pass_k_values=1"),
    )


def test_a_package_adds_a_kind_of_policy_that_is_evaluated_stored_and_read_again(site: Path) -> None:
    done = evaluate(site, "echo:you said ")
    assert done.returncode == 0, done.stderr
    (run,) = (site.parent / "out" / "first").glob("*/job.json")
    job = json.loads(run.read_text())
    assert job["document"]["EvaluationConfig"]["EchoModelConfig"] == {"Prefix": "you said "}
    shown = heldout(site, "show", str(run.parent), "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["metrics"]["eval/reward/mean"] == 1.0


def test_a_package_adds_a_kind_of_agent(site: Path) -> None:
    done = evaluate(site, "echo:", "fixed://0.25")
    assert done.returncode == 0, done.stderr
    (run,) = (site.parent / "out" / "first").glob("*/job.json")
    assert json.loads(run.read_text())["document"]["AgentConfig"] == {"FixedAgentConfig": {"Reward": 0.25}}


def test_a_text_that_names_nothing_is_answered_with_every_form_those_of_packages_too(site: Path) -> None:
    done = evaluate(site, "ehco:hello")
    assert done.returncode == 2
    assert done.stderr.startswith("heldout: model 'ehco:hello' is not one of: http://host:port/v1#served-name, ")
    assert "echo:PREFIX" in done.stderr
    assert done.stderr.count("\n") == 1
    done = evaluate(site, "echo:", "fixd://1")
    assert done.returncode == 2
    assert "fixed://REWARD" in done.stderr


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("import a_module_that_is_missing", "cannot be loaded: ModuleNotFoundError"),
        ("class EchoModel: pass", "expected a subclass of heldout.job.kinds.base.ModelReference"),
    ],
)
def test_a_broken_package_is_named_and_leaves_the_kinds_of_heldout_usable(
    site: Path, module: str, problem: str
) -> None:
    (site / "heldout_echo.py").write_text(module)
    done = evaluate(site, "echo:hello")
    assert done.returncode == 2
    assert "Entry point echo = 'heldout_echo:EchoModel' of package heldout-echo" in done.stderr
    assert problem in done.stderr
    done = evaluate(site, "gpt-oss-20b")
    assert "model 'gpt-oss-20b' is not on this machine" in done.stderr


def test_a_run_of_an_uninstalled_package_names_the_unknown_section(site: Path) -> None:
    assert evaluate(site, "echo:you said ").returncode == 0
    (site / "heldout_echo-0.1.0.dist-info" / "entry_points.txt").unlink()
    done = heldout(site, "resume", "out/first")
    assert done.returncode == 2, done.stderr
    assert "EvaluationConfig.EchoModelConfig is not a field there." in done.stderr
    assert "If a package adds this kind, install it." in done.stderr
