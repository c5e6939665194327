"""The errors that a caller of the gateway gets, in OpenAI's shape, each with what to do about it."""

import msgspec


class Refused(Exception):
    """A call that is answered with an error. `kind`, `code`: OpenAI's `type` and `code`; `retry_after`: seconds."""

    def __init__(
        self, status: int, message: str, kind: str, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after

    def body(self) -> bytes:
        """`{"error": {"message", "type", "code"}}`."""
        return msgspec.json.encode({"error": {"message": str(self), "type": self.kind, "code": self.code}})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer, lower case."""
        found = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            found.append((b"retry-after", str(max(1, int(self.retry_after + 0.999))).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def invalid(message: str, code: str | None = None, status: int = 400) -> Refused:
    """The request cannot be understood or taken as it is."""
    return Refused(status, message, "invalid_request_error", code)


def unauthenticated(message: str) -> Refused:
    """No valid key was given."""
    return Refused(401, message, "authentication_error", "invalid_api_key")


def forbidden(message: str, code: str) -> Refused:
    """The key may not do this."""
    return Refused(403, message, "permission_error", code)


def too_many(message: str, code: str, retry_after: float) -> Refused:
    """The refusal of a call beyond a limit."""
    return Refused(429, f"{message} Ask again in {retry_after:.1f} s.", "rate_limit_error", code, retry_after)


def unavailable(message: str, code: str, status: int = 503) -> Refused:
    """Nothing can answer now."""
    return Refused(status, message, "server_error", code)
