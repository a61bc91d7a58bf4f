"""Method: the orders in which slime, miles and AReaL call a server during a training step with
weights on disk, replayed under load; the brackets and checks around an update; and every control
call repeated, for trainers repeat what they do not hear back from."""

import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, object_error, value_error
from octavo_testing import BASE, DENSE, read_safetensors

FOLDERS = {"1": BASE, "2": DENSE, "3": BASE, "4": DENSE}


def refused(test, status, reply, name=""):
    """The body of a weight call that failed."""
    test.assertEqual((status, reply["success"]), (400, False), reply)
    test.assertEqual(set(reply), {"success", "message"})
    test.assertIn(name, reply["message"])


class ControlTest(ApiTest):
    def ok(self, path, body=None, method="POST"):
        status, reply = self.server.call(method, path, body)
        self.assertEqual(status, 200, (path, reply))
        return reply

    def done(self, path, body=None):
        """A weight call that succeeds; `success` false under status 200 would be a failure too."""
        reply = self.ok(path, body)
        self.assertIs(reply["success"], True)
        self.assertIsInstance(reply["message"], str)
        return reply

    def digest(self):
        return self.get("/octavo/v1/digest")[1]["digest"]

    def update(self, model, **body):
        return self.done("/update_weights_from_disk", {"model_path": model, **body})

    def tearDown(self):
        super().tearDown()
        self.await_load(0)
        self.post("/end_weight_update", {})
        self.update(DENSE, weight_version="0")


class TrainingSteps(ControlTest):
    """Four steps each, alternating between two checkpoints, with requests in flight."""

    def setUp(self):
        self.digests = {}
        for model in (BASE, DENSE):
            self.update(model, weight_version="0")
            self.digests[model] = self.digest()

    def check_aborted(self, replies):
        for status, reply in replies:
            self.assertEqual(status, 200)
            meta = reply["meta_info"]
            self.assertEqual(meta["finish_reason"]["type"], "abort")
            self.assertEqual(len(meta["output_token_logprobs"]), len(reply["output_ids"]))

    def check_live(self, model, version):
        self.assertEqual(self.version(), version)
        self.assertEqual(self.digest(), self.digests[model])

    def test_slime_on_disk(self):
        for version, model in FOLDERS.items():
            collect = self.start(3)
            self.ok("/abort_request", {"abort_all": True})  # The end of the rollout.
            self.await_load(0)
            self.check_aborted(collect())
            collect = self.start(2)
            self.ok("/pause_generation", {})
            self.check_aborted(collect())
            held = self.start(2, tokens=4, held=True)
            self.ok("/flush_cache", method="GET")
            reply = self.update(model, weight_version=version)
            self.assertEqual(reply["num_paused_requests"], 0)
            self.assertEqual(self.ok("/get_weight_version", method="GET"),
                             {"weight_version": version})
            self.ok("/continue_generation", {})
            for _, reply in held():
                self.assertEqual(reply["meta_info"]["weight_version"], version)
                self.assertEqual(len(reply["output_ids"]), 4)
            self.check_live(model, version)

    def test_miles_on_disk(self):
        for version, model in FOLDERS.items():
            collect = self.start(2, tokens=800)
            self.ok("/pause_generation", {"mode": "retract"})
            self.ok("/flush_cache", method="GET")
            self.done("/begin_weight_update", {"selector": "all"})
            self.update(model, flush_cache=False, selector="all")
            reply = self.done("/update_weight_version",
                              {"new_version": version, "abort_all_requests": False})
            self.assertEqual(reply["new_version"], version)
            self.done("/end_weight_update", {})
            self.ok("/continue_generation", {})
            for status, reply in collect():
                self.assertEqual((status, len(reply["output_ids"])), (200, 800))
                self.assertEqual(reply["meta_info"]["weight_version"], version)
                spans = reply["meta_info"]["weight_versions"]
                self.assertEqual(sum(span["tokens"] for span in spans), 800)
            self.check_live(model, version)

    def test_areal_on_disk(self):
        for version, model in FOLDERS.items():
            collect = self.start(2)
            self.ok("/pause_generation", {})
            self.ok("/pause_generation", {"mode": "in_place"})
            self.check_aborted(collect())
            held = self.start(1, tokens=3, held=True)
            self.update(model, abort_all_requests="true", weight_version=version)
            self.ok("/continue_generation", {})
            for _, reply in held():  # It had not begun, so nothing of it was aborted.
                self.assertEqual(len(reply["output_ids"]), 3)
            self.check_live(model, version)

    def test_an_interrupted_greedy_request_goes_on_as_if_nothing_were(self):
        """AReaL's loop: ids so far are sent again as a longer prompt until a stop or the budget."""
        params = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 400}
        whole = self.server.generate(input_ids=[5, 6, 7], sampling_params=params)["output_ids"]
        ids = []
        while len(ids) < 400:
            collect = self.start(1, input_ids=[5, 6, 7] + ids, sampling_params={
                **params, "max_new_tokens": 400 - len(ids)}) if len(ids) < 300 else None
            if collect is None:
                ids += self.server.generate(input_ids=[5, 6, 7] + ids, sampling_params={
                    **params, "max_new_tokens": 400 - len(ids)})["output_ids"]
                break
            self.ok("/pause_generation", {})
            self.ok("/continue_generation", {})
            ids += collect()[0][1]["output_ids"]
        self.assertEqual(ids, whole)

    def test_four_times_too_many_requests_and_a_flush(self):
        """What a pause with retract gives back, a flush finds free at once."""
        collect = self.start(40, tokens=300, held=True)
        self.ok("/pause_generation", {"mode": "retract"})
        for _ in range(3):
            self.ok("/flush_cache", method="GET")
        self.ok("/continue_generation", {})
        self.assertEqual([len(reply["output_ids"]) for _, reply in collect()], [300] * 40)


class Repetition(ControlTest):
    """Control calls that come twice, or when there is nothing to do."""

    def test_pauses_tighten_and_continue_lifts_all(self):
        before = self.fingerprint()
        for mode in ("in_place", "retract", "abort", "abort", "retract", "in_place"):
            self.ok("/pause_generation", {"mode": mode})
            self.ok("/flush_cache")
        for _ in range(3):
            self.ok("/continue_generation", {"torch_empty_cache": False})
        self.assertEqual(self.fingerprint(), before)

    def test_a_frozen_request_can_still_be_retracted_and_aborted(self):
        collect = self.start(1)
        self.ok("/pause_generation", {"mode": "in_place"})
        self.assertEqual(self.get("/flush_cache")[0], 400)
        self.ok("/pause_generation", {"mode": "retract"})
        self.ok("/flush_cache")
        for _ in range(2):
            self.ok("/pause_generation", {"mode": "abort"})
        self.assertEqual(collect()[0][1]["meta_info"]["finish_reason"]["type"], "abort")

    def test_updates_from_disk_may_be_repeated(self):
        digests = set()
        for _ in range(2):
            self.update(BASE, weight_version="8")
            digests.add(self.digest())
        self.assertEqual((len(digests), self.version()), (1, "8"))

    def test_an_update_with_frozen_requests_changes_nothing_unless_asked(self):
        digest = self.digest()
        collect = self.start(1)
        self.ok("/pause_generation", {"mode": "in_place"})
        status, reply = self.post("/update_weights_from_disk", {"model_path": BASE})
        self.assertEqual((status, reply["success"]), (400, False))
        self.assertEqual((self.digest(), self.version()), (digest, "0"))
        self.update(BASE, abort_all_requests=True)
        self.assertEqual(collect()[0][1]["meta_info"]["finish_reason"]["type"], "abort")
        self.assertNotEqual(self.digest(), digest)


class Brackets(ControlTest):
    def test_begin_and_end_come_in_turn(self):
        refused(self, *self.post("/end_weight_update", {}), "begin_weight_update")
        for selector in ("all", "target", None):
            self.done("/begin_weight_update", {"selector": selector})
            refused(self, *self.post("/begin_weight_update", {}), "127.0.0.1")
            self.done("/end_weight_update", {})
            refused(self, *self.post("/end_weight_update"))
        refused(self, *self.post("/begin_weight_update", {"selector": "draft"}), "draft")
        object_error(self, *self.post("/begin_weight_update", {"selector": "some"}))
        object_error(self, *self.post("/begin_weight_update", {"selector": 3}))
        object_error(self, *self.post("/end_weight_update", b"{"))

    def test_nothing_is_left_to_process(self):
        for body in (None, {}, {"restore_weights_before_load": True},
                     {"post_process_quantization": "true", "restore_weights_before_load": None}):
            self.done("/post_process_weights", body)
        object_error(self, *self.post("/post_process_weights",
                                      {"post_process_quantization": "later"}))

    def test_there_is_no_profiler(self):
        for path in ("/start_profile", "/stop_profile"):
            for method in ("GET", "POST"):
                status, reply = self.server.call(method, path)
                value_error(self, status, reply)
                self.assertIn("profile", reply["error"]["message"])


class Checker(ControlTest):
    def check(self, action, **body):
        return self.post("/weights_checker", {"action": action, **body})

    def test_checksums(self):
        first = self.ok("/weights_checker", method="GET")
        self.assertEqual(set(first), {"success", "message", "ranks", "per_engine_checksum",
                                      "digest"})
        (rank,) = first["ranks"]
        self.assertEqual(set(rank), {"checksums", "per_gpu_checksum", "parallelism_info"})
        names = set(read_safetensors(octavo_testing.ROOT / DENSE / "model.safetensors"))
        self.assertEqual(set(rank["checksums"]), names)
        for checksum in rank["checksums"].values():
            self.assertRegex(checksum, "^[0-9a-f]{16}$")
        self.assertRegex(rank["per_gpu_checksum"], "^[0-9a-f]{64}$")
        self.assertRegex(first["per_engine_checksum"], "^[0-9a-f]{64}$")
        self.assertEqual(rank["parallelism_info"], {
            "tp_rank": 0, "tp_size": 1, "dp_rank": 0, "dp_size": 1, "pp_rank": 0, "pp_size": 1,
            "rank": 0, "size": 1})
        self.assertEqual(first["digest"], self.digest())
        self.update(BASE)
        other = self.ok("/weights_checker", {"action": "checksum"})
        self.assertNotEqual(other["per_engine_checksum"], first["per_engine_checksum"])
        self.update(DENSE)
        self.assertEqual(self.ok("/weights_checker", {}), first)

    def test_snapshot_reset_update_compare(self):
        before = self.fingerprint()
        refused(self, *self.check("compare"), "snapshot")
        self.assertEqual(self.check("snapshot")[0], 200)
        self.assertEqual(self.check("compare")[0], 200)
        self.assertEqual(self.check("reset_tensors")[0], 200)
        held = self.start(1, tokens=4, held=True)
        refused(self, *self.check("compare"), "model.embed_tokens.weight")
        noise = self.ok("/weights_checker", {"action": "checksum"})
        self.update(BASE)
        held()  # Held while there was noise.
        status, reply = self.check("compare")
        refused(self, status, reply, "90 of 90 weights differ")
        self.assertNotEqual(self.digest(), noise["digest"])
        self.update(DENSE)
        self.assertEqual(self.check("compare", selector="all", allow_quant_error=True)[0], 200)
        self.assertEqual(self.fingerprint(), before)

    def test_what_is_skipped_is_neither_overwritten_nor_compared(self):
        self.assertEqual(self.check("snapshot")[0], 200)
        layers = ["layers"]
        self.assertEqual(self.check("reset_tensors", skip_tensor_list=layers)[0], 200)
        refused(self, *self.check("compare"), "2 of 90 weights differ")
        refused(self, *self.check("compare", skip_tensor_list=layers), "2 of 2 weights differ")
        self.assertEqual(self.check("compare", skip_tensor_list=["embed", "model.norm"])[0], 200)

    def test_reset_refuses_while_requests_run(self):
        collect = self.start(1)
        refused(self, *self.check("reset_tensors"))
        self.post("/abort_request", {"abort_all": True})
        self.assertEqual(collect()[0][1]["meta_info"]["finish_reason"]["type"], "abort")

    def test_malformed_checks(self):
        for body in ({"action": "look"}, {"action": 1}, {"allow_quant_error": "x"},
                     {"skip_tensor_list": "x"}, {"skip_tensor_list": [1]},
                     {"skip_tensor_list": [""]}, {"selector": "none"}, b"["):
            object_error(self, *self.post("/weights_checker", body))

    def test_a_released_server_has_nothing_to_check(self):
        self.ok("/release_memory_occupation", {"tags": ["weights"]})
        for action in ("checksum", "snapshot", "reset_tensors"):
            refused(self, *self.check(action), "released")
        value_error(self, *self.post("/get_weights_by_name", {"name": "model.norm.weight"}))
        self.ok("/resume_memory_occupation", {})


class Values(ControlTest):
    def values(self, method="POST", **body):
        return self.server.call(method, "/get_weights_by_name", body)

    def test_values_are_those_of_the_file(self):
        stored = read_safetensors(octavo_testing.ROOT / DENSE / "model.safetensors")
        for name, rows in (("model.norm.weight", 100), ("model.layers.0.mlp.up_proj.weight", 3)):
            dtype, shape, data = stored[name]
            self.assertEqual(dtype, "BF16")
            reply = self.ok("/get_weights_by_name", {"name": name, "truncate_size": rows})
            self.assertEqual(len(reply), min(rows, shape[0]))
            flat = reply if len(shape) == 1 else [value for row in reply for value in row]
            words = memoryview(data[:2 * len(flat)]).cast("H")
            expected = b"".join(struct.pack("<I", word << 16) for word in words)
            self.assertEqual(struct.pack(f"<{len(flat)}f", *flat), expected)

    def test_truncation(self):
        name = "model.layers.0.self_attn.q_proj.weight"
        for size, rows in ((None, 100), (0, 0), (1, 1), ("2", 2), (10**9, 256)):
            status, reply = self.values(name=name, truncate_size=size)
            self.assertEqual((status, len(reply)), (200, rows), size)
        self.assertEqual(self.values("GET", name=name, truncate_size=1)[0], 200)

    def test_refusals_name_the_tensor(self):
        for name in ("model.layers.99.mlp.up_proj.weight", "x"):
            status, reply = self.values(name=name)
            value_error(self, status, reply)
            self.assertIn(name, reply["error"]["message"])
        object_error(self, *self.values())
        object_error(self, *self.values(name=7))
        object_error(self, *self.values(name="x", truncate_size="many"))
        value_error(self, *self.values(name="x", truncate_size=-1))


if __name__ == "__main__":
    octavo_testing.main()
