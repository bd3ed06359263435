"""The S3 object that SDKs read from this server: the hyperparameters of an evaluation, with defaults and ranges.

Users' data is elsewhere: in the user's S3 service, or in a folder that the registry maps a bucket to.
"""

import json
import time
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from heldout.job.hyperparameters import SPECIFICATIONS, Specification
from heldout.runtime.signing import SignatureRefused, signed_scope
from heldout.service.wire.authentication import Authenticator
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.protocols import xml_text
from heldout.service.wire.raw_handlers import signed_request

RECIPE_BUCKET = "heldout-recipes"
OVERRIDES_KEY = "heldout/agent-rft-evaluation/hyperparameters.json"
_SDK_HYPERPARAMETERS = (
    "eval_group_size",
    "sampling_temperature",
    "top_p",
    "max_tokens",
    "pass_k_values",
    "success_threshold",
)
"""The hyperparameters that the SDK's evaluator passes on."""
_NOT_SERVED = (
    "S3 is not served here: set AWS_ENDPOINT_URL_S3 to an S3 service (for AWS's own: https://s3.REGION.amazonaws.com), "
    "or map the bucket to a folder in the registry of the server and of every reader of results (HELDOUT_REGISTRY)"
)


def overrides() -> bytes:
    """The object at RECIPE_BUCKET/OVERRIDES_KEY: type, default and range of each hyperparameter, as JSON.

    Checked against sagemaker-train 1.27, which reads it through a recipe's SmtjOverrideParamsS3Uri.
    """
    return json.dumps({name: _override(SPECIFICATIONS[name]) for name in _SDK_HYPERPARAMETERS}, indent=2).encode()


class Objects:
    """Serves GetObject and HeadObject of the one object. Any other S3 request gets an error that names the remedy."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def takes(self, request: web.Request) -> bool:
        """Whether the request is signed for S3."""
        try:
            return signed_scope(signed_request(request, b"")).service == "s3"
        except SignatureRefused:
            return False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The object, or an error in S3's form."""
        if request.path != f"/{RECIPE_BUCKET}/{OVERRIDES_KEY}" or request.method not in ("GET", "HEAD"):
            # Without a check of the signature: S3 has signing methods of its own, such as signed chunks.
            return _refused(501, "NotImplemented", _NOT_SERVED)
        try:
            self._authenticator.admit(signed_request(request, await request.read()), time.time(), is_query=False)
        except ServiceError as error:
            return _refused(403, error.code, error.message)
        return web.Response(body=overrides(), content_type="application/json", headers={"ETag": '"1"'})


def _override(specification: Specification) -> dict[str, Any]:
    default = specification.default
    kind = "integer" if isinstance(default, int) else "float" if isinstance(default, float) else "list"
    ends = (("min", specification.low), ("max", specification.high))
    limits = {name: value for name, value in ends if value is not None}
    return {"type": kind, "default": default, "required": False, "description": specification.meaning, **limits}


def _refused(status: int, code: str, message: str) -> web.Response:
    text = escape(xml_text(message))
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    return web.Response(status=status, text=body, content_type="application/xml")
