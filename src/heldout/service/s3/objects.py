"""As much of S3 as SDKs read of what is this server's own: the file that says which hyperparameters an evaluation has.

Everybody's data stays where it is: in an S3 service of the user's, or in a folder that the registry maps a bucket to.
"""

import time
from xml.sax.saxutils import escape

from aiohttp import web

from heldout.runtime.signing import SignatureRefused, signed_scope
from heldout.service.sagemaker.hub import OVERRIDES_KEY, RECIPE_BUCKET, overrides
from heldout.service.wire.authentication import Gate
from heldout.service.wire.faults import ServiceError
from heldout.service.wire.protocols import xml_text
from heldout.service.wire.raw_handlers import signed_request

_PATH = f"/{RECIPE_BUCKET}/{OVERRIDES_KEY}"
_ELSEWHERE = (
    "S3 is not served here: set AWS_ENDPOINT_URL_S3 to an S3 service (for AWS's own: https://s3.REGION.amazonaws.com), "
    "or map the bucket to a folder in the registry, the server's and that of whoever reads results (HELDOUT_REGISTRY)"
)


class Objects:
    """GetObject and HeadObject of one object; any other request is told where S3 is."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def takes(self, request: web.Request) -> bool:
        """Whether a request is signed for S3."""
        try:
            return signed_scope(signed_request(request, b"")).service == "s3"
        except SignatureRefused:
            return False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The object, or the error in S3's words."""
        if request.path != _PATH or request.method not in ("GET", "HEAD"):
            # However it is signed: S3 has ways of its own, such as a body in signed pieces.
            return _refused(501, "NotImplemented", _ELSEWHERE)
        try:
            self._gate.admit(signed_request(request, await request.read()), time.time(), is_query=False)
        except ServiceError as error:
            return _refused(403, error.code, error.message)
        return web.Response(body=overrides(), content_type="application/json", headers={"ETag": '"1"'})


def _refused(status: int, code: str, message: str) -> web.Response:
    told = escape(xml_text(message))
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{told}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")
