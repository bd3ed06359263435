"""The command line, as a user types it."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heldout import __version__
from heldout.pipeline.definition import EvaluationJobs
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.state import ExecutionStatus
from heldout.runs.run import STATE_KEY
from heldout.storage.lock import FolderLock
from tests.support.evaluations import new_evaluation
from tests.support.jobs import PLAYERS, document
from tests.support.model_servers import model_server
from tests.support.terminal import heldout

AGENT = Path(__file__).parents[1] / "support" / "agents" / "agreeing.py"
NOBODYS = "arn:aws:sagemaker:us-west-2:000000000000:pipeline/p/execution/0123456789ab"
RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(tmp_path_factory.mktemp("models"), "yes") as address:
        yield address


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HELDOUT_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(8)))


def evaluate(model: str, *more: str) -> tuple[str, ...]:
    return (
        *("evaluate", "--model", model, "--agent", f"{AGENT}:play", "--dataset", "prompts.jsonl"),
        *("--output", "out", "--name", "first", "--mlflow", "off", "-H", "pass_k_values=1"),
        *more,
    )


def test_an_evaluation_whose_runs_failed_too_often_ends_with_no_verdict_and_exit_code_1(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fragile.py").write_text(
        "def play(payload):\n"
        "    columns = {'0': 1, '1': 1}\n"
        "    return {'reward': 1.0 if payload['prompt'] in '234567' else columns['answer']}\n"
    )
    arguments = list(evaluate(model, "--compare-with", model, "-H", "rollout_max_retries=0"))
    arguments[arguments.index(f"{AGENT}:play")] = "fragile.py:play"
    assert heldout(monkeypatch, *arguments) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "not comparable: 2 of 8 rollouts of baseline failed (agent: raised (2), all " in said
    assert "KeyError: 'answer'" in said
    assert "is worse than" not in said


def test_one_command_compares_a_model_with_what_it_was_tuned_from(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(model, "--compare-with", model)) == 0
    said = capsys.readouterr().out
    assert "first/baseline" in said
    assert "first/scripted" in said
    assert "8 shared prompts: 0 better, 0 worse, 8 the same" in said
    folder = Path("out/first")
    for name in ("execution.json", "lineage.json", "comparison.json", "report.html"):
        assert (folder / name).exists()

    assert heldout(monkeypatch, "show", str(folder), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["runs"]) == ["baseline", "scripted"]
    assert shown["comparison"]["metrics"]["eval/reward/mean"]["difference"] == 0
    assert heldout(monkeypatch, "show", str(folder / "baseline")) == 0
    assert "mean reward" in capsys.readouterr().out

    assert heldout(monkeypatch, "list", "out") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in listed] == [
        ["Succeeded", "out/first"],
        ["Completed", "out/first/baseline", "scripted", "pass@1", "1.00", "0", "of", "8", "failed"],
        ["Completed", "out/first/scripted", "scripted", "pass@1", "1.00", "0", "of", "8", "failed"],
    ]
    assert heldout(monkeypatch, "list", "out", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["kind"] for entry in listed] == ["evaluation", "run", "run"]
    arn = listed[0]["arn"]
    assert heldout(monkeypatch, "show", arn, "--json") == 0
    assert json.loads(capsys.readouterr().out)["comparison"] == shown["comparison"]
    for place in (arn, "out/first/baseline"):
        assert heldout(monkeypatch, "stop", place) == 0
        assert capsys.readouterr().out == "first is Succeeded: there is nothing to stop\n"
    for command in (("gate", "out/first", "--require", "pass_at_1 >= 0"), ("show", "out/first", "--trajectory", "1")):
        assert heldout(monkeypatch, *command) == 2
        names = "out/first/baseline or out/first/scripted"
        assert capsys.readouterr().err == f"heldout: evaluation out/first has 2 runs; name one: {names}\n"
    Path("out/notes").touch()
    assert heldout(monkeypatch, "show", "out/notes") == 2
    assert capsys.readouterr().err == "heldout: no run in 'out/notes': it has no job.json.\n"

    for place in ("out/first", "out/first/baseline", arn):
        assert heldout(monkeypatch, "resume", place, "--json") == 0
        assert json.loads(capsys.readouterr().out)["status"] in ("Succeeded", "Completed")
    for options in ((), ("--dry-run",)):
        assert heldout(monkeypatch, *evaluate(model, *options)) == 2
        assert "there is an evaluation in out/first already" in capsys.readouterr().err

    # The same command resumes it, also with another MLflow destination; a command with other settings does not.
    again = evaluate(
        model, "--compare-with", model, "--resume", "--mlflow", "sqlite:///here.db", "-H", "eval_group_size=1"
    )
    assert heldout(monkeypatch, *again) == 0
    Path("others.jsonl").write_text('{"prompt": "0"}\n')
    both = ("--compare-with", model)
    others: dict[str, tuple[str, ...]] = {
        f"prompts.jsonl', not '{Path.cwd()}/others.jsonl'": (*both, "--dataset", "others.jsonl"),
        "it has eval_group_size 1, not 2; give": (*both, "-H", "eval_group_size=2"),
        "it has InputDataConfig[0].Limit None, not 3; give": (*both, "--limit", "3"),
        "it plays 2 models, not one model; give": (),
    }
    for told, other in others.items():
        capsys.readouterr()
        assert heldout(monkeypatch, *evaluate(model, "--resume", *other)) == 2
        assert told in capsys.readouterr().err


def test_a_dry_run_checks_and_shows_what_would_be_executed_and_writes_nothing(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    given = evaluate(model, "--compare-with", model, "--limit", "3", "--dry-run")
    assert heldout(monkeypatch, *given) == 0
    said = capsys.readouterr().out
    assert "Dry run: nothing was started" in said
    assert heldout(monkeypatch, *given, "--json") == 0
    definition = json.loads(capsys.readouterr().out)
    assert json.dumps(definition, indent=2) in said
    jobs = [step for step in definition["Steps"] if step["Type"] == "Job"]
    assert [step["Name"] for step in jobs] == ["EvaluateBaseModel", "EvaluateFineTunedModel"]
    assert json.loads(jobs[0]["Arguments"]["JobConfigDocument"])["EvaluationConfig"]["HyperParameters"]
    assert sorted(Path().iterdir()) == before


def test_a_script_for_aws_names_its_things_through_a_registry(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.toml").write_text(
        f'[models."gpt-oss-20b"]\nendpoint = "{model}"\n[agents."{RUNTIME}"]\nagent = "{AGENT}:play"\n'
        '[buckets."my-bucket"]\nfolder = "."\n'
    )
    given = ("--model", "gpt-oss-20b", "--agent", RUNTIME, "--dataset", "s3://my-bucket/prompts.jsonl")
    places = ("--output", "s3://my-bucket/out", "--name", "first", "--registry", "names.toml", "--mlflow", "off")
    assert heldout(monkeypatch, "evaluate", *given, *places, "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"]["gpt-oss-20b"]["metrics"]["eval/reward/mean"] == 1.0
    assert Path("out/first/gpt-oss-20b/rollouts.parquet").exists()
    monkeypatch.setenv("HELDOUT_REGISTRY", "names.toml")
    assert heldout(monkeypatch, "show", "s3://my-bucket/out/first", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"]["gpt-oss-20b"]["metrics"]["eval/reward/mean"] == 1.0
    run = "s3://my-bucket/out/first/gpt-oss-20b"
    assert heldout(monkeypatch, "compare", run, run) == 1
    compared = capsys.readouterr().out
    assert "are the same run" in compared
    assert "8 shared prompts: 0 better, 0 worse, 8 the same" in compared
    regression = ("--no-regression-against", run, "--margin", "0.5")
    assert heldout(monkeypatch, "gate", run, "--require", "pass_at_1 >= 1", *regression) == 1
    assert "are the same run" in capsys.readouterr().out
    for place in ("s3://my-bucket/out/first", "out/first"):  # an evaluation with one run stands for that
        assert heldout(monkeypatch, "gate", place, "--require", "pass_at_1 >= 1") == 0
    assert heldout(monkeypatch, "list", "s3://my-bucket/out") == 0
    assert "Completed    out/first/gpt-oss-20b" in capsys.readouterr().out.replace(f"{Path.cwd()}/", "")
    assert heldout(monkeypatch, "resume", "s3://my-bucket/out/first") == 0
    capsys.readouterr()
    assert heldout(monkeypatch, "models", "--registry", "names.toml", "--json") == 0
    assert {"name": "gpt-oss-20b", "where": model} in json.loads(capsys.readouterr().out)
    assert heldout(monkeypatch, "models") == 0
    assert "smollm2-135m" in capsys.readouterr().out


def test_a_tilde_that_the_shell_left_stands_for_the_home_folder(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    Path("prompts.jsonl").rename("home/prompts.jsonl")
    Path("home/agent.py").write_text(AGENT.read_text())
    Path("names.toml").write_text('[buckets."mine"]\nfolder = "~"\n')
    places = ("--agent=~/agent.py:play", "--output=~/out", "--registry=names.toml", "--limit=1", "--mlflow=off")
    for number, dataset in enumerate(("~/prompts.jsonl", "s3://mine/prompts.jsonl")):
        given = ("evaluate", "--model", model, f"--dataset={dataset}", f"--name=run{number}", *places)
        assert heldout(monkeypatch, *given) == 0, capsys.readouterr().err
        assert Path(f"home/out/run{number}/scripted/rollouts.parquet").exists()
    assert not Path("~").exists()


def test_a_job_that_ran_out_of_time_is_resumed_with_more(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "0.7"}\n' * 4)
    slow = ("--agent", f"{AGENT}:slowly", "--max-runtime", "1", "-H", "rollout_max_concurrency=1")
    assert heldout(monkeypatch, *evaluate(model, *slow)) == 1
    assert "continue with: heldout resume out/first --max-runtime SECONDS" in capsys.readouterr().err
    assert heldout(monkeypatch, "resume", "out/first", "--max-runtime", "0") == 2
    assert "--max-runtime is 0; it must be from 1" in capsys.readouterr().err
    assert heldout(monkeypatch, "resume", "out/first", "--max-runtime", "3600", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "Succeeded"


def test_a_partly_copied_run_is_shown_or_refused_in_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*command: str) -> str:
        capsys.readouterr()
        assert heldout(monkeypatch, *command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert heldout(monkeypatch, *evaluate(model)) == 0
    whole = Path("out/first/scripted")
    for name, asked in (
        ("rollouts.parquet", ()),
        ("trajectories.parquet", ()),
        ("attempts.parquet", ("--trajectory", "x")),
        ("prompts.parquet", ("--slice", "topic")),
    ):
        run = Path(name)
        shutil.copytree(whole, run)
        (run / name).write_bytes((whole / name).read_bytes()[:-20])
        assert name in refused("show", str(run), *asked)
        (run / name).unlink()
        assert name in refused("show", str(run), *asked)
        if asked:  # nothing else needs that file
            assert heldout(monkeypatch, "show", str(run)) == 0


def test_tables_of_another_program_or_version_are_refused_in_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(model)) == 0
    run = Path("out/first/scripted")
    (run / "job.json").unlink()
    table = pq.read_table(run / "rollouts.parquet")
    pq.write_table(table.drop_columns(["turns"]), run / "rollouts.parquet")
    for command in (("show", str(run)), ("gate", str(run), "--require", "pass_at_1 >= 1")):
        capsys.readouterr()
        assert heldout(monkeypatch, *command) == 2
        assert "rollouts.parquet has no column 'turns'" in capsys.readouterr().err
    state = json.loads(table.schema.metadata[STATE_KEY.encode()]) | {"document": {}}
    pq.write_table(table.replace_schema_metadata({STATE_KEY: json.dumps(state)}), run / "rollouts.parquet")
    assert heldout(monkeypatch, "show", str(run)) == 2
    assert "holds no job's state that can be read: Field required" in capsys.readouterr().err


def test_resume_ends_what_a_process_that_was_killed_left_of_a_run_that_is_done(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heldout(monkeypatch, *evaluate(model)) == 0
    run = Path("out/first/scripted")
    (run / "journal").mkdir()  # it goes last, once job.json says Completed
    (run / "journal" / "000001.jsonl").touch()
    (run / "report.html").unlink()
    assert heldout(monkeypatch, "resume", str(run)) == 0
    assert not (run / "journal").exists()
    assert (run / "report.html").exists()


def test_a_failed_resume_leaves_the_evaluation_unchanged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = "http://127.0.0.1:1/v1"
    job = document(Path.cwd() / "out", nobody, ["1"])
    evaluation = new_evaluation(Path("out"), EvaluationJobs(base=job, fine_tuned=None))
    again = [
        *("evaluate", "--model", f"{nobody}#scripted", "--agent", f"{PLAYERS}:play"),
        *("--dataset", job.prompts.data_source.dataset),
        *("--output", "out", "--name", "evaluation", "--mlflow", "off", "--resume"),
    ]
    other = FolderLock.take(evaluation.folder)  # that has just begun, and has no rollout yet
    assert heldout(monkeypatch, *again) == 2
    assert "is being worked on by process" in capsys.readouterr().err
    other.release()
    assert evaluation.status is ExecutionStatus.STOPPED
    assert heldout(monkeypatch, *again) == 2
    assert "no model server at" in capsys.readouterr().err
    kept = Evaluation.open(evaluation.location)
    assert kept.status is ExecutionStatus.FAILED
    assert list(kept.runs()) == ["base-model-eval"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size")
def test_a_full_disk_is_reported_with_the_command_to_resume(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    ours = Path(sys.executable).parent
    command = shlex.join(evaluate(model, "-H", "eval_group_size=64"))
    limited = subprocess.run(["bash", "-c", f"ulimit -f 100; exec {ours}/heldout {command}"], timeout=120)
    assert limited.returncode == 1
    *_, error, way_on = capfd.readouterr().err.splitlines()
    assert error.startswith("heldout: cannot write")
    assert way_on == "finished rollouts are kept; continue with: heldout resume out/first"
    assert subprocess.run([ours / "heldout", *shlex.split(way_on)[-2:]], timeout=120).returncode == 0
    assert pq.read_metadata("out/first/scripted/rollouts.parquet").num_rows == 8 * 64


def test_an_evaluation_that_another_process_has_begun_meanwhile_is_not_taken_away(tmp_path: Path) -> None:
    evaluation = new_evaluation(
        tmp_path, EvaluationJobs(base=document(tmp_path, "http://m/v1", ["1"]), fine_tuned=None)
    )
    other = FolderLock.take(evaluation.folder)
    evaluation.remove_if_never_begun()
    assert Evaluation.is_at(evaluation.location)
    other.release()
    evaluation.remove_if_never_begun()
    assert not evaluation.folder.exists()


def test_an_output_is_listed_though_one_of_its_runs_cannot_be_read(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, *evaluate(model, "--compare-with", model)) == 0
    broken = Path("out/first/baseline/job.json")
    broken.write_text("{")
    capsys.readouterr()
    assert heldout(monkeypatch, "list", "out") == 0
    said = capsys.readouterr()
    assert [line.split()[3] for line in said.out.splitlines()] == ["out/first", "out/first/scripted"]
    assert said.err.startswith("! out/first/baseline: its job.json cannot be read: ")
    assert heldout(monkeypatch, "list", "out", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in entries if "problem" in entry] == ["out/first/baseline"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (evaluate("gpt-oss-20b"), "model 'gpt-oss-20b' is not on this machine"),
        (evaluate("http://127.0.0.1:1/v1#m", "--agent", "nowhere.py:play"), "agent 'nowhere.py:play' not found"),
        (evaluate("http://127.0.0.1:1/v1#m", "--dataset", "promts.jsonl"), "Did you mean 'prompts.jsonl'"),
        (evaluate("http://127.0.0.1:1/v1#m", "--dataset", ""), "dataset '' names no place"),
        (evaluate("http://127.0.0.1:1/v1#m", "--output", ""), "output '' names no place"),
        (evaluate("http://127.0.0.1:1/v1#m", "--output", "s3://"), "output 's3://' names no place"),
        (
            evaluate("http://127.0.0.1:1/v1#m", "--output", "prompts.jsonl"),
            "output 'prompts.jsonl' cannot be written to",
        ),
        (evaluate("http://127.0.0.1:1/v1#m", "--output", "/proc/x"), "give another folder, or s3://bucket/prefix"),
        (evaluate("http://127.0.0.1:1/v1#m", "--output", "/proc/x", "--dry-run"), "output '/proc/x' cannot be written"),
        (evaluate("http://127.0.0.1:1/v1#m", "--max-runtime", "0"), "--max-runtime is 0"),
        (evaluate("http://127.0.0.1:1/v1#m", "-H", "seed=1", "-H", "seed=2"), "-H 'seed' is given twice: '1' and '2'"),
        (evaluate("http://127.0.0.1:1/v1#m", "--mlflow", "http://[::1"), "the MLflow tracking URI cannot be read"),
        (evaluate("http://127.0.0.1:1/v1#m", "--mlflow", "nonsense"), "'nonsense' is of no kind that MLflow has"),
        (
            evaluate("http://127.0.0.1:1/v1#m", "--mlflow", "http://127.0.0.1:9"),
            "no MLflow server answers at 'http://127.0.0.1:9': Connection refused",
        ),
        (evaluate("http://127.0.0.1:1/v1#m", "-H", "eval_groupsize=4"), "Did you mean 'eval_group_size'"),
        (evaluate("http://127.0.0.1:1/v1#m", "-H", "eval_group_size"), "is not NAME=VALUE"),
        (evaluate("http://127.0.0.1:1/v1#m", "--name", "a/b"), "name 'a/b' is not an evaluation's name"),
        (evaluate("http://127.0.0.1:1/v1#m", "--registry", "nowhere.toml"), "registry 'nowhere.toml' cannot be read"),
        (evaluate("http://127.0.0.1:1/v1#m", "--registry", "~nobody-is-called-so/x"), "cannot be read: [Errno 2]"),
        (evaluate("http://127.0.0.1:1/v1#m", "--mlflow", "http://me:secret@h:1"), "has a password in it"),
        (
            evaluate("http://127.0.0.1:1/v1#m", "--dry-run", "--agent", "nowhere.py:play"),
            "agent 'nowhere.py:play' not found",
        ),
        (evaluate("http://127.0.0.1:1/v1#m", "--dry-run", "--name", "a/b"), "name 'a/b' is not an evaluation's name"),
        (evaluate("http://127.0.0.1:1/v1#m", "--dry-run", "--resume"), "leave one of them out"),
        (evaluate("http://127.0.0.1:1/v1#m"), "http://127.0.0.1:1/v1"),
        (("show", "out/first"), "no run in 'out/first'"),
        (evaluate("http://127.0.0.1:1/v1#m", "--dataset", "x" * 300), "x': File name too long"),
        (("list", "out"), "no folder 'out'"),
        (("list", ""), "no folder ''"),
        (("stop", ""), "the evaluation is ''; give its folder"),
        (("stop", "out/first"), "no evaluation in 'out/first'"),
        (("show", "arn:aws:sagemaker:nowhere"), "is not an evaluation's ARN; expected arn:aws:sagemaker:<region>"),
        (("resume", NOBODYS), "managed jobs cannot be resumed"),
        (("stop", NOBODYS), "was started on this machine"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert heldout(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not Path("out").exists()


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert heldout(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"heldout {__version__}\n"


def test_a_place_that_the_file_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout(monkeypatch, "show", "x" * 300) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("x/execution.json': File name too long")
    assert "\n" not in said


def test_ctrl_c_while_it_loads_ends_it_in_silence() -> None:
    code = (
        "import os, signal, sys\n"
        "class CtrlC:\n"
        "    @staticmethod\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'heldout.pipeline.evaluation':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC)\n"
        "from heldout.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "evaluate"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_every_command_is_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from heldout.cli.main import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for command in ("evaluate", "resume", "show", "stop", "list", "models", "compare", "plan", "gate", "rescore"):
        assert command in done.stdout
