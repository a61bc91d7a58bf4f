"""A TCP proxy between an HTTP client and a server that breaks what passes through it, at a message
and a byte that the test names.

    with FaultyProxy(server.host, server.port) as proxy:
        proxy.plan(Fault("drop", "/update/put", nth=2, where="reply"))
        run("push", DENSE, "--to", proxy.url)
        assert proxy.struck == 1

It frames HTTP/1.1 (Content-Length and chunks) just so far that it can count messages; a connection
carries one exchange after the other. Requests are counted over all connections, in the order in
which their heads came. Standard library alone.
"""

import dataclasses
import socket
import struct
import threading
import time
import typing

PIECE_BYTES = 1 << 16
KINDS = ("drop", "stall", "corrupt", "duplicate", "kill")


@dataclasses.dataclass
class Fault:
    """One thing that goes wrong.

    kind       drop: both connections are reset, at that byte
               stall: nothing passes for `seconds`; then it goes on, or is reset when `then_drop`
               corrupt: the byte's lowest bit is flipped (`mask` says which bits)
               duplicate: the server gets the whole request once more, over a connection of its
                          own; after `after` further requests have been answered
               kill: `action` is called, then as drop
    request    which request: its number from 0, or a part of its request line; None: any
    nth        of those that match, the first to be struck, from 0
    where      request or reply
    byte       in the message, its head included: from 0; negative from its end; or "body" (the
               first byte of the body), "middle" (of the body), "end" (after the last byte)
    times      how many requests are struck, one after the other; None: all
    """

    kind: str
    request: typing.Union[int, str, None] = None
    nth: int = 0
    where: str = "request"
    byte: typing.Union[int, str] = 0
    times: typing.Optional[int] = 1
    seconds: float = 1.0
    then_drop: bool = False
    mask: int = 1
    after: int = 0
    action: typing.Optional[typing.Callable[[], None]] = None
    matched: int = 0  # Requests that matched so far.

    def __post_init__(self):
        if self.kind not in KINDS or self.where not in ("request", "reply"):
            raise ValueError(f"no such fault: {self}")

    def strikes(self, index, line):
        """Counts; called once a request."""
        if isinstance(self.request, int) and self.request != index:
            return False
        if isinstance(self.request, str) and self.request not in line:
            return False
        self.matched += 1
        struck = self.matched - 1 - self.nth
        return struck >= 0 and (self.times is None or struck < self.times)

    def position(self, head_bytes, body_bytes):
        total = head_bytes + body_bytes
        if self.byte == "end":
            return total
        if self.byte == "body":
            return head_bytes
        if self.byte == "middle":
            return head_bytes + body_bytes // 2
        return min(self.byte, total) if self.byte >= 0 else max(total + self.byte, 0)


class Broken(Exception):
    """This exchange is over, by a fault or because a peer has gone."""


class Source:
    """A socket that is read by heads and counts."""

    def __init__(self, sock):
        self.sock = sock
        self.kept = b""

    def read(self, count):
        """At most `count` bytes, at least one."""
        if not self.kept:
            try:
                self.kept = self.sock.recv(PIECE_BYTES)
            except OSError as error:
                raise Broken from error
            if not self.kept:
                raise Broken
        piece, self.kept = self.kept[:count], self.kept[count:]
        return piece

    def read_until(self, mark):
        data = b""
        while mark not in data:
            data += self.read(PIECE_BYTES)
        end = data.index(mark) + len(mark)
        self.kept = data[end:] + self.kept
        return data[:end]


def reset(sock):
    """Closes so that the peer sees a reset, not an end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    except OSError:
        pass


def headers_of(head):
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            fields[name.strip().lower()] = value.strip().lower()
    return fields


class FaultyProxy:
    """Use as a context manager. `url` is what the client is given."""

    def __init__(self, host, port):
        self.upstream = (host, int(port))
        self.requests = []  # The request lines that came.
        self.struck = 0     # Faults that happened.
        self.answered = 0   # Requests whose reply has passed.
        self.faults = []
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.sockets = set()
        self.closing = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def plan(self, *faults):
        """From now on these faults, with fresh counts."""
        with self.lock:
            self.faults = list(faults)
            self.requests, self.struck, self.answered = [], 0, 0

    def close(self):
        with self.changed:
            self.closing = True
            self.changed.notify_all()
            sockets = list(self.sockets)
        for sock in (self.listener, *sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    # --- One connection a thread ---

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = None
        try:
            server = socket.create_connection(self.upstream, 10)
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.sockets |= {client, server}
            ends = Source(client), Source(server)
            while self._exchange(*ends):
                pass
        except (Broken, OSError):
            pass
        finally:
            with self.lock:
                self.sockets -= {client, server}
            for sock in (client, server):
                if sock is not None:
                    sock.close()

    def _exchange(self, client, server):
        """One request and its reply; whether the connections go on."""
        head = client.read_until(b"\r\n\r\n")
        line = head.split(b"\r\n")[0].decode(errors="replace")
        with self.lock:
            index = len(self.requests)
            self.requests.append(line)
            faults = [fault for fault in self.faults if fault.strikes(index, line)]
        fields = headers_of(head)
        copy = bytearray() if any(fault.kind == "duplicate" for fault in faults) else None
        try:
            self._pass(client, server.sock, head, int(fields.get(b"content-length", 0)), faults,
                       "request", copy)
        except BrokenPipeError:
            pass  # It has answered already, and wants no more of the body.
        reply = server.read_until(b"\r\n\r\n")
        fields_of_reply = headers_of(reply)
        if fields_of_reply.get(b"transfer-encoding") == b"chunked":
            self._pass_chunks(server, client.sock, reply, faults)
        else:
            self._pass(server, client.sock, reply, int(fields_of_reply.get(b"content-length", 0)),
                       faults, "reply", None)
        with self.changed:
            self.answered += 1
            self.changed.notify_all()
        for fault in faults:
            if fault.kind == "duplicate":
                self._count()
                threading.Thread(target=self._duplicate, args=(bytes(copy), fault.after),
                                 daemon=True).start()
        return b"close" not in (fields.get(b"connection"), fields_of_reply.get(b"connection"))

    def _count(self):
        with self.lock:
            self.struck += 1

    def _pass(self, source, sink, head, body_bytes, faults, where, copy):
        """A message of known length, broken where it is planned."""
        points = sorted(((fault.position(len(head), body_bytes), fault) for fault in faults
                         if fault.where == where and fault.kind != "duplicate"),
                        key=lambda point: point[0])
        done, pending, total = 0, head, len(head) + body_bytes
        while True:
            while points and points[0][0] == done:
                fault = points.pop(0)[1]
                if fault.kind == "corrupt" and done < total:
                    if not pending:
                        pending = source.read(total - done)
                    pending = bytes([pending[0] ^ fault.mask]) + pending[1:]
                    self._count()
                elif fault.kind != "corrupt":
                    self._break(fault, source.sock, sink)
            if done == total:
                return
            if not pending:
                pending = source.read(total - done)
            count = min(len(pending), points[0][0] - done if points else total)
            sink.sendall(pending[:count])
            if copy is not None:
                copy += pending[:count]
            pending = pending[count:]
            done += count

    def _pass_chunks(self, source, sink, head, faults):
        self._pass(source, sink, head, 0, faults, "reply", None)
        while True:
            size = source.read_until(b"\r\n")
            self._pass(source, sink, size, int(size.split(b";")[0], 16) + 2, [], "reply", None)
            if int(size.split(b";")[0], 16) == 0:
                return

    def _break(self, fault, *sockets):
        self._count()
        if fault.kind == "stall":
            with self.changed:
                self.changed.wait_for(lambda: self.closing, fault.seconds)
            if not fault.then_drop:
                return
        if fault.kind == "kill":
            fault.action()
        for sock in sockets:
            reset(sock)
        raise Broken

    def _duplicate(self, request, after):
        with self.changed:
            wanted = self.answered + after
            self.changed.wait_for(lambda: self.closing or self.answered >= wanted, 60)
        try:
            with socket.create_connection(self.upstream, 10) as sock:
                sock.sendall(request)
                source = Source(sock)
                head = source.read_until(b"\r\n\r\n")
                left = int(headers_of(head).get(b"content-length", 0))
                while left > 0:
                    left -= len(source.read(left))
        except (Broken, OSError):
            pass


def wait_until(condition, seconds=30):
    """Whether `condition()` came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
