"""Findings about the prompts: duplicates, and prompts that the policy may have been trained on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from heldout.datasets.files import PromptDataset
from heldout.report.finding import Finding, Weight, Wording, counted, finding
from heldout.report.rollout_rows import BoolArray, IntArray, RolloutRows

HashArray = npt.NDArray[np.uint64]
_BATCH_PROMPTS = 1024


def duplicate_prompts(prompts: Path, rows: RolloutRows) -> Iterator[Finding]:
    """Find prompts that the dataset (`prompts`: the run's prompts.parquet) contains more than once."""
    indices, hashes = _hashes(prompts, is_exact=True)
    _, of_row, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeats = len(hashes) - len(counts)
    if not repeats:
        return
    mask = np.isin(rows.prompt_index, indices[counts[of_row] > 1])
    wording = Wording(
        "duplicate_prompts",
        "leave each prompt in the dataset once and raise eval_group_size: intervals count every row as a prompt of its own",
        Weight.DOUBT,
    )
    seen = f"{counted(repeats, len(hashes), 'prompts')} repeat one that is in the dataset already"
    yield finding(wording, seen, rows, mask)


def training_prompts(prompts: Path, training: str, rows: RolloutRows) -> Iterator[Finding]:
    """Find held-out prompts in the dataset `training` (a path or `s3://` URI, as for evaluate).

    Prompts are equal when their words are, regardless of case and white space. Memory is 16 bytes per held-out prompt; the
    training file is streamed. Raises DatasetError when it cannot be read.
    """
    indices, hashes = _hashes(prompts, is_exact=False)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_trained = np.zeros(len(hashes), dtype=np.bool_)
    num_training = 0
    batch: list[int] = []
    for prompt in PromptDataset(training):
        num_training += 1
        batch.append(_plain_hash(prompt.text))
        if len(batch) == _BATCH_PROMPTS:
            _mark(is_trained, order, ordered, batch)
            batch = []
    _mark(is_trained, order, ordered, batch)
    if is_trained.any():
        yield _trained(rows, indices[is_trained], is_trained, num_training)


def _trained(rows: RolloutRows, trained: IntArray, is_trained: BoolArray, num_training: int) -> Finding:
    mask = np.isin(rows.prompt_index, trained)
    wording = Wording(
        "training_prompts",
        "take them out of the held-out set: what was trained on shows memory, not skill",
        Weight.DOUBT,
    )
    rates = ""
    if mask.any() and not mask.all():
        rates = f"; success {rows.is_success[mask].mean():.0%} on them, {rows.is_success[~mask].mean():.0%} on the rest"
    seen = (
        f"{counted(int(is_trained.sum()), len(is_trained), 'held-out prompts')} are among the {num_training:,} training "
        f"prompts{rates}"
    )
    return finding(wording, seen, rows, mask)


def _mark(is_trained: BoolArray, order: IntArray, ordered: HashArray, batch: list[int]) -> None:
    wanted = np.unique(np.array(batch, dtype=np.uint64))
    starts, ends = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
    for start, end in zip(starts[ends > starts], ends[ends > starts], strict=True):
        is_trained[order[start:end]] = True


def _hashes(prompts: Path, *, is_exact: bool) -> tuple[IntArray, HashArray]:
    """Yield the row number in the dataset and a 64-bit hash of every prompt, in file order."""
    column = "prompt_hash" if is_exact else "prompt"
    indices: list[IntArray] = []
    hashes: list[int] = []
    with pq.ParquetFile(prompts) as file:
        for batch in file.iter_batches(columns=["prompt_index", column]):
            indices.append(batch["prompt_index"].to_numpy())
            values = [str(value) for value in batch[column].to_pylist()]
            hashes += [int(value, 16) if is_exact else _plain_hash(value) for value in values]
    return np.concatenate(indices) if indices else np.empty(0, np.int64), np.array(hashes, dtype=np.uint64)


def _plain_hash(text: str) -> int:
    plain = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big")
