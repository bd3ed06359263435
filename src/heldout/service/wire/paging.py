"""Sorted lists in pages, with an opaque token for the next page.

A token holds the sort key of the last item, not a count: an item that is added or deleted between two pages neither repeats nor
hides another.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from heldout.service.wire.faults import invalid
from heldout.service.wire.operations import Params, Reply

DEFAULT_SIZE = 50
_NO_TOKEN = "NextToken was not returned by this operation; start again without one"
_PAGE_PARAMS = ("NextToken", "MaxResults", "nextToken", "maxResults")


def paged(
    member: str,
    items: Iterable[Reply],
    params: Params,
    sort_keys: Mapping[str, str],
    *,
    is_descending: bool = False,
    size: int = DEFAULT_SIZE,
    view: Callable[[Reply], Reply] | None = None,
) -> Reply:
    """A reply with the requested page of `items` as `member` and, if more items follow, the token of the next page.

    sort_keys: the items' member for each value of SortBy, default first. The last one must be unique and constant, so that an
    item keeps its identity when its status changes between two pages.
    is_descending: the default of SortOrder. size: the default of MaxResults. view: converts an item for the reply; called for
    items of the page only.
    Raises ServiceError (ValidationException) for a token of another list.
    """
    sort_by = sort_keys[params.get("SortBy", next(iter(sort_keys)))]
    order = [sort_by, list(sort_keys.values())[-1]]
    is_reversed = params.get("SortOrder", "Descending" if is_descending else "Ascending") == "Descending"
    keyed = sorted(((_key(item, order), item) for item in items), key=lambda pair: pair[0], reverse=is_reversed)
    is_lower = member[0].islower()
    token = params.get("nextToken" if is_lower else "NextToken")
    if token:
        after = _decoded(token, member, params)
        try:
            keyed = [(key, item) for key, item in keyed if (key < after if is_reversed else key > after)]
        except TypeError:
            raise invalid(_NO_TOKEN) from None
    count = params.get("maxResults" if is_lower else "MaxResults", size)
    page = [item if view is None else view(item) for _, item in keyed[:count]]
    if len(keyed) <= count:
        return {member: page}
    return {member: page, "nextToken" if is_lower else "NextToken": _token(keyed[count - 1][0], member, params)}


def between(items: Iterable[Reply], params: Params, member: str, after: str, before: str) -> list[Reply]:
    """Items whose time `member` is after and before the request's parameters with the names `after` and `before`, if given."""
    start, end = params.get(after), params.get(before)
    return [item for item in items if (start is None or item[member] > start) and (end is None or item[member] < end)]


def _key(item: Reply, order: Sequence[str]) -> list[Any]:
    return [value.timestamp() if isinstance(value := item[name], datetime) else value for name in order]


def _digest(member: str, params: Params) -> str:
    filters = {name: value for name, value in params.items() if name not in _PAGE_PARAMS}
    return hashlib.sha256(json.dumps([member, filters], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _token(last: list[Any], member: str, params: Params) -> str:
    return base64.urlsafe_b64encode(json.dumps([_digest(member, params), last]).encode()).decode()


def _decoded(token: str, member: str, params: Params) -> list[Any]:
    try:
        digest, last = json.loads(base64.urlsafe_b64decode(token.encode()))
        if not isinstance(last, list):
            raise TypeError
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise invalid(_NO_TOKEN) from None
    if digest != _digest(member, params):
        raise invalid("NextToken was returned for other parameters; start again without one")
    return last
