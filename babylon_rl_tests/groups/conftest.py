"""A tokenizer small enough to read, for what ART makes of groups."""

import pytest

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' + message['content'] + ' <|im_end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
WORDS = ["<unk>", "<|im_start|>", "<|im_end|>", "You", "BUY", "SELL", "HOLD", "system", "user", "step", "assistant"]
# Ids that no prompt contains: ART marks the place of an answer with the highest unused one.
WORDS += [f"word{i}" for i in range(20)]


@pytest.fixture(scope="session")
def tokenizer():
    """One token a word, with SmolLM2's chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    made_of = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<|im_end|>")
    made_of.chat_template = TEMPLATE
    return made_of
