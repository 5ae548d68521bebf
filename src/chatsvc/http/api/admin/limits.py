"""Bodies and answers for the limits that accounts and keys may have of their own. Data only."""

from __future__ import annotations

from typing import Annotated, TypedDict

from pydantic import Field

from chatsvc.http.wire.routing import like
from chatsvc.http.wire.schema import Body

Limit = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenLimit = Annotated[int, Field(ge=1, le=2**62)]


class LimitsBody(Body):
    """A limit that is left out or null returns to the role's limit or the default."""

    requests_per_minute: Limit | None = Field(None, examples=[30])
    tokens_per_day: TokenLimit | None = Field(None, examples=[100_000])
    max_concurrent: Limit | None = None


class OwnLimits(TypedDict):
    """An account's own limits; null where the role's limit or the default applies."""

    requests_per_minute: Annotated[int, like(30)] | None
    tokens_per_day: Annotated[int, like(100_000)] | None
    max_concurrent: Annotated[int, like(None)] | None
