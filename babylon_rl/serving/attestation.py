"""Attestation: whether what is served answers with the weights that the trainer wrote.

The served model is asked the canary prompts (`training.canaries`) through the OpenAI protocol, as an agent would ask
it, and what it says of its likeliest next tokens is compared with what was computed from the weights. A model that
differs is not switched to: the old one stays.
"""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.routing import Target
from babylon_rl.training.canaries import CANARIES, CANARY_SET, Canaries, Likely

TOP = 20  # likeliest tokens that are asked for: the most that the protocol allows
AT_ONCE = 8  # prompts that are asked at a time
SECONDS = 60.0  # for one prompt
# `babylon-rl bench attestation` measures what these stand between: right weights, asked in other batches, differ by
# 9e-06 at most with the tiny model (100 trials, seed 0), those one step of 1e-4 away by 0.014 at least. In bfloat16
# right ones differ by up to 0.06 (14 trials, seed 1), as much as a small step makes: there a stale adapter shows by the
# hash that our endpoint lists.
TOLERANCES = {"float32": 2e-4, "bfloat16": 1e-1}
TOKEN_ID = "token_id:"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparison came to. `worst`: largest difference of a log-probability; `compared`: how many there were.

    `may_serve`: whether agents may be sent there: what is equal, and what a service keeps the weights of, whose
    trainer's log-probabilities are nowhere to be had.
    """

    state: Literal["equal", "differs", "unavailable"]
    worst: float | None
    compared: int
    reason: str
    may_serve: bool
    tolerance: float | None = None


def attest(
    target: Target,
    expected: Canaries | None,
    tolerance: float = 0.0,
    weights_sha256: str | None = None,
    key: str | None = None,
    hosted: bool = False,
) -> Attestation:
    """Compare what the target says on the canary set with `expected`. Raises nothing: the state says what went wrong.

    `tolerance`: largest difference of a log-probability that is still equal, 0: by precision (`TOLERANCES`).
    `weights_sha256`: of the checkpoint, compared with what the endpoint lists in /v1/models where it lists one.
    `key`: sent as bearer token. `hosted`: a service keeps the weights, so `expected` cannot be had.
    """
    if expected is None and not hosted:
        return _unavailable("No log-probabilities of its weights are stored, so there is nothing to compare with.")
    if expected is not None and expected.canary_set != CANARY_SET:
        return _unavailable(f"Its canaries are of the set {expected.canary_set}, and this version asks {CANARY_SET}.")
    try:
        with _client(target, key) as client:
            listed = _listed_weights(client, target)
            if listed is not None and weights_sha256 is not None and listed != weights_sha256:
                return _differs(
                    f"{target.base_url} serves {target.model} from weights {listed[:12]}, and the weights of "
                    f"{target.checkpoint_id} are {weights_sha256[:12]}."
                )
            if expected is None:
                _ask(client, target, 0)
                return _unavailable(
                    f"A service keeps the weights of {target.checkpoint_id}, so no log-probabilities of its trainer "
                    f"are here to compare with; {target.base_url} answers under {target.model}.",
                    may_serve=True,
                )
            with ThreadPoolExecutor(AT_ONCE) as pool:
                served = list(pool.map(lambda place: _ask(client, target, place), range(len(CANARIES))))
    except (ServingError, httpx.HTTPError, httpx.InvalidURL) as error:
        said = str(error) or type(error).__name__
        return _unavailable(f"{target.model} at {target.base_url} could not be asked: {said}")
    return compare(served, expected, tolerance or TOLERANCES[expected.precision])


Name = int | str


class Served(msgspec.Struct, frozen=True):
    """A prompt's likeliest tokens as they were served, by id where the service names ids and else by text.

    `sampled`: the token that was drawn, which a service may tell although it is not among the likeliest.
    """

    logprobs: dict[Name, float]
    sampled: Name


def compare(served: list[Served], expected: Canaries, tolerance: float) -> Attestation:
    """The verdict on what was served, prompt by prompt."""
    worst, compared, where = 0.0, 0, 0
    for place, (one, likely) in enumerate(zip(served, expected.prompts, strict=True)):
        differences = _differences(one, likely, tolerance)
        if not differences:
            return _unavailable(f"Of prompt {place + 1} no token could be compared: none of its names is known here.")
        compared += len(differences)
        largest = max(math.inf if math.isnan(d) else d for d in differences)
        if largest > worst:
            worst, where = largest, place
    said = f"largest difference {worst:.2g} of {compared} log-probabilities on {len(served)} prompts"
    shown = worst if math.isfinite(worst) else None  # JSON knows no infinity
    if worst > tolerance:
        return Attestation(
            state="differs",
            worst=shown,
            compared=compared,
            reason=f"{said}, on prompt {where + 1}; equal is at most {tolerance:g}: these are not the weights of "
            f"{expected.checkpoint_id}.",
            may_serve=False,
            tolerance=tolerance,
        )
    reason = f"{said}; equal is at most {tolerance:g}."
    return Attestation(
        state="equal", worst=shown, compared=compared, reason=reason, may_serve=True, tolerance=tolerance
    )


def _differences(served: Served, likely: Likely, tolerance: float) -> list[float]:
    """Absolute differences of one prompt's log-probabilities.

    A token that only one side names is a difference by as much as it is likelier than the least likely that the other
    side names, where that is beyond the tolerance.
    """
    told = served.logprobs
    if not isinstance(served.sampled, int):
        # A service has texts of its own for tokens that this tokenizer writes otherwise: those say nothing.
        often = Counter(likely.texts)
        by_text = {t: value for t, value in zip(likely.texts, likely.logprobs, strict=True) if often[t] == 1}
        return [abs(told[name] - by_text[name]) for name in told if name in by_text]
    stored = dict(zip(likely.ids, likely.logprobs, strict=True))
    likeliest = [value for name, value in told.items() if name != served.sampled]
    if not likeliest:
        return []
    least_stored, least_told = min(stored.values()), min(likeliest)
    found = [abs(told[name] - stored[name]) for name in told if name in stored]
    unknown = [value - least_stored for name, value in told.items() if name not in stored]
    missing = [value - least_told for name, value in stored.items() if name not in told]
    return found + [beyond for beyond in unknown + missing if not beyond <= tolerance]


def _unavailable(reason: str, may_serve: bool = False) -> Attestation:
    return Attestation(state="unavailable", worst=None, compared=0, reason=reason, may_serve=may_serve)


def _differs(reason: str) -> Attestation:
    return Attestation(state="differs", worst=None, compared=0, reason=reason, may_serve=False)


# --- asking ----------------------------------------------------------------------------------------


def _client(target: Target, key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    outside = urlsplit(target.base_url).hostname not in LOOPBACK
    return httpx.Client(headers=headers, timeout=SECONDS, trust_env=outside)


def _listed_weights(client: httpx.Client, target: Target) -> str | None:
    """Hash of the model's weights as our own endpoint lists it; None where the service lists none."""
    response = client.get(f"{target.base_url.rstrip('/')}/models")
    if not response.is_success:
        return None
    try:
        listed = {entry["id"]: entry.get("weights_sha256") for entry in response.json()["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    found = listed.get(target.model)
    return found if isinstance(found, str) else None


def _ask(client: httpx.Client, target: Target, place: int) -> Served:
    """The likeliest next tokens of one prompt. ServingError where the service refuses or names none."""
    body: dict[str, Any] = {
        "model": target.model,
        "messages": list(CANARIES[place]),
        "temperature": 1,
        "max_tokens": 1,
        "seed": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    if target.fields == "vllm":
        body["return_tokens_as_token_ids"] = True
    response = client.post(f"{target.base_url.rstrip('/')}/chat/completions", json=body)
    if not response.is_success:
        raise ServingError(f"it answered {response.status_code}: {' '.join(response.text.split())[:300]}")
    try:
        content = response.json()["choices"][0]["logprobs"]["content"][0]
        entries = [*content["top_logprobs"], content]
        named = [(str(entry["token"]), float(entry["logprob"])) for entry in entries]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServingError(f"it answered without log-probabilities ({type(error).__name__}: {error}).") from None
    if len(named) < 2:
        raise ServingError("it names no likeliest tokens (top_logprobs).")
    return _named(named)


def _named(entries: list[tuple[str, float]]) -> Served:
    """By token id where each entry says one, else by text; the last entry is what was sampled."""
    ids = [text.removeprefix(TOKEN_ID) for text, _ in entries]
    by_id = all(
        text.startswith(TOKEN_ID) and number.isdecimal() for (text, _), number in zip(entries, ids, strict=True)
    )
    names: list[Name] = [int(number) for number in ids] if by_id else [text for text, _ in entries]
    told = dict(zip(names, (value for _, value in entries), strict=True))
    return Served(told, names[-1])
