"""What the endpoint refuses and why, in the shape of OpenAI's errors."""

from typing import Any

from babylon_rl.errors import ServingError


class Refused(ServingError):
    """A request that is not answered. `status`: of HTTP; `code` and `param` as OpenAI's clients read them."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.headers: dict[str, str] = {}


class UnknownModel(Refused):
    """No such model is loaded."""

    status, code = 404, "model_not_found"


class TooLarge(Refused):
    """The body is larger than the endpoint takes."""

    status, code = 413, "request_too_large"


class Busy(Refused):
    """As many calls wait as may; ask again after so many seconds."""

    status, type, code = 429, "rate_limit_error", "queue_full"

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, round(seconds)))}


class Failed(Refused):
    """The model failed on a call."""

    status, type, code = 500, "server_error", "model_failed"


class NotReady(Refused):
    """The endpoint is starting, ending, or has no loop that answers."""

    status, type, code = 503, "server_error", "not_ready"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": "1"}


def error_body(error: Exception) -> dict[str, Any]:
    """The error as OpenAI's clients read it."""
    refused = error if isinstance(error, Refused) else None
    code = refused.code if refused else None
    if code is None and str(error).startswith("context_length_exceeded"):
        code = "context_length_exceeded"
    return {
        "error": {
            "message": str(error),
            "type": refused.type if refused else Refused.type,
            "param": refused.param if refused else None,
            "code": code,
        }
    }
