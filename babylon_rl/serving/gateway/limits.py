"""What a key may ask for, and how much the gateway takes at a time."""

import time
from collections import deque
from collections.abc import Callable

import msgspec

from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.gateway.refusals import too_many

MINUTE = 60.0


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the process. `remembered`: request ids kept at most, about 250 bytes each."""

    in_flight: int = 512
    body_bytes: int = 8_000_000
    upstream_timeout: float = 120.0
    request_memory_minutes: float = 60.0
    remembered: int = 400_000
    drain_seconds: int = 30


class Sliding:
    """How much was taken in the last minute: never more than `most` within any 60 seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.entries, self.total = clock, deque(), 0

    def wait(self, amount: int, most: int) -> float:
        """Seconds until the amount fits; 0 where it does now. More than the limit fits once nothing else is there."""
        now = self.clock()
        while self.entries and self.entries[0][0] <= now - MINUTE:
            self.total -= self.entries.popleft()[1]
        over, until = self.total + min(amount, most) - most, now
        for at, taken in self.entries:
            if over <= 0:
                break
            over, until = over - taken, at + MINUTE
        return until - now

    def take(self, amount: int) -> list:
        """Book the amount; the entry's second element may be corrected by `correct`."""
        entry = [self.clock(), amount]
        self.entries.append(entry)
        self.total += amount
        return entry

    def correct(self, entry: list, amount: int) -> None:
        """Replace an estimate by what was really taken."""
        if self.entries and self.entries[0][0] <= entry[0]:
            self.total += amount - entry[1]
            entry[1] = amount


class _Use:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.requests, self.tokens, self.open = Sliding(clock), Sliding(clock), 0


class Admission:
    """Counts what keys use. `enter` before a call, `leave` after it, whatever came of it."""

    def __init__(self, in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.open, self.clock = in_flight, 0, clock
        self.uses: dict[str, _Use] = {}

    def enter(self, key: Key, tokens: Callable[[], int]) -> "Admitted":
        """Take the call in; `tokens` estimates what it will use. Refused (429) beyond a limit; nothing is taken then.

        The code of the refusal names the limit: in_flight, key_in_flight, requests_per_minute, tokens_per_minute.
        """
        if self.open >= self.most:
            raise too_many(f"The gateway has {self.open} calls open, its limit.", "in_flight", 1.0)
        use = self.uses.get(key.key_id)
        if use is None:
            use = self.uses[key.key_id] = _Use(self.clock)
        if key.in_flight is not None and use.open >= key.in_flight:
            raise too_many(f"Key {key.key_id} has {use.open} calls open, its limit.", "key_in_flight", 1.0)
        if key.requests_per_minute is not None:
            wait = use.requests.wait(1, key.requests_per_minute)
            if wait > 0:
                said = f"Key {key.key_id} may ask {key.requests_per_minute} times a minute."
                raise too_many(said, "requests_per_minute", wait)
        booked = None
        if key.tokens_per_minute is not None:
            amount = min(tokens(), key.tokens_per_minute)
            wait = use.tokens.wait(amount, key.tokens_per_minute)
            if wait > 0:
                said = f"Key {key.key_id} may use {key.tokens_per_minute} tokens a minute."
                raise too_many(said, "tokens_per_minute", wait)
            booked = use.tokens.take(amount)
        if key.requests_per_minute is not None:
            use.requests.take(1)
        self.open += 1
        use.open += 1
        return Admitted(self, use, booked)

    def forget(self, key_ids: set[str]) -> None:
        """Drop the counts of keys that are valid no more and have nothing open."""
        for gone in [k for k, use in self.uses.items() if k not in key_ids and not use.open]:
            del self.uses[gone]


class Admitted:
    """A call that was let in."""

    def __init__(self, admission: Admission, use: _Use, booked: list | None) -> None:
        self.admission, self.use, self.booked = admission, use, booked

    def leave(self, tokens: int | None) -> None:
        """The call is over. `tokens`: what it used, None where the answer does not say; the estimate stays then."""
        self.admission.open -= 1
        self.use.open -= 1
        if self.booked is not None and tokens is not None:
            self.use.tokens.correct(self.booked, tokens)
