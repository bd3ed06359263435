"""Agents that call their model once and get reward 1 for the reply "yes".

`slowly` then sleeps for the seconds in its prompt; `until_released` waits for the file that its prompt names.
"""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any


def play(payload: dict[str, Any]) -> dict[str, Any]:
    url = payload["metadata"]["baseUrl"] + "/chat/completions"
    body = {"model": "default", "messages": [{"role": "user", "content": payload["prompt"]}]}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        said = json.loads(reply.read())["choices"][0]["message"]["content"]
    return {"reward": 1.0 if said == "yes" else 0.0}


def slowly(payload: dict[str, Any]) -> dict[str, Any]:
    played = play(payload)
    time.sleep(float(payload["prompt"]))
    return played


def until_released(payload: dict[str, Any]) -> dict[str, Any]:
    played = play(payload)
    while not Path(payload["prompt"]).exists():
        time.sleep(0.05)
    return played
