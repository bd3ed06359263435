"""MultiTurnRLEvaluator's fields: defaults, local and AWS forms, and error messages."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heldout import HeldoutError, InputError, MultiTurnRLEvaluator

ENDPOINT = "http://127.0.0.1:1/v1#m"
AGENT = "agent.py:play"
RUNTIME = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my-agent"
LAMBDA = "arn:aws:lambda:us-west-2:123456789012:function:forward"
DATASET = "arn:aws:sagemaker:us-west-2:123456789012:hub-content/hub/DataSet/prompts/1.0.0"
PACKAGE = "arn:aws:sagemaker:us-west-2:123456789012:model-package/tuned/1"
GROUP = "arn:aws:sagemaker:us-west-2:123456789012:model-package-group/tuned"


class MultiTurnRLTrainer:
    """As far as the evaluator looks at one."""


def evaluator(**fields: Any) -> MultiTurnRLEvaluator:
    given: dict[str, Any] = {
        "model": ENDPOINT,
        "agent_config": AGENT,
        "dataset": "prompts.jsonl",
        "s3_output_path": "runs",
    }
    return MultiTurnRLEvaluator(**{name: value for name, value in (given | fields).items() if value is not ...})


def test_the_defaults_are_those_of_the_sdk() -> None:
    made = evaluator()
    assert made.accept_eula is True
    assert made.evaluate_base_model is False
    assert made.stopping_condition == 86_400
    for name in (
        *("agent_qualifier", "tags", "mlflow_resource_arn", "mlflow_experiment_name", "networking", "kms_key_id"),
        *("model_package_group", "base_eval_name", "region", "role", "sagemaker_session"),
    ):
        assert getattr(made, name) is None
    assert evaluator(stopping_condition=None).stopping_condition == 86_400


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("model", "smollm2-135m", "smollm2-135m"),
        ("model", "smollm2-135m+adapter.gguf", "smollm2-135m+adapter.gguf"),
        ("model", "openai-reasoning-gpt-oss-20b", "openai-reasoning-gpt-oss-20b"),
        ("model", PACKAGE, PACKAGE),
        ("dataset", "s3://bucket/prompts.jsonl", "s3://bucket/prompts.jsonl"),
        ("dataset", DATASET, DATASET),
        ("dataset", SimpleNamespace(arn=DATASET), DATASET),
        ("dataset", Path("held-out/prompts.parquet"), "held-out/prompts.parquet"),
        ("s3_output_path", "s3://bucket/output/", "s3://bucket/output/"),
        ("s3_output_path", Path("runs"), "runs"),
        ("agent_config", RUNTIME, RUNTIME),
        ("agent_config", LAMBDA, LAMBDA),
        ("agent_config", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("agent_config", "package.module:Agent", "package.module:Agent"),
        ("stopping_condition", 259_200, 259_200),
        ("tags", [{"key": "team", "value": "rl"}], [{"Key": "team", "Value": "rl"}]),
        ("mlflow_resource_arn", "http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("mlflow_resource_arn", "sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("mlflow_resource_arn", "off", "off"),
        *(
            ("mlflow_resource_arn", arn, arn)
            for arn in (
                "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1",
                "arn:aws:sagemaker:us-west-2:123456789012:mlflow-tracking-server/mine",
            )
        ),
        ("model_package_group", GROUP, GROUP),
        ("model_package_group", "tuned", "tuned"),
        ("model_package_group", SimpleNamespace(model_package_group_arn=GROUP), GROUP),
        ("base_model", "smollm2-135m", "smollm2-135m"),
    ],
)
def test_aws_forms_and_local_forms_are_taken(field: str, value: object, kept: object) -> None:
    assert getattr(evaluator(**{field: value}), field) == kept


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": None}, "'dataset' is required. Accepted: S3 URI (s3://...), hub-content DataSet ARN"),
        ({"dataset": ...}, "'dataset' is required"),
        ({"dataset": 3}, "'dataset' is 3; it must be"),
        ({"dataset": "ftp://host/prompts.jsonl"}, "'ftp://host/prompts.jsonl' cannot be read"),
        ({"dataset": PACKAGE}, f"'{PACKAGE}' is no DataSet ARN"),
        ({"dataset": SimpleNamespace(arn=7)}, "'dataset' is namespace(arn=7)"),
        ({"model": ...}, "'model' is required"),
        ({"model": 3}, "'model' is 3; it must be"),
        ({"model": "a b"}, "model 'a b' is not one of"),
        ({"base_model": 3}, "'base_model' is 3"),
        ({"s3_output_path": ...}, "'s3_output_path' is required"),
        ({"s3_output_path": "gs://bucket"}, "'s3_output_path' is 'gs://bucket'"),
        ({"agent_config": None}, "'agent_config' is required when 'model' is not a MultiTurnRLTrainer"),
        (
            {"agent_config": "arn:aws:s3:::bucket"},
            "'agent_config' value 'arn:aws:s3:::bucket' is not a recognized Bedrock AgentCore ARN or Lambda ARN",
        ),
        ({"agent_config": "agent.py"}, "Write agent.py:function"),
        ({"stopping_condition": 0}, "'stopping_condition' must be > 0; got 0."),
        ({"stopping_condition": -5}, "'stopping_condition' must be > 0; got -5."),
        (
            {"stopping_condition": 259_201},
            "'stopping_condition' must be <= 259200 seconds (72 hours); got 259201.",
        ),
        ({"stopping_condition": "soon"}, "'stopping_condition' is 'soon'"),
        ({"tags": [{"Key": "team"}]}, "'tags' holds {'Key': 'team'}"),
        ({"tags": "team"}, "'tags' is 'team'"),
        ({"mlflow_resource_arn": "arn:aws:s3:::bucket"}, "'mlflow_resource_arn' is 'arn:aws:s3:::bucket'"),
        ({"mlflow_resource_arn": "somewhere"}, "'mlflow_resource_arn' is 'somewhere'"),
        ({"networking": {"subnets": ["s"]}}, "'networking' is {'subnets': ['s']}"),
        ({"registry": 3}, "'registry' is 3; it must be the path of a registry file"),
        ({"model_package_group": 3}, "'model_package_group' is 3"),
        ({"accept_eula": "perhaps"}, "'accept_eula' is 'perhaps'"),
        ({"evaluate_base": True}, "no field 'evaluate_base'. Did you mean 'evaluate_base_model'?"),
    ],
)
def test_a_field_that_cannot_be_right_is_named_with_its_value(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        evaluator(**fields)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "[PySDK Error]" not in str(error.value)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, HeldoutError)


def test_assignment_is_checked_like_construction() -> None:
    made = evaluator()
    made.stopping_condition = 60
    with pytest.raises(InputError, match="must be > 0; got 0"):
        made.stopping_condition = 0
    assert made.stopping_condition == 60
    with pytest.raises(InputError, match=r"Did you mean 'dataset'"):
        made.datset = "prompts.jsonl"


def test_a_trainer_supplies_its_agent() -> None:
    assert evaluator(model=MultiTurnRLTrainer(), agent_config=None).agent_config is None
    assert evaluator(model=SimpleNamespace(_latest_job=None), agent_config=None).agent_config is None
    with pytest.raises(InputError, match="'agent_config' is required"):
        evaluator(model=SimpleNamespace(model_package_arn=PACKAGE), agent_config=None)


def _trainer(**attributes: object) -> MultiTurnRLTrainer:
    trainer = MultiTurnRLTrainer()
    vars(trainer).update(attributes)
    return trainer


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": MultiTurnRLTrainer(), "agent_config": None}, "has no completed training job"),
        ({"model": _trainer(_latest_job=SimpleNamespace(output_model_package_arn=None))}, "Run trainer.wait()"),
        ({"model": _trainer(output_model_package_arn=PACKAGE), "agent_config": None}, "resolved to None"),
        ({"agent_config": object()}, "Could not resolve agent_config"),
        ({"agent_config": SimpleNamespace(materialize=lambda: None)}, "to an ARN"),
        (
            {"agent_config": SimpleNamespace(lambda_arn="arn:aws:s3:::bucket")},
            "Resolved agent ARN 'arn:aws:s3:::bucket' is neither a Bedrock AgentCore ARN nor a Lambda ARN",
        ),
        ({"agent_config": RUNTIME}, f"agent '{RUNTIME}' is in AWS"),
        ({"agent_config": "nowhere.py:play"}, "there is no file nowhere.py"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl' not found"),
        ({"dataset": DATASET}, f"dataset '{DATASET}' is in AWS"),
        ({"model": "gpt-oss-20b"}, "model 'gpt-oss-20b' is not on this machine"),
        ({"model": PACKAGE}, f"model '{PACKAGE}' is not on this machine"),
        ({"model": PACKAGE, "evaluate_base_model": True}, f"the base model of '{PACKAGE}' is not known"),
        ({"base_eval_name": "no/slash"}, "name 'no/slash-"),
        ({"registry": "nowhere.toml"}, "registry 'nowhere.toml' cannot be read"),
    ],
)
def test_an_invalid_evaluation_is_refused_before_anything_is_started_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "agent.py").write_text("def play(payload):\n    return {'reward': 1.0}\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1"}\n')
    with pytest.raises(InputError) as error:
        evaluator(**fields).evaluate()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.py", "prompts.jsonl"]


def test_hyperparameters_are_set_as_attributes_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    made = evaluator()
    made.hyperparameters.eval_group_size = 4
    with pytest.raises(InputError, match="'max_tokens' is 0"):
        made.hyperparameters.max_tokens = 0
    assert made.hyperparameters.to_dict()["eval_group_size"] == 4
    assert evaluator().hyperparameters.eval_group_size == 1
    assert made.hyperparameters.get_info()["eval_group_size"]["value"] == 4
    assert "eval_group_size" in capsys.readouterr().out


def test_models_and_runtimes_of_the_registry_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "names.toml"
    names.write_text(
        '[models."gpt-oss-20b"]\nendpoint = "http://127.0.0.1:8000/v1#m"\n'
        f'[agents."{RUNTIME}"]\nagent = "agent.py:play"\n[agents."{LAMBDA}"]\nagent = "agent.py:play"\n'
    )
    monkeypatch.setenv("HELDOUT_REGISTRY", str(names))
    assert MultiTurnRLEvaluator.list_supported_models() == ["gpt-oss-20b", "smollm2-135m"]
    assert MultiTurnRLEvaluator.list_bedrock_agentcore_runtimes(session=None) == [
        {"name": "my-agent", "runtime_id": "my-agent", "arn": RUNTIME, "status": "READY"}
    ]


def test_the_evaluator_shows_what_it_was_given() -> None:
    shown: Callable[[object], str] = repr
    assert "stopping_condition=60" in shown(evaluator(stopping_condition=60))
