"""Makes text from models, agents and datasets safe to display: control characters become visible symbols.

A terminal obeys escape sequences, and direction controls change the order in which a page shows text. Both could disguise a
trajectory.
"""

_CONTROL_PICTURES = 0x2400
_KEPT = "\t\n"
_UNSEEN = (
    (0x7F, 0x9F),  # DEL and the second set of control characters, one of which starts escape sequences
    (0x061C, 0x061C),  # direction marks and controls
    (0x200E, 0x200F),
    (0x202A, 0x202E),
    (0x2066, 0x2069),
    (0x200B, 0x200B),  # zero width; the joiners 200C and 200D stay because words and emoji need them
    (0x2028, 0x2029),  # line and paragraph separators
    (0x2060, 0x2064),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0xD800, 0xDFFF),  # lone surrogates, which cannot be encoded for a terminal
    (0xE0000, 0xE007F),  # tags: invisible text that only a model reads
)
_TABLE = {code: chr(_CONTROL_PICTURES + code) for code in range(0x20) if chr(code) not in _KEPT} | {
    code: f"⟨U+{code:04X}⟩" for first, last in _UNSEEN for code in range(first, last + 1)
}


def visible(text: str) -> str:
    """Replace every invisible control character of `text` by a visible symbol, and every line end by a newline."""
    return text.replace("\r\n", "\n").translate(_TABLE)


def one_line(text: str, most: int) -> str:
    """Sanitize `text`, put it on one line, and cut it to `most` characters."""
    line = " ".join(visible(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…"
