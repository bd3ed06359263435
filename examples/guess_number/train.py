"""Multi-turn RL on a CPU: SmolLM2-135M learns the guessing game from rollouts that Heldout collects on the training prompts.

    python examples/guess_number/train.py --output runs/guess-number-training

Each round evaluates the current policy on some training prompts with `heldout evaluate`, reads the run it leaves behind, and
raises the likelihood of every reply whose turn was rewarded better than the average of that prompt's rollouts in that turn,
weighted by how much better: expert iteration (Anthony et al. 2017, arXiv:1705.08439) turn by turn, with group-relative
advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1), on a LoRA adapter (Hu et al. 2021, arXiv:2106.09685). The adapter is
written as GGUF after each round, and the next round plays with it.

Two things were tried before. Learning from worse rollouts too, with negative weights: most of their tokens are right (a number,
the end of the reply), and within one round the model stopped replying with numbers. One advantage for a whole rollout: winners
were mostly lucky, and a round of imitating all of their guesses, the wasted ones too, changed nothing that could be seen.
"""

import argparse
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from heldout.policies.embedded import find_weights
from plays import Play, read_plays
from smollm import SmolLM

MODEL = "smollm2-135m"
HERE = Path(__file__).parent


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
    passes: int = 1
    """How often each round's rollouts are gone through."""
    batch_size: int = 6
    """Rollouts in one step."""
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
    run = output / f"round-{number}" / ("base-model-eval" if adapter is None else "fine-tuned-model-eval")
    if (run / "rollouts.parquet").exists():
        return run
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
    return run


def learn(
    model: SmolLM, optimizer: torch.optim.Optimizer, plays: Sequence[Play], settings: Settings, rng: random.Random
) -> float:
    """Takes steps towards a round's better turns; returns the seconds it took."""
    started_at = time.monotonic()
    for batch in _batches(plays, settings, rng):
        shared = _shared_opening(batch)
        tokens = pad_sequence([torch.tensor(play.tokens[shared:]) for play in batch], batch_first=True)
        weights = pad_sequence([torch.tensor(play.weights[shared:]) for play in batch], batch_first=True)[:, 1:]
        is_learned = weights > 0
        hidden = model(torch.tensor(batch[0].tokens[:shared]), tokens[:, :-1])[is_learned]
        log_probabilities = model.log_probabilities(hidden, tokens[:, 1:][is_learned], settings.temperature)
        loss = -(log_probabilities * weights[is_learned]).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_([parameter for _, parameter in model.trained()], 1.0)
        optimizer.step()
    return round(time.monotonic() - started_at, 1)


def _batches(plays: Sequence[Play], settings: Settings, rng: random.Random) -> Iterator[list[Play]]:
    """Batches in random order, of rollouts of like length: padding costs as much time as text."""
    for _ in range(settings.passes):
        by_length = sorted(rng.sample(plays, len(plays)), key=lambda play: len(play.tokens))
        starts = range(0, len(plays), settings.batch_size)
        for start in rng.sample(starts, len(starts)):
            yield by_length[start : start + settings.batch_size]


def _shared_opening(plays: Sequence[Play]) -> int:
    """How many tokens all of them begin with, short of the one before the first that is learned in any of them."""
    columns = zip(*(play.tokens for play in plays), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    firsts = (next(index for index, weight in enumerate(play.weights) if weight > 0) for play in plays)
    return min(shared, *(first - 1 for first in firsts))


def _scores(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    names = {"reward": "eval/reward/mean", "success": "eval/reward/pass_at_1", "turns": "eval/turns/mean"}
    return {short: round(metrics[name], 4) for short, name in names.items()}


if __name__ == "__main__":
    main()
