"""Method: a client of the standard library alone holds a real server to what must hold while
requests run: aborts with partial output, the three pause modes, the flush rule, and signals."""

import http.client
import json
import pathlib
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, GREEDY, ONE_THREAD, object_error
from octavo_testing import DENSE, Server


class Control(ApiTest):
    def abort_all(self):
        self.assertEqual(self.post("/abort_request", {"abort_all": True}), (200, ""))

    def pause(self, **body):
        status, reply = self.post("/pause_generation", body)
        self.assertEqual((status, set(reply), reply["status"]), (200, {"message", "status"}, "ok"))

    def resume(self):
        status, reply = self.post("/continue_generation", {"torch_empty_cache": True})
        self.assertEqual((status, set(reply), reply["status"]), (200, {"message", "status"}, "ok"))

    def check_partial(self, status, reply):
        self.assertEqual(status, 200)
        reason = reply["meta_info"]["finish_reason"]
        self.assertEqual(reason["type"], "abort")
        self.assertIsInstance(reason["message"], str)
        self.assertEqual(len(reply["meta_info"]["output_token_logprobs"]), len(reply["output_ids"]))
        self.assertLess(len(reply["output_ids"]), 1200)

    def test_abort_returns_partial_outputs(self):
        collect = self.start(8)
        time.sleep(0.1)
        self.abort_all()
        for status, reply in collect():
            self.check_partial(status, reply)
        self.assertEqual(self.load(), 0)

    def test_an_abort_that_matches_nothing_is_200(self):
        for body in ({"rid": "nobody"}, {"rid": ""}, {}, {"rid": None, "abort_all": "false"}):
            self.assertEqual(self.post("/abort_request", body), (200, ""))
        object_error(self, *self.post("/abort_request", {"abort_all": "perhaps"}))
        object_error(self, *self.post("/abort_request", {"rid": 5}))

    def test_rids_match_exactly(self):
        collect = self.start(rid="request-12")
        self.post("/abort_request", {"rid": "request-1"})
        self.post("/abort_request", {"rid": ""})
        self.assertEqual(self.load(), 1)
        self.post("/abort_request", {"rid": "request-12"})
        self.check_partial(*collect()[0])

    def test_pause_abort_returns_partials_and_holds_new_requests(self):
        collect = self.start(4)
        self.pause()
        for status, reply in collect():
            self.check_partial(status, reply)
        held = self.start(2, tokens=5, held=True)
        self.assertEqual(self.get("/health"), (200, ""))
        self.pause(mode="abort")  # Idempotent; a held request never gets an error.
        self.pause(mode="in_place")
        self.assertEqual(self.load(), 2)
        self.resume()
        self.assertEqual([len(r["output_ids"]) for _, r in held()], [5, 5])

    def test_pause_retract_keeps_tokens_and_frees_pages(self):
        whole = self.server.generate(input_ids=[5, 6, 7], return_logprob=True,
                                     sampling_params=dict(GREEDY, max_new_tokens=1200))
        collect = self.start(1, sampling_params=dict(GREEDY, max_new_tokens=1200))
        self.pause(mode="retract")
        self.assertEqual(self.get("/flush_cache")[0], 200)
        self.resume()
        ((status, reply),) = collect()
        self.assertEqual(status, 200)
        self.assertEqual(reply["output_ids"], whole["output_ids"])
        self.assertEqual(reply["meta_info"]["output_token_logprobs"],
                         whole["meta_info"]["output_token_logprobs"])
        self.assertEqual(reply["meta_info"]["num_retractions"], 1)

    def test_pause_in_place_freezes(self):
        collect = self.start(1, tokens=1200)
        self.pause(mode="in_place")
        used = self.get("/v1/loads")[1]["loads"][0]["num_used_tokens"]
        time.sleep(0.1)
        self.assertEqual(self.get("/v1/loads")[1]["loads"][0]["num_used_tokens"], used)
        self.assertEqual(self.get("/flush_cache")[0], 400)
        self.resume()
        self.assertEqual(len(collect()[0][1]["output_ids"]), 1200)

    def test_an_abort_works_while_paused(self):
        collect = self.start(2)
        self.pause(mode="in_place")
        self.abort_all()
        for status, reply in collect():
            self.check_partial(status, reply)

    def test_unknown_pause_mode(self):
        object_error(self, *self.post("/pause_generation", {"mode": "freeze"}))
        object_error(self, *self.post("/pause_generation", b"{"))
        object_error(self, *self.post("/continue_generation", {"torch_empty_cache": "x"}))

    def test_flush_rules(self):
        for method, body in (("GET", None), ("POST", None), ("POST", {}), ("GET", {})):
            self.assertEqual(self.server.call(method, "/flush_cache", body)[0], 200)
        for query in ("timeout=-1", "timeout=x", "timeout=inf"):
            self.assertEqual(self.get("/flush_cache?" + query)[0], 400)
        collect = self.start(1)
        self.assertEqual(self.get("/flush_cache")[0], 400)
        begin = time.monotonic()
        self.assertEqual(self.get("/flush_cache?timeout=0.3")[0], 400)
        self.assertGreaterEqual(time.monotonic() - begin, 0.25)
        results = []
        waiting = threading.Thread(
            target=lambda: results.append(self.get("/flush_cache?timeout=20")[0]))
        waiting.start()
        time.sleep(0.1)
        self.assertEqual(self.get("/flush_cache")[0], 400)  # A second flush while one waits.
        self.abort_all()
        waiting.join(30)
        self.assertEqual(results, [200])
        collect()

    def test_a_client_that_leaves_aborts_its_request(self):
        for stream in (False, True):
            connection = http.client.HTTPConnection(self.server.host, int(self.server.port))
            connection.request("POST", "/generate", body=json.dumps({
                "input_ids": [5], "stream": stream,
                "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}))
            self.await_load(1)
            connection.close()
            self.await_load(0)

    def test_relabelling_the_weights(self):
        status, reply = self.post("/update_weight_version",
                                  {"new_version": "7", "abort_all_requests": False})
        self.assertEqual(status, 200)
        self.assertEqual(set(reply), {"success", "message", "new_version"})
        self.assertEqual((reply["success"], reply["new_version"], self.version()),
                         (True, "7", "7"))
        reply = self.server.generate(input_ids=[5], sampling_params=GREEDY)
        self.assertEqual(reply["meta_info"]["weight_version"], "7")
        collect = self.start(2)
        self.post("/update_weight_version", {"new_version": "0"})  # Aborts by default.
        for status, reply in collect():
            self.check_partial(status, reply)
        object_error(self, *self.post("/update_weight_version", {}))
        object_error(self, *self.post("/update_weight_version", {"new_version": 5}))


class Stopping(unittest.TestCase):
    def request(self, server, tokens, replies):
        def call():
            try:
                replies.append(server.call("POST", "/generate", {
                    "input_ids": [5],
                    "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}))
            except OSError as error:  # The server is gone.
                replies.append((0, str(error)))

        thread = threading.Thread(target=call)
        thread.start()
        while server.call("GET", "/v1/loads")[1]["aggregate"]["total_reqs"] == 0:
            time.sleep(0.01)
        return thread

    def test_sigterm_finishes_what_runs_and_exits_0(self):
        for how in (signal.SIGTERM, signal.SIGINT):
            server = Server(DENSE, *ONE_THREAD)
            replies = []
            thread = self.request(server, 1000, replies)
            self.assertEqual(server.stop(how), 0)
            thread.join()
            self.assertEqual(replies[0][0], 200)
            self.assertEqual(len(replies[0][1]["output_ids"]), 1000)

    def test_a_second_signal_stops_at_once(self):
        server = Server(DENSE, *ONE_THREAD)
        thread = self.request(server, 4000, [])
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        begin = time.monotonic()
        server.stop(signal.SIGTERM)
        self.assertLess(time.monotonic() - begin, 10)
        thread.join()

    def test_bad_starts_are_one_line(self):
        with Server(DENSE, *ONE_THREAD) as server:
            busy = octavo_testing.run("serve", DENSE, "--port", server.port, check=False)
            self.assertEqual(busy.returncode, 1)
            # Before anything is loaded.
            self.assertEqual(busy.stderr, f"octavo: port {server.port} on 127.0.0.1 is in use by "
                                          "another process\n")
        missing = octavo_testing.run("serve", "models/none", "--port", "0", check=False)
        self.assertEqual(missing.returncode, 2)
        self.assertIn("models/none", missing.stderr)


if __name__ == "__main__":
    octavo_testing.main()
