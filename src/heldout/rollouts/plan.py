"""The plan of a run: its prompts, its finished rollouts, and the counts so far.

It imports numpy and pyarrow, which take a quarter of a second: import it while the agent's processes start.
"""

from dataclasses import dataclass

from heldout.datasets.prompts import PromptReader, PromptSource, copy_prompts
from heldout.runs.journal_index import JournalIndex
from heldout.runs.progress import Progress
from heldout.runs.run import Run


@dataclass(frozen=True, slots=True)
class Plan:
    """The remaining work of a run."""

    prompts: PromptReader
    index: JournalIndex
    progress: Progress

    @property
    def is_done(self) -> bool:
        """Whether every rollout is finished."""
        return self.progress.finished == self.progress.planned


def make_plan(run: Run) -> Plan:
    """Copies the dataset's prompts into the run, unless it has them, and reads its journal.

    Raises DatasetError and ReferenceProblem for a dataset that cannot be used, RunError for a run whose files cannot be read.
    """
    group_size = run.document.hyperparameters.eval_group_size
    if run.state.num_prompts is None or not run.prompts_path.exists():
        channel = run.document.prompts
        source = PromptSource(
            channel.data_source.dataset, channel.limit, channel.shuffle_seed, is_prefix=channel.data_source.is_prefix
        )
        count = copy_prompts(source, run.prompts_path)
        run.update(num_prompts=count.number, dataset_hash=count.content_hash)
    progress = Progress.of(run.state.num_prompts or 0, group_size, run.metric_settings)
    index = JournalIndex.of(run.journal_folder, group_size, progress.count_before)
    return Plan(PromptReader(run.prompts_path), index, progress)
