"""Agents for the engine's tests. The prompt names the way in which the rollout ends."""

import asyncio
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def play(payload: dict[str, Any]) -> object:
    """A prompt is `verb` or `verb argument`; a number as the verb is a reward after one turn."""
    verb, _, argument = str(payload["prompt"]).partition(" ")
    if verb in _VERBS:
        verbs: dict[str, Any] = _VERBS
        return verbs[verb](payload, argument)
    chat(payload, "hello")
    return {"reward": float(verb)}


def chat(payload: dict[str, Any], *texts: str) -> str:
    """Asks the model, one turn a text, and gives its last reply."""
    sampling = payload["inferenceParams"]
    request: dict[str, Any] = {
        "model": "default",
        "temperature": sampling["temperature"],
        "top_p": sampling["topP"],
        "max_tokens": sampling["maxTokens"],
    }
    messages: list[dict[str, Any]] = []
    reply = ""
    for text in texts:
        messages.append({"role": "user", "content": text})
        body = post(payload["metadata"]["baseUrl"] + "/chat/completions", request | {"messages": messages})
        message = body["choices"][0]["message"]
        messages.append(message)
        reply = message["content"]
    return reply


def report(payload: dict[str, Any], operation: str, **fields: object) -> int:
    """Calls the Job Runtime as a client would; gives the HTTP status."""
    metadata = payload["metadata"]
    body = {"TrajectoryId": metadata["rolloutId"], "JobArn": metadata["jobArn"], **fields}
    try:
        post(f"{metadata['baseUrl']}/{operation}", body)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read() or b"null")


def _turns(payload: dict[str, Any], argument: str) -> object:
    chat(payload, *[f"turn {number}" for number in range(int(argument))])
    return {"reward": 1.0, "metrics": {"turns_played": int(argument), "half": 0.5}}


def _per_turn(payload: dict[str, Any], argument: str) -> object:
    rewards = [float(value) for value in argument.split(",")]
    chat(payload, *["next"] * len(rewards))
    return {"reward": rewards}


def _insist(payload: dict[str, Any], argument: str) -> object:
    """Makes a call that fails again, as most clients do; a reward for each turn."""
    try:
        chat(payload, "hello")
    except urllib.error.HTTPError:
        chat(payload, "hello")
    return {"reward": [1.0]}


def _report_then_crash(payload: dict[str, Any], argument: str) -> object:
    chat(payload, "hello")
    assert report(payload, "update-reward", Rewards=[float(argument)]) == 200
    os._exit(3)


def _report_and_return(payload: dict[str, Any], argument: str) -> object:
    chat(payload, "hello")
    reported, returned = argument.split(",")
    assert report(payload, "update-reward", Rewards=[float(reported)]) == 200
    return {"reward": float(returned), "metrics": {"seen": 1}}


def _report_twice(payload: dict[str, Any], argument: str) -> object:
    chat(payload, "hello")
    first, second = argument.split(",")
    statuses = [report(payload, "update-reward", Rewards=[float(value)]) for value in (first, second)]
    print("statuses", *statuses)
    return {}


def _report_late(payload: dict[str, Any], argument: str) -> object:
    time.sleep(float(argument))
    with Path(os.environ["HELDOUT_TEST_LOG"]).open("a") as log:
        log.write(f"{report(payload, 'update-reward', Rewards=[1.0])}\n")
    return {"reward": 1.0}


def _report_failed(payload: dict[str, Any], argument: str) -> object:
    report(payload, "complete-rollout", Status="failed")
    return {"status": "error", "error": argument}


def _fail_first(payload: dict[str, Any], argument: str) -> object:
    """Fails its first attempts, as many as the argument says, and succeeds then."""
    attempt = int(payload["metadata"]["rolloutId"].split("-")[2])
    if attempt <= int(argument):
        print("attempt", attempt, "gives up")
        raise RuntimeError(f"attempt {attempt} gives up")
    chat(payload, "hello")
    return {"reward": 1.0}


def _raise(payload: dict[str, Any], argument: str) -> object:
    raise ValueError(argument)


def _crash(payload: dict[str, Any], argument: str) -> object:
    print("about to crash", file=sys.stderr)
    os._exit(int(argument or 9))


def _hang(payload: dict[str, Any], argument: str) -> object:
    time.sleep(3600)
    return {"reward": 1.0}


def _later(payload: dict[str, Any], argument: str) -> object:
    """Answers at once, and plays in a thread of its own."""

    def go_on() -> None:
        chat(payload, "hello")
        time.sleep(0.3)
        print("still at it")
        if argument == "crash":
            os._exit(9)
        report(payload, "update-reward", Rewards=[float(argument)])

    threading.Thread(target=go_on).start()
    return {"status": "accepted"}


_VERBS = {
    "later": _later,
    "nothing": lambda payload, argument: None,
    "turns": _turns,
    "per-turn": _per_turn,
    "insist": _insist,
    "report-then-crash": _report_then_crash,
    "report-and-return": _report_and_return,
    "report-twice": _report_twice,
    "report-late": _report_late,
    "report-failed": _report_failed,
    "fail-first": _fail_first,
    "raise": _raise,
    "crash": _crash,
    "hang": _hang,
    "no-model-call": lambda payload, argument: {"reward": float(argument)},
    "return": lambda payload, argument: json.loads(argument),
    "nan": lambda payload, argument: {"reward": float(argument)},
}


async def slow(payload: dict[str, Any]) -> object:
    """One turn, then waits for as many seconds as the prompt says."""
    await asyncio.to_thread(chat, payload, "hello")
    await asyncio.sleep(float(payload["prompt"]))
    return {"reward": 1.0}
