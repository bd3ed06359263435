"""Makes the console for all output, with rich's markup switched off.

By default rich reads `[x]` as a style and `:x:` as an emoji. Paths, errors and names from agents and datasets contain both: text
that looks like a style would vanish, and text that looks like the end of a style would raise.
"""

from functools import partial

from rich.console import Console

plain_console = partial(Console, markup=False, emoji=False)
"""Make a `rich.console.Console` with these options and without markup."""
