"""Draws the prompts: `python prompts.py` writes train.jsonl and held-out.jsonl. No range is in both.

A range starts anywhere from 1 to 24 and holds 8 to 15 numbers, so that par is four guesses in every game.
"""

import argparse
import json
import random
from pathlib import Path
from typing import NamedTuple

from game import PROMPT

SIZES = range(8, 16)
STARTS = range(1, 25)


class Prompts(NamedTuple):
    """Two sets of prompts that share no range."""

    train: list[str]
    held_out: list[str]


def draw_prompts(seed: int, *, num_train: int = 160, num_held_out: int = 32) -> Prompts:
    """Draws both sets without replacement from all ranges; the same seed gives the same prompts.

    Raises ValueError for more prompts than ranges.
    """
    ranges = [(low, low + size - 1) for low in STARTS for size in SIZES]
    drawn = random.Random(seed).sample(ranges, num_train + num_held_out)
    prompts = [PROMPT.format(low=low, high=high) for low, high in drawn]
    return Prompts(train=prompts[num_held_out:], held_out=prompts[:num_held_out])


def main() -> None:
    """Writes both files into the folder of this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    prompts = draw_prompts(parser.parse_args().seed)
    for name, texts in (("train", prompts.train), ("held-out", prompts.held_out)):
        path = Path(__file__).with_name(f"{name}.jsonl")
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        print(f"{path}: {len(texts)} prompts")


if __name__ == "__main__":
    main()
