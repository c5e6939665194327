"""What the base model cannot be trained on is left out of an update, and the update says so."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import load_header
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.admission import Checker
from babylon_rl.training.chat_tokens import ChatTokens, cleaned_up
from babylon_rl.training.light_tokenizer import LightTokenizer
from babylon_rl.training.piecewise import PiecewiseTokens
from babylon_rl_tests.training.batches import sampled_groups
from babylon_rl_tests.training.rounds import MIXED, Rounds
from babylon_rl_tests.training.test_chat_tokens import MIXED as TEXTS
from babylon_rl_tests.training.test_chat_tokens import messages, smollm2, tiny_tokenizer  # noqa: F401


@pytest.fixture(scope="session", params=["tiny_tokenizer", "smollm2"])
def pair(request, tmp_path_factory):
    """A tokenizer of transformers, and the light one from the folder in which that one is saved."""
    own = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("tokenizer")
    own.save_pretrained(folder)
    return own, LightTokenizer(folder)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(system=TEXTS, user=TEXTS)
def test_the_light_tokenizer_renders_and_encodes_as_transformers_does(pair, system, user):
    own, light = pair
    said = messages(system, user)
    for prompt in (True, False):
        rendered = own.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
        assert light.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt) == rendered
    plain, made = ChatTokens(own), ChatTokens(light)
    assert made.prompt(said) == plain.prompt(said) and made.answer(user) == plain.answer(user)


def test_the_light_tokenizer_knows_the_same_control_tokens_and_decodes_the_same_text(pair):
    own, light = pair
    assert light.eos_token_id == own.eos_token_id
    assert {i: (t.content, t.special) for i, t in light.added_tokens_decoder.items()} == {
        i: (t.content, t.special) for i, t in own.added_tokens_decoder.items()
    }
    tokens = own.encode("It rose , he did n't say .", add_special_tokens=False)
    decoded = light.decode(tokens, skip_special_tokens=True)
    cleans = light.clean_up_tokenization_spaces
    assert own.decode(tokens, skip_special_tokens=True) == (cleaned_up(decoded) if cleans else decoded)


WORDS = st.lists(
    st.sampled_from(["BUY", " ", "\n", "  ", "\n\n", " \n", "105.3", ".", " a", "\t", "é", ",\n x"]), max_size=12
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(told=st.lists(WORDS.map("".join) | TEXTS, min_size=1, max_size=4))
def test_word_by_word_a_conversation_has_the_tokens_that_it_has_as_a_whole(pair, told):
    light = pair[1]
    words, whole = PiecewiseTokens(light), ChatTokens(light)
    words._seen = 32  # no comparison of its own
    for text in told:
        assert words.prompt(messages("You trade.", text)) == whole.prompt(messages("You trade.", text))


def test_a_tokenizer_that_merges_over_words_is_found_out_and_asked_for_whole_texts(tmp_path: Path, tiny: Path):
    from tokenizers import Tokenizer, models, trainers

    merging = Tokenizer(models.BPE())
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=controls, show_progress=False)
    merging.train_from_iterator(["BUY now BUY now BUY now system user assistant\n"] * 20, trainer)
    merging.save(str(tmp_path / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text((tiny / name).read_text())
    light = LightTokenizer(tmp_path)
    words, said = PiecewiseTokens(light), messages("BUY now BUY now", "BUY now")
    assert words.prompt(said) == ChatTokens(light).prompt(said) and not words._exact


@pytest.fixture
def group(policy) -> Group:
    return sampled_groups(policy, 1)[0]


def changed(group: Group, **fields) -> Group:
    """The group with these fields of its first member's decision."""
    first, *others = group.members
    decision = msgspec.structs.replace(first.decisions[0], **fields)
    return msgspec.structs.replace(group, members=[msgspec.structs.replace(first, decisions=[decision]), *others])


def refused(group: Group, folder: Path | None, **own) -> dict[str, int]:
    counts: Counter[str] = Counter()
    Checker(folder, **own).kept(group, counts)
    return dict(counts)


def test_what_the_policy_played_reproduces_and_what_differs_in_a_letter_or_a_token_does_not(group, tiny):
    assert refused(group, tiny) == {}
    decision = group.members[0].decisions[0]
    prompt, answer = {"members prompt_not_reproduced": 1}, {"members answer_not_reproduced": 1}
    assert refused(changed(group, user_prompt=f"{decision.user_prompt} "), tiny) == prompt
    assert refused(changed(group, prompt_token_ids=decision.prompt_token_ids[:-1]), tiny) == prompt
    other = next(choice for choice in decision.choices if choice != decision.response)
    assert refused(changed(group, response=other), tiny) == answer
    tokens = [decision.token_ids[0] + 1, *decision.token_ids[1:]]
    assert refused(changed(group, token_ids=tokens), tiny) == answer


def test_free_text_is_compared_as_what_its_tokens_say_however_they_cut_it(group, tiny):
    chat = ChatTokens(LightTokenizer(tiny))
    end = chat.answer("")
    letters = [token for letter in "BUY" for token in chat.answer(letter)[:-1]]
    free = {"choices": None, "logprobs": [-0.1] * 4, "response": "BUY"}
    assert letters + end != chat.answer("BUY")
    assert refused(changed(group, **free, token_ids=letters + end), tiny) == {}
    # Cut off before its end, as by a limit of tokens.
    assert refused(changed(group, **free, token_ids=letters), tiny) == {}
    assert refused(changed(group, **{**free, "response": "BUY "}, token_ids=letters + end), tiny) == {
        "members answer_not_reproduced": 1
    }
    # A choice that was drawn by other tokens than the trainer gives it cannot be weighed against the others.
    chosen = {**free, "choices": ["BUY", "SELL"]}
    assert refused(changed(group, **chosen, token_ids=letters + end), tiny) == {"members answer_not_reproduced": 1}


def test_of_what_another_model_wrote_the_text_alone_is_looked_at(group, tiny):
    foreign = {"lineage": Lineage("other", {"other@0": 0}, 0)}
    decision = group.members[0].decisions[0]
    assert refused(changed(group, prompt_token_ids=[1, 2], token_ids=[3]), tiny, **foreign) == {}
    wrote = changed(group, response=f"{decision.response}<|im_end|>")
    assert refused(wrote, tiny, **foreign) == {"members control_tokens": 1}
    long = changed(group, user_prompt="up " * 2000, token_ids=[], logprobs=[], prompt_token_ids=[])
    assert refused(long, tiny, **foreign) == {"members prompt_too_long": 1}


def test_without_a_tokenizer_nothing_is_compared_and_that_is_said(group, tmp_path):
    assert refused(changed(group, response="?"), None) == {}
    assert Checker(None).unchecked.startswith("not checked against the hosted tokenizer")
    assert "no tokenizer.json" in Checker(tmp_path).unchecked


def test_the_check_loads_no_transformers(tiny):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from babylon_rl.training.admission import Checker; "
        f"Checker(Path({str(tiny)!r})).chat.prompt([{{'role': 'user', 'content': 'x'}}]); "
        "assert not {'transformers', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_update_leaves_out_what_is_longer_than_the_context_and_says_so(database, tmp_path):
    rounds = Rounds(database, tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2}')
    rounds.play(1, MIXED, "run@0")
    row = rounds.update(1)
    assert not row["updated"] and not rounds.trained
    assert "16 members prompt_too_long" in row["reason"]
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    row = rounds.update(1)
    assert row["updated"] and len(rounds.trained) == 1
    with database.connect() as connection:
        header = load_header(connection, row["snapshot_id"])
    assert "no tokenizer.json" in header.settings["unchecked"] and header.settings["backend"] == "torch"
