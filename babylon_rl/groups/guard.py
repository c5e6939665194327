"""The leak guard of a window: every trained message of every run, searched for what became known after its decision.

A prompt is searched whole. An answer is the agent's own: a figure or a verdict in it is a forecast, so only words and
times that were written later are looked for there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from babylon_rl.groups.hindsight_facts import Market, Own, of_row, shown_figures
from babylon_rl.groups.leaks import Known, Leak, Secrets, search, written
from babylon_rl.groups.readings import Reading
from babylon_rl.recording.hindsight import Hindsight
from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

KEPT = 20_000_000  # characters of texts whose readings are kept while a window is searched

Shown = Mapping[str, Mapping[int, Sequence[Any]]]


def searched(recorded: RecordedWindow) -> list[UsableTrajectory]:
    """The runs that may become members of a group; of no other run is anything trained."""
    return [run for run in recorded.usable if run.not_trainable is None and run.provenance != "no_text"]


def leaked(
    runs: Iterable[UsableTrajectory],
    market: Market,
    rows: Mapping[str, Hindsight],
    scored: Mapping[str, Sequence[Mapping[str, Any]]],
    shown: Shown | None = None,
) -> dict[str, list[Leak]]:
    """Leaks in the runs' trained messages, by trajectory; a run without any is missing.

    `rows`, `scored`: what their rows hold, by trajectory. `shown`: what agents were shown beside their prompts, by
    trajectory and step. None: not known yet; then whatever it might explain is a leak too, so that only those runs
    need it.
    """
    readings = _Readings()
    found: dict[str, list[Leak]] = {}
    for run in runs:
        facts = list(of_row(rows.get(run.trajectory_id, Hindsight()), scored.get(run.trajectory_id, ())))
        beside = None if shown is None else shown.get(run.trajectory_id, {})
        if leaks := _of_run(run, market, Secrets(facts), readings, beside):
            found[run.trajectory_id] = leaks
    return found


class _Readings:
    """Texts that were read; agents of a window share some."""

    def __init__(self) -> None:
        self._kept: dict[str, Reading] = {}
        self._room = KEPT

    def of(self, text: str) -> Reading:
        if text not in self._kept:
            if self._room < len(text):
                self._kept.clear()
                self._room = KEPT
            self._kept[text] = Reading(text)
            self._room -= len(text)
        return self._kept[text]


def _of_run(
    run: UsableTrajectory,
    market: Market,
    of_row: Secrets,
    readings: _Readings,
    shown: Mapping[int, Sequence[Any]] | None,
) -> list[Leak]:
    own, found = Own(run), []
    for at, step in enumerate(run.steps):
        if not step.llm_calls:
            continue
        told, ahead, books = market.at(own.moment(at)), Secrets(own.later(at)), own.known(at)
        beside = () if shown is None else shown_figures(list(shown.get(step.step_number, ())))
        seen, all_seen = Known(told.seen, dollars=books), Known(told.seen, beside, dollars=books)
        searches = ((told.of_history, seen), (told.others, all_seen), (ahead, all_seen), (of_row, all_seen))
        for call in step.llm_calls:
            for text in dict.fromkeys((call.system_prompt, call.user_prompt)):
                for secrets, known in searches:
                    found += search(readings.of(text), secrets, known, lenient=shown is None)
            for secrets in (ahead, of_row):
                found += written(readings.of(call.response), secrets)
    return found
