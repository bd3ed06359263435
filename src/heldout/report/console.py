"""Makes the console for all output, with rich's markup switched off.

By default rich reads `[x]` as a style and `:x:` as an emoji. Paths, errors and names from agents and datasets contain both: text
that looks like a style would vanish, and text that looks like the end of a style would raise.
"""

from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

TEXT_WIDTH = 110
"""Width, in characters, of what is printed to something other than a terminal."""

plain_console = partial(Console, markup=False, emoji=False)
"""`rich.console.Console` with its options, without markup."""


def numbers_table(**options: Any) -> Table:
    """Returns a table without lines between its columns, so that its numbers fit into 80 characters.

    Its columns of numbers must not wrap; a column of names must, and gets what is left. options: of `rich.table.Table`.
    """
    return Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, **options)


def text_of(shown: RenderableType) -> str:
    """Returns a table or text as plain text of `TEXT_WIDTH` characters a line."""
    console = plain_console(width=TEXT_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")
