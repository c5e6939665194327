"""The text of an answer while its tokens are drawn: what can already be said of it, and where a stop text ends it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder makes of the beginning of a letter
SPACED = 4  # letters within which some tokenizers take spaces out, looking back


class TextSoFar:
    """Decodes one answer. `text`: what can be said of it; it only ever grows, and `stopped` says that it is whole."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, list(stop)
        self._held = SPACED if getattr(tokenizer, "clean_up_tokenization_spaces", False) else 0
        self.text, self.stopped = "", False

    def take(self, tokens: Sequence[int], last: bool) -> str:
        """The text that the tokens so far, all of the answer, add to it. `last`: no token follows."""
        found = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        cut = first_stop(found, self._stop)
        if cut is not None:
            self.stopped, sayable = True, found[:cut]
        elif last:
            sayable = found
        else:
            sayable = found.rstrip(UNFINISHED)
            sayable = sayable[: len(sayable) - self._held] if self._held else sayable
            sayable = sayable[: len(sayable) - _begun(sayable, self._stop)]
        if not sayable.startswith(self.text):
            return ""
        added = sayable[len(self.text) :]
        self.text = sayable
        return added


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop text begins; None where there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return min(places, default=None)


def _begun(text: str, stop: Sequence[str]) -> int:
    """Letters at the end with which a stop text may begin."""
    longest = 0
    for one in stop:
        for length in range(min(len(one) - 1, len(text)), longest, -1):
            if text.endswith(one[:length]):
                longest = length
                break
    return longest


class TokenBytes:
    """The bytes that tokens stand for, of tokenizers that write bytes as letters (GPT-2's way); else None."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = str(getattr(self._backend, "decoder", None))
        self._known = "ByteLevel" in decoder
        self._controls = set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._letters = _byte_letters()

    def of(self, token: int) -> list[int] | None:
        """The token's bytes; None where they are not known, as of a control token."""
        if not self._known or token in self._controls or self._backend is None:
            return None
        text = self._backend.id_to_token(token)
        if text is None or any(letter not in self._letters for letter in text):
            return None
        return [self._letters[letter] for letter in text]


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """Byte by the letter that GPT-2's encoder writes it as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + place): byte for place, byte in enumerate(others)}}
