"""What jobs and executions have in common: a process of their own, which the supervisor keeps going until it is asked to stop."""

from heldout.service.context import Context
from heldout.service.store import Record
from heldout.service.supervisor import Work


class Undertaking(Record):
    """Something that a process of its own works on."""

    arn: str
    is_made: bool = False
    """Whether its folder was there once: a server may end between telling of it and making that."""
    is_stopping: bool = False


def take(context: Context, record: Undertaking, work: Work) -> None:
    """Has the supervisor run it to its end, unless it was asked to stop by the time that this begins."""

    def is_stopping() -> bool:
        now = context.store.find(type(record), record.key)
        return now is not None and now.is_stopping

    context.supervisor.take(record.arn, work, is_stopping)
