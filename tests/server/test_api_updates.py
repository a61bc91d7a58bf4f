"""Method: a client of the standard library alone holds a real server to weight updates that
succeed whole or change nothing, from disk and in buckets."""

import pathlib
import shutil
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, object_error, weight_error
from octavo_testing import BASE, DENSE, ROOT, bucket, folder, read_safetensors


class DiskUpdates(ApiTest):
    def update(self, **body):
        return self.post("/update_weights_from_disk", body)

    def setUp(self):
        self.before = self.fingerprint(), self.version()

    def test_there_and_back(self):
        status, reply = self.update(model_path=str(ROOT / BASE), weight_version="1",
                                    flush_cache=True, is_async=False, keep_pause=False,
                                    recapture_cuda_graph=False, token_step=3, manifest=None,
                                    load_format=None, torch_empty_cache=False)
        self.assertEqual((status, reply["success"], reply["num_paused_requests"]), (200, True, 0))
        self.assertIsInstance(reply["message"], str)
        self.assertEqual(self.version(), "1")
        self.assertNotEqual(self.fingerprint(), self.before[0])
        self.assertEqual(self.get("/model_info")[1]["model_path"], DENSE)  # Not renamed.
        self.assertEqual(self.update(model_path=DENSE, weight_version="0")[0], 200)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_failures_change_nothing(self):
        with folder() as work:
            weight_error(self, *self.update(model_path=str(work / "none")), name="none")
            broken = work / "broken"
            shutil.copytree(ROOT / BASE, broken)
            shard = broken / "model.safetensors"
            whole = shard.read_bytes()
            shard.write_bytes(whole[:-100])
            weight_error(self, *self.update(model_path=str(broken)))
            tensors = read_safetensors(ROOT / BASE / "model.safetensors")
            name = "model.layers.3.mlp.up_proj.weight"
            dtype, shape, data = tensors.pop(name)
            shard.write_bytes(bucket(tensors))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
            shard.write_bytes(bucket(dict(tensors, **{name: (dtype, shape[::-1], data)})))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
            poisoned = data[:1000] + b"\x80\x7f" + data[1002:]
            shard.write_bytes(bucket(dict(tensors, **{name: (dtype, shape, poisoned)})))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_malformed_calls(self):
        for body in ({}, {"model_path": None}, {"model_path": 5},
                     {"model_path": DENSE, "load_format": "dummy"},
                     {"model_path": DENSE, "flush_cache": "x"},
                     {"model_path": DENSE, "weight_version": 5}):
            object_error(self, *self.update(**body))
        object_error(self, *self.post("/update_weights_from_disk", b"{"))

    def test_requests_in_flight_are_carried_over_or_aborted_as_asked(self):
        collect = self.start(4, tokens=1000)
        self.assertEqual(self.update(model_path=str(ROOT / BASE), weight_version="1")[0], 200)
        for status, reply in collect():
            self.assertEqual((status, len(reply["output_ids"])), (200, 1000))
            spans = reply["meta_info"]["weight_versions"]
            self.assertEqual([s["version"] for s in spans], ["0", "1"])
            self.assertEqual(reply["meta_info"]["weight_version"], "1")
        collect = self.start(4)
        self.assertEqual(self.update(model_path=DENSE, weight_version="0",
                                     abort_all_requests=True)[0], 200)
        for status, reply in collect():
            self.assertEqual(reply["meta_info"]["finish_reason"]["type"], "abort")
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_frozen_requests_and_a_flush_exclude_each_other(self):
        collect = self.start(1, tokens=3500)
        self.post("/pause_generation", {"mode": "in_place"})
        weight_error(self, *self.update(model_path=DENSE), name="flush_cache")
        self.assertEqual(self.version(), self.before[1])
        status, reply = self.update(model_path=DENSE, flush_cache=False, weight_version="new")
        self.assertEqual((status, reply["success"]), (200, True))
        self.post("/continue_generation", {})
        time.sleep(0.3)
        self.post("/abort_request", {"abort_all": True})
        spans = collect()[0][1]["meta_info"]["weight_versions"]
        self.assertEqual([s["version"] for s in spans], ["0", "new"])
        self.post("/update_weight_version", {"new_version": "0"})

    def test_paused_and_idle_it_runs_at_once(self):
        self.post("/pause_generation", {})
        self.post("/pause_generation", {"mode": "in_place"})
        self.assertEqual(self.update(model_path=DENSE, abort_all_requests=True,
                                     weight_version="0")[0], 200)
        self.assertEqual(self.get("/health"), (200, ""))
        self.post("/continue_generation", {})
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_without_a_label_the_version_still_moves(self):
        self.update(model_path=DENSE)
        self.assertEqual(self.version(), "1")
        self.post("/update_weight_version", {"new_version": "0", "abort_all_requests": False})


class NativeUpdates(ApiTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tensors = read_safetensors(ROOT / BASE / "model.safetensors")

    def setUp(self):
        self.before = self.fingerprint(), self.version()

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

    def put(self, update, tensors, sequence):
        return self.post(f"/octavo/v1/update/put?update_id={update}&sequence={sequence}",
                         tensors if isinstance(tensors, bytes) else bucket(tensors))

    def refused(self, status, reply, code, text=""):
        self.assertEqual(status, code, reply)
        self.assertEqual(set(reply), {"success", "message"})
        self.assertIs(reply["success"], False)
        self.assertIn(text, reply["message"])

    def test_a_whole_update_in_buckets(self):
        update = self.begin(weight_version="1")
        status = self.get("/octavo/v1/update")[1]
        self.assertEqual((status["open"], status["update_id"]), (True, update))
        names = sorted(self.tensors)
        for sequence, start in enumerate(range(0, len(names), 20)):
            part = {name: self.tensors[name] for name in names[start:start + 20]}
            status, reply = self.put(update, part, sequence)
            self.assertEqual((status, reply["success"], reply["tensors"]), (200, True, len(part)))
            self.assertEqual(self.put(update, part, sequence), (status, reply))  # A retry.
        self.assertEqual(self.version(), "0")
        status, reply = self.native("seal", update_id=update)
        self.assertEqual((status, reply["success"]), (200, True))
        status, reply = self.native("commit", update_id=update, in_flight="retract", per_tensor=True)
        self.assertEqual(status, 200, reply)
        self.assertLessEqual({"success", "version", "in_flight", "retracted", "aborted", "pause_ms",
                              "bytes_in", "put_seconds", "commit_seconds", "digest"}, set(reply))
        self.assertEqual(set(reply["weights"]), set(self.tensors))
        self.assert_changes(reply)
        self.assertEqual((reply["version"], self.version()), ("1", "1"))
        live = self.get("/octavo/v1/digest")[1]
        self.assertEqual((live["digest"], live["weight_version"]), (reply["digest"], "1"))
        self.assertFalse(self.get("/octavo/v1/update")[1]["open"])
        self.post("/update_weights_from_disk", {"model_path": DENSE, "weight_version": "0"})
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def assert_changes(self, report):
        """The weights of the commit were those of another checkpoint, in every tensor."""
        self.assertGreater(report["changed_share"], 0.5)
        for name, change in report["weights"].items():
            self.assertGreater(change["changed_share"], 0.0, name)
        last = self.get("/octavo/v1/update?per_tensor=true")[1]["last"]
        self.assertEqual(last["weights"], report["weights"])
        self.assertNotIn("weights", self.get("/octavo/v1/update")[1]["last"])
        self.assertEqual(self.get("/octavo/v1/update?per_tensor=perhaps")[0], 400)
        self.assertIn("octavo:weight_update_changed_share{", self.get("/metrics")[1])

    def test_begin_says_what_it_takes(self):
        status, reply = self.native("begin", weight_version="3")
        self.assertEqual(status, 200, reply)
        memory = reply["memory"]
        parts = ("staged_bytes", "waiting_bytes", "scratch_bytes", "bucket_bytes")
        self.assertEqual(memory["total_bytes"], sum(memory[part] for part in parts))
        self.assertGreaterEqual(memory["staged_bytes"], self.get("/server_info")[1]["weight_bytes"])
        self.assertGreater(memory["available_bytes"], memory["total_bytes"])

    def test_faults_are_named_and_change_nothing(self):
        update = self.begin(weight_version="9")
        name = "model.layers.1.self_attn.k_proj.weight"
        dtype, shape, data = self.tensors[name]
        self.refused(*self.put(update, {"model.nope": (dtype, shape, data)}, 0), 400, "model.nope")
        self.refused(*self.put(update, {name: (dtype, shape[::-1], data)}, 1), 400, name)
        self.refused(*self.put(update, {name: (dtype, shape, b"\xc0\x7f" + data[2:])}, 2), 400,
                     name)
        self.refused(*self.put(update, b"", 3), 400)
        self.refused(*self.put(update, b"\xff" * 100, 4), 400)
        self.refused(*self.put(update, bucket(self.tensors)[:-1], 5), 400)
        self.assertEqual(self.put(update, {name: self.tensors[name]}, 6)[0], 200)
        other = bytes([data[0] ^ 1]) + data[1:]
        self.refused(*self.put(update, {name: (dtype, shape, other)}, 6), 400, "bucket 6")
        self.refused(*self.put(update, {name: (dtype, shape, other)}, 7), 400, name)
        self.refused(*self.native("seal", update_id=update), 400, "model.")
        self.refused(*self.native("commit", update_id=update), 400)
        self.refused(*self.native("commit", update_id=update, in_flight="perhaps"), 400, "in_flight")
        self.assertEqual(self.native("abort", update_id=update)[0], 200)
        self.assertEqual(self.native("abort", update_id=update)[0], 200)  # As good as the first.
        self.refused(*self.native("seal", update_id=update), 404, update)
        self.refused(*self.put(update, {}, 0), 404, update)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_malformed_calls(self):
        for call in ("seal", "commit", "abort"):
            object_error(self, *self.native(call))
        object_error(self, *self.native("begin", weight_version=5))
        object_error(self, *self.native("begin", takeover="x"))
        for query in ("", "?update_id=a", "?update_id=a&sequence=-1", "?sequence=0",
                      "?update_id=a&sequence=x"):
            self.refused(*self.post("/octavo/v1/update/put" + query, b""), 400)

    def test_one_at_a_time_and_takeover(self):
        first = self.begin(weight_version="1")
        status, reply = self.native("begin", weight_version="2")
        self.refused(status, reply, 409, first)
        self.assertIn("127.0.0.1:", reply["message"])  # Who holds it.
        second = self.begin(weight_version="2", takeover=True)
        self.assertNotEqual(first, second)
        self.refused(*self.native("seal", update_id=first), 404, second)
        weight_error(self, *self.post("/update_weights_from_disk", {"model_path": DENSE}),
                     name=second)
        self.native("abort", update_id=second)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_a_sender_killed_in_the_middle_of_a_bucket_leaves_nothing(self):
        update = self.begin(weight_version="9")
        body = bucket(self.tensors)
        with socket.create_connection((self.server.host, int(self.server.port)), 10) as sock:
            sock.sendall((f"POST /octavo/v1/update/put?update_id={update}&sequence=0 HTTP/1.1\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n").encode())
            sock.sendall(body[:len(body) // 2])
        self.assertEqual(self.get("/octavo/v1/update")[1]["buckets"], 0)
        self.assertEqual((self.fingerprint(), self.version()), self.before)
        self.assertEqual(self.put(update, body, 0)[0], 200)  # The sender may come back.

    def test_serving_goes_on_while_tensors_arrive(self):
        update = self.begin(weight_version="9")
        collect = self.start(4, tokens=200)
        for sequence, name in enumerate(sorted(self.tensors)):
            self.assertEqual(self.put(update, {name: self.tensors[name]}, sequence)[0], 200)
            self.assertEqual(self.get("/health"), (200, ""))
        for _, reply in collect():
            self.assertEqual([s["version"] for s in reply["meta_info"]["weight_versions"]], ["0"])


if __name__ == "__main__":
    octavo_testing.main()
