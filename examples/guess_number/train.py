"""Multi-turn RL on a CPU: SmolLM2-135M learns the guessing game from rollouts that Heldout collects on the training prompts.

    python examples/guess_number/train.py --output runs/guess-number-training

Each round evaluates the current policy on some training prompts with `heldout evaluate`, reads the run it leaves behind, and
takes some passes of policy gradient over it: the clipped surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7)
with group-relative advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1), turn by turn, on a LoRA adapter (Hu et al.
2021, arXiv:2106.09685). The adapter is written as GGUF after each round, and the next round plays with it.
"""

import argparse
import json
import random
import shutil
import subprocess
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


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training run depends on, beside the prompts and the versions of the packages."""

    rounds: int = 3
    prompts: int = 16
    """Training prompts played in a round."""
    group_size: int = 6
    """Rollouts of each prompt."""
    temperature: float = 0.7
    max_tokens: int = 12
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 1e-3
    passes: int = 3
    """How often a round's rollouts are gone through."""
    batch_size: int = 8
    """Rollouts in one step."""
    clip: float = 3.0
    """A token counts until it is this many times likelier, or less likely, than when it was sampled. Wide: the rounds are few."""
    seed: int = 1


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
    train(Settings(**arguments), output)


def train(settings: Settings, output: Path) -> None:
    """Plays and learns for some rounds; leaves `adapter.gguf` and `history.json` in `output`.

    Raises CalledProcessError when a round's rollouts cannot be collected.
    """
    model = SmolLM(find_weights(MODEL), rank=settings.rank, alpha=settings.alpha, seed=settings.seed)
    parameters = [parameter for _, parameter in model.trained()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rng = random.Random(settings.seed)
    history: list[dict[str, float]] = []
    adapter: Path | None = None
    for number in range(1, settings.rounds + 1):
        run = collect(settings, output, number, adapter)
        plays = read_plays(run, model.tokenizer)
        seconds = learn(model, optimizer, plays, settings, rng)
        history.append({"round": number, **_scores(run), "plays_learned_from": len(plays), "learning_seconds": seconds})
        print(json.dumps(history[-1]), flush=True)
        adapter = output / f"round-{number}.gguf"
        model.write_adapter(adapter)
        record = {"settings": asdict(settings), "rounds": history}
        (output / "history.json").write_text(json.dumps(record, indent=2) + "\n")
    if adapter is not None:
        shutil.copyfile(adapter, output / "adapter.gguf")


def collect(settings: Settings, output: Path, number: int, adapter: Path | None) -> Path:
    """Plays one round with the current policy, unless it was already; returns the run's folder."""
    folder = output / f"round-{number}"
    if any(folder.glob(_TABLE)):
        return _run_in(folder)
    hyperparameters = {
        "eval_group_size": settings.group_size,
        "sampling_temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed * 1000 + number,
    }
    command = ["heldout", "evaluate", "--model", MODEL if adapter is None else f"{MODEL}+{adapter}"]
    command += ["--agent", f"{HERE / 'agent.py'}:play", "--dataset", str(HERE / "train.jsonl")]
    command += ["--output", str(output), "--name", f"round-{number}", "--resume"]
    command += ["--limit", str(settings.prompts), "--shuffle-seed", str(settings.seed * 1000 + number)]
    for name, value in hyperparameters.items():
        command += ["-H", f"{name}={value}"]
    subprocess.run(command, check=True)
    return _run_in(folder)


def learn(
    model: SmolLM, optimizer: torch.optim.Optimizer, plays: Sequence[Play], settings: Settings, rng: random.Random
) -> float:
    """Makes turns that did better than others likelier, and the others less likely; returns the seconds it took."""
    started_at = time.monotonic()
    parameters = [parameter for _, parameter in model.trained()]
    batches = _batches(plays, settings.batch_size)
    with torch.no_grad():
        sampled = [_log_probabilities(model, batch, settings.temperature) for batch in batches]
    for index in [index for _ in range(settings.passes) for index in rng.sample(range(len(batches)), len(batches))]:
        ratio = torch.exp(_log_probabilities(model, batches[index], settings.temperature) - sampled[index])
        advantages = batches[index].advantages
        clipped = ratio.clamp(1 / settings.clip, settings.clip)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return round(time.monotonic() - started_at, 1)


class _Batch(NamedTuple):
    """Rollouts side by side."""

    opening: torch.Tensor
    """Token ids that all begin with, shape (length,)."""
    tokens: torch.Tensor
    """Token ids that follow, shape (rollouts, length), padded at the end."""
    is_chosen: torch.Tensor
    """Whether the policy chose a token and has something to learn from it, shape (rollouts, length - 1): the first is given."""
    advantages: torch.Tensor
    """Of the chosen tokens, shape (chosen,)."""


def _batches(plays: Sequence[Play], size: int) -> list[_Batch]:
    """Rollouts of like length together: padding costs as much time as text."""
    by_length = sorted(plays, key=lambda play: len(play.tokens))
    return [_batch(by_length[start : start + size]) for start in range(0, len(plays), size)]


def _batch(plays: Sequence[Play]) -> _Batch:
    shared = _shared_opening(plays)
    tokens = pad_sequence([torch.tensor(play.tokens[shared:]) for play in plays], batch_first=True)
    advantages = pad_sequence([torch.tensor(play.advantages[shared:]) for play in plays], batch_first=True)[:, 1:]
    is_chosen = advantages != 0
    return _Batch(torch.tensor(plays[0].tokens[:shared]), tokens, is_chosen, advantages[is_chosen])


def _log_probabilities(model: SmolLM, batch: _Batch, temperature: float) -> torch.Tensor:
    hidden = model(batch.opening, batch.tokens[:, :-1])[batch.is_chosen]
    return model.log_probabilities(hidden, batch.tokens[:, 1:][batch.is_chosen], temperature)


def _shared_opening(plays: Sequence[Play]) -> int:
    """How many tokens all of them begin with, short of the one before the first that has something to learn from."""
    columns = zip(*(play.tokens for play in plays), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    firsts = (next(index for index, gain in enumerate(play.advantages) if gain != 0) for play in plays)
    return min(shared, *(first - 1 for first in firsts))


def _run_in(evaluation: Path) -> Path:
    (table,) = evaluation.glob(_TABLE)
    return table.parent


def _scores(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    names = {"reward": "eval/reward/mean", "success": "eval/reward/pass_at_1", "turns": "eval/turns/mean"}
    return {short: round(metrics[name], 4) for short, name in names.items()}


if __name__ == "__main__":
    main()
