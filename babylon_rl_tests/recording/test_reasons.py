"""Every reason for which a row is left out is told to the reader of the docs, in the program's own words."""

from pathlib import Path

from babylon_rl.recording.reasons import TEXTS, Reason

VERIFY = Path(__file__).parents[2] / "docs" / "verify.md"


def test_the_docs_list_every_reason_in_its_words_and_order():
    told = VERIFY.read_text()
    lines = [f"| `{reason.value}` | {TEXTS[reason]} |" for reason in Reason]
    places = [told.find(line) for line in lines]
    assert -1 not in places, [line for line, place in zip(lines, places, strict=True) if place < 0]
    assert places == sorted(places)
