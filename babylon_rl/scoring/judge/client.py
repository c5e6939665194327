"""Asking a judge: one OpenAI-compatible endpoint, by the real client, with what goes wrong told by name.

Retries, their backoff and `Retry-After` are the client's own; pauses between requests and the limit of calls at a time
are ours. The key goes into requests and nowhere else.
"""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from babylon_rl.errors import ScoringError, SettingsError
from babylon_rl.settings import Settings

if TYPE_CHECKING:
    import ssl

    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
RETRIES = 4  # after 429, 5xx, a timeout or a lost connection; 0.5, 1, 2 and 4 seconds, or what the endpoint asks for
NO_KEY = "none"  # what an endpoint without keys is sent
LONGEST_SAID = 300  # letters of an endpoint's own words


class Trouble(StrEnum):
    """What went wrong between us and the judge."""

    NOT_REACHABLE = "not_reachable"
    LATE = "late"
    KEY_REFUSED = "key_refused"
    UNKNOWN_MODEL = "unknown_model"
    REQUEST_REFUSED = "request_refused"
    STILL_FAILING = "still_failing"
    CUT_OFF = "cut_off"


class JudgeError(ScoringError):
    """The judge did not answer, with the name of the trouble."""

    def __init__(self, trouble: Trouble, said: str) -> None:
        super().__init__(f"The judge did not answer ({trouble}): {said}")
        self.trouble = trouble


class JudgeUnusable(JudgeError, SettingsError):
    """No window can be judged with these settings: the key or the model is refused."""


class Reply(NamedTuple):
    """What a judge wrote, and the tokens that it took (None where nobody says). `cut_off`: at its limit."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut_off: bool


class Pace:
    """Moments of requests, spread evenly so that there are at most so many a minute."""

    def __init__(self, per_minute: int) -> None:
        self._gap, self._next = 60 / per_minute, 0.0

    def delay(self, now: float) -> float:
        """Seconds that the request which is asked for `now` has to wait."""
        moment = max(now, self._next)
        self._next = moment + self._gap
        return moment - now


class JudgeClient:
    """One judge: an endpoint and a model. SettingsError where the settings name no model.

    `base_url`: without secrets, as it may be told.
    """

    def __init__(self, settings: Settings, retries: int = RETRIES) -> None:
        if not settings.judge_model:
            raise SettingsError(
                "No judge is named. Set JUDGE_MODEL to a model of OpenAI, or set JUDGE_BASE_URL as well for another "
                "OpenAI-compatible endpoint (and JUDGE_API_KEY where it needs one), or take BABYLON_RL_SCORER=alpha."
            )
        self.model, self._url = settings.judge_model, settings.judge_base_url or OPENAI
        self.base_url = _without_secrets(self._url)
        self._key = _key(settings)
        self._timeout, self._retries = settings.judge_timeout, retries
        self._concurrency = settings.judge_concurrency
        self._pace = Pace(settings.judge_requests_per_minute)
        self._down: JudgeError | None = None
        self._not_taken: set[str] = set()
        self._client: AsyncOpenAI | None = None
        self._room = asyncio.Semaphore(self._concurrency)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """The connections of one event loop: `ask` is for inside."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Omit, OpenAIError

        async def paced(request: object) -> None:
            await asyncio.sleep(self._pace.delay(time.monotonic()))

        # The organization is one at OpenAI, and no other endpoint's business.
        foreign: Any = {} if self._url == OPENAI else {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        self._room = asyncio.Semaphore(self._concurrency)
        connections = DefaultAsyncHttpxClient(verify=_certificates(), event_hooks={"request": [paced]})
        async with connections:
            try:
                self._client = AsyncOpenAI(
                    api_key=self._key.get_secret_value() if self._key else None,
                    base_url=self._url,
                    timeout=self._timeout,
                    max_retries=self._retries,
                    http_client=connections,
                    default_headers=foreign,
                )
            except OpenAIError:
                raise SettingsError(
                    "The judge has no key. Set JUDGE_API_KEY, or JUDGE_BASE_URL to an endpoint that needs none."
                ) from None
            yield

    async def ask(self, prompt: str, seed: int, max_tokens: int, choices: Sequence[str] | None = None) -> Reply:
        """The judge's answer, at temperature 0 where it takes one. `choices`: the endpoint lets it answer nothing else.

        JudgeError where there is none. What could not be reached at all is not tried again by this client.
        """
        import openai

        async with self._room:
            if self._down is not None:
                raise self._down
            assert self._client is not None, "ask inside of opened()"
            extra = {"structured_outputs": {"choice": list(choices)}} if choices else None
            try:
                answer = await self._create(prompt, max_tokens, extra, {"temperature": 0, "seed": seed})
            except json.JSONDecodeError:
                return Reply("", None, None, False)
            except openai.OpenAIError as error:
                told = self._told(error)
                if told.trouble is Trouble.NOT_REACHABLE:
                    self._down = told
                raise told from None
        return _reply(answer)

    async def _create(self, prompt: str, max_tokens: int, extra: Any, sampling: dict[str, int]) -> Any:
        """The endpoint's answer, without those settings of sampling that the model does not take."""
        import openai

        assert self._client is not None
        taken = {name: value for name, value in sampling.items() if name not in self._not_taken}
        try:
            return await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_completion_tokens=max_tokens,
                extra_body=extra,
                **taken,  # type: ignore[call-overload]
            )
        except openai.BadRequestError as error:
            # Models that think before they answer refuse a temperature. How far they repeat themselves is measured.
            refused = {name for name in taken if name in str(error)}
            if not refused:
                raise
            self._not_taken |= refused
            return await self._create(prompt, max_tokens, extra, sampling)

    def _told(self, error: Exception) -> JudgeError:
        """The client's error by its name, with what mends it."""
        import openai

        where, after = f"{self.model} at {self.base_url}", f"after {self._retries} retries"
        match error:
            case openai.APITimeoutError():
                said = f"{where} took longer than {self._timeout:g} s, also {after}. Raise BABYLON_RL_JUDGE_TIMEOUT."
                return JudgeError(Trouble.LATE, said)
            case openai.APIConnectionError():
                said = f"nothing answers at {self.base_url}, also {after}. Check JUDGE_BASE_URL, and that it runs."
                return JudgeError(Trouble.NOT_REACHABLE, said)
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                said = f"{self.base_url} refuses the key ({error.status_code}). Set JUDGE_API_KEY to one that it takes."
                return JudgeUnusable(Trouble.KEY_REFUSED, said)
            case openai.NotFoundError():
                said = (
                    f"{self.base_url} knows no model {self.model!r}, or is no such endpoint (404). Check JUDGE_MODEL "
                )
                return JudgeUnusable(Trouble.UNKNOWN_MODEL, said + "and JUDGE_BASE_URL, which ends in /v1.")
            case openai.APIStatusError() if error.status_code == 429 or error.status_code >= 500:
                said = f"{where} still fails {after} ({error.status_code}: {self._words(error)}). Try again later, or "
                lower = "lower BABYLON_RL_JUDGE_REQUESTS_PER_MINUTE and BABYLON_RL_JUDGE_CONCURRENCY."
                return JudgeError(Trouble.STILL_FAILING, said + lower)
            case openai.APIStatusError():
                said = f"{where} refuses the request ({error.status_code}: {self._words(error)})."
                return JudgeError(Trouble.REQUEST_REFUSED, said)
        return JudgeError(Trouble.REQUEST_REFUSED, f"{where}: {type(error).__name__}: {self._words(error)}.")

    def _words(self, error: Exception) -> str:
        """The endpoint's own words, short and without the key, whoever repeats it."""
        body = getattr(error, "body", None)
        told = body.get("message") if isinstance(body, dict) else None
        said = " ".join(str(told or error).split())
        key = self._key.get_secret_value() if self._key else ""
        return (said.replace(key, "***") if len(key) > len(NO_KEY) else said)[:LONGEST_SAID]


def _key(settings: Settings) -> SecretStr | None:
    """The key that is sent; None: the client takes OPENAI_API_KEY, which is for OpenAI's own endpoint alone."""
    named = settings.judge_api_key
    if named and named.get_secret_value():
        return named
    return SecretStr(NO_KEY) if settings.judge_base_url else None


def _without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _reply(answer: Any) -> Reply:
    """What the answer says; an endpoint that answers something else than a completion has said nothing."""
    choices = getattr(answer, "choices", None) or []
    usage = getattr(answer, "usage", None)
    message = choices[0].message if choices else None
    return Reply(
        text=(getattr(message, "content", None) or "") if message else "",
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
        cut_off=bool(choices) and choices[0].finish_reason == "length",
    )


@functools.cache
def _certificates() -> "ssl.SSLContext":
    """Reading the certificates takes longer than asking a judge on this machine."""
    import httpx

    return httpx.create_ssl_context()
