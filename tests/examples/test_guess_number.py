"""The guessing game of the examples: its prompts, its rules, and the agent that plays it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import NEXT_GAME, OPENING, client, play
from game import PROMPT, SPARE_GUESSES, Game
from heldout.backends.local.job import play_rollouts
from heldout.policies.base import ModelCall
from heldout.policies.embedded import EmbeddedPolicy
from heldout.policies.scripted import ScriptedServer
from heldout.policies.scripted_replies import Reply, ScriptedCall
from heldout.rollouts.context import PlayContext
from plays import MOST_WEIGHT, read_plays, turn_weights
from prompts import draw_prompts
from tests.support.jobs import new_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "guess_number"
PROMPT_TEXT = PROMPT.format(low=20, high=30)


def committed(name: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (EXAMPLE / name).read_text().splitlines()]


def halve(call: ScriptedCall) -> Reply:
    low, high = re.findall(r"from (\d+) to (\d+)", call.last_message, re.IGNORECASE)[-1]
    return Reply(str((int(low) + int(high)) // 2))


async def played(
    script: Callable[[ScriptedCall], Reply], *, prompt: str = PROMPT_TEXT
) -> tuple[dict[str, Any], ScriptedServer]:
    async with ScriptedServer(script) as server:
        result = await play(
            {
                "prompt": prompt,
                "metadata": {"baseUrl": server.url},
                "inferenceParams": {"temperature": 0.25, "topP": 0.5, "maxTokens": 7},
            }
        )
    await client().close()  # each test has an event loop of its own
    client.cache_clear()
    return result, server


def test_no_range_is_in_both_the_training_and_the_held_out_prompts() -> None:
    train, held_out = committed("train.jsonl"), committed("held-out.jsonl")
    assert len(train) == len(set(train)) >= 128
    assert len(held_out) == len(set(held_out)) >= 24
    assert not set(train) & set(held_out)


def test_the_committed_prompts_are_drawn_again_from_their_seed() -> None:
    train, held_out = draw_prompts(seed=1)
    assert train == committed("train.jsonl")
    assert held_out == committed("held-out.jsonl")


def test_another_seed_draws_other_prompts() -> None:
    assert set(draw_prompts(seed=2).held_out) != set(draw_prompts(seed=1).held_out)


@given(low=st.integers(0, 500), size=st.integers(1, 300))
def test_halving_the_range_always_finds_the_number_within_par(low: int, size: int) -> None:
    game = Game.of(PROMPT.format(low=low, high=low + size - 1))
    while not game.is_over:
        game.answer(str((game.low + game.high) // 2))
    assert game.is_found
    assert game.reward == pytest.approx(1.0, rel=1e-6)  # the tolerance of a success
    assert game.wasted_guesses == 0


def test_every_rollout_of_a_prompt_is_the_same_game() -> None:
    assert Game.of(PROMPT_TEXT).secret == Game.of(PROMPT_TEXT).secret
    secrets = {Game.of(text).secret for text in committed("train.jsonl")}
    assert len(secrets) > 25, "each prompt has a secret of its own"


def test_an_answer_narrows_the_range_and_never_widens_it() -> None:
    game = Game(1, 15, secret=9)
    assert game.answer("4") == "Higher. From 5 to 15."
    assert game.answer("2") == "Higher. From 5 to 15."
    assert game.answer("I say 12!") == "Lower. From 5 to 11."
    assert game.wasted_guesses == 1


def test_a_reply_without_a_number_costs_a_guess() -> None:
    game = Game(1, 15, secret=9)
    assert game.answer("seven?") == "That is no number. From 1 to 15."
    assert (game.guesses, game.wasted_guesses) == (1, 1)


@pytest.mark.parametrize(("misses", "reward"), [(0, 1.0), (3, 1.0), (4, 4 / 5)])
def test_the_reward_falls_with_each_guess_beyond_par(misses: int, reward: float) -> None:
    game = Game(1, 15, secret=9)  # 15 numbers: par is 4
    for _ in range(misses):
        game.answer("1")
    game.answer("9")
    assert game.reward == pytest.approx(reward)
    assert game.is_over


def test_a_game_lost_without_learning_anything_earns_nothing() -> None:
    game = Game(1, 16, secret=9)
    while not game.is_over:
        game.answer("70")
    assert game.guesses == 5 + SPARE_GUESSES
    assert game.reward == 0.0


def test_a_lost_game_earns_half_of_what_it_ruled_out() -> None:
    game = Game(1, 16, secret=9)
    while not game.is_over:
        game.answer("8")  # leaves 9 to 16: half of the range
    assert game.reward == 0.25


@pytest.mark.parametrize("prompt", ["Guess the number.", "Guess the number from 9 to 3."])
def test_a_prompt_without_a_range_is_named(prompt: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(prompt))):
        Game.of(prompt)


async def test_a_model_that_halves_the_range_is_rewarded_in_full() -> None:
    result, server = await played(halve)
    assert sum(result["reward"]) == 1.0
    assert len(result["reward"]) == server.num_calls, "one reward for each turn"
    assert result["metrics"] == {"found": 1, "guesses": server.num_calls, "wasted_guesses": 0}


async def test_a_model_that_never_names_a_number_loses() -> None:
    result, server = await played(lambda _: Reply("hm"))
    limit = Game.of(PROMPT_TEXT).par + SPARE_GUESSES
    assert result == {"reward": [0.0] * limit, "metrics": {"found": 0, "guesses": limit, "wasted_guesses": limit}}
    assert server.num_calls == limit


async def test_each_turn_continues_the_conversation_with_the_answer_of_the_environment() -> None:
    _, server = await played(halve)
    first, second = (call.body["messages"] for call in list(server.calls)[:2])
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first[-1]["content"].endswith(PROMPT_TEXT)
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": "25"}
    assert re.fullmatch(r"(Higher|Lower)\. From \d+ to \d+\.", second[-1]["content"])


async def test_the_model_is_sampled_with_the_jobs_settings() -> None:
    _, server = await played(halve)
    for call in server.calls:
        assert (call.body["temperature"], call.body["top_p"], call.body["max_tokens"]) == (0.25, 0.5, 7)


def test_a_turn_is_learned_from_by_its_reward_among_rewarded_turns_of_its_number() -> None:
    # First turns bring 0.15 on average where they bring anything, second ones 0.3 and third ones 0.5.
    weights = turn_weights([[0.2, 0.0, 0.5], [0.1, 0.3], [0.0]])
    assert weights == [pytest.approx([4 / 3, 0, 1]), pytest.approx([2 / 3, 1]), [0]]


def test_a_lucky_turn_does_not_outweigh_the_others() -> None:
    assert turn_weights([[0.1], [0.1], [0.1], [0.9]])[-1] == [MOST_WEIGHT]


async def test_only_the_policys_own_rewarded_replies_are_learned(tmp_path: Path) -> None:
    """Tokens are letters here; the number is 28, and the first guess is out of range."""
    guesses = ("99", "25", "28")
    async with ScriptedServer(lambda call: Reply(guesses[call.number])) as server:
        run = new_run(tmp_path, server.url, [PROMPT_TEXT], agent=f"{EXAMPLE / 'agent.py'}:play", pass_k_values=[1])
        await play_rollouts(run, PlayContext())
    letters: Any = SimpleNamespace(encode=lambda text, **_: SimpleNamespace(ids=[ord(letter) for letter in text]))
    (play,) = read_plays(run.folder, letters)
    learned = "".join(chr(token) for token, weight in zip(play.tokens, play.weights, strict=True) if weight)
    text = "".join(map(chr, play.tokens))
    assert learned == "25<|im_end|>28<|im_end|>"
    assert text.startswith("<|im_start|>system\nYou guess a number.")
    assert f"{PROMPT_TEXT}<|im_end|>\n<|im_start|>assistant\n99<|im_end|>\n<|im_start|>user\nLower." in text
    assert text.endswith("<|im_start|>assistant\n28<|im_end|>\n")


@pytest.mark.slow
async def test_the_committed_adapter_guesses_in_the_range_more_often_than_the_model_it_was_made_from() -> None:
    base = await _guesses_in_range(EmbeddedPolicy("smollm2-135m", context_tokens=512))
    adapter = EXAMPLE / "adapter" / "adapter.gguf"
    tuned = await _guesses_in_range(EmbeddedPolicy("smollm2-135m", adapter=adapter, context_tokens=512))
    assert tuned > base


async def _guesses_in_range(policy: EmbeddedPolicy) -> int:
    """First guesses, the likeliest ones, at sixteen training prompts."""
    await policy.start()
    try:
        return sum([await _is_in_range(policy, prompt) for prompt in committed("train.jsonl")[:16]])
    finally:
        await policy.stop()


async def _is_in_range(policy: EmbeddedPolicy, prompt: str) -> bool:
    messages = [*OPENING, {"role": "user", "content": NEXT_GAME + prompt}]
    body = {"model": policy.model_name, "messages": messages, "temperature": 0, "max_tokens": 12, "stop": "\n"}
    reply = await policy.call(ModelCall("/chat/completions", json.dumps(body).encode(), "t", False))
    game = Game.of(prompt)
    game.answer(json.loads(reply.body)["choices"][0]["message"]["content"])
    return game.wasted_guesses == 0
