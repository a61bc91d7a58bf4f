"""Method: one model of the tree published as the successor of another, in the folders that slime and
miles write, and pulled by a real server; what /update_weights_from_disk then makes live is what
`octavo digest` says of the successor. Each fault of a folder once: the pulled folder keeps every
byte. Frames of zstd are written here, of blocks that are not compressed."""

import contextlib
import json
import pathlib
import struct
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, object_error
from octavo_testing import BASE, DENSE, ROOT, bucket, folder, read_safetensors

SHARD = "model-00000-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 128 << 10


def frame(data):
    """A zstd frame (RFC 8878, section 3.1.1): its size, then raw blocks."""
    out = struct.pack("<IBQ", 0xFD2FB528, 0b11100000, len(data))
    for start in range(0, max(len(data), 1), BLOCK_BYTES):
        block = data[start:start + BLOCK_BYTES]
        is_last = start + BLOCK_BYTES >= len(data)
        out += struct.pack("<I", int(is_last) | len(block) << 3)[:3] + block
    return out


def xor(old, new):
    size = len(old)
    return (int.from_bytes(old, "little") ^ int.from_bytes(new, "little")).to_bytes(size, "little")


def overwrite(old, new):
    places = [i for i, (a, b) in enumerate(zip(old, new)) if a != b]
    return struct.pack(f"<I{len(places)}I", len(places), *places) + bytes(new[i] for i in places)


def publish(source, number, old, new, encode=xor, **metadata):
    """The version that leads from the tensors `old` to `new`."""
    changed = {name: frame(encode(old[name][2], new[name][2]))
               for name in new if new[name][2] != old[name][2]}
    shard = bucket({name: ("U8", [len(data)], data) for name, data in changed.items()})
    (length,) = struct.unpack("<Q", shard[:8])
    header = json.loads(shard[8:8 + length])
    header["__metadata__"] = {name: f"{zlib.adler32(new[name][2]):08x}" for name in changed}
    text = json.dumps(header).encode()
    path = source / f"weight_v{number:06}"
    path.mkdir(parents=True, exist_ok=True)
    (path / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + shard[8 + length:])
    (path / INDEX).write_text(json.dumps({
        "metadata": {"version": f"{number:06}", "base_version": f"{number - 1:06}",
                     "delta_encoding": encode.__name__, "compression_format": "zstd",
                     "checksum_format": "adler32", **metadata},
        "weight_map": {name: SHARD for name in changed}}))
    return path


def contents(path):
    return {file.relative_to(path): file.read_bytes()
            for file in sorted(path.rglob("*")) if file.is_file()}


class PullTest(ApiTest):
    model = BASE

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        root = self.stack.enter_context(folder())
        self.source, self.local = root / "source", root / "local"
        self.source.mkdir()
        self.base, self.next = (read_safetensors(ROOT / model / "model.safetensors")
                                for model in (BASE, DENSE))

    def pull(self, version, **fields):
        return self.post("/pull_weights", {
            "local_checkpoint_dir": str(self.local), "source_dir": str(self.source),
            "target_version": version, **fields})

    def pulled(self, version):
        status, reply = self.pull(version)
        self.assertEqual((status, reply["success"]), (200, True), reply)
        return reply

    def live_digest(self, version):
        status, reply = self.post("/update_weights_from_disk", {
            "model_path": str(self.local), "weight_version": str(version)})
        self.assertEqual(status, 200, reply)
        return self.get("/octavo/v1/digest")[1]["digest"]

    def refused(self, version, *words):
        before = contents(self.local)
        status, reply = self.pull(version)
        self.assertEqual(status, 400, reply)
        self.assertEqual(set(reply), {"success", "message"})
        for word in words:
            self.assertIn(word, reply["message"])
        self.assertEqual(contents(self.local), before)


class Pulls(PullTest):
    def test_a_step_there_and_back_as_slime_makes_it(self):
        self.assertEqual(self.pulled(0)["seed_version"], 0)
        digests = [self.live_digest(0)]
        publish(self.source, 1, self.base, self.next)
        reply = self.pulled(1)
        self.assertEqual((reply["from_version"], reply["seed_version"], reply["deltas"]),
                         (0, -1, 1))
        self.post("/pause_generation", {})
        digests.append(self.live_digest(1))
        self.post("/continue_generation", {})
        publish(self.source, 2, self.next, self.base, overwrite)
        self.pulled(2)
        digests.append(self.live_digest(2))
        for digest, model in zip(digests, (BASE, DENSE, BASE)):
            self.assertIn(digest, octavo_testing.run("digest", ROOT / model).stdout)
        self.assertEqual(self.version(), "2")

    def test_a_fresh_host_takes_the_whole_chain_and_the_live_weights_stay(self):
        before = self.get("/octavo/v1/digest")[1]["digest"]
        publish(self.source, 1, self.base, self.next)
        publish(self.source, 2, self.next, self.base)
        publish(self.source, 3, self.base, self.next)
        self.assertEqual(self.pulled(3)["deltas"], 3)
        self.assertEqual(self.pulled(3)["bytes"], 0)
        self.assertEqual(self.get("/octavo/v1/digest")[1]["digest"], before)
        self.assertIn(self.live_digest(3), octavo_testing.run("digest", ROOT / DENSE).stdout)
        self.pulled(0)
        self.live_digest(0)


class Faults(PullTest):
    def test_folders(self):
        self.pulled(0)
        self.refused(1, "weight_v000001: no such version")
        for metadata, word in (
                ({"base_version": "000005"}, "builds on version 5, expected 0"),
                ({"version": "000002"}, "version: expected 1, got 2"),
                ({"delta_encoding": "sub"}, "delta_encoding"),
                ({"compression_format": "lz4"}, "compression_format"),
                ({"checksum_format": "md5"}, "checksum_format")):
            publish(self.source, 1, self.base, self.next, **metadata)
            self.refused(1, word)
        path = publish(self.source, 1, self.base, self.next)
        good = (path / SHARD).read_bytes()
        (path / SHARD).unlink()
        self.refused(1, SHARD)
        (path / SHARD).write_bytes(good[:-5])
        self.refused(1, SHARD)
        (path / SHARD).write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
        self.refused(1, "weight_v000001", "checksum: expected")
        (path / SHARD).write_bytes(good)
        self.pulled(1)
        self.assertIn(self.live_digest(1), octavo_testing.run("digest", ROOT / DENSE).stdout)

    def test_bodies(self):
        for body, word in (({}, "local_checkpoint_dir"),
                           ({"local_checkpoint_dir": "a"}, "source_dir"),
                           ({"local_checkpoint_dir": "a", "source_dir": "b"}, "target_version")):
            status, reply = self.post("/pull_weights", body)
            object_error(self, status, reply)
            self.assertIn(word, reply["message"])
        status, reply = self.pull(-1)
        self.assertEqual(status, 400)
        self.assertIn("expected 0 or more, got -1", reply["message"])
        status, reply = self.pull(1, local_checkpoint_dir=str(ROOT / BASE))
        self.assertEqual(status, 400)
        self.assertIn("is also read from", reply["message"])


class BelowARoot(PullTest):
    flags = ("--model-root", str(ROOT / "models"))

    def test_paths_outside_are_refused(self):
        status, reply = self.pull(0)
        self.assertEqual(status, 400)
        self.assertIn("local_checkpoint_dir", reply["message"])
        self.assertFalse(self.local.exists())


if __name__ == "__main__":
    octavo_testing.main()
