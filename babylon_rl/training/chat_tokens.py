"""Tokens of conversations and answers, where text that a person or an agent wrote can never become a control token.

A tokenizer that is given a rendered conversation as one text makes the end of a turn out of every `<|im_end|>` in it,
also one that stands in a post that the agent read. Here the chat template's own control tokens are told from the same
letters in the contents, which are encoded as the letters that they are. Texts without such letters have the tokens
that `apply_chat_template` gives. Endpoint and trainer share this file.
"""

import copy
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from babylon_rl.errors import BabylonError, ModelError

Messages = Sequence[Mapping[str, Any]]


class ControlTokensError(BabylonError):
    """Text cannot be encoded without becoming control tokens."""


class ChatTokens:
    """Encodes for one tokenizer. Its methods change nothing and may be called from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """ModelError for a tokenizer that has no `tokenizer.json`."""
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            raise ModelError("The model's tokenizer has no tokenizer.json; save it as a fast tokenizer.")
        self._render = tokenizer.apply_chat_template
        self._end = tokenizer.eos_token_id
        self._cleans_up = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        added = ((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items())
        self._controls = control_texts(added, tokenizer.chat_template)

    @functools.cached_property
    def _plain(self) -> Any:
        """The same tokenizer, to which control tokens are letters."""
        from tokenizers import Tokenizer

        described = json.loads(self._backend.to_str())
        for token in described["added_tokens"]:
            token["special"] = token["id"] in self._controls
        plain: Any = Tokenizer.from_str(json.dumps(described))
        plain.encode_special_tokens = True
        return plain

    def controls(self, tokens: Iterable[int]) -> list[int]:
        """The control tokens among these, in order."""
        return [token for token in tokens if token in self._controls]

    def prompt(self, messages: Messages) -> list[int]:
        """Tokens of the conversation up to where the assistant's answer starts."""
        return self.conversation(messages, add_generation_prompt=True)

    def answer(self, text: str) -> list[int]:
        """Tokens of a whole answer as it is sampled: the text's, then the end of the turn."""
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        if self.controls(tokens):
            tokens = self._letters(text)
        return [*tokens, self._end]

    def says(self, tokens: Sequence[int], text: str) -> bool:
        """Whether sampled tokens, up to the end of the turn, decode to the text byte for byte.

        Where the tokenizer is one that takes spaces out when it decodes, also to the text without them.
        A control token that the model drew inside its answer may stand in the text or not: servers differ.
        """
        body = list(tokens[:-1] if tokens and tokens[-1] == self._end else tokens)
        texts = [self._backend.decode(body, skip_special_tokens=skip) for skip in (False, True)]
        return text in texts or (self._cleans_up and text in map(cleaned_up, texts))

    def conversation(self, messages: Messages, **options: Any) -> list[int]:
        """Tokens of the messages under the chat template; `options` are those of `apply_chat_template`.

        ControlTokensError where the template changes a content so that it cannot be told from the template's own text.
        """
        text = self._render(messages, tokenize=False, **options)
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        frame = self._render(_marked(messages), tokenize=False, **options)
        wanted = self.controls(self._backend.encode(frame, add_special_tokens=False).ids)
        if self.controls(tokens) == wanted:
            return tokens
        tokens = self._spliced(frame, text, [message["content"] for message in messages])
        if self.controls(tokens) != wanted:
            raise ControlTokensError(
                "A message holds a control token of the model that its tokenizer cannot encode as letters. Take it out "
                "of the text."
            )
        return tokens

    def _spliced(self, frame: str, text: str, contents: list[Any]) -> list[int]:
        """Tokens of `text`: control tokens where the template's own text has them, letters everywhere else."""
        pieces = re.split(f"{_OPEN}([0-9]+){_CLOSE}", frame)  # the template's texts and, between them, places
        for told in (contents, [c.strip() if isinstance(c, str) else c for c in contents]):
            filled = [piece if i % 2 == 0 else told[int(piece)] for i, piece in enumerate(pieces)]
            if "".join(map(str, filled)) == text:
                break
        else:
            raise ControlTokensError(
                "A message holds a control token of the model, and the chat template changes the message: the two "
                "cannot be told apart. Take it out of the text."
            )
        tokens: list[int] = []
        letters = ""
        for part in (p for i, piece in enumerate(filled) for p in self._parts(piece, of_template=i % 2 == 0)):
            if isinstance(part, str):
                letters += part
            else:
                tokens += [*self._letters(letters), part]
                letters = ""
        return tokens + self._letters(letters)

    def _parts(self, piece: str, of_template: bool) -> Iterator[int | str]:
        """The piece as texts and, where it is the template's own, control tokens."""
        if not of_template or not self._controls:
            yield piece
            return
        ids = {text: token for token, text in self._controls.items()}
        longest_first = sorted(ids, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", piece):
            if part:
                yield ids.get(part, part)

    def _letters(self, text: str) -> list[int]:
        """Tokens of a text in which nothing is a control token."""
        for stand_in in _STAND_INS:
            encoded = self._plain.encode(text, add_special_tokens=False)
            if not self.controls(encoded.ids):
                return encoded.ids
            # Some tokenizers take a control token for a letter that they lack.
            spans = [span for token, span in zip(encoded.ids, encoded.offsets, strict=True) if token in self._controls]
            lacking = {letter for start, end in spans for letter in text[start:end]}
            text = "".join(stand_in if letter in lacking else letter for letter in text)
        raise ControlTokensError(
            "A text holds a control token of the model that its tokenizer cannot encode as letters. Take it out of the "
            "text."
        )


# For a letter that a tokenizer lacks: the first that it has.
_STAND_INS = ("\ufffd", "?", "")
# Around the number of a message in the frame; private use, so no template trims or escapes them.
_OPEN, _CLOSE = "\ue000", "\ue001"


def _marked(messages: Messages) -> list[dict[str, Any]]:
    """The messages with their places instead of their contents."""
    return [
        {**message, "content": f"{_OPEN}{place}{_CLOSE}"} if isinstance(message.get("content"), str) else {**message}
        for place, message in enumerate(messages)
    ]


def cleaned_up(text: str) -> str:
    """The text as transformers decodes it under `clean_up_tokenization_spaces`."""
    for spaced in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
        if spaced == " n't":
            text = text.replace(" ' ", "'")
        text = text.replace(spaced, spaced[1:])
    return text


def control_texts(added: Iterable[tuple[int, str, bool]], template: Any) -> dict[int, str]:
    """Control tokens among a tokenizer's added ones, (id, text, special), as text by id.

    They are the special ones and those that the chat template writes; a tokenizer may also have added plain words.
    """
    return {i: text for i, text, special in added if text.strip() and (special or text in str(template or ""))}


def control_texts_of(folder: Path) -> dict[int, str]:
    """Control tokens of a base model's folder, read without loading the tokenizer; none where no file tells them."""
    try:
        described = json.loads((folder / "tokenizer.json").read_bytes())
    except FileNotFoundError:
        return {}
    templates = [folder / "chat_template.jinja", folder / "tokenizer_config.json"]
    template = "".join(path.read_text() for path in templates if path.is_file())
    return control_texts(((t["id"], t["content"], t["special"]) for t in described["added_tokens"]), template)


def for_art(tokenizer: Any) -> Any:
    """A copy of the tokenizer with an `apply_chat_template` that gives these tokens, which is how ART makes its own."""
    chat, render = ChatTokens(tokenizer), tokenizer.apply_chat_template
    made = copy.copy(tokenizer)

    def apply_chat_template(messages: Messages, *, tokenize: bool = True, **options: Any) -> Any:
        if not tokenize:
            return render(messages, tokenize=False, **options)
        return chat.conversation(messages, **options)

    made.apply_chat_template = apply_chat_template
    return made
