"""Method: rank 0 of a group, in Python and without torch, broadcasts the weights of a model to a
real server, whole and with every fault once; after each fault the old weights serve, bit for bit,
and the group can be joined again."""

import pathlib
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest
from group_testing import BROADCAST, Trainer
from octavo_testing import BASE, DENSE, ROOT, Server, read_safetensors

TORCH = {"BF16": "bfloat16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}
GROUP = "weight_update_group"
FIRST = "model.layers.0.mlp.up_proj.weight"


class GroupTest(ApiTest):
    def setUp(self):
        self.before = self.fingerprint(), self.version()

    def tearDown(self):
        self.post("/destroy_weights_update_group", {"group_name": GROUP})
        update = self.get("/octavo/v1/update")[1]
        self.post("/octavo/v1/update/abort", {"update_id": update.get("update_id", "none")})
        super().tearDown()

    def init(self, trainer, **fields):
        return self.post("/init_weights_update_group", {
            "master_address": "127.0.0.1", "master_port": str(trainer.store.port),
            "rank_offset": 1, "world_size": 2, "group_name": GROUP, "backend": "loopback",
            **fields})

    def joined(self, trainer, **fields):
        status, reply = self.init(trainer, **fields)
        self.assertEqual((status, reply["success"]), (200, True), reply)

    def receive(self, tensors, **fields):
        """Announces name -> (dtype, shape, bytes) as a thread would that also broadcasts them."""
        return self.post("/update_weights_from_distributed", {
            "names": list(tensors), "dtypes": [TORCH[t[0]] for t in tensors.values()],
            "shapes": [t[1] for t in tensors.values()], "group_name": GROUP,
            "flush_cache": False, "weight_version": "7", **fields})

    def failed(self, status, reply, *words):
        self.assertEqual(status, 400, reply)
        self.assertEqual(set(reply), {"success", "message"})
        self.assertIs(reply["success"], False)
        for word in words:
            self.assertIn(word, reply["message"])

    def unharmed(self):
        """The old weights serve, nothing is open, and the group can be joined again."""
        self.assertEqual((self.fingerprint(), self.version()), self.before)
        self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)
        with Trainer(GROUP) as trainer:
            self.post("/destroy_weights_update_group", {"group_name": GROUP})
            self.joined(trainer)
            tensors = dict(list(self.weights().items())[:1])
            status, reply = self.broadcast(trainer, tensors, False)
            self.assertEqual((status, reply["tensors"], reply["bytes"]),
                             (200, 1, len(tensors.popitem()[1][2])), reply)

    @staticmethod
    def weights(model=BASE):
        return read_safetensors(ROOT / model / "model.safetensors")

    def broadcast(self, trainer, tensors, flattened):
        """A bucket as trainers send it: the call and the broadcasts at the same time."""
        def send():
            if flattened:
                return trainer.send(b"".join(t[2] for t in tensors.values()))
            for tensor in tensors.values():
                trainer.send(tensor[2])
            return None

        sender = threading.Thread(target=send)
        sender.start()
        status, reply = self.receive(
            tensors, load_format="flattened_bucket" if flattened else None)
        sender.join()
        return status, reply

    def commit(self, update_id):
        for step in ("seal", "commit"):
            status, reply = self.post(f"/octavo/v1/update/{step}", {"update_id": update_id})
            self.assertEqual(status, 200, reply)
        return reply


class Updates(GroupTest):
    def test_a_model_comes_over_and_is_what_a_cold_load_holds(self):
        with Trainer(GROUP) as trainer:
            self.joined(trainer)
            for model, flattened in ((BASE, False), (DENSE, True)):
                tensors = list(self.weights(model).items())
                for start in range(0, len(tensors), 20):
                    status, reply = self.broadcast(trainer, dict(tensors[start:start + 20]),
                                                   flattened)
                    self.assertEqual((status, reply.get("success")), (200, True), reply)
                self.assertEqual(self.version(), self.before[1] if model == BASE else "7")
                live = self.commit(reply["update_id"])
                self.assertEqual(live["version"], "7")
                from_disk = octavo_testing.run("digest", ROOT / model).stdout
                self.assertIn(live["digest"], from_disk)
        self.assertEqual(self.fingerprint(), self.before[0])
        self.post("/update_weight_version", {"new_version": self.before[1]})

    def test_it_goes_into_a_native_update_that_is_open(self):
        status, begun = self.post("/octavo/v1/update/begin", {"weight_version": "n"})
        self.assertEqual(status, 200)
        with Trainer(GROUP) as trainer:
            self.joined(trainer)
            tensors = {FIRST: self.weights()[FIRST]}
            status, reply = self.broadcast(trainer, tensors, False)
            self.assertEqual((status, reply["update_id"]), (200, begun["update_id"]))
            # What its holder began is its holder's to drop.
            status, reply = self.broadcast(trainer, {"none": tensors[FIRST]}, False)
            self.failed(status, reply, "none")
            self.assertEqual(self.get("/octavo/v1/update")[1]["update_id"], begun["update_id"])

    def test_this_build_has_no_nccl(self):
        with Trainer(GROUP) as trainer:
            self.failed(*self.init(trainer, backend="nccl"), "NCCL", "loopback")
            self.failed(*self.init(trainer, backend=None), "NCCL")

    def test_a_rank_that_is_taken(self):
        with Trainer(GROUP) as trainer:
            self.joined(trainer)
            self.failed(*self.init(trainer), "joined already")
            with Server(DENSE, "--threads", "1") as other:
                status, reply = other.call("POST", "/init_weights_update_group", {
                    "master_address": "127.0.0.1", "master_port": trainer.store.port,
                    "rank_offset": 1, "world_size": 2, "backend": "loopback"})
                self.failed(status, reply, "rank 1 is taken")

    def test_refused_tensors_are_drained(self):
        tensors = dict(list(self.weights().items())[:4])
        names = list(tensors)
        with Trainer(GROUP) as trainer:
            self.joined(trainer)
            dtype, shape, data = tensors[names[1]]
            for wrong in ({names[0]: tensors[names[0]], "none": tensors[names[1]],
                           names[2]: tensors[names[2]]},
                          {**tensors, names[1]: (dtype, [1, *shape], data)},
                          {**tensors, names[1]: ("F32", [len(data) // 4], data)},
                          {**tensors, names[1]: (dtype, shape, b"\x80\x7f" + data[2:])}):
                for flattened in (False, True):
                    status, reply = self.broadcast(trainer, wrong, flattened)
                    self.failed(status, reply, "none" if "none" in wrong else names[1])
                    self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)
            sender = threading.Thread(target=lambda: [trainer.send(t[2]) for t in tensors.values()])
            sender.start()
            status, reply = self.receive(tensors, names=names[:-1])
            sender.join()
            self.failed(status, reply, "names")
            status, reply = self.broadcast(trainer, tensors, False)  # Still in step.
            self.assertEqual(status, 200, reply)
            self.post("/octavo/v1/update/abort", {"update_id": reply["update_id"]})
        self.unharmed()

    def test_metadata_without_a_size_leaves_the_group(self):
        tensors = dict(list(self.weights().items())[:2])
        for wrong in ({"dtypes": ["float3", "bfloat16"]}, {"shapes": [[2]]},
                      {"shapes": [[-1], [2]]}, {"shapes": [[2**62, 4], [2]]},
                      {"load_format": "sharded"}, {"dtypes": ["bfloat16"]}):
            with self.subTest(wrong), Trainer(GROUP) as trainer:
                self.joined(trainer)
                status, reply = self.receive(tensors, **wrong)
                self.failed(status, reply)
                self.failed(*self.receive(tensors), "broken by an earlier error")
                self.post("/destroy_weights_update_group", {"group_name": GROUP})
        self.unharmed()

    def test_groups_are_joined_in_any_order(self):
        # Of two stages of a pipeline: each engine waits in another group for the other engine.
        with (Trainer("pp_0", 3) as one, Trainer("pp_1", 3) as two,
              Server(DENSE, "--threads", "1") as other):
            replies = []

            def init(server, trainer, rank):
                replies.append(server.call("POST", "/init_weights_update_group", {
                    "master_address": "127.0.0.1", "master_port": trainer.store.port,
                    "rank_offset": rank, "world_size": 3, "group_name": trainer.group,
                    "backend": "loopback"}))

            calls = [threading.Thread(target=init, args=args) for args in (
                (self.server, one, 1), (other, two, 2), (self.server, two, 1), (other, one, 2))]
            for i, (call, trainer) in enumerate(zip(calls, (one, two, two, one))):
                call.start()
                while i < 2 and not trainer.ranks:
                    time.sleep(0.01)
            for call in calls:
                call.join(120)
            self.assertEqual([status for status, _ in replies], [200] * 4, replies)
            for group in ("pp_0", "pp_1"):
                status, reply = self.post("/destroy_weights_update_group", {"group_name": group})
                self.assertEqual(status, 200, reply)

    def test_destroy_ends_a_call_that_waits(self):
        with Trainer(GROUP) as trainer, Server(DENSE, "--threads", "1") as server:
            status, _ = server.call("POST", "/init_weights_update_group", {
                "master_address": "127.0.0.1", "master_port": trainer.store.port,
                "rank_offset": 1, "world_size": 2, "backend": "loopback"})
            self.assertEqual(status, 200)
            replies = []
            body = {"names": [FIRST], "dtypes": ["bfloat16"], "shapes": [[2, 2]]}
            waiting = threading.Thread(target=lambda: replies.append(
                server.call("POST", "/update_weights_from_distributed", body)))
            waiting.start()
            while not server.call("GET", "/octavo/v1/update")[1]["open"]:
                time.sleep(0.01)
            self.assertEqual(server.call("GET", "/health")[0], 200)
            self.assertEqual(server.call("POST", "/destroy_weights_update_group", {})[0], 200)
            waiting.join(60)
            self.failed(*replies[0], "cancelled")

    def test_a_server_that_stops_does_not_wait_for_a_trainer(self):
        with Trainer(GROUP, world_size=3) as trainer:
            server = Server(DENSE, "--threads", "1")
            body = {"master_address": "127.0.0.1", "master_port": trainer.store.port,
                    "rank_offset": 1, "world_size": 3, "backend": "loopback"}
            replies = []
            waiting = threading.Thread(target=lambda: replies.append(
                server.call("POST", "/init_weights_update_group", body)))
            waiting.start()
            while not trainer.ranks:
                time.sleep(0.01)
            self.assertEqual(server.stop(), 0)
            waiting.join(60)
            self.failed(*replies[0], "cancelled")


class Faults(GroupTest):
    flags = ("--dist-timeout", "2")

    def another(self):
        trainer = Trainer(GROUP)
        self.addCleanup(trainer.close)
        return trainer

    def test_places_that_cannot_be(self):
        with Trainer(GROUP, world_size=3) as trainer:
            self.failed(*self.init(trainer), "expected world size 2, rank 0 has 3")
            self.failed(*self.init(trainer, world_size=1), "world size")
            self.failed(*self.init(trainer, rank_offset=0, world_size=3), "rank")
            # The second engine never comes.
            self.failed(*self.init(trainer, world_size=3),
                        "of 3 ranks 0, 1 had joined, 2 had not")
        self.unharmed()

    def test_nobody_is_there(self):
        with Trainer(GROUP) as trainer:
            pass
        self.failed(*self.init(trainer), "cannot connect", f":{trainer.store.port}")
        self.failed(*self.receive({}), "no such update group")
        self.failed(*self.post("/destroy_weights_update_group", {"group_name": GROUP}),
                    "no such update group")

    def test_faults_of_rank_zero(self):
        tensors = dict(list(self.weights().items())[:2])
        (first, one), (second, two) = tensors.items()
        whole = struct.pack("<BQ", BROADCAST, len(one[2])) + one[2]
        faults = {
            "dies before": (b"", True, "closed the connection"),
            "dies inside": (whole[:50], True, "of"),
            "dies between": (whole, True, second),
            "stalls before": (b"", False, "the deadline has passed"),
            "stalls inside": (whole[:50], False, "the deadline has passed"),
            "stalls between": (whole, False, second),
            "sends less": (struct.pack("<BQ", BROADCAST, len(one[2]) - 2) + one[2][2:], False,
                           f"expected a broadcast of {len(one[2])} bytes"),
            "sends noise": (b"\xff" * 64, False, "expected a record"),
            "gives up": (struct.pack("<BI", 4, 4) + b"oops", False, "oops"),
        }
        for name, (data, dies, word) in faults.items():
            with self.subTest(name), Trainer(GROUP) as trainer:
                self.post("/destroy_weights_update_group", {"group_name": GROUP})
                self.joined(trainer)
                trainer.raw(data)
                if dies:
                    trainer.close()
                start = time.monotonic()
                self.failed(*self.receive(tensors), word)
                self.assertLess(time.monotonic() - start, 60)
                self.failed(*self.receive(tensors), "broken by an earlier error")
                self.joined(trainer if not dies else self.another())  # Joins again by itself.
            self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)
        self.assertIn(first, tensors)
        self.unharmed()


if __name__ == "__main__":
    octavo_testing.main()
