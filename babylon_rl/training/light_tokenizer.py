"""A base model's tokenizer and chat template without transformers, whose import takes seconds and hundreds of MB.

The same `tokenizer.json` is read by the `tokenizers` library, and the chat template is rendered by jinja2 in the
sandbox that transformers uses. What `ChatTokens` asks of a tokenizer is here, and no more.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from babylon_rl.errors import ModelError


class AddedToken(NamedTuple):
    """A token beside the vocabulary. `special`: whether it is a control token by itself."""

    content: str
    special: bool


class LightTokenizer:
    """Tokenizer of a folder; ModelError where it has no `tokenizer.json` or no chat template."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            described = json.loads((folder / "tokenizer.json").read_bytes())
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no tokenizer.json. Save the model's tokenizer there as a fast tokenizer."
            ) from None
        self._config = _json(folder / "tokenizer_config.json")
        self.backend_tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Nothing is cut or filled up: a prompt is checked as a whole.
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        self.added_tokens_decoder = {
            int(one["id"]): AddedToken(one["content"], bool(one["special"])) for one in described["added_tokens"]
        }
        self.clean_up_tokenization_spaces = bool(self._config.get("clean_up_tokenization_spaces", False))
        self.chat_template = _template_of(folder, self._config)
        self._special = {**_specials(_json(folder / "special_tokens_map.json")), **_specials(self._config)}
        self._render = _compiled(self.chat_template)

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends an answer."""
        found = self.backend_tokenizer.token_to_id(self._special.get("eos_token", ""))
        if found is None:
            raise ModelError("The tokenizer's tokenizer_config.json names no eos_token that its vocabulary holds.")
        return found

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool = False, **options: Any
    ) -> str:
        """Text of the conversation under the chat template; `tokenize` is never asked for."""
        assert not tokenize
        given = {"add_generation_prompt": False, "tools": None, "documents": None, **options}
        return self._render(messages=list(messages), **given, **self._special)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the tokens."""
        return self.backend_tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _template_of(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    found: Any = file.read_text() if file.is_file() else config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one["name"] == "default"), None)
    if not found:
        raise ModelError(f"{folder} has no chat template. Save one as chat_template.jinja beside tokenizer.json.")
    return found


def _specials(described: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens that templates may name, as texts."""
    told = {name: value for name, value in described.items() if name.endswith("_token")}
    texts = {name: value["content"] if isinstance(value, Mapping) else value for name, value in told.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template in the sandbox and with the functions that transformers gives it."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for who wants a mask; the text is what it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        # As it is written: jinja's own escapes what HTML would.
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render
