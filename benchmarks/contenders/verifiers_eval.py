"""Runs the verifiers taskset as verifiers' own command does, without its dashboard and its upload; traces are kept as it
keeps them."""

import argparse
import asyncio
import json
import os
from pathlib import Path

from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.cli.output import create_attempt_log_dir, output_path
from verifiers.v1.configs.cli.eval import EvalConfig
from verifiers.v1.utils.logging import setup_logging

from benchmarks.workload import MODEL


def main() -> None:
    """Runs the evaluation and writes the number of rollouts and their mean reward to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=["openai", "light"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    os.environ |= {"BENCHMARK_PROMPTS": str(options.prompts), "BENCHMARK_CLIENT": options.client}
    config = EvalConfig.model_validate(
        {
            "env": {"taskset": {"id": "verifiers_taskset"}, "agent": {"runtime": {"type": "subprocess"}}},
            "model": MODEL,
            "client": {"base_url": options.url, "api_key_var": "BENCHMARK_KEY"},
            "num_rollouts": options.rollouts,
            "max_concurrent": options.concurrency,
            "rich": None,
            "push": False,
            "output_dir": options.folder,
        }
    )
    setup_logging("INFO", log_file=str(create_attempt_log_dir(output_path(config)) / "eval.log"), console=False)
    episodes = asyncio.run(run_eval(config))
    rewards = [episode.traces[0].reward for episode in episodes]
    result = {"rollouts": len(rewards), "mean_reward": sum(rewards) / len(rewards)}
    (options.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
