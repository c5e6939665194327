"""The leak guard over windows: reads what is told of each and of its rows, and searches; nothing is written."""

from collections.abc import Mapping, Sequence
from typing import Any

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.groups.guard import leaked, searched
from babylon_rl.groups.hindsight_facts import Market
from babylon_rl.groups.leaks import Leak
from babylon_rl.outcomes.history import Histories
from babylon_rl.recording.hindsight import hindsights, shown
from babylon_rl.recording.window import RecordedWindow

CHUNK = 168  # windows whose outcomes are in memory


class LeakGuard:
    """Searches windows of a range, in order; prices and outcomes are read for some neighbouring windows at a time."""

    def __init__(self, recordings: Recordings, window_ids: Sequence[str]) -> None:
        self._recordings = recordings
        self._window_ids = sorted(set(window_ids))
        self._histories: Histories | None = None
        self._outcomes: dict[str, list[dict[str, Any]]] = {}

    def leaks(self, recorded: RecordedWindow, scored: Sequence[Mapping[str, Any]]) -> dict[str, list[Leak]]:
        """What the window's runs that may be trained on leak, by trajectory; `scored`: its rows."""
        runs = searched(recorded)
        if not runs:
            return {}
        market = self._market(recorded.window_id)
        rows = hindsights(self._recordings, [run.trajectory_id for run in runs])
        by_run: dict[str, list[Mapping[str, Any]]] = {}
        for row in scored:
            by_run.setdefault(str(row["trajectory_id"]), []).append(row)
        suspects = leaked(runs, market, rows, by_run)
        if not suspects:
            return {}
        # Only where something was found is it worth reading what may explain it.
        beside = shown(self._recordings, list(suspects))
        return leaked([run for run in runs if run.trajectory_id in suspects], market, rows, by_run, beside)

    def _market(self, window_id: str) -> Market:
        if self._histories is None:
            self._histories = Histories(self._recordings.application, self._window_ids)
        if window_id not in self._outcomes:
            at = self._window_ids.index(window_id)
            wanted = self._window_ids[at : at + CHUNK]
            found = read_frame(self._recordings.ours, current_rows(market_outcomes, wanted))
            self._outcomes = {one: [] for one in wanted}
            for row in found.to_dict("records"):
                self._outcomes[row["window_id"]].append(row)
        outcomes, paths = self._outcomes[window_id], self._histories.paths(window_id)
        named = {row["instrument"] for row in outcomes if row["kind"] == "question"} | {path.name for path in paths}
        return Market(outcomes, paths, self._histories.questions(sorted(named)))
