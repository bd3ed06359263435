"""The registry: AWS names mapped to local things, and documents made local with it."""

import json
from pathlib import PurePath

import pytest

from heldout.errors import InputError, ReferenceProblem
from heldout.job.document import JobConfigDocument
from heldout.job.kinds.embedded import EmbeddedModel
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.kinds.http_agent import AgentContainer
from heldout.job.registry import Registry

RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"
LAMBDA = "arn:aws:lambda:us-west-2:123456789012:function:forward"
PACKAGE = "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"
DATASET = "arn:aws:sagemaker:us-west-2:123456789012:hub-content/hub/DataSet/prompts/1.0.0"
APP = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1"
HUB = "arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/gpt-oss-20b/1.2.0"
TEXT = f"""
[models."gpt-oss-20b"]
endpoint = "http://127.0.0.1:8000/v1#gpt-oss-20b"
[model-packages."{PACKAGE}"]
model = "smollm2-135m+adapters/tuned.gguf"
base-model = "gpt-oss-20b"
[agents."{RUNTIME}"]
agent = "agents/agent.py:handle"
[agents."{LAMBDA}"]
agent = "http://127.0.0.1:8080"
[datasets."{DATASET}"]
path = "prompts.jsonl"
[buckets."my-bucket"]
folder = "buckets/my-bucket"
[mlflow."{APP}"]
tracking-uri = "sqlite:////home/me/mlflow.db"
"""


def registry(text: str = TEXT) -> Registry:
    return Registry.parse(text, where="names.toml", folder=PurePath("/home/me"))


def wire(**changes: object) -> JobConfigDocument:
    document = {
        "AgentConfig": {"BedrockAgentCoreConfig": {"AgentRuntimeArn": RUNTIME, "Qualifier": "PROD"}},
        "InputDataConfig": [
            {
                "ChannelName": "evaluation",
                "DataSource": {"S3DataSource": {"S3Uri": "s3://my-bucket/eval/prompts.jsonl"}},
            }
        ],
        "OutputDataConfig": {
            "S3OutputPath": "s3://my-bucket/output/",
            "MlflowConfig": {"MlflowResourceArn": "http://127.0.0.1:5000"},
        },
        "EvaluationConfig": {"BaseModelArn": HUB, "AcceptEula": True, "HyperParameters": {"eval_group_size": "4"}},
    }
    return JobConfigDocument.parse(json.dumps(document | changes))


def test_a_document_for_aws_becomes_one_for_this_machine() -> None:
    local = registry().localized(wire())
    assert local.model == EndpointModel(("http://127.0.0.1:8000/v1",), "gpt-oss-20b")
    assert local.agent_config.agent == EntryPoint("/home/me/agents/agent.py:handle")
    assert local.prompts.data_source.dataset == "/home/me/buckets/my-bucket/eval/prompts.jsonl"
    assert local.output_data_config.location == "/home/me/buckets/my-bucket/output"
    assert local.output_data_config.mlflow_config == wire().output_data_config.mlflow_config
    assert local.hyperparameters.eval_group_size == 4
    assert local.evaluation_config.accept_eula


def test_a_fine_tuned_model_is_the_one_its_package_is_mapped_to() -> None:
    local = registry().localized(wire(ModelPackageConfig={"InputModelPackageArn": PACKAGE}))
    assert local.model == EmbeddedModel("smollm2-135m", "/home/me/adapters/tuned.gguf")
    assert local.model_package_config is None


def test_lambda_agents_and_dataset_arns_are_mapped_too() -> None:
    document = wire(
        AgentConfig={"CustomAgentLambdaConfig": {"LambdaArn": LAMBDA}},
        InputDataConfig=[{"ChannelName": "evaluation", "DataSource": {"DatasetSource": {"DatasetArn": DATASET}}}],
    )
    local = registry().localized(document)
    assert local.agent_config.agent == AgentContainer("http://127.0.0.1:8080")
    assert local.prompts.data_source.dataset == "/home/me/prompts.jsonl"


def test_an_mlflow_app_is_the_tracking_store_it_is_mapped_to() -> None:
    mlflow = {"MlflowResourceArn": APP, "MlflowExperimentName": "held-out"}
    document = wire(OutputDataConfig={"S3OutputPath": "s3://elsewhere/output", "MlflowConfig": mlflow})
    output = registry().localized(document).output_data_config
    assert output.location == "s3://elsewhere/output"
    assert output.mlflow_config is not None
    assert output.mlflow_config.mlflow_resource_arn == "sqlite:////home/me/mlflow.db"
    assert output.mlflow_config.mlflow_experiment_name == "held-out"


@pytest.mark.parametrize("uri", ["http://me:secret@mlflow:5000", "postgresql://me:secret@db/mlflow"])
def test_a_tracking_uri_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InputError, match=r"has a password in it.*MLFLOW_TRACKING_PASSWORD") as in_registry:
        Registry.parse(f'[mlflow."{APP}"]\ntracking-uri = "{uri}"', where="names.toml", folder=PurePath("/home/me"))
    mlflow = {"MlflowResourceArn": uri}
    with pytest.raises(InputError, match=r"has a password in it.*MLFLOW_TRACKING_PASSWORD") as in_document:
        wire(OutputDataConfig={"S3OutputPath": "s3://elsewhere/output", "MlflowConfig": mlflow})
    assert "secret" not in f"{in_registry.value} {in_document.value}"


def test_a_registry_does_not_say_where_it_lies() -> None:
    with pytest.raises(ReferenceProblem, match=r"^registry names.toml: \[folder\] is no section"):
        Registry.parse('folder = "/elsewhere"', where="names.toml", folder=PurePath("/home/me"))


def test_an_unmapped_name_stays_unchanged() -> None:
    assert Registry().localized(wire()) == wire()


def test_no_key_leads_out_of_its_buckets_folder() -> None:
    assert registry().location("s3://my-bucket//etc/passwd") == "/home/me/buckets/my-bucket/etc/passwd"
    assert registry().location("s3://my-bucket/a..b/c") == "/home/me/buckets/my-bucket/a..b/c"
    for key in ("../../secret", "a/../../../secret", ".."):
        with pytest.raises(ReferenceProblem, match=r"leads out of the folder of bucket 'my-bucket'"):
            registry().location(f"s3://my-bucket/{key}")


def test_a_registry_survives_being_written_into_an_evaluation() -> None:
    written = registry().model_dump(mode="json", by_alias=True, exclude_none=True)
    assert Registry.model_validate(json.loads(json.dumps(written))) == registry()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[models", "registry names.toml is not TOML"),
        ('[model."x"]\nendpoint = "http://h:1/v1"', "Did you mean 'models'"),
        ('[models."x"]\nendpont = "http://h:1/v1"', "Did you mean 'endpoint'"),
        ('[models."x"]\n', '[models."x"] needs exactly one of endpoint, model'),
        ('[models."x"]\nendpoint = "localhost:8000"', "'localhost:8000' must be http"),
        ('[models."x"]\nendpoint = "http://h:99999/v1"', "'http://h:99999/v1' is not an http"),
        ('[models."x"]\nmodel = "http://h:1/v1#m"', "'http://h:1/v1#m' must be an embedded model"),
        ('[agents."x"]\nagent = "agent.py"', "Write agent.py:function"),
        (f'[agents."x"]\nagent = "{RUNTIME}"', "must be on this machine"),
        ('[agents."x"]\n', "[agents.\"x\"] has no 'agent'"),
        ('[buckets."x"]\nfolder = 3', "folder is 3"),
    ],
)
def test_a_bad_registry_names_the_entry_and_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(ReferenceProblem) as error:
        registry(text)
    assert words in str(error.value)
    assert "names.toml" in str(error.value)
    assert "\n" not in str(error.value)
