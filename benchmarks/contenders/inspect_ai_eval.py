"""The same work as an inspect-ai task. Runs in inspect-ai's own environment; its log is written as it ships it."""

# inspect-ai is not installed where types are checked.
# mypy: disable-error-code="untyped-decorator"

import argparse
import json
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from benchmarks.workload import MODEL, SYSTEM, observation, prompt, reward, turns


@solver
def conversation() -> Solver:
    """The fixed conversation."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.messages.insert(0, ChatMessageSystem(content=SYSTEM))
        for turn in range(turns()):
            state = await generate(state, tool_calls="none")
            state.messages.append(ChatMessageUser(content=observation(turn).content))
        return state

    return solve


@scorer(metrics=[mean()])
def known_reward() -> Scorer:
    """The reward known beforehand."""

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001  # inspect-ai calls it so
        replies = [message.text for message in state.messages if message.role == "assistant"]
        return Score(value=reward(state.input_text, replies))

    return score


def main() -> None:
    """Runs the task and writes the number of rollouts and their mean reward to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    samples = [Sample(input=prompt(number), id=number) for number in range(options.prompts)]
    [log] = eval(
        Task(dataset=samples, solver=conversation(), scorer=known_reward()),
        model=f"openai-api/benchmark/{MODEL}",
        model_base_url=options.url,
        model_args={"api_key": "none"},
        epochs=options.rollouts,
        max_connections=options.concurrency,
        max_samples=options.concurrency,
        display="none",
        log_dir=str(options.folder),
    )
    assert log.status == "success", log.error
    assert isinstance(log.samples, list)
    scores = [sample.scores["known_reward"].as_float() for sample in log.samples]
    result = {"rollouts": len(scores), "mean_reward": sum(scores) / len(scores)}
    (options.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
