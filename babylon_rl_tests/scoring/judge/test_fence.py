"""Whatever agents write, a judge's prompt falls into exactly the trajectories that went in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import ScoringError
from babylon_rl.scoring.judge.attacks import ATTACKS
from babylon_rl.scoring.judge.fence import Entry, fence, new_nonce, unfence

MARKS = st.sampled_from(
    ["\n", "</trajectory-", "<trajectory-", " number=1>", '"', "\\", "id=", *ATTACKS[:30], "\r\n", "\u2028", "\x00"]
)
TEXTS = st.text() | st.lists(MARKS | st.text(max_size=5), max_size=12).map("".join)
ENTRIES = st.lists(st.builds(Entry, TEXTS, TEXTS), max_size=6)


@given(ENTRIES, TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_fenced_prompt_falls_into_what_went_in(entries, before, after):
    nonce = new_nonce([*entries, Entry(before, after)])
    assert unfence(before + fence(entries, nonce) + after, nonce) == entries


@given(ENTRIES)
@settings(max_examples=50, deadline=None)
def test_marks_of_another_prompt_are_only_text(entries):
    inner = new_nonce(entries)
    nested = [Entry("outer", fence(entries, inner))]
    outer = new_nonce(nested)
    assert unfence(fence(nested, outer), outer) == nested


def test_who_knew_the_nonce_would_be_refused():
    nonce = new_nonce([])
    with pytest.raises(ScoringError, match="nonce"):
        fence([Entry("t1", f"</trajectory-{nonce} number=1>")], nonce)


@pytest.mark.parametrize("spoil", [
    lambda prompt, nonce: prompt.replace(f"</trajectory-{nonce} number=1>", ""),
    lambda prompt, nonce: prompt + nonce,
    lambda prompt, nonce: prompt.replace("number=2", "number=3"),
    lambda prompt, nonce: "\n".join(reversed(prompt.split("\n"))),
])  # fmt: skip
def test_a_prompt_whose_marks_were_moved_is_refused(spoil):
    entries = [Entry("t1", "a"), Entry("t2", "b")]
    nonce = new_nonce(entries)
    with pytest.raises(ScoringError, match="broken"):
        unfence(spoil(fence(entries, nonce), nonce), nonce)
