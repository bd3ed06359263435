"""The console that everything is printed to: text is printed as it is.

By itself rich takes `[x]` for a style and `:x:` for an emoji. Here they are parts of paths, errors and names that agents and
datasets gave, where one that looks like a style would be lost, and one like the end of a style an exception.
"""

from functools import partial

from rich.console import Console

plain_console = partial(Console, markup=False, emoji=False)
"""`rich.console.Console` with its options, without markup."""
