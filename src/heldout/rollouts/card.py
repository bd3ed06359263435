"""Records the card of a run while it is played, and finds what has changed before it is resumed."""

import asyncio
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from heldout.agents.base import Agent, HasLoadedCode, LoadedCode
from heldout.datasets.files import dataset_hashes
from heldout.errors import DatasetError, InputError
from heldout.job.card import (
    AgentCard,
    CardDifference,
    CardPart,
    MachineCard,
    ModelCard,
    RunCard,
    card_differences,
)
from heldout.policies.base import HasListing, Policy
from heldout.runs.cards import card_of_document
from heldout.runs.run import Run
from heldout.version import __version__

_GIT_SECONDS = 10.0
_GIB = 1024**3
_MOST_NAMED = 4
"""Differences that an error names; the number of the others follows."""


def check_unchanged(runs: Iterable[Run]) -> tuple[str, ...]:
    """Checks that the agent and the dataset of begun runs are those that they began with. Starts and writes nothing.

    Returns a warning for each run that cannot be checked because an older version began it. Raises InputError that names what
    has changed.
    """
    warnings = []
    for run in runs:
        if not run.has_rollouts:
            continue  # a new start mixes nothing
        if run.state.card is None:
            warnings.append(
                f"{run.state.run_name} has no card, because an older version began it: whether its agent or dataset has "
                "changed cannot be checked"
            )
        elif changes := changes_since(run.state.card, run):
            raise InputError(
                f"run {run.location} began with another {_parts(changes)} ({_named(changes)}), and resuming would mix both; "
                "restore it, evaluate anew under another --name, or resume and mark the run: --allow-changes "
                "(allow_changes=True in Python)"
            )
    return tuple(warnings)


def accept_changes(runs: Iterable[Run]) -> None:
    """Marks each begun run with the changes of its agent and dataset, so that it can be resumed.

    Raises RunError when a process works on one of them.
    """
    for run in runs:
        if run.has_rollouts and run.state.card is not None and (changes := changes_since(run.state.card, run)):
            marks = (*run.state.card.changes, *(change.sentence for change in changes))
            with run.locked():
                run.update(card=_present(run.state.card, run).model_copy(update={"changes": marks}))


def changes_since(card: RunCard, run: Run) -> tuple[CardDifference, ...]:
    """Compares a card of a run with the agent's files and packages and the dataset's files as they are now."""
    # The prompts' own hash is of the copy in the run, which does not change.
    before = card.model_copy(update={"dataset": card.dataset.model_copy(update={"prompts_hash": None})})
    return card_differences(before, _present(before, run))


def _present(card: RunCard, run: Run) -> RunCard:
    """The card with the present hashes and versions of the files and packages that it lists."""
    source = run.document.prompts.data_source
    agent = card.agent.model_copy(
        update={
            "files": {name: digest for name in card.agent.files if (digest := _hash(_placed(card.agent, name)))},
            "packages": {name: version for name in card.agent.packages if (version := _version(name))},
        }
    )
    try:
        files = dataset_hashes(source.dataset, is_prefix=source.is_prefix) if card.dataset.files else {}
    except DatasetError:
        files = {}  # it has gone, and the run plays its own copy
    return card.model_copy(update={"agent": agent, "dataset": card.dataset.model_copy(update={"files": files})})


class CardRecorder:
    """Keeps the card of a run that plays. `recording` is open while rollouts are played, `finish` follows the agent's end."""

    def __init__(
        self, run: Run, agent: Agent, policy: Policy, *, note: Callable[[str], None], publish: Callable[[], None]
    ) -> None:
        """note: receives a warning for each difference between parts of the run. publish: copies job.json to the run's remote
        place, if it has one, for another machine that resumes it; called from another thread."""
        self._run = run
        self._agent = agent
        self._policy = policy
        self._note = note
        self._publish = publish
        self._is_resumed = run.has_rollouts

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Records the card in the background: reading hashes and git would delay the first rollout."""
        task = asyncio.create_task(self._record())
        try:
            yield
        finally:
            await task

    async def finish(self) -> None:
        """Adds the code that attempts have loaded."""
        card = self._run.state.card
        if card is not None and isinstance(self._agent, HasLoadedCode):
            loaded, known = self._agent.loaded_code, card.agent
            packages = await asyncio.to_thread(_versions, loaded.packages)
            agent = known.model_copy(
                update={"files": _files(loaded) | known.files, "packages": packages | known.packages}
            )
            self._save(card.model_copy(update={"agent": agent}), _changed_files(loaded))

    async def _record(self) -> None:
        card, before = await asyncio.to_thread(self._card), self._run.state.card
        if before is None or not self._is_resumed:
            self._save(card, ())
        else:
            self._save_resumed(before, card)
        await asyncio.to_thread(self._publish)

    def _save_resumed(self, before: RunCard, card: RunCard) -> None:
        agent = card.agent.model_copy(
            update={
                "files": before.agent.files | card.agent.files,
                "packages": before.agent.packages | card.agent.packages,
            }
        )
        found = card_differences(before, card)
        changes = [one.sentence for one in found if one.part in (CardPart.MODEL, CardPart.HELDOUT)]
        self._save(card.model_copy(update={"agent": agent, "changes": before.changes}), changes)

    def _card(self) -> RunCard:
        run, source = self._run, self._run.document.prompts.data_source
        card = card_of_document(run.document, dataset_hash=run.state.dataset_hash, version=__version__)
        try:
            files = dataset_hashes(source.dataset, is_prefix=source.is_prefix)
        except DatasetError:
            files = {}  # it has gone since its prompts were copied
        model = {
            "served_name": self._policy.model_name,
            "listing": self._policy.listing if isinstance(self._policy, HasListing) else None,
        }
        return card.model_copy(
            update={
                "agent": self._agent_card(card.agent),
                "dataset": card.dataset.model_copy(update={"files": files}),
                "model": ModelCard.model_validate(card.model.model_dump() | model),
                "machine": _machine(),
            }
        )

    def _agent_card(self, card: AgentCard) -> AgentCard:
        if not isinstance(self._agent, HasLoadedCode):
            return card
        loaded = self._agent.loaded_code
        git = _git(loaded.folder, loaded.files)
        return card.model_copy(
            update={
                "folder": str(loaded.folder),
                "files": _files(loaded),
                "packages": _versions(loaded.packages),
                "commit": git.commit,
                "is_dirty": git.is_dirty,
            }
        )

    def _save(self, card: RunCard, changes: Iterable[str]) -> None:
        new = [change for change in changes if change not in card.changes]
        for change in new:
            self._note(f"{self._run.state.run_name} changed while it was played: {change}")
        self._run.update(card=card.model_copy(update={"changes": (*card.changes, *new)}))


class _Git(NamedTuple):
    commit: str | None
    is_dirty: bool | None


def _parts(changes: Iterable[CardDifference]) -> str:
    return " and ".join(dict.fromkeys(str(change.part) for change in changes))


def _named(changes: Sequence[CardDifference]) -> str:
    more = len(changes) - _MOST_NAMED
    texts = [change.text for change in changes[:_MOST_NAMED]]
    return "; ".join([*texts, f"and {more} more"] if more > 0 else texts)


def _files(loaded: LoadedCode) -> dict[str, str]:
    """One hash of each file, by its path below the agent's folder, or its whole path elsewhere."""
    return {
        str(path.relative_to(loaded.folder)) if (path := Path(name)).is_relative_to(loaded.folder) else name: min(
            digests
        )
        for name, digests in loaded.files.items()
        if any(digests)
    }


def _changed_files(loaded: LoadedCode) -> list[str]:
    return [
        f"agent file {Path(name).name}: several versions" for name, digests in loaded.files.items() if len(digests) > 1
    ]


def _placed(agent: AgentCard, name: str) -> Path:
    return Path(agent.folder or "") / name


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(modules: Iterable[str]) -> dict[str, str]:
    """The version of the distribution that installed each module, by the distribution's name."""
    found: dict[str, str] = {}
    by_folder: dict[Path, list[PurePosixPath]] = {}
    for module in modules:
        folder = _packages_folder(Path(module))
        by_folder.setdefault(folder, []).append(PurePosixPath(Path(module).relative_to(folder)))
    for folder, files in by_folder.items():
        installed = list(folder.glob("*.dist-info"))
        by_name = {_normalized(info.stem.rpartition("-")[0]): info for info in installed}
        chosen, others = [], []
        for file in files:
            if (same := by_name.get(_normalized(file.parts[0].removesuffix(".py")))) is not None:
                chosen.append(same)
            else:
                others.append(f"\n{file},".encode())
        if others:  # a package with another name than its distribution: the distributions list their files
            chosen += [info for info in installed if any(other in _record(info) for other in others)]
        distributions = (importlib.metadata.Distribution.at(info) for info in chosen)
        found |= {one.metadata["Name"]: one.version for one in distributions}
    return dict(sorted(found.items()))


def _packages_folder(module: Path) -> Path:
    """The folder of installed packages that holds a module."""
    return next(parent for parent in module.parents if parent.name in ("site-packages", "dist-packages"))


@functools.lru_cache(maxsize=1)
def _record(distribution: Path) -> bytes:
    """The list of a distribution's files, each line after a line break; empty if it has none."""
    with contextlib.suppress(OSError):
        return b"\n" + (distribution / "RECORD").read_bytes()
    return b""


def _normalized(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _git(folder: Path, files: Iterable[str]) -> _Git:
    """The commit of a folder, and whether the repository's files or these differ from it."""
    commit = _git_output(folder, "rev-parse", "HEAD")
    if commit is None:
        return _Git(None, None)
    own = [name for name in files if Path(name).is_relative_to(folder)]
    changed = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    unknown = _git_output(folder, "status", "--porcelain", "--ignored", "--untracked-files=all", "--", *own)
    return _Git(commit.strip(), None if changed is None or unknown is None else bool(changed or unknown))


def _git_output(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it is not installed, fails, or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _machine() -> MachineCard:
    return MachineCard(
        host=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        python=platform.python_version(),
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (ValueError, OSError):
        return None
