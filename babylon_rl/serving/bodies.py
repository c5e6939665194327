"""Reading the body of a request, up to a size."""

import json
from typing import Any

from starlette.requests import Request

from babylon_rl.serving.refusals import Refused, TooLarge

MOST_BYTES = 8 * 1024**2


async def read_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. TooLarge beyond `MOST_BYTES`, Refused where it is none."""
    given = request.headers.get("content-length", "")
    if given.isdecimal() and int(given) > MOST_BYTES:
        raise TooLarge(f"The request's body has {given} bytes; the endpoint takes {MOST_BYTES}.")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise TooLarge(f"The request's body is larger than the {MOST_BYTES} bytes that the endpoint takes.")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        raise Refused("The request's body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused("The request's body is not a JSON object.")
    return body
