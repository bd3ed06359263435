"""CloudWatch's filter patterns for text without structure: terms that a line has, has not, or has one of. Pure functions.

Source: "Filter pattern syntax" in the CloudWatch Logs user guide. Patterns for JSON (`{ $.a = 1 }`), for columns (`[a, b]`) and
regular expressions (`%a%`) are refused: a log of lines has no use for the first two.
"""

import re
from collections.abc import Callable

from heldout.errors import shown
from heldout.service.wire.faults import ServiceError

_TERM = re.compile(r'\s*(?P<sign>[?-]?)(?:"(?P<phrase>(?:[^"\\]|\\.)*)"|(?P<word>\w+))(?=\s|$)')


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a line has what `pattern` asks for, upper and lower case told apart; every line has what an empty one asks for.

        ERROR timeout       both terms
        "not logged"        these words as they are
        ERROR -retried      the first and not the second
        ?ERROR ?WARN        one of them

    Raises ServiceError (InvalidParameterException) for a pattern of another kind.
    """
    signed = list(_terms(pattern.strip()))
    wanted, unwanted, any_of = ([term for sign, term in signed if sign == which] for which in ("", "-", "?"))
    if any_of and (wanted or unwanted):
        raise _refused(pattern, "terms with ? cannot stand beside others")

    def matches(text: str) -> bool:
        return (
            all(term in text for term in wanted)
            and not any(term in text for term in unwanted)
            and (not any_of or any(term in text for term in any_of))
        )

    return matches


def _terms(pattern: str) -> list[tuple[str, str]]:
    """Signs and terms."""
    found, place = list[tuple[str, str]](), 0
    while place < len(pattern):
        term = _TERM.match(pattern, place)
        if term is None:
            raise _refused(pattern, 'terms are words, or in double quotes: ERROR "not found" -retried')
        text = term["word"] if term["phrase"] is None else re.sub(r"\\(.)", r"\1", term["phrase"])
        found.append((term["sign"], text))
        place = term.end()
    return found


def _refused(pattern: str, expected: str) -> ServiceError:
    return ServiceError("InvalidParameterException", f"filterPattern {shown(pattern)} is not served here; {expected}")
