"""Asking an upstream. A request that it may have sampled is not sent twice: only a failed connection is tried again."""

import asyncio
import logging
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from babylon_rl.serving.gateway.refusals import Refused, unavailable
from babylon_rl.serving.routing import Target

PAUSES = (0.1, 0.3, 1.0)  # seconds before each further attempt to connect
CONNECT_SECONDS = 5.0
KEEP_SECONDS = 3.0  # shorter than servers keep idle connections (uvicorn: 5 s), so that none is closed under a request
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
UPSTREAM = "upstream"  # the name of the key in a Target

log = logging.getLogger(__name__)

# What of an answer's headers is the caller's concern; the rest belongs to the connection.
_PASSED = {"retry-after", "cache-control"}
_PASSED_STARTS = ("x-", "openai-")


class Upstreams:
    """Connections to upstreams, kept between calls. `key`: sent to those that want one, and never said."""

    def __init__(self, timeout: float, key: str | None) -> None:
        self.timeout, self._key = timeout, key
        self._urls: dict[tuple[str, str], URL] = {}
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def open(self) -> None:
        """Make the pools, within the running loop."""
        for outside in (False, True):
            self._sessions[outside] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS),
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Content-Type": "application/json", "User-Agent": "babylon-rl-gateway"},
                skip_auto_headers=("Accept-Encoding",),  # compressing what stays on a machine costs more than it saves
                trust_env=outside,  # a proxy of the environment is not asked for what runs on this machine
            )

    async def close(self) -> None:
        """Close what is idle and what is not."""
        for session in self._sessions.values():
            await session.close()

    async def ask(self, target: Target, path: str, body: bytes, call_id: str) -> aiohttp.ClientResponse:
        """The answer's head; its body is the caller's to read and release. Refused (502, 504) where there is none."""
        url = self._urls.get((target.base_url, path))
        if url is None:
            url = self._urls[target.base_url, path] = URL(target.base_url.rstrip("/") + path)
        session = self._sessions[urlsplit(target.base_url).hostname not in LOOPBACK]
        headers = {"X-Request-Id": call_id}
        if target.key_name is not None:
            headers["Authorization"] = f"Bearer {self._key_of(target)}"
        for pause in (*PAUSES, None):
            try:
                return await session.post(url, data=body, headers=headers, allow_redirects=False)
            except Exception as error:
                if pause is None or not _never_sent(error):
                    raise said(error, target) from error
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _key_of(self, target: Target) -> str:
        if target.key_name != UPSTREAM or not self._key:
            raise unavailable(
                f"{target.base_url} wants the key {target.key_name!r}, which this gateway does not have. Set "
                "BABYLON_RL_UPSTREAM_KEY and start it again.",
                "upstream_key_missing",
            )
        return self._key


def _never_sent(error: Exception) -> bool:
    """Whether no connection was made, and another attempt may make one."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return False
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def said(error: Exception, target: Target) -> Refused:
    """What the caller is told of a call that the upstream did not answer; an error of ours is raised as it is."""
    what = f"{target.base_url} ({target.model})"
    if isinstance(error, Refused):
        return error
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return unavailable(
            f"The upstream {what} cannot be reached after {len(PAUSES) + 1} attempts: {_short(error)}. The call was "
            "not sent; ask again. Start the upstream, or correct its address (`babylon-rl serve` says what is served).",
            "upstream_unreachable",
            502,
        )
    if isinstance(error, TimeoutError):
        return unavailable(
            f"The upstream {what} did not answer in time. The call may have been sampled, so it was not sent again; "
            "ask again, or raise BABYLON_RL_UPSTREAM_TIMEOUT.",
            "upstream_timeout",
            504,
        )
    if isinstance(error, aiohttp.ClientError | OSError):
        return unavailable(
            f"The upstream {what} broke off: {_short(error)}. The call may have been sampled, so it was not sent "
            "again; ask again.",
            "upstream_broke_off",
            502,
        )
    raise error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def passed_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """Headers that the caller gets as the upstream sent them, such as Retry-After and limits that it names."""
    found = []
    for name, value in response.raw_headers:
        lower = name.lower().decode("latin-1")
        passes = lower in _PASSED or lower.startswith(_PASSED_STARTS)
        if passes and not lower.startswith("x-babylon-") and lower != "x-request-id":
            found.append((lower.encode("latin-1"), value))
    return found
