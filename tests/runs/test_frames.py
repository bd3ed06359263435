"""A run's tables as data frames: `execution.rollouts()` and `execution.trajectories()`."""

import asyncio
import importlib.util
import sys
from typing import Any

import polars
import pytest

from heldout.errors import MissingExtra, RunError
from heldout.runs.frames import table_of
from heldout.runs.run import Run
from tests.support.jobs import played

PROMPTS = ["turns 3", "0.25", "raise oh no", "1", "turns 2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings: dict[str, Any] = {"eval_group_size": 3, "rollout_max_retries": 0, "pass_k_values": [1]}
    return asyncio.run(played(tmp_path_factory.mktemp("job"), PROMPTS, **settings))


def test_rollouts_are_by_run_prompt_and_rollout_whatever_order_they_ended_in(run: Run) -> None:
    frame = table_of({"base-model-eval": run, "fine-tuned-model-eval": run}, "rollouts", "pandas")
    places = list(zip(frame["run"], frame["prompt_index"], frame["rollout_index"], strict=True))
    runs = ("base-model-eval", "fine-tuned-model-eval")
    assert places == [
        (name, prompt, rollout) for name in runs for prompt in range(len(PROMPTS)) for rollout in range(3)
    ]


def test_the_turns_of_a_trajectory_are_below_each_other_in_their_order(run: Run) -> None:
    frame = table_of({"run": run}, "trajectories", "pandas")
    first = frame[frame["prompt_index"] == 0]
    assert list(zip(first["rollout_index"], first["turn"], strict=True)) == [(r, t) for r in range(3) for t in range(3)]


def test_a_polars_frame_has_the_rows_of_the_pandas_one(run: Run) -> None:
    frame = table_of({"run": run}, "rollouts", "polars")
    assert isinstance(frame, polars.DataFrame)
    other = table_of({"run": run}, "rollouts", "pandas")
    assert frame.columns == list(other.columns)
    assert frame["trajectory_id"].to_list() == other["trajectory_id"].tolist()
    assert frame["reward"].to_list()[3:6] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_library_that_is_not_installed_is_named_with_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, library: Any
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert importlib.util.find_spec(library) is None
    with pytest.raises(MissingExtra, match=f"a {library} frame needs {library}: pip install {library}"):
        table_of({"run": run}, "rollouts", library)


def test_an_evaluation_that_has_not_begun_has_no_frame() -> None:
    with pytest.raises(RunError, match=r"no run of this evaluation has begun; wait\(\) until it is done"):
        table_of({}, "rollouts", "pandas")
