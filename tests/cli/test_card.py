"""A run records what took part in it, and is not resumed with something else."""

import contextlib
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import heldout as library
from heldout import __version__
from tests.support.model_servers import model_server
from tests.support.terminal import heldout

AGENT = """
import time

import yaml

import tools

def play(payload):
    import httpx  # as late as an attempt
    time.sleep(0.3)
    return {"reward": tools.REWARD}
"""
LONGER = ("--max-runtime", "60")
RUN = "out/first/scripted"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(tmp_path_factory.mktemp("models"), "yes") as address:
        yield address


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("agent.py").write_text(AGENT)
    Path("tools.py").write_text("REWARD = 1.0\n")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(8)))


def evaluate(model: str, *more: str) -> tuple[str, ...]:
    return (
        *("evaluate", "--model", model, "--agent", "agent.py:play", "--dataset", "prompts.jsonl"),
        *("--output", "out", "--name", "first", "--mlflow", "off", "-H", "rollout_max_concurrency=1"),
        *more,
    )


def interrupted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves an evaluation that has played some of its rollouts."""
    assert heldout(monkeypatch, *evaluate(model, "--max-runtime", "1")) == 1


def shown_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert heldout(monkeypatch, "show", RUN, "--card", "--json") == 0
    (card,) = json.loads(capsys.readouterr().out).values()
    return dict(card)


def sha256(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def test_a_run_records_what_it_was(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["init", "-q"], ["add", "agent.py", "tools.py"], ["commit", "-qm", "agent"]):
        subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@example.com", *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    Path("tools.py").write_text("REWARD = 0.5\n")
    assert heldout(monkeypatch, *evaluate(model, "--limit", "2", "-H", "sampling_temperature=0.7")) == 0
    card = library.load_run(RUN).card
    assert card is not None
    assert card.heldout == __version__
    assert card.agent.files == {"agent.py": sha256("agent.py"), "tools.py": sha256("tools.py")}
    assert (card.agent.commit, card.agent.is_dirty) == (commit, True)
    assert card.agent.packages["PyYAML"] == version("PyYAML")
    assert card.agent.packages["httpx"] == version("httpx")  # imported by an attempt
    assert card.dataset.files == {"prompts.jsonl": sha256("prompts.jsonl")}
    assert card.dataset.prompts_hash == library.load_run(RUN).run.state.dataset_hash
    assert card.model.served_name == "scripted"
    assert card.model.listing is not None
    assert card.model.listing["id"] == "scripted"
    assert card.hyperparameters["sampling_temperature"] == 0.7
    assert card.machine is not None
    assert card.machine.python == platform.python_version()
    capsys.readouterr()
    assert heldout(monkeypatch, "show", RUN, "--card") == 0
    shown = capsys.readouterr().out
    assert f"httpx {version('httpx')}" in shown.replace("\n", " ")
    assert commit in shown
    report = Path(RUN, "report.html").read_text()
    assert commit in report
    assert f"httpx {version('httpx')}" in report


def test_a_run_that_goes_on_with_the_same_agent_and_dataset_resumes(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(model, monkeypatch)
    assert heldout(monkeypatch, "resume", "out/first", *LONGER) == 0
    assert shown_card(monkeypatch, capsys)["changes"] == []


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("agent.py", AGENT + "# changed\n", "another agent (file agent.py: "),
        ("tools.py", "REWARD = 0.0\n", "another agent (file tools.py: "),
        ("prompts.jsonl", '{"prompt": "another"}\n', "another dataset (file prompts.jsonl: "),
    ],
)
def test_resume_refuses_a_changed_agent_or_dataset_and_names_it(
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    named: str,
) -> None:
    interrupted(model, monkeypatch)
    before = Path(RUN, "job.json").read_bytes(), Path("out/first/execution.json").read_bytes()
    Path(file).write_text(content)
    for command in (("resume", "out/first"), ("resume", RUN), evaluate(model, "--resume")):
        capsys.readouterr()
        assert heldout(monkeypatch, *command) == 2
        error = capsys.readouterr().err
        assert named in error
        assert "--allow-changes" in error
    assert (Path(RUN, "job.json").read_bytes(), Path("out/first/execution.json").read_bytes()) == before


def test_a_run_that_was_resumed_with_a_changed_agent_is_marked(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(model, monkeypatch)
    Path("tools.py").write_text("REWARD = 0.0\n")
    capsys.readouterr()
    assert heldout(monkeypatch, "resume", "out/first", "--allow-changes", *LONGER) == 0
    output = capsys.readouterr().out
    assert "the run is a mixture: agent file tools.py: " in " ".join(output.split())
    assert "the run is a mixture: agent file tools.py: " in Path(RUN, "report.html").read_text()
    (change,) = library.load_run(RUN).card.changes  # type: ignore[union-attr]
    assert change.startswith("agent file tools.py: ")


def test_an_evaluation_does_not_play_its_second_model_with_another_agent_than_its_first(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 8 rollouts of 0.3 s and 2 s more: the first run is complete, the second has not begun or is not done.
    interrupted_at = evaluate(model, "--compare-with", model, "--limit", "2", "--max-runtime", "1")
    assert heldout(monkeypatch, *interrupted_at) in (0, 1)
    state = json.loads(Path("out/first/execution.json").read_bytes())
    state |= {
        "status": "Stopped",
        "steps": [step for step in state["steps"] if step["name"] != "EvaluateFineTunedModel"],
    }
    Path("out/first/execution.json").write_text(json.dumps(state))
    Path("tools.py").write_text("REWARD = 0.0\n")
    capsys.readouterr()
    assert heldout(monkeypatch, "resume", "out/first") == 2
    assert "another agent (file tools.py: " in capsys.readouterr().err


def test_a_run_of_an_older_version_without_a_card_resumes_with_a_note(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(model, monkeypatch)
    job = json.loads(Path(RUN, "job.json").read_bytes())
    del job["card"]
    Path(RUN, "job.json").write_text(json.dumps(job))
    Path("tools.py").write_text("REWARD = 0.0\n")
    capsys.readouterr()
    assert heldout(monkeypatch, "resume", "out/first", *LONGER) == 0
    assert "has no card, because an older version began it" in " ".join(capsys.readouterr().err.split())


def test_python_refuses_and_allows_changes_too(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(model, monkeypatch)
    Path("tools.py").write_text("REWARD = 0.0\n")
    execution = library.Execution.get("out/first")
    with pytest.raises(library.errors.InputError, match=r"another agent \(file tools.py: "):
        execution.resume()
    execution.resume(allow_changes=True)
    with contextlib.suppress(library.errors.JobFailed):  # the maximum runtime of the evaluation is a second
        execution.wait(timeout=60)
    card = library.load_run(RUN).card
    assert card is not None
    assert len(card.changes) == 1


def test_a_file_that_changes_while_it_is_played_is_noted(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that replaces one that died loads the file anew."""
    Path("agent.py").write_text("""
import os
from pathlib import Path

def play(payload):
    if not Path("died").exists():
        Path("died").touch()
        with open("agent.py", "a") as file:
            file.write("# changed\\n")
        os._exit(1)
    return {"reward": 1.0}
""")
    assert heldout(monkeypatch, *evaluate(model)) == 0
    assert "agent file agent.py: several versions" in " ".join(capsys.readouterr().out.split())
