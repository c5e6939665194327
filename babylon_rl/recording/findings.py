"""What `babylon-rl verify` finds, and how rows are counted for it; arithmetic only, no I/O."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from babylon_rl.database.catalogue import Catalogue, Server
from babylon_rl.recording.listing import TOLD_EVERY, ListedWindow, WindowTally, in_order
from babylon_rl.windows import window_of

if TYPE_CHECKING:
    from babylon_rl.recording.survey import SurveyedRow

# A group is trained on from this many runs with log-probabilities on.
LEAST_MEMBERS = 2


class Missing(msgspec.Struct, frozen=True):
    """Something that stands between a database and training, and how to get it."""

    what: str
    remedy: str


class OurTables(msgspec.Struct, frozen=True, kw_only=True):
    """Where our tables live, or would: `state` is there | absent | unreadable | unreachable."""

    where: str
    state: str


class RowsFound(msgspec.Struct, frozen=True, kw_only=True):
    """The recorded rows, counted. `with_text` and `with_logprobs` are of the scorable ones, and so are
    the shares. `newest`: how many rows were asked for, where not all were looked at.
    """

    recorded: int
    scorable: int
    trainable: int
    with_text: int
    with_logprobs: int
    by_producer: dict[str, int]
    rejected: dict[str, int]
    not_trainable: dict[str, int]
    newest: int | None
    text_share: float | None
    logprobs_share: float | None


class WindowsFound(msgspec.Struct, frozen=True, kw_only=True):
    """Windows with recorded rows. `ready`: over, with so many agents; `to_train_on`: ready, with runs whose text and
    log-probabilities are there. `most_agents`: of one window."""

    count: int
    first: str | None
    last: str | None
    min_agents: int
    ready: int
    to_train_on: int
    most_agents: int
    without_window: int
    listed: list[ListedWindow]


class MarketFound(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the market is known in the recorded hours; None where a table cannot be read."""

    prices: bool | None
    probabilities: bool | None
    resolved_questions: bool | None
    recorded_outcomes: bool | None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `babylon-rl verify` found; what could not be looked at is None."""

    ready: bool
    verdict: str
    missing: list[Missing]
    notes: list[str]
    url: str | None
    server: Server | None
    our_tables: OurTables | None
    catalogue: Catalogue | None
    rows: RowsFound | None
    windows: WindowsFound | None
    market: MarketFound | None


class RowTally:
    """Counts of all rows and of each window's, one row after the other."""

    def __init__(self) -> None:
        self.producers: Counter[str] = Counter()
        self.windows: dict[str | None, WindowTally] = {}
        self.members: Counter[str | None] = Counter()
        self.with_text = 0
        self.with_logprobs = 0

    def add(self, row: "SurveyedRow") -> None:
        """Count a row."""
        self.producers[row.producer] += 1
        window = self.windows.get(row.window_id)
        if window is None:
            window = self.windows[row.window_id] = WindowTally()
        window.add(row)
        if row.reason is None:
            self.with_text += row.has_text
            self.with_logprobs += row.has_logprobs
            self.members[row.window_id] += row.has_logprobs and row.not_trainable is None

    def rows(self, newest: int | None) -> RowsFound:
        """The counts of all rows."""
        rejected: Counter[str] = Counter()
        not_trainable: Counter[str] = Counter()
        for window in self.windows.values():
            rejected.update(window.rejected)
            not_trainable.update(window.not_trainable)
        recorded = self.producers.total()
        scorable = recorded - rejected.total()
        return RowsFound(
            recorded=recorded,
            scorable=scorable,
            trainable=scorable - not_trainable.total(),
            with_text=self.with_text,
            with_logprobs=self.with_logprobs,
            by_producer=dict(self.producers.most_common()),
            rejected=dict(rejected.most_common()),
            not_trainable=dict(not_trainable.most_common()),
            newest=newest,
            text_share=self.with_text / scorable if scorable else None,
            logprobs_share=self.with_logprobs / scorable if scorable else None,
        )

    def found(self, min_agents: int, now: datetime) -> WindowsFound:
        """The windows."""
        every = in_order(tally.listed(name, min_agents, window_of(now)) for name, tally in self.windows.items())
        ids = [one.window_id for one in every if one.window_id is not None]
        ready = [one.window_id for one in every if one.ready]
        return WindowsFound(
            count=len(ids),
            first=ids[0] if ids else None,
            last=ids[-1] if ids else None,
            min_agents=min_agents,
            ready=len(ready),
            to_train_on=sum(self.members[window_id] >= LEAST_MEMBERS for window_id in ready),
            most_agents=max((one.agents for one in every), default=0),
            without_window=self.windows[None].recorded if None in self.windows else 0,
            listed=every,
        )


def tally_rows(rows: Iterable["SurveyedRow"], progress: Callable[[int], None] = lambda _: None) -> RowTally:
    """Counts of the rows of a survey; `progress` is told the number so far."""
    tally = RowTally()
    for number, row in enumerate(rows, start=1):
        tally.add(row)
        if number % TOLD_EVERY == 0:
            progress(number)
    return tally
