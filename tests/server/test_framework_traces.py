"""Method: one weight update as slime, miles, AReaL, verl and NeMo-RL make it, call by call in their
order, on a real server: which weights are live afterwards, and with which version. And the same
with a bucket that never comes."""

import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from group_testing import Trainer
from octavo_testing import BASE, DENSE, ROOT
from test_update_groups import GROUP, GroupTest
from test_update_tensor import PATH, bucket

BUCKET_TENSORS = 25


class Trace(GroupTest):
    def tearDown(self):
        self.post("/continue_generation", {})
        self.post("/update_weights_from_disk", {"model_path": DENSE, "weight_version": "0"})
        super().tearDown()

    def ok(self, path, body=None, **fields):
        status, reply = self.post(path, fields if body is None else body)
        self.assertEqual(status, 200, (path, reply))
        return reply

    def flush(self):
        status, reply = self.get("/flush_cache")
        self.assertEqual(status, 200, reply)

    def buckets(self, model=BASE):
        tensors = list(self.weights(model).items())
        for start in range(0, len(tensors), BUCKET_TENSORS):
            yield dict(tensors[start:start + BUCKET_TENSORS])

    def distributed(self, trainer, buckets, **fields):
        for tensors in buckets:
            sender = threading.Thread(
                target=lambda sent=tensors: [trainer.send(t[2]) for t in sent.values()])
            sender.start()
            status, reply = self.receive(tensors, **fields)
            sender.join()
            self.assertEqual((status, reply["success"]), (200, True), reply)

    def from_tensor(self, buckets, **fields):
        for tensors in buckets:
            self.ok(PATH, {"serialized_named_tensors": [bucket(tensors)], **fields})

    def is_live(self, model, version):
        digest = self.get("/octavo/v1/digest")[1]
        self.assertIn(digest["digest"], octavo_testing.run("digest", ROOT / model).stdout)
        self.assertEqual(digest["weight_version"], version)
        self.assertEqual(self.ok("/generate", {"text": "1", "sampling_params": {
            "max_new_tokens": 2, "ignore_eos": True}})["meta_info"]["weight_version"], version)
        self.assertIs(self.get("/octavo/v1/update")[1]["open"], False)


class Separate(Trace):
    """The trainer broadcasts over a group of its own."""

    def setUp(self):
        super().setUp()
        self.trainer = Trainer(GROUP)
        self.trainer.__enter__()
        self.joined(self.trainer)

    def tearDown(self):
        self.post("/destroy_weights_update_group", {"group_name": GROUP})
        self.trainer.__exit__(None, None, None)
        super().tearDown()

    def test_slime(self):
        self.ok("/pause_generation")
        self.flush()
        self.ok("/post_process_weights", restore_weights_before_load=True)
        self.distributed(self.trainer, self.buckets(), weight_version="12")
        self.ok("/post_process_weights", post_process_quantization=True)
        self.assertEqual(self.version(), "0")
        self.ok("/continue_generation")
        self.is_live(BASE, "12")

    def test_slime_with_a_bucket_that_never_comes(self):
        self.ok("/pause_generation")
        self.flush()
        self.distributed(self.trainer, list(self.buckets())[1:], weight_version="12")
        status, reply = self.post("/continue_generation", {})
        self.assertEqual(status, 500, reply)
        self.assertIn("missing", str(reply))
        state = self.get("/server_info")[1]["internal_states"][0]
        self.assertIs(state["paused"], True)
        self.ok("/continue_generation")  # Nothing was put since: a plain one.
        self.is_live(DENSE, "0")

    def test_miles(self):
        self.ok("/pause_generation", mode="retract")
        self.flush()
        self.ok("/begin_weight_update")
        self.distributed(self.trainer, self.buckets(), weight_version=None)
        self.ok("/update_weight_version", new_version="13", abort_all_requests=False)
        self.assertEqual(self.version(), "0")  # The label is that of what is coming.
        self.ok("/end_weight_update")
        self.assertEqual(self.version(), "13")
        self.ok("/continue_generation")
        self.is_live(BASE, "13")

    def test_miles_with_a_bucket_that_never_comes(self):
        self.ok("/pause_generation", mode="retract")
        self.ok("/begin_weight_update")
        self.distributed(self.trainer, list(self.buckets())[:-1], weight_version=None)
        status, reply = self.post("/end_weight_update", {})
        self.failed(status, reply, "missing")
        self.ok("/continue_generation")
        self.is_live(DENSE, "0")

    def test_areal(self):
        self.ok("/pause_generation")
        self.ok("/pause_generation", mode="in_place")
        self.distributed(self.trainer, self.buckets(), weight_version=None, flush_cache=True,
                         abort_all_requests=True)
        self.ok("/continue_generation")
        self.is_live(BASE, "1")

    def test_requests_that_a_pause_retracted_end_under_both_versions(self):
        replies = []
        thread = threading.Thread(target=lambda: replies.append(self.ok("/generate", {
            "text": "Question:", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}})))
        thread.start()
        while self.get("/v1/loads")[1]["loads"][0]["num_running_reqs"] == 0:
            pass
        self.ok("/pause_generation", mode="retract")
        self.ok("/begin_weight_update")
        self.distributed(self.trainer, self.buckets(), weight_version="14")
        self.ok("/end_weight_update")
        self.ok("/continue_generation")
        thread.join()
        spans = replies[0]["meta_info"]["weight_versions"]
        self.assertEqual([span["version"] for span in spans], ["0", "14"])
        self.assertEqual(sum(span["tokens"] for span in spans), 3000)


class Colocated(Trace):
    """The trainer shares the machine and hands tensors over."""

    def test_slime(self):
        self.flush()
        self.ok("/release_memory_occupation")
        self.ok("/resume_memory_occupation", tags=["weights"])
        self.ok("/pause_generation")
        self.flush()
        self.from_tensor(self.buckets(), load_format="flattened_bucket", flush_cache=False,
                         weight_version="21")
        self.ok("/continue_generation")
        self.ok("/resume_memory_occupation", tags=["kv_cache", "cuda_graph"])
        self.is_live(BASE, "21")

    def test_miles(self):
        self.ok("/pause_generation", mode="retract")
        self.flush()
        self.ok("/begin_weight_update")
        self.from_tensor(self.buckets(), load_format="flattened_bucket", flush_cache=False,
                         weight_version="22")
        self.ok("/end_weight_update")
        self.ok("/continue_generation")
        self.is_live(BASE, "22")

    def test_verl(self):
        self.ok("/release_memory_occupation", tags=["kv_cache", "weights"])
        self.ok("/resume_memory_occupation", tags=["weights"])
        self.from_tensor(self.buckets(), load_format="flattened_bucket", flush_cache=True)
        self.flush()
        self.ok("/resume_memory_occupation", tags=["kv_cache"])
        self.is_live(BASE, "1")

    def test_nemo_rl(self):
        self.flush()
        self.ok("/release_memory_occupation", tags=["kv_cache", "cuda_graph"])
        self.ok("/resume_memory_occupation", tags=["weights"])
        self.from_tensor(self.buckets(), load_format="flattened_bucket", flush_cache=False,
                         weight_version="23")
        self.flush()
        self.assertEqual(self.version(), "0")
        self.ok("/resume_memory_occupation", tags=["kv_cache", "cuda_graph"])
        self.is_live(BASE, "23")

    def test_nemo_rl_with_a_bucket_that_never_comes(self):
        self.ok("/release_memory_occupation", tags=["kv_cache"])
        self.from_tensor(list(self.buckets())[1:], load_format="flattened_bucket",
                         flush_cache=False, weight_version="23")
        status, reply = self.post("/resume_memory_occupation", {"tags": ["kv_cache"]})
        self.assertEqual(status, 400, reply)
        self.assertIn("missing", str(reply))
        self.ok("/resume_memory_occupation", tags=["kv_cache"])
        self.is_live(DENSE, "0")


class Disk(Trace):
    def test_slime(self):
        self.ok("/pause_generation")
        self.flush()
        self.ok("/update_weights_from_disk", model_path=str(ROOT / BASE), weight_version="31")
        self.assertEqual(self.version(), "31")
        self.ok("/continue_generation")
        self.is_live(BASE, "31")

    def test_areal(self):
        self.ok("/pause_generation")
        self.ok("/pause_generation", mode="in_place")
        self.ok("/update_weights_from_disk", model_path=str(ROOT / BASE), abort_all_requests=True)
        self.ok("/continue_generation")
        self.is_live(BASE, "1")


if __name__ == "__main__":
    octavo_testing.main()
