"""What goes over ASGI by hand: a request's body in, an answer out."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from babylon_rl.serving.gateway.refusals import Refused, invalid

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


async def read_request(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes | None:
    """The request's body; None where the caller went away before it was whole. Refused (413) beyond the limit."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        parts = [message.get("body", b"")]
    else:
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise _too_large(most)
            if not message.get("more_body"):
                break
            message = await receive()
    content = b"".join(parts)
    if len(content) > most:
        raise _too_large(most)
    return content


def _too_large(most: int) -> Refused:
    return invalid(f"The request's body is larger than {most / 1e6:.1f} MB, the gateway's limit.", "too_large", 413)


def check_text(content: bytes) -> None:
    """Refused (400) where the bytes are not UTF-8: they are recorded as text."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"The request's body is not UTF-8: {error}.", "invalid_json") from None


async def caller_gone(receive: Receive) -> None:
    """Until the caller has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole answer."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
