"""Exceptions: one class for each status of the C ABI, beside the built-in that it resembles."""


class OctavoError(Exception):
    """Something refused the call; the message names the thing, then expected and actual.

    Attributes:
        status: "invalid argument", "not found", "corrupt", "unsupported", "exhausted",
            "unavailable", "cancelled" or "internal".
    """

    status = "internal"


class InvalidArgumentError(OctavoError, ValueError):
    """The caller's input is wrong; the same call cannot succeed."""

    status = "invalid argument"


class NotFoundError(OctavoError, LookupError):
    """A named thing does not exist."""

    status = "not found"


class CorruptError(OctavoError, ValueError):
    """A file or a reply breaks its own format."""

    status = "corrupt"


class UnsupportedError(OctavoError, NotImplementedError):
    """Well formed, but not built here."""

    status = "unsupported"


class ExhaustedError(OctavoError, MemoryError):
    """Memory, or another bound, is used up."""

    status = "exhausted"


class UnavailableError(OctavoError, ConnectionError):
    """Try again later: a server is busy, or away."""

    status = "unavailable"


class CancelledError(OctavoError):
    """The operator of a server stopped it."""

    status = "cancelled"


_CLASSES = {cls.status: cls for cls in (InvalidArgumentError, NotFoundError, CorruptError,
                                        UnsupportedError, ExhaustedError, UnavailableError,
                                        CancelledError)}


def make_error(status: str, message: str) -> OctavoError:
    """The exception for a status of the C ABI; octavo._core calls it."""
    return _CLASSES.get(status, OctavoError)(message)
