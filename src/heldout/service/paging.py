"""Lists that come in pages: sorted, and gone on with by an opaque token.

A token says after which item to go on, not how many were seen: what is added or deleted between two pages neither repeats nor
hides another item.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from heldout.service.operations import Params, Reply
from heldout.service.wire.faults import invalid

DEFAULT_SIZE = 50
_NO_TOKEN = "NextToken is not one that this operation gave out; begin again without one"
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
    """The page of `items` that the request asks for, as the reply's `member`, and the token of the next where there is one.

    sort_keys: the items' member to sort by for each value of SortBy, the default first; the last tells any two items apart and
    never changes, so that an item whose status has changed between two pages is not taken for another.
    is_descending: unless SortOrder says otherwise. size: of a page, unless MaxResults says otherwise. view: what the reply has of
    an item, made of those of the page alone. Raises ServiceError (ValidationException) for a token that was not given out for
    this list.
    """
    sort_by = sort_keys[params.get("SortBy", next(iter(sort_keys)))]
    order = [sort_by, list(sort_keys.values())[-1]]
    is_reversed = params.get("SortOrder", "Descending" if is_descending else "Ascending") == "Descending"
    keyed = sorted(((_key(item, order), item) for item in items), key=lambda pair: pair[0], reverse=is_reversed)
    is_lower = member[0].islower()
    token = params.get("nextToken" if is_lower else "NextToken")
    if token:
        after = _opened(token, member, params)
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
    """The items whose time `member` lies after and before what the request's parameters of these names say, where it says so."""
    start, end = params.get(after), params.get(before)
    return [item for item in items if (start is None or item[member] > start) and (end is None or item[member] < end)]


def _key(item: Reply, order: Sequence[str]) -> list[Any]:
    return [value.timestamp() if isinstance(value := item[name], datetime) else value for name in order]


def _digest(member: str, params: Params) -> str:
    asked = {name: value for name, value in params.items() if name not in _PAGE_PARAMS}
    return hashlib.sha256(json.dumps([member, asked], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _token(last: list[Any], member: str, params: Params) -> str:
    return base64.urlsafe_b64encode(json.dumps([_digest(member, params), last]).encode()).decode()


def _opened(token: str, member: str, params: Params) -> list[Any]:
    try:
        digest, last = json.loads(base64.urlsafe_b64decode(token.encode()))
        if not isinstance(last, list):
            raise TypeError
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise invalid(_NO_TOKEN) from None
    if digest != _digest(member, params):
        raise invalid("NextToken was given out for other parameters; begin again without one")
    return last
