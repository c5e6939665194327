"""Decoding free text with one adapter, token by token: requests join between steps and leave when they have ended.

A prompt's keys and values are computed in pieces, so that a long one does not hold up those that are being answered,
and only beyond the longest beginning that a kept prompt shares with it.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from babylon_rl.serving.drawing import Draw, Drawn, draw_tokens
from babylon_rl.serving.kept_keys import LEAST_SHARED, KeyValues, Prefixes, alike_for
from babylon_rl.serving.requests import Sample, SampleRequest
from babylon_rl.serving.texts import TextSoFar
from babylon_rl.training.policy import Policy

if TYPE_CHECKING:
    import torch

PREFILL_TOKENS = 512  # of prompts that are computed between two steps


class Row:
    """A request that is being answered. `says`: whether its text is wanted while it is drawn."""

    def __init__(self, request: SampleRequest, policy: Policy, says: bool = False) -> None:
        self.request, self.prompt = request, np.asarray(request.prompt, dtype=np.int64)
        self.end = policy.tokenizer.eos_token_id
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.tops: list[dict[int, float]] = []
        self.added = ""  # text that the last token added
        self.finish_reason: str | None = None
        self._generator = np.random.default_rng(request.seed)
        self._tokenizer = policy.tokenizer
        self._text = TextSoFar(policy.tokenizer, request.stop) if says or request.stop else None

    @property
    def reserved(self) -> int:
        """Tokens that it may come to have in the cache."""
        return len(self.prompt) + self.request.max_tokens

    def next_draw(self) -> Draw:
        """How its next token is drawn."""
        r = self.request
        return Draw(r.temperature, r.top_p, self._generator.random(), r.top_logprobs)

    def take(self, drawn: Drawn) -> None:
        """Its next token."""
        self.tokens.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        self.tops.append(drawn.top)
        if drawn.token == self.end:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.finish_reason = "length"
        if self._text is not None:
            self.added = self._text.take(self.tokens, last=self.finish_reason is not None)
            if self._text.stopped:
                self.finish_reason = "stop"

    def sample(self) -> Sample:
        """The whole answer of an ended row."""
        cut = self._text is not None and bool(self.request.stop)
        return Sample(
            text=self._text.text if cut else self._tokenizer.decode(self.tokens, skip_special_tokens=True),
            prompt_token_ids=self.prompt.tolist(),
            token_ids=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason or "length",
            top_logprobs=self.tops,
        )


class Lane:
    """The rows that one adapter answers, None for the base model, with their cache."""

    def __init__(self, policy: Policy, adapter: str | None, prefixes: Prefixes) -> None:
        self.policy, self.adapter, self._prefixes = policy, adapter, prefixes
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []
        self._cache = KeyValues()
        self._joining: list[Row] = []
        self._joined_to = 0  # tokens of the joining rows' prompts that are computed
        self._joining_cache = KeyValues()

    @property
    def running(self) -> int:
        """Rows that hold cache."""
        return len(self.rows) + len(self._joining)

    def reserved(self, row: Row | None = None) -> int:
        """Tokens that the cache may come to hold, with another row where one is named."""
        every = [*self.rows, *self._joining, *([] if row is None else [row])]
        return len(every) * max((each.reserved for each in every), default=0)

    def remove(self, row: Row) -> None:
        """Take a row out, ended or not."""
        if row in self.rows:
            place = self.rows.index(row)
            self._cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()
        elif row in self._joining:
            row.finish_reason = "cancelled"  # it leaves once its prompt is computed
        elif row in self.waiting:
            self.waiting.remove(row)

    def prefill(self, most_rows: int, tokens: int = PREFILL_TOKENS) -> list[Row]:
        """Compute a piece of the waiting prompts; the rows that have their first token now are returned.

        At most `most_rows` join at a time. The policy has the lane's adapter selected.
        """
        import torch

        if not self._joining and not self._gather(most_rows, tokens):
            return []
        rows, start = self._joining, self._joined_to
        longest = max(len(row.prompt) for row in rows)
        end = min(longest, start + max(1, tokens // len(rows)))
        feed = torch.full((len(rows), end - start), rows[0].end, dtype=torch.long)
        for place, row in enumerate(rows):
            part = torch.from_numpy(row.prompt[start:end])
            feed[place, : len(part)] = part
        positions = torch.arange(start, end)
        mask = _causal(start, end, len(rows))
        self._joining_cache.write_from(start)
        hidden = self._forward(feed, positions.expand(len(rows), -1), mask, self._joining_cache)
        self._joined_to = end
        if end < longest:
            return []
        last = torch.tensor([len(row.prompt) - 1 - start for row in rows], device=hidden.device)
        states = hidden[torch.arange(len(rows), device=hidden.device), last]
        return self._join(states)

    def _gather(self, most_rows: int, tokens: int) -> bool:
        """Choose the rows that join next: the longest waiting, and those of about its length that begin as far."""
        if not self.waiting or most_rows < 1:
            return False
        head = self.waiting[0]
        prefix, start = self._prefixes.find(self.adapter, head.prompt)
        chosen, length = [head], len(head.prompt) - start
        others = [row for place, row in enumerate(self.waiting) if place]
        # What several have in common, and is not kept yet, is computed once: the first goes ahead of them.
        alone = self._prefixes.most_bytes > 0 and any(
            alike_for(r.prompt, head.prompt) - start >= 2 * LEAST_SHARED for r in others
        )
        for row in others if not alone else ():
            if len(chosen) >= most_rows or length * (len(chosen) + 1) > tokens:
                break
            longer = len(row.prompt) - start
            shares = start == 0 or (prefix is not None and alike_for(prefix.tokens, row.prompt[:-1]) >= start)
            if not shares or not length / 2 <= longer <= 1.5 * length + LEAST_SHARED:
                continue
            if max(longer, length) * (len(chosen) + 1) > tokens:
                continue
            if start == 0 and self._prefixes.find(self.adapter, row.prompt)[1]:
                continue
            chosen.append(row)
            length = max(length, longer)
        for row in chosen:
            self.waiting.remove(row)
        self._joining, self._joined_to, self._joining_cache = chosen, start, KeyValues()
        if prefix is not None and start:
            self._joining_cache.begin_with(prefix.layers, start, len(chosen))
        return True

    def _join(self, states: "torch.Tensor") -> list[Row]:
        """The joining rows, whose prompts are computed, take their first token and join."""
        rows, cache = self._joining, self._joining_cache
        cache.lengths = [len(row.prompt) for row in rows]
        for place, row in enumerate(rows):
            self._prefixes.keep(self.adapter, row.prompt, cache, place)
        self._draw(rows, states)
        self._joining, self._joining_cache = [], KeyValues()
        staying = list(rows)
        for place in reversed(range(len(rows))):
            if rows[place].finish_reason:
                # As the cache does, which fills a place that is taken out with its last row.
                cache.remove(place)
                staying[place] = staying[-1]
                staying.pop()
        if staying:
            self._cache.append(cache)
            self.rows += staying
        return [row for row in rows if row.finish_reason != "cancelled"]

    def step(self) -> list[Row]:
        """One more token for each row; those that have ended leave. The policy has the lane's adapter selected."""
        import torch

        rows = list(self.rows)
        if not rows:
            return []
        lengths = torch.tensor(self._cache.lengths)
        feed = torch.tensor([[row.tokens[-1]] for row in rows])
        mask = torch.arange(int(lengths.max()) + 1)[None] <= lengths[:, None]
        self._cache.write_next()
        hidden = self._forward(feed, lengths[:, None], mask[:, None, None], self._cache)
        self._cache.lengths = [length + 1 for length in self._cache.lengths]
        self._draw(rows, hidden[:, -1])
        for row in rows:
            if row.finish_reason:
                self.remove(row)
        return rows

    def _draw(self, rows: Sequence[Row], states: "torch.Tensor") -> None:
        open_rows = [place for place, row in enumerate(rows) if not row.finish_reason]
        if not open_rows:
            return
        logits = self.policy.model.get_output_embeddings()(states[open_rows] if len(open_rows) < len(rows) else states)
        draws = [rows[place].next_draw() for place in open_rows]
        for place, drawn in zip(open_rows, draw_tokens(logits, draws), strict=True):
            rows[place].take(drawn)

    def _forward(
        self, tokens: "torch.Tensor", positions: "torch.Tensor", seen: "torch.Tensor", cache: KeyValues
    ) -> "torch.Tensor":
        """Last hidden states, (rows, n, width). `seen`: (rows, 1, n, columns), whether a token attends to a column."""
        import torch

        causal, device = self.policy.causal, self.policy.device
        mask = torch.zeros(seen.shape, dtype=causal.dtype).masked_fill_(~seen, float("-inf")).to(device)
        return causal.model(
            input_ids=tokens.to(device),
            position_ids=positions.to(device),
            attention_mask=mask,
            past_key_values=cache,
            cache_position=torch.zeros(1, dtype=torch.long, device=device),
            use_cache=True,
            cached=True,
        ).last_hidden_state


def _causal(start: int, end: int, rows: int) -> "torch.Tensor":
    """Which columns each token from `start` to `end` attends to: those up to its own, (rows, 1, n, end)."""
    import torch

    return (torch.arange(end)[None] <= torch.arange(start, end)[:, None]).expand(rows, 1, -1, -1)


def decode(policy: Policy, adapter: str | None, requests: Sequence[SampleRequest], most_rows: int) -> list[Sample]:
    """The answers of all requests, whose prompts are known, to the end. The policy has the adapter selected."""
    lane = Lane(policy, adapter, Prefixes(0))
    rows = [Row(request, policy) for request in requests]
    lane.waiting.extend(rows)
    while any(row.finish_reason is None for row in rows):
        lane.prefill(most_rows - lane.running)
        lane.step()
    return [row.sample() for row in rows]
