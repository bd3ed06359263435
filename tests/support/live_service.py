"""A live service for tests, and real clients of it."""

import asyncio
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from heldout.job.registry import Registry
from heldout.runtime.signing import Credentials
from heldout.service.context import Context
from heldout.service.server import Settings, serving

REGION = "us-west-2"
KEYS = Credentials("AKIDSERVED", "served/secret")
ROLE = "arn:aws:iam::123456789012:role/evaluator"
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    context: Context

    def client(self, service: str, keys: Credentials = KEYS, region: str = REGION, **settings: Any) -> Any:
        """A boto3 client of one service, without retries."""
        return client(self.url, service, keys, region, **settings)


def client(url: str, service: str, keys: Credentials = KEYS, region: str = REGION, **settings: Any) -> Any:
    """A boto3 client of one service at `url`, without retries and without parameter validation."""
    return _session().client(
        service,  # type: ignore[call-overload]
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        aws_session_token=keys.session_token,
        config=Config(
            retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=_TIMEOUT_SECONDS, **settings
        ),
    )


@functools.lru_cache(maxsize=1)
def _session() -> boto3.session.Session:
    """One shared session, so that botocore reads each service's model once."""
    return boto3.session.Session()


@contextmanager
def served(state: Path, registry: Registry | None = None, **settings: Any) -> Iterator[Served]:
    """Runs a server in a thread of its own. state: its state folder. settings: fields of `Settings`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    chosen: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "region": REGION,
        "keys": (KEYS,),
        "mlflow_start_seconds": 900.0,
    } | settings
    server = serving(Settings(registry=registry or Registry(), state=state, **chosen))

    async def entered() -> Context:
        return await server.__aenter__()

    async def left() -> None:
        await server.__aexit__(None, None, None)

    try:
        context = asyncio.run_coroutine_threadsafe(entered(), loop).result(_TIMEOUT_SECONDS)
        try:
            yield Served(context.endpoint, context)
        finally:
            asyncio.run_coroutine_threadsafe(left(), loop).result(_TIMEOUT_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
