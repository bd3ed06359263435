"""Renders one trajectory for a terminal: for each turn the new messages of the request, and the reply."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from heldout.job.json_values import stored_json
from heldout.report.message_text import content_text, reasoning, tool_calls
from heldout.report.sanitizing import one_line, visible
from heldout.runs.recordings import Message, RecordedTrajectory, RecordedTurn

_ROLE_STYLES = {"assistant": "bold green", "tool": "bold magenta", "system": "bold blue"}
_TITLE_CHARACTERS = 200


def trajectory(played: RecordedTrajectory) -> RenderableType:
    """Render everything recorded of one attempt."""
    parts: list[RenderableType] = [_head(played)]
    for turn in played.turns:
        parts += [Rule(Text(_turn_title(turn, played.turns)), align="left", style="dim"), _messages(turn)]
    if not played.turns:
        parts.append(Text("the model was never called", style="dim"))
    if played.output:
        parts += [Rule(Text("printed by the agent"), align="left", style="dim"), Text(visible(played.output.rstrip()))]
    return Group(*parts)


def _head(played: RecordedTrajectory) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    place = f"prompt {played.prompt_index}, rollout {played.rollout_index}, attempt {played.attempt}"
    grid.add_row("trajectory", Text.assemble((visible(played.trajectory_id), "bold"), "  ", (place, "dim")))
    grid.add_row("outcome", _outcome(played))
    grid.add_row("took", _took(played))
    if played.metrics:
        grid.add_row("metrics", Text(", ".join(f"{visible(k)} {v:g}" for k, v in played.metrics.items())))
    if played.flags:
        grid.add_row("flags", Text(visible(", ".join(played.flags)), style="yellow"))
    for name, fields in (("labels", played.labels), ("returned", played.returned)):
        if fields:
            grid.add_row(name, Text(one_line(stored_json(fields).decode(), _TITLE_CHARACTERS)))
    if played.columns:
        grid.add_row("columns", Text(one_line(stored_json(played.columns).decode(), _TITLE_CHARACTERS)))
    if not played.turns:
        grid.add_row("prompt", Text(visible(played.prompt)))
    return grid


def _outcome(played: RecordedTrajectory) -> Text:
    if played.reward is None:
        last = "" if played.is_final else "; the rollout was tried again"
        return Text(f"failed ({played.error_kind}): {visible(played.error or '')}{last}", style="red")
    verdict = Text("success", style="green") if played.is_success else Text("no success", style="red")
    per_turn = ", ".join(f"{reward:g}" for reward in played.rewards or ())
    several = f" = {per_turn}" if len(played.rewards or ()) > 1 else ""
    return Text.assemble(f"reward {played.reward:g}{several}, ", verdict)


def _took(played: RecordedTrajectory) -> str:
    sent = sum(turn.prompt_tokens or 0 for turn in played.turns)
    answered = sum(turn.response_tokens or 0 for turn in played.turns)
    return f"{played.counted_turns}, {sent:,} prompt and {answered:,} response tokens, {played.seconds:.1f} s"


def _turn_title(turn: RecordedTurn, turns: tuple[RecordedTurn, ...]) -> str:
    parts = [f"turn {turn.index}"]
    if branch := describe_branch(turn, turns):
        parts.append(branch)
    if turn.prompt_tokens is not None or turn.response_tokens is not None:
        parts.append(f"{turn.prompt_tokens or 0:,} + {turn.response_tokens or 0:,} tokens")
    parts.append(f"{turn.seconds:.2f} s")
    if turn.finish_reason not in (None, "stop", "tool_calls"):
        parts.append(f"finished by {visible(str(turn.finish_reason))}")
    return " · ".join(parts)


def describe_branch(turn: RecordedTurn, turns: tuple[RecordedTurn, ...]) -> str:
    """Describe which turn a turn continues; empty when it continues the previous one."""
    if turn.parent is None:
        return "a conversation of its own" if turn.index else ""
    by_index = {other.index: other for other in turns}
    whole, ancestor = 0, by_index.get(turn.parent)
    if ancestor is not None:
        whole = ancestor.shared_messages + len(ancestor.messages) + min(1, len(ancestor.replies))
    dropped = whole - turn.shared_messages
    parts = [f"continues turn {turn.parent}"] if turn.parent != turn.index - 1 else []
    if dropped > 0:
        parts.append(f"without its last {dropped} message{'' if dropped == 1 else 's'}")
    return " ".join(parts)


def _messages(turn: RecordedTurn) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(overflow="fold")
    for message in [*turn.messages, *turn.replies]:
        role = visible(str(message.get("role") or "unknown"))
        grid.add_row(Text(role, style=_ROLE_STYLES.get(role, "bold")), Text("\n").join(_content(message)))
    if turn.error is not None:
        grid.add_row(Text("error", style="bold red"), Text(f"HTTP {turn.status}: {visible(turn.error)}", style="red"))
    return grid


def _content(message: Message) -> Iterator[Text]:
    if thought := reasoning(message):
        yield Text(visible(thought), style="dim italic")
    text, calls = content_text(message), tool_calls(message)
    if text or not calls:
        yield Text(visible(text)) if text.strip() else Text("(empty)", style="dim")
    for name, arguments in calls:
        yield Text.assemble("→ ", (visible(name), "magenta"), f" {visible(arguments)}")
