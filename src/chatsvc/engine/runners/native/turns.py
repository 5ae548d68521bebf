"""A sequence in the native runner, and what it puts into a pass. Pure; knows neither the model nor its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatsvc.engine.runners.native.choosing import Chooser
from chatsvc.engine.runners.native.drafts import Drafter
from chatsvc.engine.runners.native.library import PAGE_TOKENS, Rows


@dataclass(slots=True, eq=False)
class Member:
    """A sequence: ``ids`` are prompt and completion, the first ``num_held`` of them are in the cache.

    It holds ``pages`` and may take ``num_promised`` more. ``names`` are those of its full pages; ``prompt_names`` of
    all that its prompt will fill but the last token's.
    """

    number: int
    ids: list[int]
    num_prompt: int
    max_tokens: int
    key: str
    chooser: Chooser
    drafter: Drafter
    prompt_names: list[bytes]
    pages: list[int] = field(default_factory=list)
    num_promised: int = 0
    names: list[bytes] = field(default_factory=list)
    num_overtaken: int = 0
    num_held: int = 0
    num_shared: int = 0

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is not all in the cache yet."""
        return len(self.ids) == self.num_prompt

    @property
    def before(self) -> bytes:
        """The name of its last full page, or what stands in front of the first."""
        return self.names[-1] if self.names else self.key.encode()

    @property
    def next_name(self) -> bytes | None:
        """The name of the page that its prompt fills next, if it fills one more."""
        return self.prompt_names[len(self.names)] if len(self.names) < len(self.prompt_names) else None

    @property
    def is_at_new_page(self) -> bool:
        """Whether its next token goes into a page that it does not have yet."""
        return self.num_held == len(self.pages) * PAGE_TOKENS

    @property
    def num_missing(self) -> int:
        """Prompt tokens that are not in the cache yet."""
        return self.num_prompt - self.num_held

    @property
    def num_left(self) -> int:
        """Tokens that may still be generated."""
        return self.num_prompt + self.max_tokens - len(self.ids)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a sequence puts into a pass: the next of its tokens, then guesses; behind how many of them one is chosen."""

    sequence: Member
    ids: Sequence[int]
    num_choices: int


def num_pages(num_tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


def share_out(chunk: int, prefilling: Sequence[Member]) -> list[tuple[Member, int]]:
    """How much of a chunk each prompt gets, the shortest first; half is for the oldest, so that none waits for ever.

    Prompts of one length so come one after the other, each whole, and not all at the end. A short prompt need not wait
    for a long one before it, and a long one goes on whatever comes.
    """
    oldest = prefilling[0]
    shares = {oldest: min(oldest.num_missing, max(chunk // 2, PAGE_TOKENS))}
    left = max(0, chunk - shares[oldest])
    for one in sorted(prefilling, key=lambda one: one.num_missing):
        taken = shares.get(one, 0)
        more = min(one.num_missing - taken, left)
        shares[one] = taken + more
        left -= more
    return list(shares.items())


def lay_out(turns: Sequence[Turn]) -> tuple[list[Rows], list[int], list[int]]:
    """The rows of a pass, those behind which a token is chosen, and how many of the largest logits each needs."""
    rows: list[Rows] = []
    chosen_rows: list[int] = []
    needed: list[int] = []
    end = 0
    for turn in turns:
        end += len(turn.ids)
        rows.append(Rows(turn.ids, turn.sequence.num_held, turn.sequence.pages))
        chosen_rows += range(end - turn.num_choices, end)
        needed += [turn.sequence.chooser.num_needed(num_before) for num_before in range(turn.num_choices)]
    return rows, chosen_rows, needed
