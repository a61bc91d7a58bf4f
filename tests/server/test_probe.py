"""Method: real servers and real pushes. The sealed version scores sequences, and after the commit
the server scores the same ones: equal to the last bit, in every kind of format. A version that is
wrong on purpose (a layer scaled, a stale scale) must be refused with figures, and the old version
must answer as before."""

import array
import contextlib
import json
import pathlib
import shutil
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import GREEDY, ONE_THREAD, PROMPT
from octavo_testing import BASE, DENSE, ROOT, Server, bucket, folder, read_safetensors, run

SEQUENCES = [[5 + i * 7 % 600 for i in range(40)], list(range(20, 190)), [3, 4]]
FORMATS = {"bf16": (), "fp8": ("--format", "fp8", "--keep-last", "2"),
           "mxfp8": ("--format", "mxfp8"), "nvfp4": ("--format", "nvfp4")}


def scored(server, ids, first=1):
    """What the live weights say of ids[first:]."""
    reply = server.generate(input_ids=ids, return_logprob=True, logprob_start_len=first - 1,
                            sampling_params={"max_new_tokens": 0})
    return [x[0] for x in reply["meta_info"]["input_token_logprobs"]][1:]


def fingerprint(server):
    reply = server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
    return reply["output_ids"], [x[0] for x in reply["meta_info"]["output_token_logprobs"]]


def version(server):
    return server.call("GET", "/get_weight_version")[1]["weight_version"]


def probe_file(path, server):
    """What a trainer with the weights of `server` says of SEQUENCES."""
    lines = [{"input_ids": ids, "prompt_len": 1, "logprobs": scored(server, ids)}
             for ids in SEQUENCES]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def altered(path, name, change, source=DENSE):
    """A copy of the checkpoint `source` with other bytes of one tensor."""
    shutil.copytree(ROOT / source, path)
    shard = path / "model.safetensors"
    tensors = read_safetensors(shard)
    dtype, shape, data = tensors[name]
    tensors[name] = (dtype, shape, change(data))
    shard.write_bytes(bucket(tensors))
    return path


def doubled(data):
    """BF16 values times two; those of a trained layer are far from overflow."""
    values = array.array("H", data)
    return array.array("H", [x + 0x80 if x & 0x7F80 else x for x in values]).tobytes()


class SealedScores(unittest.TestCase):
    """What the sealed weights say is what they say when they are live."""

    def check(self, flags):
        with Server(BASE, *ONE_THREAD, *flags) as server:
            before = fingerprint(server)
            begun = server.call("POST", "/octavo/v1/update/begin", {"weight_version": "1"})[1]
            update = {"update_id": begun["update_id"]}
            for number, shard in enumerate(sorted((ROOT / DENSE).glob("*.safetensors"))):
                status, reply = server.call(
                    "POST", f"/octavo/v1/update/put?update_id={begun['update_id']}"
                    f"&sequence={number}", shard.read_bytes())
                self.assertEqual(status, 200, reply)
            status, reply = server.call("POST", "/octavo/v1/update/probe", dict(
                update, sequences=[{"input_ids": [3, 4], "logprobs": [-1]}]))
            self.assertEqual(status, 400, reply)
            self.assertIn("seal", reply["message"])
            self.assertEqual(server.call("POST", "/octavo/v1/update/seal", update)[0], 200)
            sequences = [{"input_ids": ids, "logprobs": [-1.5] * (len(ids) - 1)}
                         for ids in SEQUENCES]
            answers = []
            beside = threading.Thread(target=lambda: answers.append(fingerprint(server)))
            beside.start()
            status, reply = server.call("POST", "/octavo/v1/update/probe", dict(
                update, sequences=sequences, return_logprobs=True))
            beside.join()
            self.assertEqual((status, reply["success"]), (200, True), reply)
            self.assertEqual((reply["sequences"], reply["tokens"]),
                             (len(SEQUENCES), sum(map(len, SEQUENCES)) - len(SEQUENCES)))
            self.assertEqual(answers, [before])
            self.assertEqual(version(server), "0")
            self.assertEqual(
                server.call("POST", "/octavo/v1/update/commit", update)[1]["version"], "1")
            for ids, logprobs in zip(SEQUENCES, reply["logprobs"]):
                self.assertEqual(logprobs, scored(server, ids))
            largest = reply["largest"]
            got = reply["logprobs"][largest["sequence"]][largest["position"] - 1]
            self.assertEqual(array.array("f", [largest["got"]]), array.array("f", [got]))

    def test_bf16(self):
        self.check(FORMATS["bf16"])

    def test_fp8(self):
        self.check(FORMATS["fp8"])

    def test_mxfp8(self):
        self.check(FORMATS["mxfp8"])

    def test_nvfp4(self):
        self.check(FORMATS["nvfp4"])


class PushWithAProbe(unittest.TestCase):
    layer = "model.layers.2.mlp.down_proj.weight"

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.work = cls.stack.enter_context(folder())
        cls.servers = [cls.stack.enter_context(Server(BASE, *ONE_THREAD, *FORMATS["fp8"]))
                       for _ in range(2)]
        with Server(DENSE, *ONE_THREAD, *FORMATS["fp8"]) as trainer:
            cls.probe = probe_file(cls.work / "probe.jsonl", trainer)

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    def push(self, source, *args):
        urls = [arg for server in self.servers for arg in ("--to", server.url)]
        return run("push", source, *urls, *args, check=False)

    def refused(self, done, *words):
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for word in words:
            self.assertIn(word, done.stderr)
        for server in self.servers:
            self.assertIs(server.call("GET", "/octavo/v1/update")[1]["open"], False)

    def test_only_what_the_trainer_computes_goes_live(self):
        before = [(fingerprint(server), version(server)) for server in self.servers]
        figures = ("probe failed", "sequence ", "position ", "expected -", "got -", "k3")
        scaled = altered(self.work / "scaled", self.layer, doubled)
        self.refused(self.push(scaled, "--probe", self.probe, "--max-dlogp", "0.01"), *figures)
        self.refused(self.push(scaled, "--probe", self.probe, "--max-mean-dlogp", "0.001"),
                     "mean", *figures)
        run("convert", DENSE, self.work / "fp8", *FORMATS["fp8"])
        stale = altered(self.work / "stale", self.layer + "_scale_inv",
                        lambda data: data[4:] + data[:4], self.work / "fp8")
        stale_scale = read_safetensors(self.work / "fp8" / "model.safetensors")
        self.assertEqual(stale_scale[self.layer + "_scale_inv"][0], "F32")
        self.refused(self.push(stale, "--probe", self.probe, "--max-dlogp", "0.01"), *figures)
        self.assertEqual([(fingerprint(server), version(server)) for server in self.servers],
                         before)
        done = self.push(DENSE, "--probe", self.probe, "--max-dlogp", "1e-5", "--max-mean-dlogp",
                         "1e-6", "--weight-version", "7", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        for server in json.loads(done.stdout)["servers"]:
            self.assertEqual((server["version"], server["probe"]["sequences"]), ("7", 3))
            self.assertLess(server["probe"]["max_dlogp"], 1e-5)
        self.assertIn("probe      |dlogp| mean", self.push(
            DENSE, "--probe", self.probe, "--max-dlogp", "1e-5").stdout)

    def test_a_failed_probe_holds_until_another_passes(self):
        server = self.servers[0]
        update = {"update_id": server.call("POST", "/octavo/v1/update/begin", {})[1]["update_id"]}
        shard = (ROOT / DENSE / "model.safetensors").read_bytes()
        server.call("POST", f"/octavo/v1/update/put?update_id={update['update_id']}&sequence=0",
                    shard)
        self.assertEqual(server.call("POST", "/octavo/v1/update/seal", update)[0], 200)
        wrong = dict(update, sequences=[{"input_ids": [3, 4, 5], "logprobs": [-30.0]}],
                     max_dlogp=1.0)
        status, reply = server.call("POST", "/octavo/v1/update/probe", wrong)
        self.assertEqual((status, reply["success"], reply["tokens"]), (400, False, 1))
        self.assertEqual((reply["largest"]["sequence"], reply["largest"]["position"]), (0, 2))
        self.assertGreater(reply["max_dlogp"], 1.0)
        status, refused = server.call("POST", "/octavo/v1/update/commit", update)
        self.assertEqual((status, reply["message"] in refused["message"]), (400, True), refused)
        self.assertEqual(server.call("POST", "/octavo/v1/update/probe",
                                     dict(wrong, max_dlogp=100))[0], 200)
        self.assertEqual(server.call("POST", "/octavo/v1/update/abort", update)[0], 200)

    def test_what_is_no_probe_is_named(self):
        call = {"update_id": "update-99", "sequences": [{"input_ids": [3, 4], "logprobs": [-1]}]}

        def ask(status, word, **body):
            got, reply = self.servers[0].call("POST", "/octavo/v1/update/probe",
                                              dict(call, **body))
            self.assertEqual(got, status, reply)
            self.assertIn(word, reply["message"])

        ask(404, "update-99")
        ask(400, "sequences[1]: logprobs[0]", sequences=call["sequences"] + [
            {"input_ids": [3, 4], "logprobs": [None]}])
        ask(400, "sequences[0]: logprobs[0]", sequences=[{"input_ids": [3, 4], "logprobs": [0.5]}])
        ask(400, "first has none", sequences=[{"input_ids": [3, 4], "logprobs": [-1, -1]}])
        ask(400, "input_ids[1]", sequences=[{"input_ids": [3, 4000], "logprobs": [-1]}])
        ask(400, "prompt_len 1", sequences=[{"input_ids": [3, 4, 5], "logprobs": [-1],
                                             "prompt_len": 1}])
        ask(400, "context length", sequences=[{"input_ids": [3] * 5000, "logprobs": [-1]}])
        ask(400, "max_dlogp", max_dlogp=-1)
        ask(400, "sequences", sequences=None)
        for text, word in (("{\"input_ids\": [3, 4], \"logprobs\": [NaN]}", "line 1"),
                           ("\n\n{\"input_ids\": [3, 4]}", "line 3"), ("\n", "a sequence a line")):
            path = self.work / "bad.jsonl"
            path.write_text(text)
            self.refused(self.push(DENSE, "--probe", path, "--max-dlogp", "1"), word)
        self.refused(self.push(DENSE, "--probe", self.probe), "--max-dlogp")


if __name__ == "__main__":
    octavo_testing.main()
