"""Server side of the AWS protocols json 1.x, rest-json and query. Pure functions, driven by botocore's models.

Source: the Smithy specification's "AWS protocols"; checked against botocore's own clients.
"""

import re
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote
from xml.etree import ElementTree

import orjson
from botocore.model import OperationModel

from heldout.runtime.signing import SignedRequest
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.shapes import Shape, expect, from_json, from_text, to_json, to_text, wire_name

_BODIES = ("structure", "list", "map")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Matches code points that are not characters of XML 1.0 (section 2.2)."""


class WireReply(NamedTuple):
    """An HTTP reply."""

    status: int
    headers: dict[str, str]
    body: bytes | AsyncIterator[bytes]


def parse_request(operation: OperationModel, request: SignedRequest) -> dict[str, Any]:
    """Parses the parameters of a request by the operation's input shape. Raises ServiceError (SerializationException)."""
    shape = operation.input_shape
    if shape is None:
        return {}
    match operation.service_model.metadata["protocol"]:
        case "query":
            return dict(_from_form(shape, _form(request), ""))
        case "json":
            return dict(from_json(shape, _json(request.body)))
        case _:
            return _parse_rest(operation, shape, request)


def render_reply(operation: OperationModel, reply: Mapping[str, Any]) -> WireReply:
    """Renders a reply by the operation's output shape."""
    shape = operation.output_shape
    match operation.service_model.metadata["protocol"]:
        case "query":
            return WireReply(200, {"Content-Type": "text/xml"}, _xml_reply(operation, shape, reply))
        case "json":
            body = b"" if shape is None else orjson.dumps(to_json(shape, reply))
            return WireReply(200, {"Content-Type": "application/x-amz-json-1.1"}, body)
        case _:
            return _render_rest(operation, shape, reply)


def render_error(operation: OperationModel | None, error: ServiceError, *, is_query: bool = False) -> WireReply:
    """Renders an error. operation: None before routing. is_query: the request has the query protocol."""
    status = error.status(operation)
    # The message may quote a header whose bytes are not valid text.
    message = error.message.encode("utf-8", "replace").decode()
    if is_query or (operation is not None and operation.service_model.metadata["protocol"] == "query"):
        root = ElementTree.Element("ErrorResponse")
        inner = ElementTree.SubElement(root, "Error")
        _leaf(inner, "Type", "Sender" if status < 500 else "Receiver")
        _leaf(inner, "Code", error.code)
        _leaf(inner, "Message", message)
        _leaf(root, "RequestId", str(uuid.uuid4()))
        return WireReply(status, {"Content-Type": "text/xml"}, ElementTree.tostring(root))
    body = {"__type": error.code, "message": message, **error.members}
    headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-ErrorType": error.code}
    return WireReply(status, headers, orjson.dumps(body))


def path_pattern(operation: OperationModel) -> re.Pattern[str]:
    """The pattern of an operation's raw paths, with a group for each label (rest-json)."""
    return _path_pattern(operation.http["requestUri"])[0]


def xml_text(text: str) -> str:
    """Replaces characters that XML cannot hold, such as most control characters, which cannot be escaped either."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def is_form(request: SignedRequest) -> bool:
    """Whether a request has the query protocol: a form in its body or, if presigned, in its query."""
    if "x-amz-target" in request.headers:
        return False
    has_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return has_form or "Action" in parse_qs(request.query)


def form_action(request: SignedRequest) -> tuple[str, str]:
    """Operation name and API version of a request of the query protocol; empty if missing."""
    form = _form(request)
    return form.get("Action", ""), form.get("Version", "")


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise ServiceError("SerializationException", f"the request's body is not JSON: {error}") from None


def _parse_rest(operation: OperationModel, shape: Shape, request: SignedRequest) -> dict[str, Any]:
    pattern, labels = _path_pattern(operation.http["requestUri"])
    found = pattern.fullmatch(request.path)
    path = {label: unquote(text) for label, text in zip(labels, found.groups(), strict=True)} if found else {}
    query = parse_qs(request.query, keep_blank_values=True)
    payload = shape.serialization.get("payload")
    body = {} if payload else expect(_json(request.body), dict, "the request")
    params: dict[str, Any] = {}
    for name, member in shape.members.items():
        key = wire_name(member, name)
        match member.serialization.get("location"):
            case "uri":
                value = from_text(member, path[key], name) if key in path else None
            case "querystring":
                value = _from_query(member, query[key], name) if key in query else None
            case "header":
                text = request.headers.get(key.lower())
                value = None if text is None else from_text(member, text, name)
            case "headers":
                value = {n[len(key) :]: v for n, v in request.headers.items() if n.startswith(key.lower())} or None
            case _ if name == payload:
                value = _from_payload(member, request.body)
            case _:
                value = from_json(member, body[key], key) if body.get(key) is not None else None
        if value is not None:
            params[name] = value
    return params


def _from_query(shape: Shape, texts: list[str], where: str) -> Any:
    if shape.type_name == "list":
        return [from_text(shape.member, text, where) for text in texts]
    return from_text(shape, texts[-1], where)


def _from_payload(shape: Shape, body: bytes) -> Any:
    if shape.type_name in _BODIES:
        return from_json(shape, _json(body))
    return body.decode("utf-8", "replace") if shape.type_name == "string" else body


def _render_rest(operation: OperationModel, shape: Shape | None, reply: Mapping[str, Any]) -> WireReply:
    status, headers = int(operation.http.get("responseCode", 200)), {"Content-Type": "application/json"}
    body: dict[str, Any] = {}
    payload = None if shape is None else shape.serialization.get("payload")
    for name, member in () if shape is None else shape.members.items():
        value, key = reply.get(name), wire_name(member, name)
        if value is None or name == payload:
            continue
        match member.serialization.get("location"):
            case "statusCode":
                status = int(value)
            case "header":
                headers[key] = to_text(member, value, "rfc822")
            case "headers":
                headers |= {f"{key}{inner}": str(text) for inner, text in value.items()}
            case _:
                body[key] = to_json(member, value)
    if payload is None or shape is None:
        return WireReply(status, headers, orjson.dumps(body))
    content = reply.get(payload, b"")
    if shape.members[payload].type_name in _BODIES:
        content = orjson.dumps(to_json(shape.members[payload], content or {}))
    return WireReply(status, headers, content.encode() if isinstance(content, str) else content)


@lru_cache(maxsize=512)
def _path_pattern(uri: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    path = uri.partition("?")[0].rstrip("/")
    labels = re.findall(r"\{([^}+]+)\+?\}", path)
    parts = re.split(r"(\{[^}]+\})", path)
    text = "".join(
        ("(.+)" if part.endswith("+}") else "([^/]+)") if part.startswith("{") else re.escape(part) for part in parts
    )
    return re.compile(text + "/?"), tuple(labels)


def _form(request: SignedRequest) -> dict[str, str]:
    text = request.body.decode("utf-8", "replace") if request.body else request.query
    return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True).items()}


def _from_form(shape: Shape, form: Mapping[str, str], prefix: str) -> Any:
    """A value from flattened names, such as `Tags.member.1.Key`; None if the form has none."""
    match shape.type_name:
        case "structure":
            found = {
                name: _from_form(member, form, _dotted(prefix, wire_name(member, name)))
                for name, member in shape.members.items()
            }
            given = {name: value for name, value in found.items() if value is not None}
            return given if given or not prefix else None
        case "list":
            inner = prefix if shape.serialization.get("flattened") else f"{prefix}.{wire_name(shape.member, 'member')}"
            return list(_numbered(shape.member, form, inner)) or None
        case "map":
            inner = prefix if shape.serialization.get("flattened") else f"{prefix}.entry"
            keys = _numbered(shape.key, form, inner, f".{wire_name(shape.key, 'key')}")
            values = _numbered(shape.value, form, inner, f".{wire_name(shape.value, 'value')}")
            return dict(zip(keys, values, strict=False)) or None
        case _:
            return from_text(shape, form[prefix], prefix) if prefix in form else None


def _numbered(shape: Shape, form: Mapping[str, str], prefix: str, suffix: str = "") -> Iterator[Any]:
    number = 1
    while (value := _from_form(shape, form, f"{prefix}.{number}{suffix}")) is not None:
        yield value
        number += 1


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _xml_reply(operation: OperationModel, shape: Shape | None, reply: Mapping[str, Any]) -> bytes:
    root = ElementTree.Element(f"{operation.name}Response", xmlns=operation.service_model.metadata["xmlNamespace"])
    if shape is not None:
        result = ElementTree.SubElement(root, shape.serialization.get("resultWrapper", f"{operation.name}Result"))
        _add_members(result, shape, reply)
    _leaf(ElementTree.SubElement(root, "ResponseMetadata"), "RequestId", str(uuid.uuid4()))
    return ElementTree.tostring(root)


def _add_members(parent: ElementTree.Element, shape: Shape, value: Mapping[str, Any]) -> None:
    for name, member in shape.members.items():
        if value.get(name) is not None:
            _add(parent, wire_name(member, name), member, value[name])


def _add(parent: ElementTree.Element, name: str, shape: Shape, value: Any) -> None:
    match shape.type_name:
        case "structure":
            _add_members(ElementTree.SubElement(parent, name), shape, value)
        case "list":
            is_flat = bool(shape.serialization.get("flattened"))
            inside = parent if is_flat else ElementTree.SubElement(parent, name)
            for item in value:
                _add(inside, name if is_flat else wire_name(shape.member, "member"), shape.member, item)
        case "map":
            inside = ElementTree.SubElement(parent, name)
            for key, item in value.items():
                entry = ElementTree.SubElement(inside, "entry")
                _leaf(entry, wire_name(shape.key, "key"), str(key))
                _add(entry, wire_name(shape.value, "value"), shape.value, item)
        case _:
            _leaf(parent, name, to_text(shape, value, "iso8601"))


def _leaf(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = xml_text(text)
