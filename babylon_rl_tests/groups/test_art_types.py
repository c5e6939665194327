import json
import random

import msgspec
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.groups.art_types import batch_to_art, group_from_json, group_to_json, to_art
from babylon_rl.groups.build import build_group
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.groups.trained_view import decode_group
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made


def groups():
    """Three windows of four agents, with one or two decisions each, that do not agree on what pays."""
    turns = {10: "BUY SELL BUY SELL", 11: "BUY BUY BUY SELL", 12: "BUY SELL SELL SELL"}
    made_of = []
    for (hour, verbs), decisions in zip(turns.items(), (1, 2, 1), strict=True):
        window_id = f"2026-01-05T{hour}:00"
        own = [
            made.trajectory(f"{hour}-{i}", verbs=[verb] * decisions, pnl=pnl)
            for i, (verb, pnl) in enumerate(zip(verbs.split(), [4.0, -3.0, 0.5, -1.0], strict=True))
        ]
        window = made.recorded(*own, window_id=window_id)
        scored = score_window(window, made.outcomes(window_id))
        made_of.append(decode_group(build_group({"status": "ready", "reason": ""}, window, scored)["group"]))
    return made_of


def test_a_member_is_one_trajectory_and_its_further_decisions_are_histories():
    from openai.types.chat.chat_completion import Choice

    group = groups()[1]
    art_group = to_art(group)
    assert len(art_group) == len(group.members)
    for trajectory, member in zip(art_group, group.members, strict=True):
        assert trajectory.reward == member.advantage and trajectory.metrics["window_reward"] == member.reward
        histories = [trajectory.messages_and_choices] + [
            h.messages_and_choices for h in trajectory.additional_histories
        ]
        for (system, user, choice), decision in zip(histories, member.decisions, strict=True):
            assert (system["content"], user["content"]) == (decision.system_prompt, decision.user_prompt)
            assert isinstance(choice, Choice) and choice.message.content == decision.response
            assert [int(t.token.removeprefix("token_id:")) for t in choice.logprobs.content] == decision.token_ids
            assert [t.logprob for t in choice.logprobs.content] == decision.logprobs


def test_json_and_back_gives_the_same_group_with_real_choices():
    from openai.types.chat.chat_completion import Choice

    for group in groups():
        before = to_art(group)
        after = group_from_json(json.loads(json.dumps(group_to_json(before))))
        assert group_to_json(after) == group_to_json(before)
        assert len(after) == len(before) > 0
        for trajectory in after:
            for history in (trajectory, *trajectory.additional_histories):
                assert isinstance(history.messages_and_choices[-1], Choice)
                assert history.messages_and_choices[-1].logprobs.content


def test_a_window_whose_advantages_do_not_sum_to_zero_is_not_handed_over_alone():
    group = groups()[0]
    shifted = [msgspec.structs.replace(member, advantage=member.advantage + 0.01) for member in group.members]
    shifted = msgspec.structs.replace(group, members=shifted)
    with pytest.raises(TrainingError, match="batch_to_art"):
        to_art(shifted)
    with pytest.raises(TrainingError, match="do not sum to 0"):
        batch_to_art([shifted, group])


def test_an_answer_without_tokens_is_refused_because_art_would_erase_it():
    group = groups()[0]
    first = group.members[0]
    empty = msgspec.structs.replace(first.decisions[0], token_ids=[], logprobs=[])
    members = [msgspec.structs.replace(first, decisions=[empty]), *group.members[1:]]
    with pytest.raises(TrainingError, match="no sampled tokens"):
        to_art(msgspec.structs.replace(group, members=members))


@pytest.mark.parametrize(
    ("settings", "art_groups"),
    [
        ({"advantages": "leave_one_out"}, 3),
        ({"advantages": "leave_one_out_action_centred"}, 1),
        ({"advantages": "leave_one_out_action_centred", "minibatches": 2}, 1),
    ],
)
def test_the_advantages_that_reach_arts_loss_are_the_stored_ones_times_one_constant(tokenizer, settings, art_groups):
    snapshot = make_snapshot(groups(), "demo", settings, 1)
    converted = batch_to_art(snapshot.groups)
    assert len(converted) == art_groups
    found = advantages_in_the_loss(tokenizer, converted)
    stored = {member.trajectory_id: member for group in snapshot.groups for member in group.members}
    trained = {name for name, member in stored.items() if member.advantage != 0}
    # Every decision of every member with an advantage is a row of its own.
    assert trained <= found.keys()
    assert all(len(found[name]) == len(stored[name].decisions) for name in trained)
    pairs = [(stored[name].advantage, value) for name, values in found.items() for value in values]
    constant = max(abs(value) for _, value in pairs) / max(abs(advantage) for advantage, _ in pairs)
    assert constant > 0
    for advantage, value in pairs:
        assert value == pytest.approx(advantage * constant, rel=1e-5, abs=1e-5)


def test_all_actions_reach_arts_loss_as_one_row_each(tokenizer):
    stream = random.Random(1)
    single = [one for one in groups() if len(one.members[0].decisions) == 1]
    with_values = [
        msgspec.structs.replace(
            one,
            members=[
                msgspec.structs.replace(m, action_values=[stream.gauss(0, 1) for _ in range(3)]) for m in one.members
            ],
        )
        for one in single
    ]
    snapshot = make_snapshot(with_values, "demo", {"advantages": "all_actions"}, 1)
    with pytest.raises(TrainingError, match="tokenizer"):
        batch_to_art(snapshot.groups)
    converted = batch_to_art(snapshot.groups, lambda text: [made.TOKENS[text], made.TOKENS["<|im_end|>"]])
    found = advantages_in_the_loss(tokenizer, converted)
    stored = {m.trajectory_id: m.action_advantages for one in snapshot.groups for m in one.members}
    assert {name: len(values) for name, values in found.items()} == {name: 3 for name in stored}
    pairs = [pair for name in stored for pair in zip(sorted(stored[name]), sorted(found[name]), strict=True)]
    constant = max(abs(value) for _, value in pairs) / max(abs(advantage) for advantage, _ in pairs)
    for advantage, value in pairs:
        assert value == pytest.approx(advantage * constant, rel=1e-5, abs=1e-5)
    with pytest.raises(TrainingError, match="other tokens"):
        batch_to_art(snapshot.groups, lambda text: [made.TOKENS[text]])


def advantages_in_the_loss(tokenizer, converted):
    """Advantage of each row of ART's packed tensors, by trajectory id; checks the tokens on the way."""
    from art.preprocessing.pack import packed_tensors_from_tokenized_results
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    # ART shuffles with the global generator.
    random.seed(0)
    results = list(tokenize_trajectory_groups(tokenizer, converted, False, scale_rewards=False))
    for number, result in enumerate(results):
        # ART keeps the order of nothing, so a row is recognised by a token of its own, outside the trained ones.
        result.token_ids[0] = 1000 + number
        result.prompt_length = 0
    packed = packed_tensors_from_tokenized_results(results, 32, pad_token_id=0, pack_results=False)
    found = {}
    for row in range(len(results)):
        result = results[int(packed["tokens"][row, 0]) - 1000]
        mask = packed["assistant_mask"][row]
        trajectory = result.trajectory
        histories = [trajectory.messages_and_choices] + [
            h.messages_and_choices for h in trajectory.additional_histories
        ]
        answers = [[int(t.token.split(":")[1]) for t in history[-1].logprobs.content] for history in histories]
        assert packed["tokens"][row][mask].tolist() in answers
        values = set(packed["advantages"][row][mask].tolist())
        assert len(values) == 1
        found.setdefault(trajectory.metadata["trajectory_id"], []).append(values.pop())
    return found
