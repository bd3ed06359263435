"""An evaluation as a pipeline: the three definitions, and the runner that executes them on this machine."""

import asyncio
import hashlib
import importlib.metadata
import json
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePath
from typing import Any

import jinja2
import orjson
import pytest

from heldout.backends.local.evaluation import play_evaluation
from heldout.backends.local.job import play_job
from heldout.errors import InputError, JobFailed, ReferenceProblem, RunError
from heldout.job.document import JobConfigDocument, MlflowConfig
from heldout.job.kinds.hub_model import HubModel
from heldout.job.registry import Registry
from heldout.pipeline.definition import EvaluationJobs, Shape, choose_shape, render
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.expressions import resolve, steps_read_by
from heldout.pipeline.runner import run_pipeline
from heldout.pipeline.state import ExecutionStatus, StepStatus
from heldout.pipeline.steps import parse_definition
from heldout.policies.scripted import ScriptedServer
from heldout.rollouts.context import PlayContext
from heldout.rollouts.engine import Ending
from heldout.runs.run import BASE_RUN, FINE_TUNED_RUN, JobStatus, Run
from heldout.storage.lock import FolderLock
from tests.support.evaluations import AROUND, new_evaluation
from tests.support.jobs import PLAYERS, document, rows, write_prompts

NOWHERE = "http://127.0.0.1:1/v1"
RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"
PACKAGE = "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"
BASE_ARN = "arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/gpt-oss-20b/1.2.0"


async def play(evaluation: Evaluation) -> Ending:
    return await play_evaluation(evaluation, PlayContext(), play_job)


def jobs(folder: Path, shape: Shape, url: str = NOWHERE, prompts: tuple[str, ...] = ("1", "0")) -> EvaluationJobs:
    job = document(folder, url, prompts, rollout_max_retries=0)
    return EvaluationJobs(
        base=None if shape is Shape.FINE_TUNED_ONLY else job, fine_tuned=None if shape is Shape.BASE_ONLY else job
    )


def logged(given: EvaluationJobs) -> EvaluationJobs:
    """The same, with their runs in MLflow."""
    app = MlflowConfig(mlflow_resource_arn="arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1")

    def with_app(job: JobConfigDocument | None) -> JobConfigDocument | None:
        if job is None:
            return None
        output = job.output_data_config.model_copy(update={"mlflow_config": app})
        return job.model_copy(update={"output_data_config": output})

    return EvaluationJobs(with_app(given.base), with_app(given.fine_tuned))


STEPS = {
    Shape.BASE_ONLY: ["CreateEvaluationAction", "EvaluateBaseModel", "AssociateLineage"],
    Shape.FINE_TUNED_ONLY: ["CreateEvaluationAction", "EvaluateFineTunedModel", "AssociateLineage"],
    Shape.COMPARISON: [
        "CreateEvaluationAction",
        "EvaluateBaseModel",
        "EvaluateFineTunedModel",
        "AssociateLineage",
    ],
}


@pytest.mark.parametrize(
    ("has_fine_tuned", "evaluate_base_model", "shape"),
    [
        (False, False, Shape.BASE_ONLY),
        (False, True, Shape.BASE_ONLY),
        (True, False, Shape.FINE_TUNED_ONLY),
        (True, True, Shape.COMPARISON),
    ],
)
def test_the_shape_depends_on_a_fine_tuned_model(has_fine_tuned: bool, evaluate_base_model: bool, shape: Shape) -> None:
    assert choose_shape(has_fine_tuned=has_fine_tuned, evaluate_base_model=evaluate_base_model) is shape


@pytest.mark.parametrize("shape", Shape)
def test_each_shape_has_the_steps_of_the_contract_one_after_the_other(tmp_path: Path, shape: Shape) -> None:
    definition = render(logged(jobs(tmp_path, shape)), AROUND)
    assert definition["Version"] == "2020-12-01"
    assert [step["Name"] for step in definition["Steps"]] == STEPS[shape]
    assert [step.get("DependsOn", []) for step in definition["Steps"]] == [[], *([name] for name in STEPS[shape][:-1])]
    for step in definition["Steps"][1:-1]:
        assert step["Type"] == "Job"
        assert step["Arguments"]["JobCategory"] == "AgentRFTEvaluation"
        assert isinstance(step["Arguments"]["JobConfigDocument"], str)
    artifacts = definition["Steps"][-1]["Arguments"]["Artifacts"]
    assert len(artifacts) == len(definition["Steps"]) - 2
    assert artifacts[0]["Source"] == {
        "SourceUri": {"Get": f"Steps.{STEPS[shape][1]}.JobConfigDocument.ServiceOutput.MlflowDetails.RunId"}
    }


@pytest.mark.parametrize("shape", Shape)
def test_a_definition_without_mlflow_gets_nothing_that_its_jobs_do_not_say(tmp_path: Path, shape: Shape) -> None:
    definition = render(jobs(tmp_path, shape), AROUND)
    assert list(steps_read_by(definition)) == []
    artifacts = definition["Steps"][-1]["Arguments"]["Artifacts"]
    assert [artifact["Source"] for artifact in artifacts] == [{"SourceUri": str(tmp_path)}] * len(artifacts)


def test_vpc_and_tags_are_members_next_to_the_job_document(tmp_path: Path) -> None:
    around = type(AROUND)(
        "us-west-2",
        "000000000000",
        "role",
        "pipeline",
        tags=(("team", "rl"),),
        security_group_ids=("sg-1",),
        subnets=("subnet-1",),
    )
    step = render(jobs(tmp_path, Shape.BASE_ONLY), around)["Steps"][1]
    assert step["Arguments"]["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert step["Arguments"]["Tags"] == [{"Key": "team", "Value": "rl"}]
    assert "VpcConfig" not in json.loads(step["Arguments"]["JobConfigDocument"])


def test_expressions_read_what_earlier_steps_left() -> None:
    scope = {"Execution": {"PipelineExecutionId": "abc"}, "Steps": {"A": {"B": {"C": None}}}}
    value = {"Std:Join": {"On": "-", "Values": [{"Get": "Execution.PipelineExecutionId"}, "report"]}}
    assert resolve({"Name": [value], "Id": {"Get": "Steps.A.B.C"}}, scope) == {"Name": ["abc-report"], "Id": None}
    with pytest.raises(InputError, match=r"nothing to get at 'Execution.PipelineExecutionID'.*Did you mean"):
        resolve({"Get": "Execution.PipelineExecutionID"}, scope)
    with pytest.raises(InputError, match=r"nothing to get at 'Execution.PipelineExecutionId.Part': no 'Part' there"):
        resolve({"Get": "Execution.PipelineExecutionId.Part"}, scope)
    plain = {"Get": "Steps.A.B.C", "Name": "an object that has both"}
    assert resolve(plain, scope) == plain
    assert list(steps_read_by([value, plain, {"Id": {"Get": "Steps.A.B.C"}}])) == ["A"]


def _without(definition: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**definition, **changes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: _without(d, Version="1"), "Version is '1'; it must be '2020-12-01'"),
        (lambda d: _without(d, Steps=[]), "it must be a list of steps"),
        (lambda d: _without(d, Steps=[{"Type": "Job"}]), "has no Name"),
        (
            lambda d: _without(d, Steps=[{"Type": "Job", "Name": "../up"}]),
            "Name '../up' is not one; it must be up to 64",
        ),
        (lambda d: _without(d, Steps=[*d["Steps"], d["Steps"][0]]), "two steps have the same Name"),
        (lambda d: _without(d, Steps=d["Steps"][1:]), "depends on 'CreateEvaluationAction', which is no step"),
        (lambda d: _without(d, Parameters={"Name": "p"}), "Parameters is {'Name': 'p'}; it must be a list of objects"),
        (
            lambda d: _without(d, Steps=[{"Name": "A", "DependsOn": "B"}]),
            "step 'A': DependsOn is 'B'; it must be a list",
        ),
        (
            lambda d: _without(d, Steps=[{**d["Steps"][0], "DependsOn": ["AssociateLineage"]}, *d["Steps"][1:]]),
            "steps depend on each other",
        ),
        (lambda d: _without(d, Steps=[{"Name": "A", "Type": "Training", "Arguments": {}}]), "Type is 'Training'"),
        (lambda d: _without(d, Steps=[{"Name": "A", "Type": "Job"}]), "Arguments is None"),
        (
            lambda d: _without(d, Steps=[{"Name": "A", "Type": "Lineage", "Arguments": {"Actions": [{}]}}]),
            "step 'A': one of Actions has no ActionName",
        ),
        (lambda d: _without(d, Steps=[{"Name": "A", "Type": "Job", "Arguments": {}}]), "JobCategory is None"),
        (
            lambda d: _without(
                d, Steps=[{"Name": "A", "Type": "Job", "Arguments": {"JobCategory": "AgentRFTEvaluation"}}]
            ),
            "JobConfigDocument is None; it must be a JSON string",
        ),
        (
            lambda d: _without(
                d,
                Steps=[
                    {
                        "Name": "A",
                        "Type": "Job",
                        "Arguments": {"JobCategory": "AgentRFTEvaluation", "JobConfigDocument": "{}"},
                    }
                ],
            ),
            "step 'A': job document: AgentConfig is missing",
        ),
    ],
)
def test_an_unexecutable_definition_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    with pytest.raises(InputError) as error:
        parse_definition(json.dumps(change(render(jobs(tmp_path, Shape.BASE_ONLY), AROUND))))
    assert words in str(error.value)


@pytest.mark.parametrize("shape", Shape)
async def test_each_shape_is_executed_step_by_step(tmp_path: Path, shape: Shape) -> None:
    async with ScriptedServer() as server:
        evaluation = new_evaluation(tmp_path, jobs(tmp_path, shape, server.url))
        assert await play(evaluation) is Ending.FINISHED
    state = Evaluation.open(evaluation.folder).state
    assert state.status is ExecutionStatus.SUCCEEDED
    assert [step.name for step in state.steps] == STEPS[shape]
    for step in state.steps:
        assert step.status is StepStatus.SUCCEEDED
        assert step.ended_at is not None
        assert step.ended_at >= step.started_at
    job_arns = [step.job_arn for step in state.steps if step.kind == "Job"]
    assert len(set(job_arns)) == len(STEPS[shape]) - 2
    assert (evaluation.folder / "comparison.json").exists() is (shape is Shape.COMPARISON)


async def test_a_comparison_gives_the_change_of_each_metric(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        base = document(tmp_path / "a", server.url, ["0", "0.5"])
        tuned = document(tmp_path / "b", server.url, ["1", "0.5"])
        evaluation = new_evaluation(tmp_path, EvaluationJobs(base, tuned))
        await play(evaluation)
    compared = orjson.loads((evaluation.folder / "comparison.json").read_bytes())
    assert compared["prompts"] == {
        "shared": 1,
        "only_base": 1,
        "only_fine_tuned": 1,
        "better": 0,
        "worse": 0,
        "same": 1,
    }
    assert {"base", "fine_tuned", "difference", "interval", "p_value"} <= compared["metrics"]["eval/reward/mean"].keys()
    assert compared["metrics"]["eval/reward/mean"]["base"] == 0.5
    assert compared["verdict"]


async def test_runs_that_cannot_be_compared_keep_their_results_and_the_reason(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        base, tuned = document(tmp_path / "a", server.url, ["0"]), document(tmp_path / "b", server.url, ["1"])
        evaluation = new_evaluation(tmp_path, EvaluationJobs(base, tuned))
        assert await play(evaluation) is Ending.FINISHED
    assert evaluation.state.status is ExecutionStatus.SUCCEEDED
    (note,) = evaluation.state.notes
    assert note.startswith("no comparison: ")
    assert "share no prompt" in note


async def test_lineage_identifies_artifacts_by_the_hash_of_their_content(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        evaluation = new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY, server.url))
        await play(evaluation)
    lineage = orjson.loads((evaluation.folder / "lineage.json").read_bytes())
    kinds = {artifact["ArtifactType"]: artifact for artifact in lineage["Artifacts"]}
    assert set(kinds) >= {"DataSet", "Agent", "Model", "Job", "Report", "EvaluationReport"}
    assert kinds["Agent"]["Properties"]["Sha256"] == hashlib.sha256(PLAYERS.read_bytes()).hexdigest()
    assert kinds["DataSet"]["Properties"]["Sha256"] == evaluation.runs()[BASE_RUN].state.dataset_hash
    (action,) = lineage["Actions"]
    assert action["ActionName"] == evaluation.state.execution_id
    assert kinds["EvaluationReport"]["ArtifactName"] == f"{evaluation.state.execution_id}-base-eval-report"
    job = kinds["Job"]["ArtifactName"]
    assert job == evaluation.state.steps[1].job_arn
    sources = {a["Source"]["Name"] for a in lineage["Associations"] if a["Destination"].get("Name") == job}
    assert {kinds[kind]["ArtifactName"] for kind in ("DataSet", "Agent", "Model")} == sources


async def test_a_step_that_fails_keeps_its_reason_and_ends_the_execution(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        good = document(tmp_path / "a", server.url, ["1"])
        bad = document(tmp_path / "b", server.url, ["raise broken"] * 60, rollout_max_concurrency=8)
        evaluation = new_evaluation(tmp_path, EvaluationJobs(good, bad))
        with pytest.raises(JobFailed, match="broken"):
            await play(evaluation)
    state = Evaluation.open(evaluation.folder).state
    assert state.status is ExecutionStatus.FAILED
    assert state.failure_reason is not None
    assert state.failure_reason.startswith("step EvaluateFineTunedModel: ")
    assert [step.status for step in state.steps] == [StepStatus.SUCCEEDED, StepStatus.SUCCEEDED, StepStatus.FAILED]
    assert "broken" in (state.steps[-1].failure_reason or "")
    assert state.steps[-1].ended_at is not None


async def test_an_unmapped_model_fails_the_step_with_the_remedy(tmp_path: Path) -> None:
    job = document(tmp_path, NOWHERE, ["1"])
    hub = job.evaluation_config.model_copy(update={"model": HubModel(BASE_ARN)})
    evaluation = new_evaluation(
        tmp_path, EvaluationJobs(job.model_copy(update={"evaluation_config": hub}), fine_tuned=None)
    )
    with pytest.raises(ReferenceProblem, match=r"gpt-oss-20b.*is not on this machine.*map it in a registry"):
        await play(evaluation)


class _Interrupted:
    """Executes an evaluation with another way to play its jobs."""

    def __init__(self, inner: Callable[[Run], Awaitable[Ending]]) -> None:
        self.inner = inner
        self.played: list[str] = []

    async def play(self, run: Run, context: PlayContext) -> Ending:
        self.played.append(run.state.run_name)
        return await self.inner(run)

    async def conclude(self, evaluation: Evaluation, note: Callable[[str], None]) -> None:
        self.played.append("conclude")

    async def execute(self, evaluation: Evaluation) -> Ending:
        return await run_pipeline(evaluation, PlayContext(), play_job=self.play, conclude=self.conclude)


async def test_the_remaining_steps_are_executed_after_the_runner_was_killed(tmp_path: Path) -> None:
    evaluation = new_evaluation(tmp_path, jobs(tmp_path, Shape.COMPARISON))

    async def killed(run: Run) -> Ending:
        if run.state.run_name == FINE_TUNED_RUN:
            raise KeyboardInterrupt
        run.update(status=JobStatus.COMPLETED)
        return Ending.FINISHED

    with pytest.raises(KeyboardInterrupt):
        await _Interrupted(killed).execute(evaluation)
    again = Evaluation.open(evaluation.folder)
    assert again.state.status is ExecutionStatus.EXECUTING
    assert again.status is ExecutionStatus.STOPPED

    async def done(run: Run) -> Ending:
        run.update(status=JobStatus.COMPLETED)
        return Ending.FINISHED

    rest = _Interrupted(done)
    assert await rest.execute(again) is Ending.FINISHED
    assert rest.played == [FINE_TUNED_RUN, "conclude"]
    assert Evaluation.open(evaluation.folder).state.status is ExecutionStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        (Ending.STOPPED, ExecutionStatus.STOPPED, "stopped before it was done"),
        (Ending.OUT_OF_TIME, ExecutionStatus.FAILED, "the maximum runtime is over"),
    ],
)
async def test_a_job_that_did_not_finish_ends_the_execution(
    tmp_path: Path, ending: Ending, status: ExecutionStatus, reason: str
) -> None:
    evaluation = new_evaluation(tmp_path, jobs(tmp_path, Shape.COMPARISON))

    async def unfinished(run: Run) -> Ending:
        return ending

    work = _Interrupted(unfinished)
    assert await work.execute(evaluation) is ending
    assert work.played == [BASE_RUN]
    assert evaluation.state.status is status
    assert reason in (evaluation.state.failure_reason or "")


async def test_a_cancelled_execution_is_stopped(tmp_path: Path) -> None:
    evaluation = new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY))
    playing = asyncio.Event()

    async def endless(run: Run) -> Ending:
        playing.set()
        await asyncio.Event().wait()
        return Ending.FINISHED

    executing = asyncio.create_task(_Interrupted(endless).execute(evaluation))
    await playing.wait()
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    assert evaluation.state.status is ExecutionStatus.STOPPED
    assert evaluation.state.failure_reason == "stopped before it was done"


async def test_one_process_at_a_time_executes_an_evaluation(tmp_path: Path) -> None:
    evaluation = new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY))
    lock = FolderLock.take(evaluation.folder)
    with pytest.raises(RunError, match="is being worked on by process"):
        await asyncio.wait_for(play(evaluation), 30)
    lock.release()


def test_a_new_evaluation_never_overwrites_an_existing_one(tmp_path: Path) -> None:
    new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY))
    with pytest.raises(RunError, match=r"there is an evaluation in .* already"):
        new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY))


def test_a_missing_evaluation_names_the_nearest(tmp_path: Path) -> None:
    new_evaluation(tmp_path, jobs(tmp_path, Shape.BASE_ONLY))
    with pytest.raises(RunError, match="Did you mean 'evaluation'"):
        Evaluation.open(tmp_path / "evalation")
    with pytest.raises(RunError, match=r"Did you mean '.*evaluation'"):
        Evaluation.open(tmp_path)


def _published(template: str, folder: Path) -> str:
    """A definition as the published SDK renders it. The package itself takes ten seconds to import, this file none."""
    published = importlib.metadata.distribution("sagemaker-train")
    templates = runpy.run_path(str(published.locate_file("sagemaker/train/evaluate/mtrl_pipeline_templates.py")))

    def job(run_name: str, **package: object) -> str:
        return json.dumps(
            {
                "AgentConfig": {"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME}},
                "InputDataConfig": [
                    {
                        "ChannelName": "evaluation",
                        "DataSource": {
                            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://my-bucket/prompts.jsonl"}
                        },
                    }
                ],
                "OutputDataConfig": {
                    "S3OutputPath": "s3://my-bucket/output/",
                    "MlflowConfig": {
                        "MlflowResourceArn": f"sqlite:///{folder}/mlflow.db",
                        "MlflowExperimentName": "test",
                        "MlflowRunName": run_name,
                    },
                },
                "EvaluationConfig": {"BaseModelArn": BASE_ARN, "AcceptEula": True, "HyperParameters": {"top_p": "0.9"}},
                **package,
                "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
            }
        )

    context = {
        "pipeline_name": "SagemakerEvaluation-MTRLEvaluation",
        "role_arn": "arn:aws:iam::123456789012:role/evaluation",
        "base_model_arn": BASE_ARN,
        "source_model_package_arn": PACKAGE,
        "action_arn_prefix": "arn:aws:sagemaker:us-west-2:123456789012:action",
        "dataset_artifact_arn": None,
        "vpc_config": True,
        "vpc_security_group_ids": ["sg-1"],
        "vpc_subnets": ["subnet-1"],
        "tags": [{"Key": "team", "Value": "rl"}],
        "job_config_document_str": job("base-model-eval"),
        "job_config_document_ft_str": job(
            "fine-tuned-model-eval", ModelPackageConfig={"InputModelPackageArn": PACKAGE}
        ),
    }
    return str(jinja2.Template(templates[template]).render(context))


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        ("MTRL_TEMPLATE_BASE_MODEL_ONLY", Shape.BASE_ONLY),
        ("MTRL_TEMPLATE_FINE_TUNED_ONLY", Shape.FINE_TUNED_ONLY),
        ("MTRL_TEMPLATE", Shape.COMPARISON),
    ],
)
async def test_a_definition_of_the_published_sdk_is_executed_with_a_registry(
    tmp_path: Path, template: str, shape: Shape
) -> None:
    definition = json.loads(_published(template, tmp_path))
    write_prompts(tmp_path / "bucket", ["1", "0.5"])
    async with ScriptedServer() as server:
        registry = Registry.parse(
            f'[models."gpt-oss-20b"]\nendpoint = "{server.url}#scripted"\n'
            f'[model-packages."{PACKAGE}"]\nendpoint = "{server.url}#scripted"\n'
            f'[agents."{RUNTIME}"]\nagent = "{PLAYERS}:play"\n[buckets."my-bucket"]\nfolder = "bucket"\n',
            where="names.toml",
            folder=PurePath(tmp_path),
        )
        evaluation = Evaluation.create(
            str(tmp_path / "out"), name="sdk", region="us-west-2", definition=definition, registry=registry
        )
        assert await play(evaluation) is Ending.FINISHED
    assert [step.name for step in evaluation.state.steps] == STEPS[shape]
    for run in evaluation.runs().values():
        assert [row["reward"] for row in rows(run)] == [1.0, 0.5]
