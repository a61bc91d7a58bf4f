"""Method: `octavo push` and a client of the standard library send weights to real servers, through a
proxy that breaks the connection at one message after the other, and with tensors that are larger than
a request may be. What is live afterwards is what `octavo convert` writes, digest for digest, or what
was live before."""

import pathlib
import shutil
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ONE_THREAD, ApiTest
from faulty_proxy import Fault, FaultyProxy
from octavo_testing import (BASE, DENSE, ROOT, Server, bucket, folder, read_safetensors, run,
                            run_json)

FP8 = ("--format", "fp8", "--keep-last", "2")
BODY_BYTES = 220 << 10  # Less than a matrix of an MLP, more than 128 of its rows.
UP = "model.layers.1.mlp.up_proj.weight"  # BF16 [768, 256]
PUT = "/octavo/v1/update/put"


def offline_digest(source, *policy):
    with folder() as work:
        run("convert", source, work / "out", *policy)
        return run_json("digest", work / "out")["digest"]


def with_checksums(tensors, kind, checksum):
    """A bucket with the checksum of each tensor: a whole safetensors file of `bucket`, and
    __metadata__ in front of its header."""
    whole = bucket(tensors)
    length = int.from_bytes(whole[:8], "little")
    sums = ",".join(f'"{kind}:{name}":"{checksum(tensor[2])}"' for name, tensor in tensors.items())
    header = b'{"__metadata__":{' + sums.encode() + b"}," + whole[9:8 + length]
    return len(header).to_bytes(8, "little") + header + whole[8 + length:]


class LargeTensors(octavo_testing.unittest.TestCase):
    def test_what_no_request_holds_goes_in_rows(self):
        for policy in (FP8, ("--format", "nvfp4"), ("--format", "nvfp4", "--scope", "all")):
            expected = offline_digest(DENSE, *policy)
            with Server(BASE, *policy, *ONE_THREAD, "--max-body-bytes", BODY_BYTES) as server:
                refused = server.call("POST", f"{PUT}?update_id=a&sequence=0", bytes(BODY_BYTES + 1))
                self.assertEqual(refused[0], 413)
                report = run_json("push", DENSE, "--to", server.url)
                self.assertEqual(report["digest"], expected, policy)
                self.assertEqual(report["servers"][0]["carried_over"], 0)
                stored = run_json("push", DENSE, "--to", server.url, "--staging", "in_place")
                self.assertEqual(stored["digest"], expected, policy)

    def test_stored_parts_go_in_rows_too(self):
        with folder() as work:
            run("convert", DENSE, work / "out", "--format", "fp8")
            expected = run_json("digest", work / "out")["digest"]
            with Server(BASE, "--format", "fp8", *ONE_THREAD,
                        "--max-body-bytes", BODY_BYTES // 2) as server:
                report = run_json("push", work / "out", "--to", server.url)
                self.assertEqual(report["digest"], expected)

    def test_a_tensor_that_no_rows_make_small_enough_is_named(self):
        with Server(BASE, *ONE_THREAD, "--max-body-bytes", 64 << 10) as server:
            failed = run("push", DENSE, "--to", server.url, check=False)
            self.assertNotEqual(failed.returncode, 0)
            self.assertIn("--max-body-bytes", failed.stderr)
            self.assertIn("model.", failed.stderr)
            self.assertFalse(server.call("GET", "/octavo/v1/update")[1]["open"])


class Stream(ApiTest):
    model = BASE
    flags = FP8

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tensors = read_safetensors(ROOT / DENSE / "model.safetensors")
        cls.digests = {source: offline_digest(source, *FP8) for source in (BASE, DENSE)}

    def tearDown(self):
        super().tearDown()
        status = self.get("/octavo/v1/update")[1]
        if status["open"]:
            self.native("abort", update_id=status["update_id"])

    def native(self, call, **body):
        return self.post("/octavo/v1/update/" + call, body)

    def begin(self, **body):
        status, reply = self.native("begin", **body)
        self.assertEqual(status, 200, reply)
        return reply["update_id"]

    def put(self, update, body, sequence, query=""):
        return self.post(f"{PUT}?update_id={update}&sequence={sequence}{query}", body)

    def digest(self):
        return self.get("/octavo/v1/digest")[1]["digest"]

    def refused(self, status, reply, code, text):
        self.assertEqual(status, code, reply)
        self.assertIn(text, reply["message"])


class BrokenConnections(Stream):
    def push_through(self, *faults, flags=(), check=True):
        """Pushes the model that is not live through a proxy with these faults."""
        source = DENSE if self.digest() == self.digests[BASE] else BASE
        with FaultyProxy(self.server.host, self.server.port) as proxy:
            proxy.plan(*faults)
            done = run("push", source, "--to", proxy.url, "--bucket-mb", 4, *flags, check=check)
            return source, proxy, done

    def assert_pushed(self, *faults, flags=()):
        version = int(self.version())
        source, proxy, _ = self.push_through(*faults, flags=flags)
        self.assertEqual(proxy.struck, len(faults), proxy.requests)
        self.assertEqual(self.digest(), self.digests[source], faults)
        self.assertEqual(int(self.version()), version + 1, faults)
        self.assertFalse(self.get("/octavo/v1/update")[1]["open"])

    def test_a_dropped_call_is_made_again_and_done_once(self):
        for request in ("/begin", PUT, "/seal", "/commit", "/digest"):
            for where, byte in (("request", 0), ("request", -1), ("request", "end"), ("reply", 0),
                                ("reply", "body")):
                with self.subTest(request=request, where=where, byte=byte):
                    self.assert_pushed(Fault("drop", request, where=where, byte=byte))

    def test_a_bucket_that_breaks_again_and_again(self):
        self.assert_pushed(*(Fault("drop", PUT, nth=n, byte="middle") for n in (1, 2, 3)),
                           Fault("drop", PUT, nth=4, where="reply", byte="middle"))

    def test_a_damaged_bucket_is_refused_and_sent_again(self):
        for byte in ("body", 2000, "middle", -1):  # Length, header and tensors.
            with self.subTest(byte=byte):
                fault = Fault("corrupt", PUT, nth=1, byte=byte, mask=0x20)
                if byte == "body":
                    fault.mask = 1
                self.assert_pushed(fault)

    def test_calls_that_come_twice(self):
        self.assert_pushed(*(Fault("duplicate", request) for request in
                             ("/begin", PUT, "/seal", "/commit")))
        self.assert_pushed(Fault("duplicate", PUT, after=1), Fault("duplicate", "/seal", after=1))

    def test_a_stalled_connection_is_given_up_and_replaced(self):
        self.assert_pushed(Fault("stall", PUT, nth=1, byte="middle", seconds=30, then_drop=True),
                           flags=("--timeout-s", "1"))

    def test_without_patience_the_old_version_stays(self):
        before = self.digest(), self.version()
        for request in ("/begin", PUT, "/seal"):
            _, _, done = self.push_through(Fault("drop", request, where="reply"),
                                           flags=("--retry-s", "0"), check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual((self.digest(), self.version()), before)
            status = self.get("/octavo/v1/update")[1]
            if status["open"]:  # Its id never came back.
                self.assertEqual(request, "/begin")
                self.native("abort", update_id=status["update_id"])


class NativeStream(Stream):
    def test_checksums_are_held_against_the_bytes(self):
        update = self.begin()
        tensors = {UP: self.tensors[UP]}
        good = with_checksums(tensors, "adler32", lambda data: f"{zlib.adler32(data):08x}")
        damaged = good[:-1] + bytes([good[-1] ^ 1])
        self.refused(*self.put(update, damaged, 0), 422, UP)
        self.assertEqual(self.put(update, good, 0)[0], 200)
        unknown = with_checksums(tensors, "adler32:x", lambda data: "00000001")
        self.refused(*self.put(update, unknown, 1), 400, "adler32:x:" + UP)
        other = with_checksums(tensors, "md5", lambda data: "anything")  # No kind of ours: no claim.
        self.assertEqual(self.put(update, other, 2)[0], 200)
        self.refused(*self.put(update, bucket(tensors), 3, "&checksum=" + "0" * 32), 422, "bucket 3")

    def rows(self, begin, end, name=UP):
        dtype, shape, data = self.tensors[name]
        row = len(data) // shape[0]
        return {f"{name}[{begin}:{end}]": (dtype, [end - begin, *shape[1:]],
                                           data[begin * row:end * row])}

    def test_rows_of_a_tensor_in_any_order(self):
        update = self.begin()
        for sequence, (begin, end) in enumerate(((640, 768), (0, 256), (384, 640))):
            self.assertEqual(self.put(update, bucket(self.rows(begin, end)), sequence)[0], 200)
        self.refused(*self.put(update, bucket(self.rows(0, 384)), 3), 400, UP + "[0:384]")
        self.refused(*self.put(update, bucket(self.rows(256, 300)), 4), 400, UP + "[256:300]")
        rest = {name: tensor for name, tensor in self.tensors.items() if name != UP}
        self.assertEqual(self.put(update, bucket(rest), 5)[0], 200)
        self.refused(*self.native("seal", update_id=update), 400, UP + "[256:384]")
        self.assertEqual(self.put(update, bucket(self.rows(256, 384)), 6)[0], 200)
        self.assertEqual(self.put(update, bucket(self.rows(0, 256)), 7)[0], 200)  # As before.
        self.assertEqual(self.native("seal", update_id=update)[0], 200)
        reply = self.native("commit", update_id=update)[1]
        self.assertEqual(reply["digest"], self.digests[DENSE])

    def test_an_answer_that_was_lost_is_given_again(self):
        key = "0123456789abcdef"
        first = self.native("begin", request_key=key)
        self.assertEqual(self.native("begin", request_key=key), first)
        self.refused(*self.native("begin", request_key=key + "0"), 409, first[1]["update_id"])
        update = first[1]["update_id"]
        self.assertEqual(self.put(update, bucket(self.tensors), 0)[0], 200)
        self.assertEqual(self.native("seal", update_id=update),
                         self.native("seal", update_id=update))
        committed = self.native("commit", update_id=update)
        self.assertEqual(committed[0], 200)
        version = self.version()
        self.assertEqual(self.native("commit", update_id=update), committed)
        self.assertEqual(self.native("begin", request_key=key), first)  # Opens nothing.
        self.assertFalse(self.get("/octavo/v1/update")[1]["open"])
        self.assertEqual(self.version(), version)
        self.assertEqual(self.native("commit", update_id=update + "0")[0], 404)


class Partial(Stream):
    def merged(self, work, live, names):
        """A folder with these tensors of DENSE, and all others of `live`."""
        shutil.copytree(ROOT / live, work / "merged")
        shard = work / "merged" / "model.safetensors"
        tensors = read_safetensors(shard)
        tensors.update({name: self.tensors[name] for name in names})
        shard.write_bytes(bucket(tensors))
        return offline_digest(work / "merged", *FP8)

    def test_part_of_the_weights_is_a_cold_load_of_the_merged_checkpoint(self):
        names = [UP, "model.norm.weight", "model.layers.7.mlp.down_proj.weight"]
        part = bucket({name: self.tensors[name] for name in names})
        status, reply = self.native("begin", require="some")
        self.assertEqual(status, 400, reply)
        self.assertIn("require", reply["error"]["message"])
        update = self.begin()
        self.assertEqual(self.put(update, part, 0)[0], 200)
        self.refused(*self.native("seal", update_id=update), 400, "incomplete")  # All, unasked.
        self.native("abort", update_id=update)
        for staging in ("shadow", "in_place"):
            update = self.begin(require="any", staging=staging)
            self.assertEqual(self.put(update, part, 0)[0], 200)
            self.assertEqual(self.native("seal", update_id=update)[0], 200)
            reply = self.native("commit", update_id=update)[1]
            self.assertEqual(reply["carried_over"], len(self.tensors) - len(names))
            self.assertEqual(set(reply["carried_over_weights"]), set(self.tensors) - set(names))
            with folder() as work:
                self.assertEqual(reply["digest"], self.merged(work, BASE, names))

    def test_seen_is_what_the_first_update_brought(self):
        with Server(BASE, *FP8, *ONE_THREAD) as server:
            def push(names, expected):
                begun = server.call("POST", "/octavo/v1/update/begin", {"require": "seen"})[1]
                update = begun["update_id"]
                part = bucket({name: self.tensors[name] for name in names})
                self.assertEqual(server.call("POST", f"{PUT}?update_id={update}&sequence=0", part)[0],
                                 200)
                sealed = server.call("POST", "/octavo/v1/update/seal", {"update_id": update})
                self.assertEqual(sealed[0], expected, sealed)
                call = "commit" if expected == 200 else "abort"
                self.assertEqual(server.call("POST", "/octavo/v1/update/" + call,
                                             {"update_id": update})[0], 200)
                return sealed[1]["message"]

            push([UP, "model.norm.weight"], 200)
            self.assertIn(UP, push(["model.norm.weight"], 400))
            push([UP, "model.norm.weight", "model.embed_tokens.weight"], 200)


if __name__ == "__main__":
    octavo_testing.main()
