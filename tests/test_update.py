"""Method: a real server on a real port takes new weights over HTTP while requests run. What is live
is compared with the offline conversion and with an independent digest; senders are killed half way;
each fault must leave the old version serving, bit for bit."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import octavo_testing
from octavo_testing import BASE, DENSE, ROOT, Server, bucket, folder, read_safetensors, run, run_json

# A sender that dies with half a request on the wire: host, port, update, file of the body.
HALF_A_BUCKET = """
import socket, sys, time
body = open(sys.argv[4], "rb").read()
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
peer.sendall(("POST /octavo/v1/update/put?update_id=%s&sequence=1 HTTP/1.1\\r\\nHost: x\\r\\n"
              "Content-Length: %d\\r\\n\\r\\n" % (sys.argv[3], len(body))).encode())
peer.sendall(body[:len(body) // 2])
print("half sent", flush=True)
time.sleep(600)
"""

POLICY = ["--format", "fp8", "--keep-last", "2"]


def fingerprint(server):
    """Ids and logprobs of a greedy request: changes with any bit of the weights that matters."""
    reply = server.generate(text="Question: Tom has 3 apples and buys 4. How many?\nAnswer:",
                            sampling_params={"temperature": 0, "max_new_tokens": 40,
                                             "ignore_eos": True}, return_logprob=True)
    return reply["output_ids"], [x[0] for x in reply["meta_info"]["output_token_logprobs"]]


class PushUnderLoad(unittest.TestCase):
    def test_no_request_is_lost_and_what_is_live_equals_the_offline_conversion(self):
        self.push()

    def test_so_it_is_in_place(self):
        self.push("--staging", "in_place")

    def push(self, *flags):
        with folder() as work, Server(BASE, *POLICY) as server:
            run("convert", DENSE, work / "fp8", *POLICY)
            offline = run_json("digest", work / "fp8")["digest"]
            replies = []

            def request(i):
                replies.append(server.generate(
                    text=f"Question: Ben has {i} cards. How many?\nAnswer:", return_logprob=True,
                    sampling_params={"max_new_tokens": 1000, "ignore_eos": True,
                                     "temperature": 1.0, "sampling_seed": i}))

            threads = [threading.Thread(target=request, args=(i,)) for i in range(16)]
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            report = run_json("push", DENSE, "--to", server.url, "--weight-version", "1",
                              "--bucket-mb", "2", *flags)
            for thread in threads:
                thread.join()

            self.assertEqual(len(replies), 16)
            for reply in replies:
                meta = reply["meta_info"]
                self.assertEqual(len(reply["output_ids"]), 1000)
                self.assertEqual(len(meta["output_token_logprobs"]), 1000)
                self.assertEqual(sum(s["tokens"] for s in meta["weight_versions"]), 1000)
            both = [r for r in replies if len(r["meta_info"]["weight_versions"]) == 2]
            self.assertGreaterEqual(len(both), 8)
            self.assertEqual((report["version"], report["lost"]), ("1", 0))
            self.assertEqual(report["digest"], offline)
            info = server.call("GET", "/server_info")[1]
            self.assertEqual([(s["recipe"], s["emulated"]) for s in report["servers"]],
                             [(info["recipe"], info["emulated"])])
            self.assertEqual(run_json("digest", server.url)["digest"], offline)
            self.assertEqual(server.call("GET", "/get_weight_version")[1], {"weight_version": "1"})
            with Server(work / "fp8") as cold:
                self.assertEqual(fingerprint(server), fingerprint(cold))


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BASE, *POLICY)
        cls.digest = run_json("digest", cls.server.url)["digest"]
        cls.bits = fingerprint(cls.server)
        cls.tensors = read_safetensors(ROOT / DENSE / "model.safetensors")

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def tearDown(self):
        self.assertEqual(run_json("digest", self.server.url)["digest"], self.digest)
        self.assertEqual(fingerprint(self.server), self.bits)
        self.assertEqual(self.server.call("GET", "/get_weight_version")[1]["weight_version"], "0")

    def begin(self):
        status, reply = self.server.call("POST", "/octavo/v1/update/begin", {"weight_version": "5"})
        self.assertEqual(status, 200, reply)
        self.addCleanup(self.server.call, "POST", "/octavo/v1/update/abort",
                        {"update_id": reply["update_id"]})
        return reply["update_id"]

    def put(self, update_id, tensors, sequence=0):
        return self.server.call(
            "POST", f"/octavo/v1/update/put?update_id={update_id}&sequence={sequence}",
            bucket(tensors))

    def test_a_missing_tensor_is_named(self):
        name = "model.layers.2.mlp.down_proj.weight"
        update = self.begin()
        rest = {k: v for k, v in self.tensors.items() if k != name}
        self.assertEqual(self.put(update, rest)[0], 200)
        status, reply = self.server.call("POST", "/octavo/v1/update/seal", {"update_id": update})
        self.assertEqual(status, 400)
        self.assertIn(name, json.dumps(reply))

    def test_a_wrong_shape_and_a_nan_are_named(self):
        name = "model.layers.2.mlp.down_proj.weight"
        dtype, shape, data = self.tensors[name]
        update = self.begin()
        status, reply = self.put(update, {name: (dtype, shape[::-1], data)})
        self.assertEqual(status, 400)
        self.assertIn(name, json.dumps(reply))
        poisoned = bytearray(data)
        poisoned[2000:2002] = b"\xc0\x7f"
        status, reply = self.put(update, {name: (dtype, shape, bytes(poisoned))}, 1)
        self.assertEqual(status, 400)
        self.assertIn(name, json.dumps(reply))

    def test_garbage_buckets_are_refused(self):
        update = self.begin()
        path = f"/octavo/v1/update/put?update_id={update}&sequence=0"
        for body in (b"", b"abc", b"\xff" * 64, bucket(self.tensors)[:5000]):
            status, reply = self.server.call("POST", path, body)
            self.assertEqual(status, 400, reply)

    def test_a_sender_killed_inside_a_bucket_changes_nothing(self):
        update = self.begin()
        names = sorted(self.tensors)
        half = {name: self.tensors[name] for name in names[:len(names) // 2]}
        self.assertEqual(self.put(update, half)[0], 200)
        rest = bucket({name: self.tensors[name] for name in names[len(names) // 2:]})
        with tempfile.NamedTemporaryFile() as body:
            body.write(rest)
            body.flush()
            sender = subprocess.Popen([sys.executable, "-c", HALF_A_BUCKET, self.server.host,
                                       self.server.port, update, body.name],
                                      stdout=subprocess.PIPE, text=True)
            self.assertEqual(sender.stdout.readline(), "half sent\n")
            sender.send_signal(signal.SIGKILL)
            sender.wait()
            sender.stdout.close()
        status, reply = self.server.call("POST", "/octavo/v1/update/seal", {"update_id": update})
        self.assertEqual(status, 400)
        self.assertIn(names[-1].rsplit(".", 2)[0].split(".")[0], json.dumps(reply))

    def test_a_second_sender_is_told_who_holds_the_place(self):
        update = self.begin()
        done = run("push", DENSE, "--to", self.server.url, check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(update, done.stderr)

    def test_a_quantized_disk_with_another_table_is_refused_by_tensor(self):
        with folder() as work:
            run("convert", DENSE, work / "all", "--format", "fp8")
            status, reply = self.server.call("POST", "/update_weights_from_disk",
                                             {"model_path": str(work / "all")})
            self.assertEqual(status, 400)
            self.assertFalse(reply["success"])
            self.assertIn("model.layers.6.", reply["message"])
        status, reply = self.server.call("POST", "/update_weights_from_disk",
                                         {"model_path": "models/none"})
        self.assertEqual((status, reply["success"]), (400, False))


class InPlace(unittest.TestCase):
    def test_given_up_in_the_middle_it_refuses_requests_until_all_weights_come(self):
        with Server(DENSE, *POLICY) as server:
            before = fingerprint(server)
            tensors = read_safetensors(ROOT / BASE / "model.safetensors")
            name = "model.layers.0.mlp.up_proj.weight"
            begin = {"staging": "in_place"}
            self.assertEqual(server.call("POST", "/pause_generation", {"mode": "retract"})[0], 200)
            update = server.call("POST", "/octavo/v1/update/begin", begin)[1]["update_id"]
            put = f"/octavo/v1/update/put?update_id={update}&sequence=0"
            self.assertEqual(server.call("POST", put, bucket({name: tensors[name]}))[0], 200)
            server.call("POST", "/octavo/v1/update/abort", {"update_id": update})
            server.call("POST", "/continue_generation", {})
            self.assertEqual(self.state_of(server), "poisoned")
            status, reply = server.call("POST", "/generate", {"text": "1"})
            self.assertEqual(status, 503, reply)
            self.assertIn("poisoned", str(reply))
            self.assertEqual(server.call("GET", "/health")[0], 200)
            run("push", DENSE, "--to", server.url)
            self.assertEqual(self.state_of(server), "live")
            self.assertEqual(fingerprint(server), before)

    def state_of(self, server):
        return server.call("GET", "/server_info")[1]["internal_states"][0]["weights"]


class FromDisk(unittest.TestCase):
    def test_bf16_and_converted_sources_give_the_same_live_bytes(self):
        with folder() as work, Server(BASE, *POLICY) as server:
            run("convert", DENSE, work / "fp8", *POLICY)
            offline = run_json("digest", work / "fp8")["digest"]
            base = run_json("digest", server.url)["digest"]
            for source, digest in ((DENSE, offline), (BASE, base), (work / "fp8", offline)):
                path = str(source if str(source).startswith("/") else ROOT / source)
                status, reply = self.server_update(server, path)
                self.assertEqual((status, reply["success"]), (200, True), reply)
                self.assertEqual(run_json("digest", server.url)["digest"], digest)

    def server_update(self, server, path):
        return server.call("POST", "/update_weights_from_disk", {"model_path": path})


if __name__ == "__main__":
    octavo_testing.main()
