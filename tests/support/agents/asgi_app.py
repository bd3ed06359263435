"""A handwritten ASGI application: a server's view of any framework's app."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

has_started = False


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Plays what the prompt says, once its lifespan has begun."""
    global has_started
    if scope["type"] == "lifespan":
        await receive()
        has_started = True
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/ping":
        await _answer(send, {"status": "HealthyBusy", "time_of_last_update": int(time.time())})
    else:
        prompt = json.loads((await receive())["body"])["prompt"]
        print("playing", prompt)
        if prompt == "raise":
            raise ValueError("not today")
        if prompt == "silence":
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        session = headers.get("x-amzn-bedrock-agentcore-runtime-session-id")
        private = [name for name in headers if name.startswith("heldout")]
        await _answer(send, {"reward": 1, "session": session, "has_started": has_started, "private": private})


async def broken(scope: Message, receive: Receive, send: Send) -> None:
    """An application that cannot start."""
    await receive()
    await send({"type": f"{scope['type']}.startup.failed", "message": "no database"})


async def _answer(send: Send, answer: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
