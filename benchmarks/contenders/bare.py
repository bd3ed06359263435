"""The floor: a loop over the rollouts in one process, with the same client as the agent and no harness. Nothing is recorded."""

import argparse
import asyncio
import importlib
import json
from pathlib import Path

import uvloop

from benchmarks.workload import prompt


async def play(options: argparse.Namespace) -> list[float]:
    """Plays every rollout, at most `concurrency` at once; returns their rewards."""
    agent = importlib.import_module(f"benchmarks.contenders.{options.client}_agent")
    pending = iter([prompt(number) for number in range(options.prompts) for _ in range(options.rollouts)])
    rewards: list[float] = []

    async def slot() -> None:
        for text in pending:
            rewards.append(await agent.play_rollout(text, options.url))

    await asyncio.gather(*(slot() for _ in range(options.concurrency)))
    return rewards


def main() -> None:
    """Plays and writes the number of rollouts and their mean reward to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=["openai", "light"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    rewards = uvloop.run(play(options))
    result = {"rollouts": len(rewards), "mean_reward": sum(rewards) / len(rewards)}
    (options.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
