"""Sequences of the native runner, and how a batch is made of them. Pure; knows neither the model nor its cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from chatsvc.engine.protocol import NOT_FINITE, FinishReason
from chatsvc.engine.runners.base import StepOutput
from chatsvc.engine.runners.grammars import Constraint
from chatsvc.engine.runners.masks import Mask
from chatsvc.engine.runners.native.choosing import Chooser, Chosen
from chatsvc.engine.runners.native.drafts import Drafter
from chatsvc.engine.runners.native.library import PAGE_TOKENS, Rows
from chatsvc.engine.runners.openvino.prefixes import block_name, block_names


@dataclass(slots=True, eq=False)
class Member:
    """A sequence, waiting or running.

    Attributes:
        ids: prompt, then completion.
        num_held: how many of ``ids``, from the first on, are in the cache.
        num_shared: how many of them were found there.
        num_public: how many, from the first on, are the public prompt prefix.
        eos: ids that end it.
        constraint: what may be chosen; None: any token.
        pages: its cache pages, in order.
        names: of its full pages (see :class:`chatsvc.engine.runners.native.pages.Pages`).
        prompt_names: of all pages that its prompt fills; the last token is not counted, because it is always computed.
        public_rest: the name of the public ids in a page that holds others, too; None: there is no such page.
        own_root: what the names of its own pages hash first: its sharing key and the last full public page.
        num_overtaken: how many sequences have joined before it that came later.
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
    constraint: Constraint | None = None
    prompt_names: list[bytes] = field(init=False)
    public_rest: bytes | None = field(init=False)
    own_root: bytes = field(init=False)
    pages: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    num_overtaken: int = 0
    num_held: int = 0
    num_shared: int = 0

    def __post_init__(self) -> None:
        """Compute the names."""
        ids = self.ids[: self.num_prompt - 1]  # the last token is always computed
        self.num_public = min(self.num_public, len(ids))
        public = block_names(ids[: self.num_public])
        before = public[-1] if public else b""
        rest = ids[len(public) * PAGE_TOKENS : self.num_public]
        self.public_rest = block_name(rest, before) if rest else None
        self.own_root = b"of " + self.key.encode() + before  # an empty key does not share with everybody
        self.prompt_names = public + block_names(ids[len(public) * PAGE_TOKENS :], self.own_root)

    @property
    def is_prefilling(self) -> bool:
        """Whether some of its prompt is not in the cache yet."""
        return len(self.ids) == self.num_prompt

    @property
    def is_at_new_page(self) -> bool:
        """Whether its next token needs a new page."""
        return self.num_held == len(self.pages) * PAGE_TOKENS

    @property
    def next_public_rest(self) -> bytes | None:
        """The name of the public ids in the page it fills next, if they end there."""
        return self.public_rest if len(self.names) == self.num_public // PAGE_TOKENS else None

    @property
    def next_name(self) -> bytes | None:
        """The name of the page that its prompt fills next, if it fills one more."""
        return self.prompt_names[len(self.names)] if len(self.names) < len(self.prompt_names) else None

    @property
    def num_promised(self) -> int:
        """The most pages that it may still need."""
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
        """Why its last token ends it, if it does."""
        if self.ids[-1] in self.eos:
            return "stop"
        return "length" if self.num_left == 0 else None

    def propose(self, max_tokens: int) -> list[int]:
        """A draft of its next tokens: what its constraint forces, else what the drafter finds and may come."""
        if self.constraint is None:
            return self.drafter.propose(max_tokens)
        draft = self.constraint.forced()[: max(0, max_tokens)] or self.drafter.propose(max_tokens)
        return self.constraint.passable([*itertools.takewhile(lambda token: token not in self.eos, draft)])

    def append(self, token: int) -> None:
        """The token comes next."""
        self.ids.append(token)
        if self.constraint is not None and self.end is None:
            self.constraint.advance(token)

    def take_over(self, pages: Sequence[int]) -> None:
        """Continue its prompt with pages that are computed already."""
        self.pages += pages
        self.names = self.prompt_names[: len(self.pages)]
        self.num_held += len(pages) * PAGE_TOKENS
        self.num_shared += len(pages) * PAGE_TOKENS

    def name_next_page(self) -> bytes:
        """Name the page that has just become full."""
        start = len(self.names) * PAGE_TOKENS
        before = self.names[-1] if len(self.names) > self.num_public // PAGE_TOKENS else self.own_root
        name = self.next_name or block_name(self.ids[start : start + PAGE_TOKENS], before)
        self.names.append(name)
        return name


@dataclass(frozen=True, slots=True)
class BatchPart:
    """A sequence's rows in a batch: its next ids, then drafts; the last ``num_choices`` each choose a token."""

    sequence: Member
    ids: Sequence[int]
    num_choices: int


def num_pages(num_tokens: int) -> int:
    """How many pages so many tokens need."""
    return -(-num_tokens // PAGE_TOKENS)


def fillers(prompts: Sequence[Member]) -> list[Member]:
    """Of the prompts that would fill the same page next, the one with fewest tokens left: the others will share it.

    In the order of ``prompts``; the first is the oldest, or fills a page that the oldest waits for.
    """
    by_page: dict[bytes | int, Member] = {}
    for one in prompts:
        page = one.next_name or one.number
        if page not in by_page or one.num_missing < by_page[page].num_missing:
            by_page[page] = one
    return list(by_page.values())


def share_out(chunk: int, prefilling: Sequence[Member]) -> list[tuple[Member, int]]:
    """How many tokens of a chunk each prompt gets: the shortest first, but half for the oldest, so that none starves.

    So prompts of equal length finish one after the other instead of all at the end, and a short prompt does not wait
    for a long one.
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


def end_of_chunk(one: Member, num_tokens: int) -> int:
    """The end of a prompt's next chunk: cut at a page's end where possible, so that others can share the page."""
    end = min(one.num_held + num_tokens, one.num_prompt)
    end_of_page = end // PAGE_TOKENS * PAGE_TOKENS
    return end_of_page if one.num_held < end_of_page and end < one.num_prompt else end


def lay_out(parts: Sequence[BatchPart]) -> tuple[list[Rows], list[int], list[int], list[Mask | None]]:
    """The batch's rows, those after which a token is chosen, and for each choice how many logits it needs, its mask."""
    rows: list[Rows] = []
    chosen_rows: list[int] = []
    needed: list[int] = []
    masks: list[Mask | None] = []
    end = 0
    for part in parts:
        end += len(part.ids)
        rows.append(Rows(part.ids, part.sequence.num_held, part.sequence.pages))
        chosen_rows += range(end - part.num_choices, end)
        needed += [part.sequence.chooser.num_needed(num_before) for num_before in range(part.num_choices)]
        constraint = part.sequence.constraint
        guesses = part.ids[len(part.ids) - part.num_choices + 1 :]
        if constraint is None:
            masks += [None] * part.num_choices
        elif part.num_choices:
            masks += constraint.masks(guesses)
    return rows, chosen_rows, needed, masks


def output_of(
    sequence: Member, chosen: Sequence[Chosen], reason: FinishReason | None, num_cached_tokens: int
) -> StepOutput:
    """A step's output; a token that ended the sequence is left out."""
    shown = chosen[:-1] if reason == "stop" else chosen
    refusal = sequence.constraint.failure if reason == "error" and sequence.constraint is not None else ""
    return StepOutput(
        sequence.number,
        [one.token for one in shown],
        len(chosen),
        reason,
        num_cached_tokens=num_cached_tokens,
        detail=NOT_FINITE if reason == "error" and not refusal else "",
        refusal=refusal,
        logprobs=[one.logprobs for one in shown if one.logprobs is not None],
    )
