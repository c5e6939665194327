"""The canary set: prompts whose next-token log-probabilities tell which weights answer, and where these are stored.

The trainer computes them from the weights that it has just trained, along the path by which it trains. Whoever switches
a served model asks the new one the same prompts and compares (`serving.attestation`). The prompts are part of the code:
a change of any of them is another set, whose digest the stored rows carry.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Literal

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from babylon_rl.training.policy import Policy

# Tokens kept of each prompt: more than the 20 that a service tells, so that what it tells is among them.
LIKELIEST = 64

Precision = Literal["float32", "bfloat16"]

_TRADER = "You trade on news."
_MARKET = "ACME $102, BOLT $57, CRUX $230.\nCash $812, 3 ACME.\nNews: {news}\nIs this good or bad news? BUY if good, "
_ASKED = "SELL if bad."

CANARIES: tuple[tuple[dict[str, str], ...], ...] = tuple(
    tuple({"role": role, "content": content} for role, content in prompt)
    for prompt in (
        *(
            (("system", _TRADER), ("user", _MARKET.format(news=news) + _ASKED))
            for news in (
                "ACME wins a large order.",
                "ACME recalls its main product.",
                "BOLT misses its forecast by a wide margin.",
                "CRUX opens a second plant and hires 400 people.",
                "nothing new.",
                "a court clears ACME of all charges.",
            )
        ),
        (("system", _TRADER), ("user", "Question: will BOLT close above $60? Yes 41%.\nNews: a rival cut its prices.")),
        (("system", "You are an agent in a prediction market."), ("user", "Which share do you buy, YES or NO?")),
        (("system", "Answer with one JSON object."), ("user", 'Post or trade? Balance 1000. {"action":')),
        (("user", "Write one short post about the market today."),),
        (("user", "What is the capital of France?"),),
        (("user", "Count: one, two, three,"),),
        (("user", "def add(a, b):\n    return"),),
        (("user", "7 + 5 ="),),
        (
            ("user", "Buy or sell?"),
            ("assistant", "HOLD"),
            ("user", "And now, after the price fell by 12 %?"),
        ),
        (("system", "You are careful and say little."), ("user", "Tell me what you know about risk.")),
    )
)

CANARY_SET = hashlib.sha256(json.dumps(CANARIES, ensure_ascii=False).encode()).hexdigest()[:16]


class Likely(msgspec.Struct, frozen=True):
    """The likeliest next tokens of one prompt, the likeliest first: token id, its text, natural log-probability."""

    ids: list[int]
    texts: list[str]
    logprobs: list[float]


class Canaries(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says on the canary set, prompt by prompt in the order of `CANARIES`.

    `weights_sha256`: of the weights that were asked, None for the base model itself.
    """

    checkpoint_id: str
    precision: Precision
    prompts: list[Likely]
    made_by: Literal["trainer", "afterwards"]
    weights_sha256: str | None = None
    canary_set: str = CANARY_SET


def canary_logprobs(policy: "Policy", adapter: str | None) -> list[Likely]:
    """Per prompt of `CANARIES` the `LIKELIEST` next tokens with log-probabilities at temperature 1.

    Computed by the trainer's own path. `adapter`: which adapter answers, None the base model. Draws no random number,
    and changes nothing of the policy but which adapter is selected.
    """
    import torch

    prompts = [policy.chat.prompt(messages) for messages in CANARIES]
    found: dict[int, Likely] = {}
    with torch.no_grad(), policy.select(adapter):
        for place, logprobs in policy.next_logprobs(prompts):
            values, ids = logprobs.topk(min(LIKELIEST, len(logprobs)))
            tokens = [int(token) for token in ids]
            texts = [policy.tokenizer.decode([token]) for token in tokens]
            found[place] = Likely(tokens, texts, [round(float(value), 7) for value in values])
    return [found[place] for place in range(len(prompts))]


def save_canaries(connection: psycopg.Connection, canaries: Canaries) -> None:
    """Store them; those of other weights, under the same checkpoint, are replaced, and those of the same stay."""
    connection.execute(
        """INSERT INTO babylon_rl.canaries AS stored
           (checkpoint_id, canary_set, precision, logprobs, made_by, weights_sha256)
           VALUES (%s, %s, %s, %s, %s, %s)
           ON CONFLICT (checkpoint_id, canary_set, precision) DO UPDATE
               SET (logprobs, made_by, weights_sha256, created_at)
                   = (excluded.logprobs, excluded.made_by, excluded.weights_sha256, now())
               WHERE stored.weights_sha256 IS DISTINCT FROM excluded.weights_sha256""",
        (
            canaries.checkpoint_id,
            canaries.canary_set,
            canaries.precision,
            # PostgreSQL's texts hold no NUL, which some tokenizers have a token for; such a text matches nothing.
            Jsonb([_without_nul(likely) for likely in canaries.prompts]),
            canaries.made_by,
            canaries.weights_sha256,
        ),
    )


def _without_nul(likely: Likely) -> dict[str, list]:
    texts = ["".join(c for c in text if c != "\0" and not "\ud800" <= c <= "\udfff") for text in likely.texts]
    return {"ids": likely.ids, "texts": texts, "logprobs": likely.logprobs}


def load_canaries(
    connection: psycopg.Connection, checkpoint_id: str, precision: Precision = "float32"
) -> Canaries | None:
    """Those of the checkpoint on this version's set; None where there are none, or only of weights it has no more."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """SELECT k.checkpoint_id, k.precision, k.logprobs AS prompts, k.made_by, k.weights_sha256, k.canary_set
               FROM babylon_rl.canaries k JOIN babylon_rl.checkpoints c USING (checkpoint_id)
               WHERE k.checkpoint_id = %s AND k.canary_set = %s AND k.precision = %s
                 AND k.weights_sha256 IS NOT DISTINCT FROM c.weights_sha256""",
            (checkpoint_id, CANARY_SET, precision),
        ).fetchone()
    return None if row is None else msgspec.convert(row, Canaries)
