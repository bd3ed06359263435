"""The dialects that the Job Runtime serves. A new one is one module and one line here."""

from heldout.runtime.dialects.base import Dialect
from heldout.runtime.dialects.chat_completions import ChatCompletions
from heldout.runtime.dialects.completions import Completions
from heldout.runtime.dialects.sample import Sample

DIALECTS: tuple[Dialect, ...] = (
    ChatCompletions(),
    Completions(),
    Sample(),
)
