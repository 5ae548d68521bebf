"""A sequence in the native runner, and what it puts into a pass. Pure; knows neither the model nor its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatsvc.engine.protocol import NOT_FINITE, FinishReason
from chatsvc.engine.runners.base import StepOutput
from chatsvc.engine.runners.native.choosing import Chooser, Chosen
from chatsvc.engine.runners.native.drafts import Drafter
from chatsvc.engine.runners.native.library import PAGE_TOKENS, Rows
from chatsvc.engine.runners.openvino.prefixes import block_name, block_names


@dataclass(slots=True, eq=False)
class Member:
    """A sequence: ``ids`` are prompt and completion, the first ``num_held`` of them are in the cache.

    Its first ``num_public`` ids are nobody's words. ``names`` are those of its full pages, ``prompt_names`` of all that
    its prompt will fill but the last token's, and ``public_rest`` is that of the public ids in a page with others, if
    there is one. An id of
    ``eos`` ends it. ``own_root``, the key behind the last full public page, is what its own pages are named behind.
    ``num_shared`` tokens were found in the cache.
    """

    number: int
    ids: list[int]
    num_prompt: int
    max_tokens: int
    key: str
    chooser: Chooser
    drafter: Drafter
    num_public: int = 0
    eos: frozenset[int] = frozenset()
    prompt_names: list[bytes] = field(init=False)
    public_rest: bytes | None = field(init=False)
    own_root: bytes = field(init=False)
    pages: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    num_overtaken: int = 0
    num_held: int = 0
    num_shared: int = 0

    def __post_init__(self) -> None:
        """Work out the names."""
        ids = self.ids[: self.num_prompt - 1]  # the last token is always computed
        self.num_public = min(self.num_public, len(ids))
        public = block_names(ids[: self.num_public])
        before = public[-1] if public else b""
        rest = ids[len(public) * PAGE_TOKENS : self.num_public]
        self.public_rest = block_name(rest, before) if rest else None
        self.own_root = b"of " + self.key.encode() + before  # no key at all is not everybody's either
        self.prompt_names = public + block_names(ids[len(public) * PAGE_TOKENS :], self.own_root)

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is not all in the cache yet."""
        return len(self.ids) == self.num_prompt

    @property
    def is_at_new_page(self) -> bool:
        """Whether its next token goes into a page that it does not have yet."""
        return self.num_held == len(self.pages) * PAGE_TOKENS

    @property
    def next_public_rest(self) -> bytes | None:
        """The name of the public ids that end in the page it fills next, if they do."""
        return self.public_rest if len(self.names) == self.num_public // PAGE_TOKENS else None

    @property
    def next_name(self) -> bytes | None:
        """The name of the page that its prompt fills next, if it fills one more."""
        return self.prompt_names[len(self.names)] if len(self.names) < len(self.prompt_names) else None

    @property
    def num_promised(self) -> int:
        """Pages that it may yet need."""
        return num_pages(self.num_prompt + self.max_tokens) - len(self.pages)

    @property
    def num_missing(self) -> int:
        """Prompt tokens that are not in the cache yet."""
        return self.num_prompt - self.num_held

    @property
    def num_left(self) -> int:
        """Tokens that may still be generated."""
        return self.num_prompt + self.max_tokens - len(self.ids)

    @property
    def end(self) -> FinishReason | None:
        """How it ends with its last token, if it does."""
        if self.ids[-1] in self.eos:
            return "stop"
        return "length" if self.num_left == 0 else None

    def take_over(self, pages: Sequence[int]) -> None:
        """These are the next ones of its prompt, computed already."""
        self.pages += pages
        self.names = self.prompt_names[: len(self.pages)]
        self.num_held += len(pages) * PAGE_TOKENS
        self.num_shared += len(pages) * PAGE_TOKENS

    def name_next_page(self) -> bytes:
        """The name of the page that has just become full, from now on among its names."""
        start = len(self.names) * PAGE_TOKENS
        before = self.names[-1] if len(self.names) > self.num_public // PAGE_TOKENS else self.own_root
        name = self.next_name or block_name(self.ids[start : start + PAGE_TOKENS], before)
        self.names.append(name)
        return name


@dataclass(frozen=True, slots=True)
class Turn:
    """What a sequence puts into a pass: the next of its tokens, then guesses; behind how many of them one is chosen."""

    sequence: Member
    ids: Sequence[int]
    num_choices: int


def num_pages(num_tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


def fillers(prompts: Sequence[Member]) -> list[Member]:
    """Of those that would fill the same page next the shortest one: the others will share it.

    In their order; the first is the oldest, or fills for it.
    """
    by_page: dict[bytes | int, Member] = {}
    for one in prompts:
        page = one.next_name or one.number
        if page not in by_page or one.num_missing < by_page[page].num_missing:
            by_page[page] = one
    return list(by_page.values())


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


def end_of_turn(one: Member, num_tokens: int) -> int:
    """Where so many more tokens of a prompt end: with a page, if they can, so that others may share what follows."""
    end = min(one.num_held + num_tokens, one.num_prompt)
    end_of_page = end // PAGE_TOKENS * PAGE_TOKENS
    return end_of_page if one.num_held < end_of_page and end < one.num_prompt else end


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


def output_of(number: int, chosen: Sequence[Chosen], reason: FinishReason | None, num_cached_tokens: int) -> StepOutput:
    """What was chosen, without a token that ended the sequence."""
    shown = chosen[:-1] if reason == "stop" else chosen
    return StepOutput(
        number,
        [one.token for one in shown],
        len(chosen),
        reason,
        num_cached_tokens=num_cached_tokens,
        detail=NOT_FINITE if reason == "error" else "",
        logprobs=[one.logprobs for one in shown if one.logprobs is not None],
    )
