"""Rank 0 of an update group, as a trainer is, without torch: a TCPStore and the loopback's sender.

The wires are those of octavo/sync/tcp_store_client.h and octavo/sync/loopback_collective.h.
"""

import socket
import struct
import threading

MAGIC = 0x3C85F7CE
HELLO = 0x31424C4F
ACCEPTED, WORLD_SIZE_DIFFERS, NO_SUCH_RANK, RANK_TAKEN = range(4)
JOINED, READY, BROADCAST, ABORT = range(1, 5)


class Peer:
    """A listener with a thread a connection, closed with everything that it accepted."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                accepted, _ = self.listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(accepted)
            threading.Thread(target=self._guard, args=(accepted,), daemon=True).start()

    def _guard(self, accepted):
        try:
            self.serve(accepted)
        except (OSError, EOFError):
            pass

    def serve(self, accepted):
        raise NotImplementedError

    def close(self):
        for one in [self.listener, *self.sockets]:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()


def read(source, size):
    """Exactly `size` bytes."""
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def is_gone(peer):
    """Whether a peer that never sends has closed its connection."""
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def unpack(source, layout):
    (value,) = struct.unpack("<" + layout, read(source, struct.calcsize("<" + layout)))
    return value


def blob(source):
    return read(source, unpack(source, "Q"))


class Store(Peer):
    """As much of a TCPStore as a rank that joins asks for."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()
        super().__init__()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def serve(self, accepted):
        while True:
            kind = unpack(accepted, "B")
            if kind == 0:
                if unpack(accepted, "I") != MAGIC:
                    return
            elif kind == 13:
                accepted.sendall(read(accepted, 4))
            elif kind == 4:
                key, amount = blob(accepted), unpack(accepted, "q")
                with self.changed:
                    total = int(self.values.get(key, b"0")) + amount
                    self.values[key] = str(total).encode()
                accepted.sendall(struct.pack("<q", total))
            elif kind == 6:
                keys = [blob(accepted) for _ in range(unpack(accepted, "Q"))]
                with self.changed:
                    self.changed.wait_for(lambda: all(key in self.values for key in keys))
                accepted.sendall(b"\0")
            elif kind == 3:
                value = self.values[blob(accepted)]
                accepted.sendall(struct.pack("<Q", len(value)) + value)
            else:
                raise AssertionError(f"query {kind}")


class Trainer(Peer):
    """Rank 0 of a group with one store of its own; `send` broadcasts to all ranks."""

    def __init__(self, group, world_size=2):
        self.group = group
        self.world_size = world_size
        self.ranks = {}
        self.full = threading.Condition()
        super().__init__()
        self.store = Store()
        self.store.set(f"/{group}/{group}//loopback//0".encode(),
                       f"127.0.0.1:{self.port}".encode())

    def serve(self, accepted):
        magic, rank, world_size = struct.unpack("<III", read(accepted, 12))
        with self.full:
            if magic != HELLO:
                return
            if world_size != self.world_size:
                answer = WORLD_SIZE_DIFFERS
            elif not 0 < rank < world_size:
                answer = NO_SUCH_RANK
            else:
                known = self.ranks.get(rank)
                answer = ACCEPTED if known is None or is_gone(known) else RANK_TAKEN
            accepted.sendall(struct.pack("<BI", answer, self.world_size))
            if answer != ACCEPTED:
                accepted.shutdown(socket.SHUT_RDWR)
                return
            self.ranks[rank] = accepted
            for one in self.ranks.values():
                one.sendall(b"".join(struct.pack("<BI", JOINED, r) for r in self.ranks))
            if len(self.ranks) == self.world_size - 1:
                for one in self.ranks.values():
                    one.sendall(struct.pack("<B", READY))
                self.full.notify_all()

    def raw(self, data):
        """Sends bytes as they are to every rank, once all have joined."""
        with self.full:
            self.full.wait_for(lambda: len(self.ranks) == self.world_size - 1)
            for one in self.ranks.values():
                one.sendall(data)

    def send(self, data):
        self.raw(struct.pack("<BQ", BROADCAST, len(data)) + data)

    def close(self):
        super().close()
        self.store.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
