"""Multi-turn RL on a CPU: SmolLM2-135M learns the guessing game from rollouts that Heldout collects on the training prompts.

    pip install torch gguf tokenizers
    python examples/guess_number/train.py --output runs/guess-number-training

Expert iteration, turn by turn. Each round plays some training prompts with the current policy (`heldout evaluate`), reads the
run, keeps the rewarded turns and makes their replies more likely, in proportion to their rewards: it trains a LoRA adapter (Hu et
al. 2021, arXiv:2106.09685) on a weighted log-likelihood (reward-weighted regression, Peters and Schaal 2007, with the weights of
`plays.turn_weights`). The only training data are the policy's own replies and their rewards. After each round the adapter is
written as GGUF, and the next round plays with it. Started again with the same settings, it resumes the interrupted round and
rollout.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from heldout.policies.embedded import find_weights
from plays import Play, read_plays
from smollm import SmolLM

MODEL = "smollm2-135m"
HERE = Path(__file__).parent
_TABLE = "*/rollouts.parquet"
_CONCURRENCY = 8
"""As many concurrent rollouts as the embedded model has slots, so that each conversation is processed once."""
_WARM_UP_STEPS = 5
"""The first steps are smaller: AdamW has no estimate of the size of the gradients yet."""
_LAST_STEP = 0.1
"""The learning rate falls over a round to this share of itself."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a training run."""

    rounds: int = 2
    prompts: int = 80
    """Training prompts played in a round; each round draws its own."""
    group_size: int = 2
    """Rollouts of each prompt. Few: more prompts teach more than more rollouts of the same prompt."""
    temperature: float = 0.7
    max_tokens: int = 12
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 2e-3
    passes: int = 2
    """Passes over a round's rollouts."""
    batch_size: int = 4
    """Rollouts in one step."""
    seed: int = 6
    """Seed of the adapter's first matrices and, with a round's number added, of its prompts and its training order."""


def main() -> None:
    """Trains with the settings of the command line; every field of Settings is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, adapters and history.json")
    parser.add_argument("--threads", type=int, default=2, help="cores that a learning step may use")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    output: Path = arguments.pop("output")
    torch.set_num_threads(arguments.pop("threads"))
    try:
        train(Settings(**arguments), output)
    except ValueError as problem:
        sys.exit(f"train.py: {problem}")


def train(settings: Settings, output: Path) -> None:
    """Plays and learns the remaining rounds; leaves `adapter.gguf` and `history.json` in `output`.

    Raises ValueError when the rounds in `output` were made with other settings, CalledProcessError when a round's rollouts
    cannot be collected.
    """
    output.mkdir(parents=True, exist_ok=True)
    rounds = _rounds_done(output / "history.json", settings)
    model = SmolLM(find_weights(MODEL), rank=settings.rank, alpha=settings.alpha, seed=settings.seed)
    for number in range(len(rounds) + 1, settings.rounds + 1):
        adapter = output / f"round-{number - 1}.gguf" if number > 1 else None
        run = collect(settings, output, number, adapter)
        if adapter is not None:
            model.read_adapter(adapter)
        plays = read_plays(run, model.tokenizer)
        seconds = learn(model, plays, settings, random.Random(settings.seed + number))
        model.write_adapter(output / f"round-{number}.gguf")
        rounds.append({"round": number, **_scores(run), "plays_learned_from": len(plays), "learning_seconds": seconds})
        record = {"settings": asdict(settings), "rounds": rounds}
        (output / "history.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps(rounds[-1]), flush=True)
    shutil.copyfile(output / f"round-{settings.rounds}.gguf", output / "adapter.gguf")


def collect(settings: Settings, output: Path, number: int, adapter: Path | None) -> Path:
    """Plays the remaining rollouts of one round with the current policy; returns the run's folder."""
    folder = output / f"round-{number}"
    if any(folder.glob(_TABLE)):
        return _run_in(folder)
    hyperparameters = {
        "eval_group_size": settings.group_size,
        "sampling_temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "rollout_max_concurrency": _CONCURRENCY,
    }
    command = ["heldout", "evaluate", "--model", MODEL if adapter is None else f"{MODEL}+{adapter}"]
    command += ["--agent", f"{HERE / 'agent.py'}:play", "--dataset", str(HERE / "train.jsonl")]
    command += ["--output", str(output), "--name", f"round-{number}", "--resume", "--mlflow", "off"]
    command += ["--limit", str(settings.prompts), "--shuffle-seed", str(settings.seed + number)]
    for name, value in hyperparameters.items():
        command += ["-H", f"{name}={value}"]
    subprocess.run(command, check=True)
    return _run_in(folder)


def learn(model: SmolLM, plays: Sequence[Play], settings: Settings, rng: random.Random) -> float:
    """Makes the replies of rewarded turns more likely, by their weights; returns the seconds it took."""
    started_at = time.monotonic()
    parameters = [parameter for _, parameter in model.trained()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    batches = _batches(plays, settings.batch_size)
    order = [batch for _ in range(settings.passes) for batch in rng.sample(batches, len(batches))]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, len(order)))
    for batch in order:
        loss = -(_log_probabilities(model, batch) * batch.weights).sum() / batch.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return round(time.monotonic() - started_at, 1)


class _Batch(NamedTuple):
    """Rollouts side by side."""

    opening: torch.Tensor
    """Token ids that begin every rollout, shape (length,)."""
    tokens: torch.Tensor
    """Token ids that follow, shape (rollouts, length), padded at the end."""
    is_chosen: torch.Tensor
    """Whether a token has a weight, shape (rollouts, length - 1): the first token is never predicted."""
    weights: torch.Tensor
    """Weights of the chosen tokens, shape (chosen,)."""


def _batches(plays: Sequence[Play], size: int) -> list[_Batch]:
    """Batches rollouts of similar length, because padding costs as much time as text."""
    by_length = sorted(plays, key=lambda play: len(play.tokens))
    return [_batch(by_length[start : start + size]) for start in range(0, len(plays), size)]


def _batch(plays: Sequence[Play]) -> _Batch:
    shared = _shared_opening(plays)
    tokens = pad_sequence([torch.tensor(play.tokens[shared:]) for play in plays], batch_first=True)
    weights = pad_sequence([torch.tensor(play.weights[shared:]) for play in plays], batch_first=True)[:, 1:]
    is_chosen = weights != 0
    return _Batch(torch.tensor(plays[0].tokens[:shared]), tokens, is_chosen, weights[is_chosen])


def _log_probabilities(model: SmolLM, batch: _Batch) -> torch.Tensor:
    hidden = model(batch.opening, batch.tokens[:, :-1])[batch.is_chosen]
    return model.log_probabilities(hidden, batch.tokens[:, 1:][batch.is_chosen])


def _shared_opening(plays: Sequence[Play]) -> int:
    """How many tokens all of them begin with, short of the one before the first that has something to learn from."""
    columns = zip(*(play.tokens for play in plays), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    firsts = (next(index for index, weight in enumerate(play.weights) if weight != 0) for play in plays)
    return min(shared, *(first - 1 for first in firsts))


def _share_of_rate(step: int, steps: int) -> float:
    """The share of the learning rate in a step of a round: rises over the first few, then falls linearly."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * (1 - (1 - _LAST_STEP) * step / steps)


def _rounds_done(history: Path, settings: Settings) -> list[dict[str, float]]:
    """Counts the rounds of earlier starts. Raises ValueError when they had other settings (more rounds are fine)."""
    if not history.exists():
        return []
    record = json.loads(history.read_text())
    earlier = {**record["settings"], "rounds": settings.rounds}
    if earlier != asdict(settings):
        raise ValueError(
            f"{history} was made with other settings, {record['settings']}; give those, or another --output"
        )
    rounds: list[dict[str, float]] = record["rounds"]
    return rounds


def _run_in(evaluation: Path) -> Path:
    (table,) = evaluation.glob(_TABLE)
    return table.parent


def _scores(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    names = {"reward": "eval/reward/mean", "success": "eval/reward/pass_at_1", "turns": "eval/turns/mean"}
    return {short: round(metrics[name], 4) for short, name in names.items()}


if __name__ == "__main__":
    main()
