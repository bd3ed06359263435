"""The display of a job while it plays."""

import pytest
from rich.console import Console

from heldout.job.records import Attempt
from heldout.metrics.confidence_sequence import ConfidenceSequence
from heldout.metrics.settings import MetricSettings
from heldout.report.live import line, panel
from heldout.report.numbers import interval_text
from heldout.runs.progress import Progress


def attempt(prompt: int, rollout: int, reward: float) -> Attempt:
    return Attempt(prompt, rollout, 1, f"{prompt}-{rollout}", True, None, (reward,), (), (), (), "", 0.0, 1.0)


def progress_of(rewards: dict[tuple[int, int], float], *, order: list[int]) -> Progress:
    progress = Progress.of(len(order), 2, MetricSettings((1,), 1.0), order)
    for (prompt, rollout), reward in rewards.items():
        progress.count(attempt(prompt, rollout, reward))
    return progress


def panel_text(progress: Progress) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(panel(progress, "a job"))
    return captured.get()


def test_only_whole_prompts_in_the_order_of_play_are_shown() -> None:
    finished = {(4, 0): 1.0, (4, 1): 0.0, (1, 0): 1.0, (1, 1): 1.0, (2, 0): 1.0, (2, 1): 1.0}
    progress = progress_of(finished, order=[4, 9, 1, 2])
    sequence = ConfidenceSequence()
    sequence.add(0.5)
    shown = interval_text(sequence.interval())
    assert f"success 0.500 {shown}, reward 0.500 {shown}, from 1 prompt" in panel_text(progress)
    assert f"6/8 rollouts, 0 playing, success 0.500 {shown}," in line(progress)


def test_nothing_is_shown_before_the_first_prompt_is_whole() -> None:
    assert "success" not in line(progress_of({(4, 0): 1.0, (9, 0): 1.0, (9, 1): 1.0}, order=[4, 9]))


@pytest.mark.parametrize("reward", [-0.5, 4.0])
def test_rewards_without_a_known_range_say_why_there_is_no_interval(reward: float) -> None:
    shown = line(progress_of({(0, 0): reward, (0, 1): 0.0}, order=[0]))
    assert f"reward {reward / 2:.{3 if reward < 1 else 2}f} (no interval: rewards leave [0, 1]" in shown
