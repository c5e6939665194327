"""The fence around what agents wrote in a judge's prompt, so that none of it can pass for the prompt's own words.

Each trajectory stands between two marks that carry a nonce, drawn anew for every prompt and found in none of the texts:
whatever a text holds, the prompt can be taken apart into exactly the trajectories that went in.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from babylon_rl.errors import ScoringError

NONCE_BYTES = 12  # 96 bits: no agent guesses one in a prompt that it never sees


class Entry(NamedTuple):
    """A trajectory as the judge is shown it. `trajectory_id` may hold any letters."""

    trajectory_id: str
    text: str


def new_nonce(entries: Iterable[Entry]) -> str:
    """A random word that none of the entries holds."""
    held = [part for entry in entries for part in entry]
    while True:
        nonce = secrets.token_hex(NONCE_BYTES)
        if not any(nonce in part for part in held):
            return nonce


def fence(entries: Sequence[Entry], nonce: str) -> str:
    """The entries one after the other, each between its marks. ScoringError where one of them holds the nonce."""
    if any(nonce in part for entry in entries for part in entry):
        raise ScoringError("A text holds the nonce of its fence; draw another with new_nonce.")
    return "\n".join(
        f"{_begin(number, entry.trajectory_id, nonce)}\n{entry.text}\n{_end(number, nonce)}"
        for number, entry in enumerate(entries, start=1)
    )


def unfence(prompt: str, nonce: str) -> list[Entry]:
    """The entries that a prompt with that nonce holds, whatever stands around them.

    ScoringError unless its marks stand in pairs and in order, as `fence` puts them.
    """
    marks = list(_marks(nonce).finditer(prompt))
    if prompt.count(nonce) != len(marks) or len(marks) % 2:
        raise ScoringError("The marks of a judge's prompt are broken: a nonce stands outside of a pair of them.")
    entries = []
    for number, (begin, end) in enumerate(zip(marks[::2], marks[1::2], strict=True), start=1):
        text = prompt[begin.end() : end.start()]
        told = begin["id"]
        if told is None or end["id"] is not None or begin["begin"] != str(number) or end["end"] != str(number):
            raise ScoringError(f"The marks of a judge's prompt are broken: mark {number} is not where it belongs.")
        entries.append(Entry(json.loads(told), text.removeprefix("\n").removesuffix("\n")))
    return entries


def _begin(number: int, trajectory_id: str, nonce: str) -> str:
    # JSON keeps an id on one line and its quotation marks apart from those of the mark.
    return f"<trajectory-{nonce} number={number} id={json.dumps(trajectory_id)}>"


def _end(number: int, nonce: str) -> str:
    return f"</trajectory-{nonce} number={number}>"


def _marks(nonce: str) -> re.Pattern[str]:
    word = f"trajectory-{re.escape(nonce)}"
    return re.compile(
        rf'<{word} number=(?P<begin>\d+) id=(?P<id>"(?:[^"\\]|\\.)*")>|</{word} number=(?P<end>\d+)>', re.ASCII
    )
