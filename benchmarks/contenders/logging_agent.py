"""An agent that writes down, outside of Heldout, what it was given to play and which rewards were taken from it.

Every other prompt's reward is reported to the Job Runtime, the others' is returned. Standard library only: its process must
start fast, because it is killed often.
"""

import http.client
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from benchmarks.workload import MODEL, observation, opening, reward, turns

LOG_VARIABLE = "BENCHMARK_LOG"


def play(payload: Mapping[str, Any]) -> dict[str, float]:
    """The entry point."""
    metadata, prompt = payload["metadata"], payload["prompt"]
    log("start", metadata["rolloutId"])
    base = urlsplit(metadata["baseUrl"])
    connection = http.client.HTTPConnection(base.netloc, timeout=120)
    messages: list[Any] = [message._asdict() for message in opening(prompt)]
    replies = []
    for turn in range(turns()):
        completion = _post(connection, f"{base.path}/chat/completions", {"model": MODEL, "messages": messages})
        reply = completion["choices"][0]["message"]["content"]
        replies.append(reply)
        messages += [{"role": "assistant", "content": reply}, observation(turn)._asdict()]
    earned = reward(prompt, replies)
    if earned in (0.0, 0.5, 1.0):
        _post(connection, f"{base.path}/update-reward", {"Rewards": [earned]})
        log("taken", metadata["rolloutId"], reward=earned)
    return {"reward": earned}


def log(event: str, trajectory_id: str, **more: float) -> None:
    """Appends one line, in one write, with the machine's monotonic time."""
    line = {"event": event, "id": trajectory_id, "at": time.monotonic(), **more}
    file = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


def _post(connection: http.client.HTTPConnection, path: str, body: object) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"{path.rpartition('/')[2]} was answered {response.status}: {content.decode()}")
    return json.loads(content or b"null")
