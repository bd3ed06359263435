"""Hyperparameters in the spelling that an endpoint's schema requires."""

from typing import Any

import pytest

from heldout.backends.sagemaker.hyperparameter_schema import spelled
from heldout.errors import HyperparameterError
from heldout.job.hyperparameters import Hyperparameters
from heldout.job.schema import document_schema

NESTED = {
    "batch": {"type": "object", "properties": {"eval_group_size": {"type": "integer", "minimum": 1, "maximum": 64}}},
    "eval_sampling_params": {"$ref": "#/$defs/Sampling"},
}
SAMPLING = {"properties": {"temperature": {"type": "number"}, "sampling_top_p": {"type": ["number", "null"]}}}
FLAT = {
    "eval_group_size": {"type": "integer"},
    "temperature": {"type": "number"},
    "pass_k_values": {"type": "array", "items": {"type": "integer"}},
}
TEXT = {"eval_group_size": {"type": "string", "pattern": r"^\d+$"}, "pass_k_values": {"type": "string"}}


def schema_of(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    section = {"type": "object", "properties": properties, "additionalProperties": False} | more
    config = {"anyOf": [{"type": "null"}, {"properties": {"HyperParameters": section}}]}
    return {"$defs": {"Sampling": SAMPLING}, "properties": {"EvaluationConfig": config}}


@pytest.mark.parametrize(
    ("schema", "values", "expected"),
    [
        (
            schema_of(NESTED),
            {"eval_group_size": 4, "sampling_temperature": 0.5, "top_p": 0.9},
            {"batch": {"eval_group_size": 4}, "eval_sampling_params": {"temperature": 0.5, "sampling_top_p": 0.9}},
        ),
        (
            schema_of(FLAT),
            {"eval_group_size": 4, "sampling_temperature": 1.0, "pass_k_values": (1, 4)},
            {"eval_group_size": 4, "temperature": 1.0, "pass_k_values": [1, 4]},
        ),
        (
            schema_of(TEXT),
            {"eval_group_size": 4, "pass_k_values": (1, 4)},
            {"eval_group_size": "4", "pass_k_values": "[1, 4]"},
        ),
        (
            schema_of({}, additionalProperties={"type": "string"}),
            {"sampling_temperature": 0.5, "enforce_sampling": True},
            {"sampling_temperature": "0.5", "enforce_sampling": "true"},
        ),
    ],
    ids=["nested", "flat", "text", "anything"],
)
def test_hyperparameters_are_spelled_as_the_endpoint_wants_them(
    schema: dict[str, Any], values: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert spelled(values, schema) == expected


def test_whatever_the_spelling_the_same_values_come_back() -> None:
    given = Hyperparameters({"eval_group_size": 3, "sampling_temperature": 0.7, "pass_k_values": [1, 2], "seed": 7})
    for schema in (document_schema(), schema_of({}, additionalProperties=True)):
        assert Hyperparameters(spelled(given.set_values(), schema)) == given


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (schema_of(FLAT), r"'enforce_sampling' is set to True, and the endpoint does not have it; leave it out"),
        ({"properties": {}}, r"the endpoint's job document has no hyperparameters, and 'enforce_sampling'"),
        (
            schema_of({"enforce_sampling": {"type": "integer"}}),
            r"'enforce_sampling' is True; the endpoint takes enforce_sampling as \{'type': 'integer'\}",
        ),
    ],
)
def test_a_value_that_was_set_is_never_lost(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError, match=message):
        spelled({"enforce_sampling": True}, schema)


def test_a_value_out_of_the_endpoints_range_says_the_range() -> None:
    with pytest.raises(HyperparameterError, match=r"'eval_group_size' is 65; .* batch.eval_group_size .*'maximum': 64"):
        spelled({"eval_group_size": 65}, schema_of(NESTED))
