"""Chat tokens of many conversations that share words: each distinct word is encoded once.

A tokenizer that splits a text into words before it merges letters, as those of GPT-2, Llama 3 and Qwen do, gives a text
the tokens of its words, one after the other, each with the space before it. Whether this one does is not assumed: the
first conversations and some of the later ones are encoded whole too, and at the first difference all are.
"""

import re
from typing import Any

from babylon_rl.training.chat_tokens import ChatTokens, Messages

# Conversations that are encoded whole at first, and then one of so many.
AT_FIRST, ONE_OF = 32, 64
KEPT = 5_000_000  # characters of words whose tokens are kept

# A word begins with the space before it, and a line after the end of one that holds more than spaces.
_WORDS = r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)"


class PiecewiseTokens(ChatTokens):
    """Gives the tokens that `ChatTokens` gives. It keeps what it encoded, so one thread uses it."""

    def __init__(self, tokenizer: Any) -> None:
        """As `ChatTokens`."""
        super().__init__(tokenizer)
        longest_first = sorted(self._controls.values(), key=len, reverse=True)
        controls = "|".join(map(re.escape, longest_first))
        self._cuts = re.compile(rf"({controls})|{_WORDS}" if controls else f"()(?:{_WORDS})")
        self._names_control = re.compile(controls) if controls else None
        self._pieces: dict[str, list[int]] = {}
        self._room = KEPT
        self._wanted: dict[tuple[Any, ...], list[int]] = {}
        self._seen, self._exact = 0, True

    def conversation(self, messages: Messages, **options: Any) -> list[int]:
        """As `ChatTokens.conversation`."""
        if not self._exact or any(map(self._is_special, messages)):
            return super().conversation(messages, **options)
        tokens = self._joined(self._render(messages, tokenize=False, **options))
        if self.controls(tokens) != self._controls_of(messages, options):
            return super().conversation(messages, **options)
        self._seen += 1
        if self._seen <= AT_FIRST or self._seen % ONE_OF == 0:
            whole = super().conversation(messages, **options)
            self._exact = whole == tokens
            return whole
        return tokens

    def _is_special(self, message: Any) -> bool:
        content = message.get("content")
        return not isinstance(content, str) or (
            self._names_control is not None and bool(self._names_control.search(content))
        )

    def _controls_of(self, messages: Messages, options: dict[str, Any]) -> list[int]:
        """Control tokens that the template writes around messages of these roles."""
        key = (*(message.get("role") for message in messages), *sorted(map(str, options.items())))
        if key not in self._wanted:
            plain = [{**message, "content": "x"} for message in messages]
            self._wanted[key] = self.controls(super().conversation(plain, **options))
        return self._wanted[key]

    def _joined(self, text: str) -> list[int]:
        pieces = [piece for piece in self._cuts.split(text) if piece]
        lacking = list(dict.fromkeys(piece for piece in pieces if piece not in self._pieces))
        if lacking:
            size = sum(map(len, lacking))
            if size > self._room:
                self._pieces.clear()
                self._room, lacking = KEPT, list(dict.fromkeys(pieces))
            self._room -= size
            encoded = self._backend.encode_batch_fast(lacking, add_special_tokens=False)
            self._pieces.update((piece, one.ids) for piece, one in zip(lacking, encoded, strict=True))
        return [token for piece in pieces for token in self._pieces[piece]]
