"""octavo.Client: new weights for running servers, as one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Optional, Union

from octavo import _core
from octavo._errors import InvalidArgumentError
from octavo._policy import Policy
from octavo._quantize import Threads
from octavo._tensors import as_view


class Client:
    """One or several servers that get the same weights. For one thread at a time.

    Args:
        url: "http://HOST:PORT", or several.
        api_key: The key that the servers were started with.
        connect_timeout_s: Of each connection.
        idle_timeout_s: Longest wait without a byte of progress.
    """

    def __init__(self, url: Union[str, Sequence[str]], *, api_key: Optional[str] = None,
                 connect_timeout_s: float = 10.0, idle_timeout_s: float = 600.0):
        urls = [url] if isinstance(url, str) else list(url)
        self._core = _core.Client(urls, api_key, connect_timeout_s, idle_timeout_s)

    def manifest(self) -> Policy:
        """What the servers take. Raises InvalidArgumentError when their policies differ."""
        return Policy(self._core.manifest())

    def checksum(self, pattern: Optional[str] = None) -> dict[str, Any]:
        """{"digest", "weight_version", "tensors": {name: hex}} of what is live on the first server.

        Args:
            pattern: Names to keep in "tensors", where "*" is any text. "digest" is of all.
        """
        return json.loads(self._core.checksum(pattern))

    def update(self, version: Union[str, int, None] = None, *, in_flight: str = "retract",
               staging: str = "shadow", quantize: str = "engine", bucket_bytes: int = 64 << 20,
               threads: Optional[Threads] = None) -> Update:
        """An update, to be used as a context manager: committed on a clean exit, else aborted.

            with client.update(version=3) as update:
                update.put_all(model.named_parameters())
            print(update.report["digest"])

        Args:
            version: Label of the new weights; None: the live one plus one.
            in_flight: What happens to running requests: "retract", "drain", "abort" or "in_place".
            staging: "shadow": beside the live weights; "in_place": over them, paused, no way back.
            quantize: "engine": weights are sent in BF16. "trainer": as codes and scales, by the
                engine's manifest, which is asked first; weights that share a scale wait for each
                other. What is live afterwards is the same, byte for byte.
            bucket_bytes: Of tensors in one request; the update holds one bucket.
            threads: For quantizing in the trainer.
        """
        if quantize not in ("engine", "trainer"):
            raise InvalidArgumentError(
                f"quantize: expected \"engine\" or \"trainer\", got {quantize!r}")
        label = None if version is None else str(version)
        return Update(self._core, (label, in_flight, staging, quantize == "trainer", bucket_bytes,
                                   threads))


class Update:
    """One update; `Client.update` makes it. It begins on the servers when the block is entered.

    Attributes:
        report: What `octavo push --json` prints, after the commit; None before it.
    """

    def __init__(self, client: _core.Client, args: tuple):
        self._client = client
        self._args = args
        self._core: Optional[_core.Update] = None
        self.report: Optional[dict[str, Any]] = None

    def __enter__(self) -> Update:
        self._core = _core.Update(self._client, *self._args)
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if kind is not None:
            self.abort()
        elif self._core is not None:
            self.commit()

    def put(self, name: str, tensor: Any, dtype: Optional[str] = None) -> None:
        """Sends a weight in BF16, F16 or F32 under its HF name, or one of its stored parts.

        The tensor (`octavo.as_view`) is read, never written, and not needed once this returns. A
        bucket is sent when it is full, so that an error may be that of an earlier tensor; it names
        it. After an error the update can only be aborted.

        Args:
            dtype: "BF16", "F8_E4M3", ... where the tensor's own type only says how wide it is.
        """
        self._open().put(name, as_view(tensor, dtype))

    def put_all(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """`put` for each (name, tensor): a generator, or `model.named_parameters()`.

        What fails closes the generator, so that it can tell others who feed it.
        """
        try:
            for name, tensor in tensors:
                self.put(name, tensor)
        except BaseException:
            close = getattr(tensors, "close", None)
            if close is not None:
                close()
            raise

    def seal(self) -> None:
        """Sends what is left and has every server check that nothing is missing. Optional."""
        self._open().seal()

    def commit(self) -> dict[str, Any]:
        """Makes the weights live on every server; leaving the block does it, too."""
        core, self._core = self._open(), None
        self.report = json.loads(core.commit())
        return self.report

    def abort(self) -> None:
        """Drops what was sent; the servers go on with what they have. Nothing after a commit."""
        if self._core is not None:
            core, self._core = self._core, None
            core.abort()

    def _open(self) -> _core.Update:
        if self._core is None:
            raise InvalidArgumentError("update: expected one that is open; use it in a `with` block")
        return self._core
