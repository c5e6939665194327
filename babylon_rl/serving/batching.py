"""Continuous batching: one thread owns the model and answers all calls, which join and leave between its steps.

Each cycle computes, for each adapter with work, a piece of its waiting prompts, one step of its rows, and one packed
pass of its calls with choices; so no adapter waits for another's answers to end.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.adapters import Adapters, Weights
from babylon_rl.serving.decoding import Lane, Row
from babylon_rl.serving.kept_keys import Prefixes
from babylon_rl.serving.metrics import EndpointMetrics
from babylon_rl.serving.refusals import Busy, Failed, NotReady
from babylon_rl.serving.requests import Sample, SampleRequest
from babylon_rl.serving.sampler import sample_choices
from babylon_rl.training.policy import Policy

log = logging.getLogger(__name__)
GATHER_SECONDS = 0.002  # without another call, after which an idle endpoint begins
MOST_GATHER_SECONDS = 0.02
PASS_TOKENS = 8192  # of prompts in one packed pass of calls with choices, and less while texts are decoded
PASS_TOKENS_BETWEEN_STEPS = 2048


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an endpoint takes on. `waiting`: calls that may wait; `rows`: that are decoded at a time.

    `cache_bytes`: of keys and values that rows may come to hold; `prefix_bytes`: of kept prompts.
    """

    waiting: int = 256
    rows: int = 64
    cache_bytes: int = 2 * 1024**3
    prefix_bytes: int = 128 * 1024**2


class Call:
    """A call that is being answered. `tell` is called in the engine's thread: with a Row for each token of free text
    where `says`, then once with the Sample, or with the error that ended it.
    """

    def __init__(self, request: SampleRequest, tell: Callable[["Progress"], None], says: bool = False) -> None:
        self.request, self.tell, self.says = request, tell, says
        self.weights: Weights | None = None
        self.row: Row | None = None
        self.arrived = time.perf_counter()
        self.told_first = self.cancelled = self.ended = False


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is told: a drawn token and the text that it adds, and at the end the whole answer or an error."""

    text: str = ""
    token: int | None = None
    logprob: float = 0.0
    top: dict[int, float] = {}
    sample: Sample | None = None
    error: ServingError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.sample is not None or self.error is not None


class Engine:
    """The thread that owns the model. `submit`, `cancel` and `between_steps` may be called from any thread.

    `died`: called in it where it ends though nobody stopped it; nothing answers from then on.
    """

    def __init__(
        self,
        policy: Policy,
        adapters: Adapters,
        limits: Limits,
        metrics: EndpointMetrics,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self.adapters, self.limits, self.metrics = policy, adapters, limits, metrics
        self._died = died
        self._condition = threading.Condition()
        self._arrived: deque[Call] = deque()
        self._changes: deque[Callable[[], None]] = deque()
        self._cancelled: deque[Call] = deque()
        self._open: set[Call] = set()
        self._choices: dict[Weights, deque[Call]] = {}
        self._lanes: dict[Weights, Lane] = {}
        self._calls: dict[Row, Call] = {}
        self._prefixes = Prefixes(limits.prefix_bytes)
        self._stopping = False
        self._turn = 0
        self._seconds_a_call = 0.1
        self._thread: threading.Thread | None = None
        self._token_bytes = _bytes_a_token(policy)

    # --- from any thread ---

    @property
    def alive(self) -> bool:
        """Whether calls are answered."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._run, name="babylon-endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is being computed; calls that are open then fail."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, call: Call) -> None:
        """Queue a call; its weights are those that its model's name stands for now. Busy, NotReady or UnknownModel."""
        with self._condition:
            if not self.alive:
                raise NotReady("The endpoint is not answering calls; it is starting or ending.")
            waiting = sum(not each.told_first for each in self._open)
            if waiting >= self.limits.waiting:
                raise Busy(f"{waiting} calls are waiting, as many as may.", waiting * self._seconds_a_call)
            call.weights = self.adapters.hold(call.request.adapter)
            self._open.add(call)
            self._arrived.append(call)
            self._condition.notify()

    def cancel(self, call: Call) -> None:
        """Nobody waits for the call's answer any more."""
        with self._condition:
            if call in self._open:
                call.cancelled = True
                self._cancelled.append(call)
                self._condition.notify()

    def between_steps(self, change: Callable[[], None]) -> None:
        """Have something done in the engine's thread when no step is being computed; it must not raise."""
        with self._condition:
            if not self.alive:
                raise NotReady("The endpoint is not answering calls; it is starting or ending.")
            self._changes.append(change)
            self._condition.notify()

    # --- the thread ---

    def _run(self) -> None:
        import torch

        try:
            with torch.no_grad():
                while self._take():
                    self._cycle()
        finally:
            stopped, self._stopping = self._stopping, True
            with self._condition:
                left = list(self._open)
                changes = list(self._changes)
            for call in left:
                self._end(call, Progress(error=NotReady("The endpoint has ended.")))
            for change in changes:
                change()
            if not stopped:
                self._died()

    def _take(self) -> bool:
        """Wait for work and take it in; False when the engine is to end."""
        with self._condition:
            idle = not self._lanes and not self._choices
            while idle and not (self._arrived or self._changes or self._cancelled or self._stopping):
                self._condition.wait()
            if idle and self._arrived:
                self._gather()
            if self._stopping:
                return False
            changes, self._changes = self._changes, deque()
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for call in arrived:
            self._place(call)
        for call in cancelled:
            self._withdraw(call)
        for change in changes:
            change()
        return True

    def _gather(self) -> None:
        """Calls that are made together arrive one after the other: wait until none follows."""
        until, seen = time.perf_counter() + MOST_GATHER_SECONDS, 0
        while seen != len(self._arrived) and time.perf_counter() < until and not self._stopping:
            seen = len(self._arrived)
            self._condition.wait(GATHER_SECONDS)

    def _place(self, call: Call) -> None:
        assert call.weights is not None
        if call.request.choices is not None:
            self._choices.setdefault(call.weights, deque()).append(call)
            return
        lane = self._lanes.get(call.weights)
        if lane is None:
            lane = self._lanes[call.weights] = Lane(self.policy, call.weights.slot, self._prefixes)
        call.row = Row(call.request, self.policy, call.says)
        self._calls[call.row] = call
        lane.waiting.append(call.row)

    def _withdraw(self, call: Call) -> None:
        if call.ended or call.weights is None:
            return
        if call.row is not None:
            self._lanes[call.weights].remove(call.row)
        elif call in self._choices.get(call.weights, ()):
            self._choices[call.weights].remove(call)
        self._end(call, Progress(error=NotReady("The call was cancelled.")), "cancelled")

    def _cycle(self) -> None:
        """One step of everything that has work, the adapters taking turns in being first."""
        self._turn += 1
        for weights in _in_turn(list(self._choices), self._turn):
            self._pass(weights)
        for weights in _in_turn(list(self._lanes), self._turn):
            lane = self._lanes[weights]
            try:
                with self.policy.select(weights.slot):
                    self._tell(lane.prefill(self._room(lane)))
                    self._step(lane)
            except Exception as error:  # one adapter's failure is its callers' error; the endpoint stays up
                self._fail(weights, error)
            if not lane.running and not lane.waiting:
                self._lanes.pop(weights, None)
        for slot in self.adapters.free():
            self._prefixes.forget(slot)
        self._count()

    def _room(self, lane: Lane) -> int:
        """How many rows may join a lane now: as rows and bytes allow, those with fewest rows first."""
        lanes = self._lanes.values()
        running = sum(each.running for each in lanes)
        free = self.limits.rows - running
        others = [each for each in lanes if each is not lane and each.waiting and each.running < lane.running]
        free -= len(others)  # a place for each that has less
        if free < 1 or not lane.waiting:
            return 0
        held = sum(each.reserved() for each in lanes if each is not lane)
        tokens = self.limits.cache_bytes // self._token_bytes - held
        longest = max(row.reserved for row in [*lane.rows, *list(lane.waiting)[:free]])
        fits = tokens // longest - lane.running
        return min(free, max(fits, 0 if running else 1))

    def _step(self, lane: Lane) -> None:
        if not lane.rows:
            return
        begun = time.perf_counter()
        self.metrics.rows.observe(len(lane.rows))
        rows = lane.step()
        self.metrics.step.observe(time.perf_counter() - begun)
        self._tell(rows)

    def _pass(self, weights: Weights) -> None:
        """Answer an adapter's calls with choices, packed together."""
        queue, batch, tokens = self._choices[weights], [], 0
        most = PASS_TOKENS_BETWEEN_STEPS if self._lanes else PASS_TOKENS
        while queue and len(batch) < self.limits.rows:
            tokens += len(queue[0].request.prompt or ())
            if batch and tokens > most:
                break
            batch.append(queue.popleft())
        if not queue:
            del self._choices[weights]
        self.metrics.choices.observe(len(batch))
        try:
            with self.policy.select(weights.slot):
                samples = sample_choices(self.policy, [call.request for call in batch])
        except Exception as error:
            told = Progress(error=_failed(error))
            for call in batch:
                self._end(call, told)
            return
        for call, drawn in zip(batch, samples, strict=True):
            self._first(call)
            self._end(call, Progress(text=drawn.text, sample=drawn))

    def _tell(self, rows: list[Row]) -> None:
        """Tell the calls of rows that have another token."""
        for row in rows:
            call = self._calls[row]
            self._first(call)
            if call.says:
                told = Progress(text=row.added, token=row.tokens[-1], logprob=row.logprobs[-1], top=row.tops[-1])
                call.tell(told)
            if row.finish_reason:
                self._end(call, Progress(sample=row.sample()))

    def _first(self, call: Call) -> None:
        if not call.told_first:
            call.told_first = True
            self.metrics.first.observe(time.perf_counter() - call.arrived)

    def _end(self, call: Call, told: Progress, end: str | None = None) -> None:
        with self._condition:
            if call.ended:
                return
            call.ended = True
            self._open.discard(call)
        if call.weights is not None:
            self.adapters.let_go(call.weights)
        if call.row is not None:
            self._calls.pop(call.row, None)
        if told.sample is not None:
            self.metrics.tokens_in.inc(len(told.sample.prompt_token_ids))
            self.metrics.tokens_out.inc(len(told.sample.token_ids))
            taken = time.perf_counter() - call.arrived
            self._seconds_a_call += 0.1 * (taken / max(1, len(self._open)) - self._seconds_a_call)
        self.metrics.calls.labels(end or ("answered" if told.sample is not None else "failed")).inc()
        call.tell(told)

    def _fail(self, weights: Weights, error: Exception) -> None:
        """The calls of an adapter's lane fail, and its cache is dropped."""
        told = Progress(error=_failed(error))
        for call in list(self._calls.values()):
            if call.weights is weights:
                self._end(call, told)
        self._prefixes.forget(weights.slot)
        self._lanes.pop(weights, None)

    def _count(self) -> None:
        running = sum(lane.running for lane in self._lanes.values())
        self.metrics.running.set(running)
        self.metrics.waiting.set(len(self._open) - running)
        self.metrics.adapters.set(len(self.adapters.names()))


def _in_turn(every: list[Weights], turn: int) -> list[Weights]:
    """All of them, another one first each time."""
    at = turn % len(every) if every else 0
    return [*every[at:], *every[:at]]


def _failed(error: Exception) -> Failed:
    log.error("The model failed", exc_info=error)
    return Failed(f"The model failed: {type(error).__name__}: {error}")


def _bytes_a_token(policy: Policy) -> int:
    """Bytes of keys and values that a token holds in the cache."""
    config: Any = policy.causal.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * policy.causal.dtype.itemsize
