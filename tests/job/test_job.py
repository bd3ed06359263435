"""Hyperparameters in every spelling, references, and the job document."""

import json
import math
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.errors import HyperparameterError, InputError, ReferenceProblem, shown
from heldout.job.document import AgentConfig, EvaluationConfig, JobConfigDocument
from heldout.job.hyperparameters import SPECIFICATIONS, Hyperparameters, canonical_name
from heldout.job.kinds.agentcore import AgentCoreRuntime
from heldout.job.kinds.embedded import EmbeddedModel
from heldout.job.kinds.endpoint import EndpointModel
from heldout.job.kinds.entry_point import EntryPoint
from heldout.job.kinds.http_agent import AgentContainer
from heldout.job.kinds.hub_model import HubModel
from heldout.job.kinds.lambda_function import LambdaAgent
from heldout.job.kinds.model_package import ModelPackage
from heldout.job.references import parse_agent, parse_model

SDK = {
    "eval_group_size": "4",
    "sampling_temperature": "0.7",
    "top_p": "0.9",
    "max_tokens": "256",
    "pass_k_values": "[1, 4]",
    "success_threshold": "0.5",
}
NESTED = {
    "batch": {"eval_group_size": 4},
    "eval_sampling_params": {"temperature": 0.7, "sampling_top_p": 0.9, "sampling_max_tokens": 256},
    "eval_metrics_config": {"pass_k_values": [1, 4], "success_threshold": 0.5},
}
FLAT = {
    "eval_group_size": 4,
    "temperature": 0.7,
    "sampling_top_p": 0.9,
    "sampling_max_tokens": 256,
    "pass_k_values": [1, 4],
    "success_threshold": 0.5,
}


def test_all_three_spellings_mean_the_same() -> None:
    assert Hyperparameters(SDK) == Hyperparameters(NESTED) == Hyperparameters(FLAT)


def test_defaults_are_those_of_the_service() -> None:
    parameters = Hyperparameters()
    assert parameters.eval_group_size == 1
    assert parameters.sampling_temperature == 0
    assert parameters.pass_k_values == (1, 2, 4, 8, 16, 32)
    assert (parameters.rollout_timeout, parameters.rollout_max_concurrency, parameters.rollout_max_retries) == (
        600,
        96,
        3,
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("eval_group_size", 0, "an integer from 1"),
        ("eval_group_size", 1.5, "an integer from 1"),
        ("eval_group_size", True, "an integer from 1"),
        ("sampling_temperature", 2.1, "from 0 to 2"),
        ("temperature", "warm", "a number from 0 to 2"),
        ("top_p", 0, "above 0 and up to 1"),
        ("pass_k_values", [], "a list of integers"),
        ("pass_k_values", [0], "a list of integers"),
        ("pass_k_values", "1,x", "a list of integers"),
        ("pass_k_values", [10**20], "a list of integers"),
        ("max_tokens", 10**20, "from 1 to 2147483647"),
        ("seed", -1, "from 0 to 2147483647"),
        ("seed", 10**400, "from 0 to 2147483647"),
        ("rollout_timeout", 10**400, "a number above 0"),
        ("pass_k_values", "1,²", "a list of integers from 1 up"),
        ("pass_k_values", "1," + "2" * 5000, "a list of integers from 1 up"),
        ("pass_k_values", "[" * 100_000, "a list of integers from 1 up"),
        ("rollout_timeout", 0, "a number above 0 ("),
        ("success_threshold", math.inf, "finite"),
        ("rollout.timeout", -1, "above 0"),
        ("failed_rollouts", "drop", "zero, exclude"),
        ("enforce_sampling", "maybe", "true or false"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: object, words: str) -> None:
    with pytest.raises(HyperparameterError) as error:
        Hyperparameters({name: value})
    assert repr(canonical_name(name)) in str(error.value)
    assert shown(value) in str(error.value)
    assert words in str(error.value)


def test_an_unknown_name_gets_the_nearest_valid_one() -> None:
    with pytest.raises(HyperparameterError, match="Did you mean 'eval_group_size'"):
        Hyperparameters({"eval_groupsize": 4})
    with pytest.raises(HyperparameterError, match="Did you mean 'batch'"):
        Hyperparameters({"batches": {"eval_group_size": 4}})


def test_one_value_given_twice_differently_is_an_error() -> None:
    with pytest.raises(HyperparameterError, match="given twice"):
        Hyperparameters({"temperature": 0.5, "sampling_temperature": 0.7})


def test_assignment_is_checked_and_reads_back_under_every_spelling() -> None:
    parameters = Hyperparameters()
    parameters.sampling_temperature = 0.7
    assert parameters.temperature == 0.7
    with pytest.raises(HyperparameterError, match="'max_tokens' is 0"):
        parameters.max_tokens = 0
    with pytest.raises(AttributeError, match="Did you mean 'max_tokens'"):
        _ = parameters.max_token
    assert parameters.set_values() == {"sampling_temperature": 0.7}


def test_hyperparameters_complete_print_and_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    parameters = Hyperparameters({"eval_group_size": 4})
    assert set(SPECIFICATIONS) <= set(dir(parameters))
    assert "eval_group_size=4" in repr(parameters)
    info = parameters.get_info()
    assert info["eval_group_size"]["value"] == 4
    assert "eval_group_size" in capsys.readouterr().out


@given(st.dictionaries(st.sampled_from(["eval_group_size", "max_tokens"]), st.integers(1, 4096)))
def test_set_values_survive_writing_and_reading(values: dict[str, int]) -> None:
    parameters = Hyperparameters(values)
    assert Hyperparameters(parameters.set_values()) == parameters
    assert Hyperparameters({n: str(v) for n, v in parameters.to_dict().items()}) == Hyperparameters(
        parameters.to_dict()
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:8000/v1#tuned", EndpointModel(("http://127.0.0.1:8000/v1",), "tuned")),
        ("http://a:1/v1,http://b:2/v1#m", EndpointModel(("http://a:1/v1", "http://b:2/v1"), "m")),
        (
            "https://api.example.com/v1?key-variable=MY_KEY#m",
            EndpointModel(("https://api.example.com/v1",), "m", "MY_KEY"),
        ),
        ("http://127.0.0.1:8000/v1", EndpointModel(("http://127.0.0.1:8000/v1",), "")),
        ("smollm2-135m", EmbeddedModel("smollm2-135m")),
        ("smollm2-135m+runs/adapter.gguf", EmbeddedModel("smollm2-135m", "runs/adapter.gguf")),
        ("weights/model.gguf", EmbeddedModel("weights/model.gguf")),
        ("openai-reasoning-gpt-oss-20b", HubModel("openai-reasoning-gpt-oss-20b")),
        (
            "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1",
            ModelPackage("arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"),
        ),
        (
            "arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/x/1.0.0",
            HubModel("arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/x/1.0.0"),
        ),
    ],
)
def test_a_model_is_named_in_one_string(text: str, expected: object) -> None:
    assert parse_model(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smollm2 135m", "Did you mean 'smollm2-135m'"),
        ("smollm2-135m+adapter.bin", "not a .gguf file"),
        ("http://127.0.0.1:99999/v1#m", "not an http"),
        ("http://[::1/v1#m", "not an http"),
        ("http://user:secret@h:1/v1#m", "must not hold a user or password"),
        ("http://h:1/v1?key=abc#m", "unknown option 'key'"),
        ("http://h:1/v1?key-variable=my-key#m", "environment variable"),
        ("http://h:1/v1#m,http://h:2/v1", "after the last replica: http://h:1/v1,http://h:2/v1#m"),
        ("http://h:1/v1#m,http://h:2/v1#m", "after the last replica: http://h:1/v1,http://h:2/v1#m"),
    ],
)
def test_an_invalid_model_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ReferenceProblem) as error:
        parse_model(text)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent.py:play", EntryPoint("agent.py:play")),
        ("my.package.module:Agent", EntryPoint("my.package.module:Agent")),
        ("http://127.0.0.1:8080/", AgentContainer("http://127.0.0.1:8080")),
        (
            "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent",
            AgentCoreRuntime("arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent", "PROD"),
        ),
        (
            "arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:forward",
            LambdaAgent("arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:forward"),
        ),
    ],
)
def test_an_agent_is_named_in_one_string(text: str, expected: object) -> None:
    assert parse_agent(text, "PROD") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("agent.py", "Write agent.py:function"),
        ("arn:aws:s3:::bucket", "not a recognized Bedrock AgentCore ARN or Lambda ARN"),
        ("ftp://host", "is not one of"),
    ],
)
def test_an_invalid_agent_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ReferenceProblem) as error:
        parse_agent(text)
    assert words in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "http://a:1/v1,http://b:2/v1?key-variable=MY_KEY#m",
        "http://127.0.0.1:8000/v1",
        "smollm2-135m+/adapters/tuned.gguf",
        "/weights/model.gguf",
        "openai-reasoning-gpt-oss-20b",
    ],
)
def test_a_model_comes_back_from_a_document_as_it_was_written(text: str) -> None:
    config = EvaluationConfig.of(parse_model(text), Hyperparameters({}), accept_eula=True)
    assert EvaluationConfig.model_validate_json(config.model_dump_json(by_alias=True)).model.text == text


@pytest.mark.parametrize(
    "text",
    [
        "/home/me/agent.py:play",
        "package.module:play",
        "http://127.0.0.1:8080/path",
        "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent",
        "arn:aws:lambda:us-west-2:123456789012:function:forward",
    ],
)
def test_an_agent_comes_back_from_a_document_as_it_was_written(text: str) -> None:
    config = AgentConfig(agent=parse_agent(text), runtime_url="http://10.0.0.5:9000")
    assert AgentConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config
    assert config.agent.text == text


def test_relative_paths_are_below_the_folder_in_which_the_job_was_written() -> None:
    folder = PurePath("/home/me")
    assert parse_model("smollm2-135m+tuned.gguf").located(folder).text == "smollm2-135m+/home/me/tuned.gguf"
    assert parse_model("w.gguf").located(folder).text == "/home/me/w.gguf"
    assert parse_agent("agent.py:play").located(folder).text == "/home/me/agent.py:play"
    assert parse_agent("package.agent:play").located(folder).text == "package.agent:play"


def test_a_model_has_a_short_name_and_a_longer_one() -> None:
    names = [
        (model.label, model.description)
        for model in (
            parse_model("http://h:1/v1#m"),
            parse_model("weights/small.gguf+tuned.gguf"),
            parse_model("arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/gpt/1.0.0"),
        )
    ]
    assert names == [
        ("m", "m at http://h:1/v1"),
        ("small+adapter", "weights/small.gguf + tuned.gguf"),
        ("gpt", "arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/gpt/1.0.0"),
    ]


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("EvaluationConfig", {"ModelPackageConfig": {"InputModelPackageArn": "arn:tuned"}}),
        ("EvaluationConfig", {"Model": "smollm2-135m"}),
        ("EvaluationConfig", {"model": "smollm2-135m"}),
        ("AgentConfig", {"Agent": "agent.py:play"}),
    ],
)
def test_a_document_holds_a_model_and_an_agent_only_where_the_service_expects_them(
    section: str, changes: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=rf"{section}\.{next(iter(changes))} is not a field there"):
        JobConfigDocument.parse(_wire(**{section: changes}))


def _wire(**changes: object) -> str:
    document = {
        "AgentConfig": {"BedrockAgentCoreConfig": {"AgentRuntimeArn": "arn", "Qualifier": "PROD"}},
        "InputDataConfig": [
            {
                "ChannelName": "evaluation",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/p"}},
            }
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://b/o", "MlflowConfig": {"MlflowResourceArn": "arn"}},
        "EvaluationConfig": {"BaseModelArn": "arn", "AcceptEula": True, "HyperParameters": NESTED},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
    }
    return json.dumps(document | changes)


def test_the_services_document_reads_and_writes_unchanged() -> None:
    document = JobConfigDocument.parse(_wire(ModelPackageConfig={"InputModelPackageArn": "arn:tuned"}))
    assert json.loads(document.to_json()) == json.loads(_wire(ModelPackageConfig={"InputModelPackageArn": "arn:tuned"}))
    assert document.hyperparameters.eval_group_size == 4
    assert document.agent_config.agent == AgentCoreRuntime("arn", "PROD")
    assert document.model == ModelPackage("arn:tuned")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AgentConfig": {}}, "exactly one of"),
        ({"AgentConfig": {"EntryPointConfg": {}}}, "Did you mean 'EntryPointConfig'"),
        ({"InputDataConfig": []}, "InputDataConfig"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, "StoppingCondition.MaxRuntimeInSeconds is 0"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 259_201}}, "259200"),
        (
            {"EvaluationConfig": {"BaseModelArn": "a", "HyperParameters": {"temprature": 1}}},
            "Did you mean 'temperature'",
        ),
        (
            {"EvaluationConfig": {"AcceptEula": True}},
            "exactly one of ModelEndpointConfig, EmbeddedModelConfig, BaseModelArn",
        ),
    ],
)
def test_a_bad_document_names_the_field(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        JobConfigDocument.parse(_wire(**changes))
    assert words in str(error.value)
