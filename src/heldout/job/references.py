"""How a person names a model, an agent and a dataset in one string, parsed into frozen records.

Parsing looks at the string alone: whether the thing is there is for the room that uses it.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

from heldout.errors import ReferenceProblem, did_you_mean, shown

AGENTCORE_ARN = re.compile(r"arn:aws[a-z\-]*:bedrock-agentcore:[a-z0-9\-]+:[0-9]{12}:(?:agent-runtime|runtime)/.+")
LAMBDA_ARN = re.compile(r"arn:aws[a-z\-]*:lambda:[a-z0-9\-]+:[0-9]{12}:function:.+")
MODEL_PACKAGE_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]+:[0-9]{12}:model-package/.+")
HUB_CONTENT_ARN = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]+:(?:[0-9]{12}|aws):hub-content/.+")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*")
_ENTRY_POINT = re.compile(r"(?P<where>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """An OpenAI-compatible endpoint, one replica or several."""

    urls: tuple[str, ...]
    name: str
    """The served name; empty means the only one there."""
    api_key_variable: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model run by Heldout itself: an embedded name or a `.gguf` path, with or without a LoRA adapter."""

    model: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A hub model's name or its hub-content ARN."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A SageMaker model package."""

    arn: str


ModelReference = EndpointModel | EmbeddedModel | HubModel | ModelPackage


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """`file.py:function` or `package.module:function`."""

    entry_point: str


@dataclass(frozen=True, slots=True)
class AgentContainer:
    """Any HTTP server of the AgentCore contract."""

    url: str


@dataclass(frozen=True, slots=True)
class AgentCoreRuntime:
    """An agent in Bedrock AgentCore."""

    arn: str
    qualifier: str | None = None


@dataclass(frozen=True, slots=True)
class LambdaAgent:
    """A Lambda function that forwards to an agent."""

    arn: str


AgentReference = EntryPoint | AgentContainer | AgentCoreRuntime | LambdaAgent


def parse_model(text: str, embedded_names: frozenset[str]) -> ModelReference:
    """The model that `text` names.

    `http(s)://host:port/v1[,more replicas][?key-variable=NAME]#served-name`, an embedded model's name or a `.gguf` path, either
    with `+adapter.gguf`, a model package ARN, a hub-content ARN, or else a hub model's name.
    Raises ReferenceProblem.
    """
    if text.startswith(("http://", "https://")):
        return _endpoint(text)
    if MODEL_PACKAGE_ARN.fullmatch(text):
        return ModelPackage(text)
    if HUB_CONTENT_ARN.fullmatch(text):
        return HubModel(text)
    model, plus, adapter = text.partition("+")
    if model in embedded_names or model.endswith(".gguf"):
        if plus and not adapter.endswith(".gguf"):
            raise ReferenceProblem(
                f"model {shown(text)}: the adapter {shown(adapter)} is not a .gguf file; write {model}+adapter.gguf"
            )
        return EmbeddedModel(model, adapter or None)
    if _HUB_NAME.fullmatch(text):
        return HubModel(text)
    raise ReferenceProblem(
        f"model {shown(text)} is not one of: http://host:port/v1#served-name, an embedded model "
        f"({', '.join(sorted(embedded_names))}) or a .gguf path, either with +adapter.gguf, a hub model's name or ARN, "
        f"a model package ARN.{did_you_mean(model, embedded_names)}"
    )


def model_uri(model: ModelReference) -> str:
    """A model in one string, as `parse_model` takes it."""
    match model:
        case EndpointModel(urls, name, variable):
            option = "" if variable is None else f"?key-variable={variable}"
            return f"{','.join(urls)}{option}{name and '#'}{name}"
        case EmbeddedModel(name, adapter):
            return name if adapter is None else f"{name}+{adapter}"
        case HubModel(name):
            return name
        case ModelPackage(arn):
            return arn


def _endpoint(text: str) -> EndpointModel:
    address, _, name = text.partition("#")
    replicas = re.split(r",(?=https?://)", name)
    if len(replicas) > 1:
        raise ReferenceProblem(
            f"model {shown(text)}: the served name stands once, after the last replica: "
            f"{','.join([address, *replicas[1:]]).partition('#')[0]}#{replicas[0]}"
        )
    address, _, query = address.partition("?")
    options = parse_qs(query, keep_blank_values=True)
    variable = options.pop("key-variable", [None])[-1]
    if options:
        raise ReferenceProblem(
            f"model {shown(text)}: unknown option {next(iter(options))!r}; the one there is: ?key-variable=NAME, the "
            "environment variable that holds the endpoint's key"
        )
    if variable is not None and not _VARIABLE.fullmatch(variable):
        raise ReferenceProblem(
            f"model {shown(text)}: key-variable must be the name of an environment variable, not {shown(variable)}"
        )
    urls = tuple(_checked_url(part, f"model {shown(text)}").rstrip("/") for part in address.split(","))
    return EndpointModel(urls, name, variable)


def _checked_url(url: str, what: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # brackets without an IPv6 address, a port that is none
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address") from error
    if not is_address:
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address")
    if parts.username or parts.password:
        safe = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        raise ReferenceProblem(
            f"{what.replace(url, safe)}: a URL must not hold a user or password; name an environment variable with "
            "?key-variable=NAME"
        )
    return url


def parse_agent(text: str, qualifier: str | None = None) -> AgentReference:
    """The agent that `text` names: `file.py:function`, `package.module:function`, `http(s)://host:port`, an AgentCore
    runtime ARN or a Lambda ARN. `qualifier` goes with an AgentCore ARN and is ignored by the others.

    Raises ReferenceProblem.
    """
    if AGENTCORE_ARN.fullmatch(text):
        return AgentCoreRuntime(text, qualifier)
    if LAMBDA_ARN.fullmatch(text):
        return LambdaAgent(text)
    if text.startswith(("http://", "https://")):
        return AgentContainer(_checked_url(text, "agent").rstrip("/"))
    if text.startswith("arn:"):
        raise ReferenceProblem(
            f"agent {shown(text, 160)} is not a recognized Bedrock AgentCore ARN or Lambda ARN; expected "
            "arn:aws:bedrock-agentcore:<region>:<account>:runtime/<id> or arn:aws:lambda:<region>:<account>:function:<name>"
        )
    if _ENTRY_POINT.fullmatch(text):
        return EntryPoint(text)
    hint = f" Write {text}:function." if text.endswith(".py") else ""
    raise ReferenceProblem(
        f"agent {shown(text)} is not one of: file.py:function, package.module:function, http://host:port, a Bedrock "
        f"AgentCore ARN, a Lambda ARN.{hint}"
    )


def agent_uri(agent: AgentReference) -> str:
    """An agent in one string, as `parse_agent` takes it beside a qualifier."""
    match agent:
        case EntryPoint(uri) | AgentContainer(uri) | LambdaAgent(uri):
            return uri
        case AgentCoreRuntime(arn, _):
            return arn


def checked_tracking_uri(uri: str) -> str:
    """`uri` as it is: anything MLflow takes, without a password. What a job is given is written down in its run.

    Raises ReferenceProblem, which does not repeat it, when there is one, or when it is no URI.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ReferenceProblem(f"the MLflow tracking URI cannot be read: {error}") from error
    if parts.password:
        raise ReferenceProblem(
            f"the MLflow tracking URI at {parts.hostname!r} has a password in it, which would be written into the run; a "
            "server's goes into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a database's where its client looks"
        )
    return uri
