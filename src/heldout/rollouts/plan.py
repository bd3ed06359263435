"""The plan of a run: its prompts, its finished rollouts, and the counts so far.

It imports numpy and pyarrow, which take a quarter of a second: import it while the agent's processes start.
"""

from dataclasses import dataclass

from heldout.datasets.prompts import PromptCount, PromptReader, PromptSource, copy_prompts
from heldout.runs.journal_index import JournalIndex
from heldout.runs.progress import Progress
from heldout.runs.run import Run


@dataclass(frozen=True, slots=True)
class Plan:
    """The remaining work of a run."""

    prompts: PromptReader
    index: JournalIndex
    progress: Progress
    column_line: str | None = None
    """The column that the prompts were just copied from, in one line; None for a column named `prompt`."""
    is_column_doubtful: bool = False
    """Whether another column has nearly that name."""

    @property
    def is_done(self) -> bool:
        """Whether every rollout is finished."""
        return self.progress.finished == self.progress.planned


def make_plan(run: Run) -> Plan:
    """Copies the dataset's prompts into the run, unless it has them, and reads its journal.

    Raises DatasetError and ReferenceProblem for a dataset that cannot be used, RunError for a run whose files cannot be read.
    """
    column, is_doubtful = None, False
    group_size = run.document.hyperparameters.eval_group_size
    if run.state.num_prompts is None or not run.prompts_path.exists():
        channel = run.document.prompts
        source = PromptSource(
            channel.data_source.dataset, channel.limit, channel.shuffle_seed, is_prefix=channel.data_source.is_prefix
        )
        count = copy_prompts(source, run.prompts_path)
        column = _column_line(count)
        is_doubtful = count.nearest_column is not None
        run.update(num_prompts=count.number, dataset_hash=count.content_hash)
    prompts = PromptReader(run.prompts_path)
    progress = Progress.of(run.state.num_prompts or 0, group_size, run.metric_settings, prompts.indices())
    index = JournalIndex.of(run.journal_folder, group_size, progress.count_before)
    return Plan(prompts, index, progress, column, is_doubtful)


def _column_line(count: PromptCount) -> str | None:
    if count.column == "prompt":
        return None
    line = f"the dataset has no column 'prompt': the prompts come from its first column, {count.column!r}"
    near = count.nearest_column
    return line if near is None else f"{line}; if they are in {near!r}, name it 'prompt' or put it first"
