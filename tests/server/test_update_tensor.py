"""Method: the weights of a model as pickles that PyTorch would make, by value and in shared memory,
into a real server; what is live afterwards is what `octavo digest` says of the folder. Each fault
once: the old weights serve on, bit for bit, and no update stays open."""

import pathlib
import pickle
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, object_error
from octavo_testing import BASE, DENSE, ROOT, read_safetensors
from torch_pickles import Call, Memory, SERIALIZED, by_value, dump, encoded, metadata, shared

PATH = "/update_weights_from_tensor"
NORM = "model.norm.weight"


def weights(model):
    return read_safetensors(ROOT / model / "model.safetensors")


def bucket(tensors):
    flat = b"".join(t[2] for t in tensors.values())
    return dump({"flattened_tensor": by_value(("U8", [len(flat)], flat)),
                 "metadata": metadata(tensors)})


class TensorTest(ApiTest):
    def setUp(self):
        self.before = self.digest(), self.version()

    def tearDown(self):
        self.post("/octavo/v1/update/abort",
                  {"update_id": self.get("/octavo/v1/update")[1].get("update_id", "none")})
        super().tearDown()

    def digest(self):
        return self.get("/octavo/v1/digest")[1]["digest"]

    def send(self, pickled, **fields):
        return self.post(PATH, {"serialized_named_tensors": [pickled], **fields})

    def staged(self, status, reply, committed):
        self.assertEqual(status, 200, reply)
        self.assertEqual(set(reply),
                         {"success", "message", "update_id", "committed", "tensors", "bytes"})
        self.assertEqual((reply["success"], reply["committed"]), (True, committed), reply)
        return reply

    def is_live(self, model):
        self.assertIn(self.digest(), octavo_testing.run("digest", ROOT / model).stdout)
        self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)

    def unharmed(self):
        self.assertEqual((self.digest(), self.version()), self.before)
        self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)


class Updates(TensorTest):
    def test_one_bucket_in_shared_memory_is_an_update(self):
        tensors = weights(BASE)
        flat = b"".join(t[2] for t in tensors.values())
        with Memory(flat) as memory:
            reply = self.staged(*self.send(
                dump({"flattened_tensor": shared("U8", [len(flat)], memory),
                      "metadata": metadata(tensors)}),
                load_format="flattened_bucket", weight_version="7"), committed=True)
            self.assertEqual((reply["tensors"], reply["bytes"]), (len(tensors), len(flat)))
            self.assertEqual(memory.holds(), 1)
        self.assertEqual(self.version(), "7")
        self.is_live(BASE)
        self.staged(*self.send(bucket(weights(DENSE)), load_format="flattened_bucket"),
                    committed=True)
        self.assertEqual(self.version(), "8")
        self.is_live(DENSE)

    def test_named_tensors_in_each_format(self):
        for model, load_format in ((BASE, None), (DENSE, "direct")):
            named = [(name, by_value(tensor)) for name, tensor in weights(model).items()]
            self.staged(*self.send(dump(named, 2), load_format=load_format), committed=True)
            self.is_live(model)
        inner = [(name, Call(SERIALIZED, state={"values": [pickle.dumps(by_value(tensor), 4)]}))
                 for name, tensor in weights(DENSE).items()]
        self.staged(*self.send(dump(inner, 5)), committed=True)
        self.is_live(DENSE)

    def test_buckets_under_a_pause_are_only_staged(self):
        self.post("/pause_generation", {"mode": "retract"})
        tensors = list(weights(BASE).items())
        for part in (tensors[:40], tensors[40:]):
            reply = self.staged(*self.send(bucket(dict(part)), load_format="flattened_bucket",
                                           flush_cache=False, weight_version="p"),
                                committed=False)
        self.assertEqual(self.digest(), self.before[0])
        for step in ("seal", "commit"):
            status, done = self.post(f"/octavo/v1/update/{step}",
                                     {"update_id": reply["update_id"]})
            self.assertEqual(status, 200, done)
        self.post("/continue_generation", {})
        self.assertEqual(self.version(), "p")
        self.is_live(BASE)
        self.staged(*self.send(bucket(weights(DENSE)), load_format="flattened_bucket"),
                    committed=True)

    def test_buckets_one_after_the_other_while_memory_is_released(self):
        self.assertEqual(self.post("/release_memory_occupation", {})[0], 200)
        self.assertEqual(self.post("/resume_memory_occupation", {"tags": ["weights"]})[0], 200)
        tensors = list(weights(DENSE).items())
        self.staged(*self.send(bucket(dict(tensors[50:])), load_format="flattened_bucket"),
                    committed=False)
        self.staged(*self.send(bucket(dict(tensors[:50])), load_format="flattened_bucket"),
                    committed=True)
        self.assertEqual(self.post("/resume_memory_occupation", {"tags": ["kv_cache"]})[0], 200)
        self.is_live(DENSE)

    def test_a_native_update_is_not_ended(self):
        update = self.post("/octavo/v1/update/begin", {"weight_version": "n"})[1]["update_id"]
        reply = self.staged(*self.send(bucket(weights(DENSE)), load_format="flattened_bucket"),
                            committed=False)
        self.assertEqual(reply["update_id"], update)
        status, reply = self.send(bucket({"no.such": ("BF16", [1], bytes(2))}),
                                  load_format="flattened_bucket")
        self.assertEqual(status, 400, reply)
        self.assertIs(self.get("/octavo/v1/update")[1]["open"], True)

    def test_an_empty_bucket_changes_nothing(self):
        self.staged(*self.send(bucket({}), load_format="flattened_bucket", flush_cache=False),
                    committed=False)
        self.assertEqual(self.digest(), self.before[0])


class Faults(TensorTest):
    def refused(self, pickled, *words, **fields):
        status, reply = self.send(pickled, **fields)
        self.assertEqual(status, 400, reply)
        self.assertEqual(set(reply), {"success", "message"}, reply)
        self.assertIs(reply["success"], False)
        for word in words:
            self.assertIn(word, reply["message"])
        self.unharmed()

    def test_bodies(self):
        good = dump([(NORM, by_value(weights(DENSE)[NORM]))])
        for body, word in (
                ({}, "expected a list of base64 texts, got none"),
                ({"serialized_named_tensors": good}, "expected a list of base64 texts"),
                ({"serialized_named_tensors": [7]}, "serialized_named_tensors"),
                ({"serialized_named_tensors": ["!!!!"]}, "character 0 is no digit"),
                ({"serialized_named_tensors": [good], "load_format": "my.loader"}, "my.loader"),
                ({"serialized_named_tensors": [good], "flush_cache": "maybe"}, "flush_cache")):
            status, reply = self.post(PATH, body)
            object_error(self, status, reply)
            self.assertIn(word, reply["message"])
        status, reply = self.post(PATH, {"serialized_named_tensors": [good, good]})
        self.assertEqual(status, 400)
        self.assertIn("expected 1, for there is one rank, got 2", reply["message"])
        self.refused(good, "selector", selector="draft")

    def test_what_a_pickle_may_not_name(self):
        for module, name, words in (
                ("os", "system", ["global os.system is not one"]),
                ("builtins", "eval", ["global builtins.eval is not one"]),
                ("torch.multiprocessing.reductions", "rebuild_cuda_tensor", ["build with CUDA"]),
                ("sglang.srt.utils.patch_torch", "_rebuild_cuda_tensor_modified",
                 ["build with CUDA"]),
                ("torch.multiprocessing.reductions", "rebuild_storage_fd", ["file_system"])):
            pickled = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")R."
            self.refused(encoded(pickled), "pickle: byte 2", *words)

    def test_tensors_that_the_model_does_not_take(self):
        dtype, shape, data = weights(DENSE)[NORM]
        for tensors, words in (
                ({"no.such.weight": (dtype, shape, data)}, ["no.such.weight"]),
                ({NORM: (dtype, [shape[0] // 2], data[:len(data) // 2])}, [NORM]),
                ({NORM: ("U8", shape, data[:shape[0]])}, [NORM]),
                ({NORM: (dtype, shape, b"\xff" * len(data))}, [NORM]),
                ({NORM: (dtype, shape, data)}, ["model.embed_tokens.weight"])):
            self.refused(bucket(tensors), *words, load_format="flattened_bucket")

    def test_memory_that_is_not_there(self):
        with Memory(bytes(512)) as memory:
            pickled = dump([(NORM, shared("BF16", [256], memory))])
        self.refused(pickled, NORM, memory.name, "could not open")
        with Memory(bytes(16)) as memory:
            memory.size = 512
            self.refused(dump([(NORM, shared("BF16", [256], memory))]), NORM, "expected 512 bytes")

    def test_pickles_that_are_broken(self):
        pickled = pickle.dumps([(NORM, by_value(weights(DENSE)[NORM]))], 4)
        for end in (0, 1, 50, len(pickled) // 2, len(pickled) - 1):
            self.refused(encoded(pickled[:end]), "pickle")

    def test_mutated_pickles(self):
        source = random.Random(7)
        norm = weights(DENSE)[NORM]
        good = {None: pickle.dumps([(NORM, by_value(norm))], 4),
                "flattened_bucket": pickle.dumps(
                    {"flattened_tensor": by_value(("U8", [len(norm[2])], norm[2])),
                     "metadata": metadata({NORM: norm})}, 4)}
        for _ in range(200):
            for load_format, pickled in good.items():
                mutated = bytearray(pickled)
                for _ in range(source.randint(1, 4)):
                    mutated[source.randrange(len(mutated))] = source.randrange(256)
                status, reply = self.send(encoded(bytes(mutated)), load_format=load_format)
                self.assertEqual(status, 400, reply)  # Even a good one leaves weights missing.
        self.unharmed()


if __name__ == "__main__":
    octavo_testing.main()
