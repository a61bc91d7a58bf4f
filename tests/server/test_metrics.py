"""Method: /metrics is read by the grammar of Prometheus' text format, written down here, and its
figures are held against requests that were counted by hand."""

import http.client
import json
import math
import pathlib
import re
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, ONE_THREAD
from octavo_testing import BASE, DENSE, ROOT, Server

GAUGES = ("num_running_reqs", "num_queue_reqs", "gen_throughput", "token_usage", "cache_hit_rate",
          "num_used_tokens", "max_total_num_tokens", "num_retracted_reqs", "num_paused_reqs")
COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "num_requests_total",
            "num_aborted_requests_total", "cached_tokens_total")
HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds",
              "e2e_request_latency_seconds", "queue_time_seconds")
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
IDS = [5, 6, 7]


def parse(text):
    """Name of a family -> (type, {(name, labels): value}), checking the whole grammar."""
    families, current = {}, None
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, text = line[len("# HELP "):].split(" ", 1)
            assert re.fullmatch(NAME, name) and text and name not in families, line
            current = name
        elif line.startswith("# TYPE "):
            name, kind = line[len("# TYPE "):].split(" ")
            assert name == current and kind in ("gauge", "counter", "histogram"), line
            families[name] = (kind, {})
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            kind, samples = families[current]
            parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert match[1] in [current + part for part in parts], line
            labels = tuple(pair.groups() for pair in re.finditer(LABEL, match[2] or ""))
            assert len(set(name for name, _ in labels)) == len(labels), line
            assert (match[1], labels) not in samples, line
            samples[match[1], labels] = float(match[7])
    return families


class Metrics(ApiTest):
    def scrape(self):
        status, text = self.get("/metrics")
        self.assertEqual(status, 200)
        return parse(text)

    def value(self, families, name, **labels):
        """The one sample of the family that has these labels."""
        found = [value for (_, pairs), value in families[name][1].items()
                 if labels.items() <= dict(pairs).items()]
        self.assertEqual(len(found), 1, (name, labels, families[name]))
        return found[0]

    def delta(self, before, after, name, **labels):
        return self.value(after, name, **labels) - self.value(before, name, **labels)

    def counts(self, before, after, name):
        """Requests that a histogram saw between two scrapes."""
        def count(families):
            (value,) = [v for (part, _), v in families[name][1].items() if part.endswith("_count")]
            return value

        return count(after) - count(before)

    def generate(self, **body):
        params = {"max_new_tokens": 5, "ignore_eos": True, "temperature": 0}
        params.update(body.pop("sampling_params", {}))
        return self.server.generate(input_ids=IDS, sampling_params=params, **body)

    def test_names_and_labels_are_those_of_sglang(self):
        self.generate()
        families = self.scrape()
        for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
            for name in names:
                self.assertEqual(families["sglang:" + name][0], kind, name)
        for name, (kind, samples) in families.items():
            self.assertTrue(name.startswith(("sglang:", "octavo:")), name)
            self.assertEqual(name.endswith("_total"), kind == "counter", name)
            label_names = {tuple(n for n, _ in labels if n != "le") for _, labels in samples}
            self.assertEqual(len(label_names), 1, name)  # A router merges workers by them.
            labels = next(iter(samples))[1]
            self.assertEqual(dict(labels)["model_name"], DENSE)
            self.assertEqual(dict(labels)["engine_type"], "unified")
            for rank in ("tp_rank", "pp_rank", "moe_ep_rank"):
                self.assertEqual(dict(labels).get(rank), "0" if kind == "gauge" else None, name)
        self.assertEqual(self.value(families, "sglang:cached_tokens_total", cache_source="device"),
                         self.value(families, "sglang:cached_tokens_total"))

    def test_the_page_on_metrics_names_them_all(self):
        page = (octavo_testing.ROOT / "docs" / "metrics.md").read_text()
        named = re.findall(r"^\| `((?:sglang|octavo):\w+)` \| ", page, re.MULTILINE)
        self.assertEqual(len(set(named)), len(named))
        self.assertEqual(set(named), set(self.scrape()))

    def test_the_media_type_is_that_of_the_format(self):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port))
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        reply.read()
        connection.close()
        self.assertEqual(reply.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(self.server.call("POST", "/metrics")[0], 405)

    def test_buckets_are_cumulative(self):
        self.generate()
        families = self.scrape()
        for name in HISTOGRAMS:
            name = "sglang:" + name
            samples = families[name][1]
            buckets = [(dict(labels)["le"], value) for (part, labels), value in samples.items()
                       if part == name + "_bucket"]
            bounds = [float(le) for le, _ in buckets]
            self.assertEqual(bounds, sorted(set(bounds)))
            self.assertEqual((buckets[-1][0], bounds[-1]), ("+Inf", math.inf))
            counts = [value for _, value in buckets]
            self.assertEqual(counts, sorted(counts))
            self.assertTrue(all(count == int(count) for count in counts))
            (count,) = [v for (part, _), v in samples.items() if part == name + "_count"]
            (total,) = [v for (part, _), v in samples.items() if part == name + "_sum"]
            self.assertEqual(counts[-1], count)
            # The sum lies between what the buckets allow.
            least = most = below = 0.0
            for low, high, value in zip([0.0] + bounds, bounds, counts):
                least += low * (value - below)
                most += high * (value - below) if value > below else 0.0
                below = value
            self.assertLessEqual(least, total * (1 + 1e-9) + 1e-12)
            self.assertLessEqual(total, most * (1 + 1e-9))

    def test_counters_count_exactly(self):
        before = self.scrape()
        for _ in range(3):
            self.generate()
        self.generate(stream=False, sampling_params={"n": 2})
        self.generate(sampling_params={"max_new_tokens": 0})
        after = self.scrape()
        for name, wanted in (("num_requests_total", 6), ("prompt_tokens_total", 6 * len(IDS)),
                             ("generation_tokens_total", 25), ("num_aborted_requests_total", 0)):
            self.assertEqual(self.delta(before, after, "sglang:" + name), wanted, name)
        for name, wanted in (("time_to_first_token_seconds", 5), ("queue_time_seconds", 6),
                             ("inter_token_latency_seconds", 20),
                             ("e2e_request_latency_seconds", 6)):
            self.assertEqual(self.counts(before, after, "sglang:" + name), wanted, name)
        self.assertEqual(self.delta(before, after, "octavo:failed_requests_total"), 0)
        self.assertEqual(self.delta(before, after, "octavo:http_requests_total",
                                    route="/generate", status="200"), 5)

    def test_the_openai_endpoints_count_too(self):
        before = self.scrape()
        status, reply = self.post("/v1/completions", {"prompt": IDS, "max_tokens": 4})
        self.assertEqual(status, 200, reply)
        after = self.scrape()
        self.assertEqual(self.delta(before, after, "sglang:num_requests_total"), 1)
        self.assertEqual(self.delta(before, after, "sglang:generation_tokens_total"),
                         reply["usage"]["completion_tokens"])
        self.assertEqual(self.value(after, "octavo:http_requests_total",
                                    route="/v1/completions", status="200"), 1)

    def test_streams_count_like_other_requests(self):
        before = self.scrape()
        self.post("/generate", {"input_ids": IDS, "stream": True,
                                "sampling_params": {"max_new_tokens": 7, "ignore_eos": True}})
        after = self.scrape()
        self.assertEqual(self.delta(before, after, "sglang:generation_tokens_total"), 7)
        self.assertEqual(self.counts(before, after, "sglang:inter_token_latency_seconds"), 6)

    def test_aborts_and_peers_that_leave(self):
        before = self.scrape()
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port))
        connection.request("POST", "/generate", body=json.dumps({
            "input_ids": IDS, "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}))
        self.await_load(1)
        self.assertEqual(self.value(self.scrape(), "octavo:http_requests_in_flight"), 2)
        connection.close()
        self.await_load(0)
        after = self.scrape()
        self.assertEqual(self.delta(before, after, "sglang:num_aborted_requests_total"), 1)
        self.assertEqual(self.counts(before, after, "sglang:e2e_request_latency_seconds"), 0)
        self.assertEqual(self.value(after, "octavo:http_requests_total", route="/generate",
                                    status="499"), 1)
        self.assertEqual(self.value(after, "octavo:http_requests_in_flight"), 1)

    def test_refusals_count_by_route_and_status(self):
        self.post("/generate", {"input_ids": []})
        self.get("/no/such/path")
        self.get("/generate")
        families = self.scrape()
        for route, status in (("/generate", "400"), ("/generate", "405"), ("", "404")):
            self.assertGreaterEqual(self.value(families, "octavo:http_requests_total",
                                               route=route, status=status), 1)
        self.assertNotIn("no/such", self.get("/metrics")[1])

    def test_gauges_follow_what_runs(self):
        collect = self.start(3, tokens=3000)
        families = self.scrape()
        self.assertEqual(self.value(families, "sglang:num_running_reqs"), 3)
        self.assertGreater(self.value(families, "sglang:num_used_tokens"), 0)
        self.assertEqual(
            self.value(families, "sglang:token_usage"),
            self.value(families, "sglang:num_used_tokens")
            / self.value(families, "sglang:max_total_num_tokens"))
        pages = [self.value(families, "octavo:kv_pages", state=state)
                 for state in ("free", "cached", "held")]
        self.assertEqual(sum(pages) * 32, self.value(families, "sglang:max_total_num_tokens"))
        self.assertGreaterEqual(pages[2], 1)
        self.post("/pause_generation", {"mode": "retract"})
        families = self.scrape()
        for name, wanted in (("sglang:num_running_reqs", 0), ("sglang:num_queue_reqs", 3),
                             ("sglang:num_paused_reqs", 3), ("sglang:num_retracted_reqs", 3),
                             ("sglang:num_used_tokens", 0), ("octavo:paused", 1)):
            self.assertEqual(self.value(families, name), wanted, name)
        self.assertGreaterEqual(self.value(families, "sglang:num_retracted_requests_total"), 3)
        self.post("/abort_request", {"abort_all": True})
        collect()

    def test_prefix_cache_hits(self):
        prompt = [9] * 70  # Two full pages and a tail.
        before = self.scrape()
        for _ in range(3):
            reply = self.server.generate(input_ids=prompt, sampling_params={"max_new_tokens": 1})
        cached = reply["meta_info"]["cached_tokens"]
        self.assertGreater(cached, 0)
        after = self.scrape()
        self.assertEqual(self.delta(before, after, "sglang:cached_tokens_total"), 2 * cached)
        self.assertEqual(self.delta(before, after, "octavo:prefix_cache_hits_total"), 2)
        # Three prompts went in, and what was cached was not computed.
        self.assertEqual(self.delta(before, after, "octavo:computed_tokens_total"),
                         3 * len(prompt) - 2 * cached)

    def test_released_memory_and_updates_show(self):
        before = self.scrape()
        self.post("/release_memory_occupation", {})
        families = self.scrape()
        self.assertEqual([self.value(families, "octavo:memory_released", part=part)
                          for part in ("kv_cache", "weights")], [1, 1])
        self.assertEqual(self.value(families, "octavo:weights_live"), 0)
        self.post("/resume_memory_occupation", {})
        for model, version in ((BASE, "4"), (DENSE, "0")):
            self.post("/update_weights_from_disk", {"model_path": model, "weight_version": version})
        self.post("/update_weights_from_disk", {"model_path": "models/none"})
        after = self.scrape()
        self.assertEqual(self.value(after, "octavo:weights_live"), 1)
        for outcome, wanted in (("committed", 2), ("failed", 1), ("dropped", 0)):
            self.assertEqual(self.delta(before, after, "octavo:weight_updates_total",
                                        outcome=outcome), wanted, outcome)
        for phase in ("put", "seal", "commit"):
            self.assertGreater(self.delta(before, after, "octavo:weight_update_seconds_total",
                                          phase=phase), 0, phase)
        self.assertGreater(self.value(after, "sglang:weight_load_duration_seconds", source="disk"),
                           0)
        self.assertEqual(self.value(after, "octavo:info", weight_version="0"), 1)


class Nvfp4Inputs(unittest.TestCase):
    """Groups of 16 inputs are 1/16 of the inputs of the quantized layers, token by token."""

    GROUPS = "octavo:nvfp4_input_groups_total"
    OUTSIDE = "octavo:nvfp4_input_groups_out_of_range_total"

    def counts(self, server):
        """(groups, above, below)"""
        families = parse(server.call("GET", "/metrics")[1])
        (groups,) = families[self.GROUPS][1].values()
        sides = {dict(labels)["side"]: value
                 for (_, labels), value in families[self.OUTSIDE][1].items()}
        self.assertEqual(set(sides), {"above", "below"})
        return groups, sides["above"], sides["below"]

    def test_count_every_group_of_every_token(self):
        config = json.loads((ROOT / DENSE / "config.json").read_text())
        heads = config["num_attention_heads"] * config["head_dim"]
        # One for q, k and v, one for gate and up, and those of o and down.
        inputs = 2 * config["hidden_size"] + heads + config["intermediate_size"]
        flags = ["--format", "nvfp4", "--scope", "all", "--nvfp4-input-scale", "pow2"]
        with Server(DENSE, *ONE_THREAD, *flags) as server:
            self.assertEqual(self.counts(server), (0, 0, 0))
            server.generate(input_ids=IDS, sampling_params={"max_new_tokens": 1})
            groups, above, below = self.counts(server)
            self.assertEqual(groups, len(IDS) * config["num_hidden_layers"] * inputs / 16)
            self.assertEqual(above, 0)  # Trained activations are far below 2800.
            self.assertLess(below, groups)

    def test_are_none_in_other_formats(self):
        with Server(DENSE, *ONE_THREAD) as server:
            server.generate(input_ids=IDS, sampling_params={"max_new_tokens": 1})
            self.assertEqual(self.counts(server), (0, 0, 0))


class Keys(unittest.TestCase):
    def test_metrics_ask_for_no_key(self):
        with Server(DENSE, *ONE_THREAD, "--api-key", "secret", "--admin-api-key", "more") as server:
            self.assertEqual(server.call("GET", "/metrics")[0], 200)
            self.assertEqual(server.call("GET", "/v1/loads")[0], 401)
            families = parse(server.call("GET", "/metrics")[1])
            refused = [value for (_, labels), value in
                       families["octavo:http_requests_total"][1].items()
                       if dict(labels)["status"] == "401"]
            self.assertEqual(refused, [1])


if __name__ == "__main__":
    octavo_testing.main()
