"""The scripted model server, driven by the openai client and as a process of its own."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from heldout.errors import InputError
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, Rule, Script, ScriptedCall, ToolCall, by_rules, read_rules

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as one:
        yield one


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="key", max_retries=0) as one:
        yield one


def _says(reply: Reply) -> Script:
    return lambda _: reply


async def test_the_openai_client_reads_a_plain_reply(server: ScriptedServer, client: openai.AsyncOpenAI) -> None:
    server.script = _says(Reply(content=("first one", "second"), logprobs=(-0.25, -1.0)))
    reply = await client.chat.completions.create(model="m", messages=HELLO, n=3, logprobs=True)
    assert [choice.message.content for choice in reply.choices] == ["first one", "second", "first one"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop"] * 3
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert [(entry.token, entry.logprob) for entry in logprobs.content or []] == [("first", -0.25), (" one", -1.0)]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.model == "m"


async def test_the_openai_client_reads_a_streamed_reply(server: ScriptedServer, client: openai.AsyncOpenAI) -> None:
    server.script = _says(Reply(content="one two three"))
    stream = await client.chat.completions.create(
        model="m",
        messages=HELLO,
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "one two three"
    assert sum(choice.logprobs is not None for choice in choices) == 3
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_openai_client_reads_tool_calls(
    server: ScriptedServer, client: openai.AsyncOpenAI, is_streamed: bool
) -> None:
    server.script = _says(Reply(content="", tool_calls=(ToolCall("guess", '{"number": 7}'),)))
    if is_streamed:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        choices = [choice async for chunk in stream for choice in chunk.choices]
        (streamed,) = [one.function for choice in choices for one in choice.delta.tool_calls or []]
        assert streamed is not None
        called, finish_reason = (streamed.name, streamed.arguments), choices[-1].finish_reason
    else:
        reply = await client.chat.completions.create(model="m", messages=HELLO)
        (tool_call,) = reply.choices[0].message.tool_calls or []
        assert tool_call.type == "function"
        called = (tool_call.function.name, tool_call.function.arguments)
        finish_reason = reply.choices[0].finish_reason
    assert called == ("guess", '{"number": 7}')
    assert finish_reason == "tool_calls"


async def test_text_completions_work_too(server: ScriptedServer, client: openai.AsyncOpenAI) -> None:
    server.script = lambda call: Reply(content=f"{call.last_message} a time")
    reply = await client.completions.create(model="m", prompt="once upon", logprobs=1)
    assert reply.choices[0].text == "once upon a time"
    stream = await client.completions.create(model="m", prompt="once upon", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "once upon a time"


async def test_max_tokens_cuts_the_reply(server: ScriptedServer, client: openai.AsyncOpenAI) -> None:
    server.script = _says(Reply(content="one two three"))
    reply = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=2)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one two", "length")


async def test_a_scripted_failure_reaches_the_client_as_its_error(
    server: ScriptedServer, client: openai.AsyncOpenAI
) -> None:
    server.script = _says(Reply(status=429, content="slow down", headers=(("Retry-After", "3"),)))
    with pytest.raises(openai.RateLimitError, match="slow down") as caught:
        await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "3"


async def test_a_scripted_drop_reaches_the_client_as_a_lost_connection(
    server: ScriptedServer, client: openai.AsyncOpenAI
) -> None:
    server.script = _says(Reply(dropped_after=0))
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="m", messages=HELLO)


async def test_the_models_are_listed_and_a_wrong_key_is_refused() -> None:
    async with ScriptedServer(models=["a", "b"], key="right") as server:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="right") as client:
            assert [model.id async for model in client.models.list()] == ["a", "b"]
        async with openai.AsyncOpenAI(base_url=server.url, api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()


async def test_a_request_in_pieces_is_put_together(server: ScriptedServer) -> None:
    body = b'{"messages": [{"content": "in pieces"}]}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for byte in request:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()
    assert [call.last_message for call in server.calls] == ["in pieces"]


def test_the_first_rule_that_fits_answers() -> None:
    script = by_rules([Rule(Reply("early"), calls=(0, 2)), Rule(Reply("sum"), contains="plus")])
    asked = [script(ScriptedCall(number, "/", {}, {"prompt": "1 plus 1"})) for number in range(3)]
    assert [reply.content for reply in asked] == ["early", "early", "sum"]
    assert script(ScriptedCall(5, "/", {}, {"prompt": "hello"})).content == "ok"


def test_rules_come_from_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    tool_calls = [{"name": "guess", "arguments": "{}"}]
    rules = [
        {"contains": "x", "calls": [1, None], "reply": {"status": 429, "headers": [["Retry-After", "1"]]}},
        {"reply": {"tool_calls": tool_calls}},
    ]
    path.write_text(json.dumps(rules))
    assert read_rules(path) == [
        Rule(Reply(status=429, headers=(("Retry-After", "1"),)), contains="x", calls=(1, None)),
        Rule(Reply(tool_calls=(ToolCall("guess"),))),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "Invalid JSON"),
        ("{}", "rules in .* is {}: Input should be a valid array"),
        ('[{"contains": "a"}]', r"rules\[0\]\['reply'\] in .* Field required"),
        ('[{"reply": {"contents": "x"}}]', r"rules\[0\]\['reply'\]\['contents'\] .* Did you mean 'content'?"),
        ('[{"reply": {"tool_calls": [{"arguments": "{}"}]}}]', r"\['tool_calls'\]\[0\]\['name'\] in .* Field required"),
        ('[{"reply": {}, "calls": 5}]', r"rules\[0\]\['calls'\] in .* is 5: Input should be a valid array"),
    ],
)
def test_rules_that_cannot_be_used_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_rules(path)


async def test_as_a_process_it_prints_its_port_and_answers_by_its_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('[{"reply": {"content": "from a file"}}]')
    arguments = ["-m", "heldout.policies.scripted", "--rules", str(rules), "--latency-ms", "50", "--models", "a"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="key") as client:
            started_at = time.monotonic()
            reply = await client.chat.completions.create(model="a", messages=HELLO)
            assert time.monotonic() - started_at >= 0.05
            assert reply.choices[0].message.content == "from a file"
    finally:
        process.terminate()
        await process.wait()
