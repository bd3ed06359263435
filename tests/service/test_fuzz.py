"""Fuzzing of every operation: botocore can parse each answer, and none is an InternalFailure."""

import copy
import functools
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.model import OperationModel
from botocore.parsers import ResponseParserError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heldout.job.registry import Registry
from heldout.service.application import OPERATION_TABLES
from heldout.service.supervisor import Supervisor
from heldout.service.wire.operations import service_model
from tests.support.live_service import REGION, ROLE, Served, served
from tests.support.service_jobs import CATEGORY, REGISTRY_FILE, create, definition, document, registry
from tests.support.service_registry import FUNCTION, GROUP_ARN, MODEL, NOWHERE, PACKAGE, RUNTIME, registry_text

pytestmark = pytest.mark.slow

OPERATIONS = [service_model(room.service).operation_model(name) for room in OPERATION_TABLES for name in room.functions]
FUZZED = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
ALWAYS = {"ValidationException", "ValidationError", "InvalidParameterException", "SerializationException"}
ODD = ("", "\x00", "a\nb", "\u2028", "x" * 3000, "../..", "é", "a b", "🎉", "%2F", "${x}", "'", "<a>&")
MISSING = object()


@dataclass(frozen=True, eq=False)
class World:
    """A server with one resource of each kind."""

    server: Served
    names: list[str]
    """Names and ARNs of the resources."""
    document: dict[str, Any]
    definition: dict[str, Any]

    @functools.cache  # noqa: B019 - there is one world
    def client(self, service: str = "sagemaker") -> Any:
        return self.server.client(service)

    def strings(self, member: str) -> list[str]:
        """Strings that are meaningful for this member."""
        if member.endswith("Document"):
            return [json.dumps(self.document)]
        if member.endswith("Definition"):
            return [json.dumps(self.definition)]
        return [ROLE] if member == "RoleArn" else ["t" * 40] if member.endswith("Token") else self.names


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fuzzed")
    with registry(folder), pytest.MonkeyPatch.context() as patch:
        for name in ("supervise", "resume", "stop"):  # no rollout runs
            patch.setattr(Supervisor, name, lambda *_, **__: None)
        text = (folder / REGISTRY_FILE).read_text() + registry_text(NOWHERE, NOWHERE)
        names = Registry.parse(text, where="registry", folder=folder)
        with served(folder / "state", names, has_auth=False) as server:
            yield _furnished(server, folder)


def _furnished(server: Served, folder: Path) -> World:
    client, token = server.client("sagemaker"), {"ClientRequestToken": "t" * 40}
    asked = document(folder, ["1"])
    app = client.list_mlflow_apps()["Summaries"][0]["Arn"]
    asked["OutputDataConfig"]["MlflowConfig"] = {"MlflowResourceArn": app, "MlflowExperimentName": "experiment"}
    text = definition(asked)
    made = [
        create(client, "known", asked, Tags=[{"Key": "a", "Value": "b"}]),
        client.create_pipeline(PipelineName="known", RoleArn=ROLE, PipelineDefinition=text, **token)["PipelineArn"],
        client.start_pipeline_execution(PipelineName="known", **token)["PipelineExecutionArn"],
        client.create_artifact(Source={"SourceUri": "s3://x"}, ArtifactType="kind")["ArtifactArn"],
        client.create_model_package_group(ModelPackageGroupName="known")["ModelPackageGroupArn"],
    ]
    named = ["known", "scripted", "known/runner", "SageMakerPublicHub", f"/aws/sagemaker/Job/{CATEGORY}"]
    return World(server, [*made, app, *named, FUNCTION, GROUP_ARN, MODEL, PACKAGE, RUNTIME], asked, json.loads(text))


def values(shape: Any, world: World, name: str = "", depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a shape, most of them allowed."""
    match shape.type_name:
        case "structure":
            members = {key: values(member, world, key, depth + 1) for key, member in shape.members.items() if depth < 5}
            return st.just({}) if not members else _structures(shape, members, is_whole=depth > 0)
        case "list":
            return st.lists(values(shape.member, world, name, depth + 1), max_size=4)
        case "map":
            inner = (values(each, world, name, depth + 1) for each in (shape.key, shape.value))
            return st.dictionaries(*inner, max_size=3)
        case "timestamp":
            return st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda at: at.replace(tzinfo=UTC))
        case "integer" | "long":
            low, high = shape.metadata.get("min", 0), shape.metadata.get("max", 100)
            return st.integers(low, high) | st.integers(-(2**63), 2**63 - 1)
        case "float" | "double":
            return st.floats(allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "blob":
            return st.binary(max_size=20) | st.sampled_from([b'{"prompt": "1"}', b"[]", b"1", b"{}"])
        case _:
            known = st.sampled_from(world.strings(name))
            return _texts(shape) | known | known | st.text(max_size=30) | st.sampled_from(ODD)


def _structures(
    shape: Any, members: dict[str, st.SearchStrategy[Any]], *, is_whole: bool
) -> st.SearchStrategy[dict[str, Any]]:
    if shape.is_tagged_union:
        return st.sampled_from(sorted(members)).flatmap(lambda key: st.fixed_dictionaries({key: members[key]}))
    required = {key: members[key] for key in shape.required_members if key in members}
    optional = {key: member for key, member in members.items() if key not in required}
    full = st.fixed_dictionaries(required, optional=optional)
    return (
        full | st.fixed_dictionaries(required)
        if is_whole or not required
        else full | st.fixed_dictionaries({}, optional=members)
    )


def _texts(shape: Any) -> st.SearchStrategy[str]:
    limits = shape.metadata
    if shape.enum:
        return st.sampled_from(shape.enum)
    try:
        pattern = re.compile(limits["pattern"])
    except (KeyError, re.error):
        return st.text(min_size=min(limits.get("min", 0), 60), max_size=60)
    return st.from_regex(pattern, fullmatch=True)


def problems(shape: Any, value: Any, where: str = "reply") -> Iterator[str]:
    """What a reply has that its shape does not allow."""
    limits = shape.metadata
    match shape.type_name:
        case "structure":
            yield from (f"{where}.{name} is missing" for name in shape.required_members if value.get(name) is None)
            for name, inner in value.items():
                yield from problems(shape.members[name], inner, f"{where}.{name}")
        case "list":
            for inner in value:
                yield from problems(shape.member, inner, f"{where}[]")
        case "map":
            for inner in value.values():
                yield from problems(shape.value, inner, f"{where}{{}}")
        case "string" if isinstance(value, str):
            if shape.enum and value not in shape.enum:
                yield f"{where} is {value!r}, one of {shape.enum}"
            if not limits.get("min", 0) <= len(value) <= limits.get("max", len(value)):
                yield f"{where} has {len(value)} characters: {limits}"
            pattern = limits.get("pattern", "")
            if "\\p" not in pattern and pattern and not re.fullmatch(pattern, value):
                yield f"{where} is {value!r}, not like {pattern}"
        case "integer" | "long" if not limits.get("min", value) <= value <= limits.get("max", value):
            yield f"{where} is {value}: {limits}"
        case "timestamp" if not isinstance(value, datetime):
            yield f"{where} is {value!r}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@FUZZED
@given(data=st.data())
def test_any_request_gets_an_answer_that_matches_the_model(
    world: World, operation: OperationModel, data: st.DataObject
) -> None:
    shape: Any = operation.input_shape
    params = {} if shape is None else data.draw(values(shape, world))
    for name, member in {} if shape is None else shape.members.items():
        place, value = member.serialization.get("location"), params.get(name)
        if place == "uri" and not value:
            params[name] = "label"  # without one it is another path
        if place == "header" and isinstance(value, str) and not (value.isascii() and value.isprintable()):
            params[name] = "text"  # what no header can hold is no HTTP
    service: Any = operation.service_model
    declared = {
        code for each in operation.error_shapes for code in (each.name, each.metadata.get("error", {}).get("code"))
    }
    call = getattr(world.client(service.service_name), xform_name(operation.name))
    answer = answered(call, params)
    if answer is None:
        return
    if "Error" in answer:
        assert answer["Error"]["Code"] in ALWAYS | declared, (params, answer)
        assert answer["Error"]["Message"]
    elif operation.output_shape is not None:
        parsed = {name: value for name, value in answer.items() if not hasattr(value, "read")}
        assert list(problems(operation.output_shape, parsed)) == []


def answered(call: Any, params: dict[str, Any]) -> dict[str, Any] | None:
    """The reply, or the error; None for what the client itself does not send."""
    try:
        answer = dict(call(**params))
    except ClientError as error:
        answer = dict(error.response)
    except (ResponseParserError, HTTPClientError):
        raise
    except (BotoCoreError, KeyError):
        return None
    del answer["ResponseMetadata"]
    return answer


SOMETHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["s3://bucket/x", "s3://", "../..", "~", "/", "\x00", "http://127.0.0.1:9/v1#x", "a.py:b", {"Get": "x"}]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Get", "Key", "Name", "Tags"]), inner),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything is in parsed JSON."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*at, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something inside it replaced, or taken away."""
    *way, last = draw(st.sampled_from([place for place in places(value) if place]))
    value = inside = copy.deepcopy(value)
    for key in way:
        inside = inside[key]
    new = draw(SOMETHING | st.just(MISSING))
    if new is MISSING:
        del inside[last]
    else:
        inside[last] = new
    return value


@settings(FUZZED, max_examples=150)
@given(data=st.data())
def test_any_document_or_definition_is_accepted_or_refused_with_a_reason(world: World, data: st.DataObject) -> None:
    client = world.client()
    name = f"n{uuid.uuid4().hex}"  # another each time, when hypothesis repeats what it drew too
    given_document, steps = data.draw(changed(world.document)), data.draw(changed(world.definition))
    listed = steps["Steps"] if isinstance(steps.get("Steps"), list) else []
    jobs = [step for step in listed if isinstance(step, dict) and step.get("Type") == "Job"]
    for step in jobs if data.draw(st.booleans()) else ():
        step["Arguments"] = {"JobCategory": CATEGORY, "JobConfigDocument": json.dumps(given_document)}
    asked: dict[str, Any] = {"PipelineName": name, "ClientRequestToken": name}
    with taken_or_refused():
        create(client, name, given_document)
        client.describe_job(JobName=name, JobCategory=CATEGORY)
        client.list_tags(ResourceArn=f"arn:aws:sagemaker:{REGION}:000000000000:job/{CATEGORY}/{name}")
    with taken_or_refused():
        client.create_pipeline(**asked, RoleArn=ROLE, PipelineDefinition=json.dumps(steps))
        client.describe_pipeline(PipelineName=name)
        arn = client.start_pipeline_execution(**asked)["PipelineExecutionArn"]
        client.list_pipeline_execution_steps(PipelineExecutionArn=arn)


@contextmanager
def taken_or_refused() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationException":
            raise
