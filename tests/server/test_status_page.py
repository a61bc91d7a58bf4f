"""Method: the status page in headless Chromium, driven over its DevTools protocol. What it shows is
compared with what the endpoints answer; what it asks for is listed; other origins must be out of its
reach. Without Chromium (Debian package chromium) the tests are skipped, which ctest reports."""

import http.client
import json
import pathlib
import re
import socket
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from devtools import Page, find_chromium
from octavo_testing import BASE, DENSE, Server, run

SKIPPED = 77  # tests/CMakeLists.txt: ctest shows this as "Skipped".
KEY = "a-key-of-the-test"
POLICY = ("--format", "fp8", "--keep-last", "2")
MOE = "models/abacus-moe"


def fetch(server, path, headers=None):
    connection = http.client.HTTPConnection(server.host, int(server.port), timeout=60)
    try:
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read().decode()
    finally:
        connection.close()


class Text(unittest.TestCase):
    """What any client gets, browser or probe."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server(DENSE, "--threads", "1", "--api-key", KEY))

    def test_a_probe_gets_200_without_a_key_and_no_figure(self):
        for headers in ({}, {"Accept": "application/json"}, {"Accept": "text/html"}):
            status, _, body = fetch(self.server, "/", headers)
            self.assertEqual(status, 200)
            self.assertIn("Octavo is running", body)
            self.assertNotIn("abacus", body)
        self.assertEqual(fetch(self.server, "/server_info")[0], 401)

    def test_its_policy_forbids_other_origins_and_scripts(self):
        _, headers, body = fetch(self.server, "/")
        self.assertTrue(headers["Content-Type"].startswith("text/html"))
        rules = dict(rule.strip().split(" ", 1)
                     for rule in headers["Content-Security-Policy"].split(";"))
        self.assertEqual(rules["default-src"], "'none'")
        self.assertEqual(rules["connect-src"], "'self'")
        self.assertEqual(rules["img-src"], "data:")
        self.assertEqual(rules["frame-ancestors"], "'none'")
        self.assertRegex(rules["script-src"], r"^'sha256-[A-Za-z0-9+/]{43}='$")
        self.assertRegex(rules["style-src"], r"^'sha256-[A-Za-z0-9+/]{43}='$")
        self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
        self.assertNotRegex(re.sub(r"http://www\.w3\.org/2000/svg", "", body), r"https?://|//cdn|@import")
        self.assertLess(len(body), 64 << 10)


@unittest.skipUnless(find_chromium(), "no chromium")
class InBrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.page = Page(find_chromium())
        cls.addClassCleanup(cls.page.close)

    def show(self, server):
        """Opens the page of a server and waits for its second poll."""
        self.page.look()
        self.page.open(server.url + "/")
        self.page.until("Number(document.body.dataset.polls) >= 2")

    def value(self, element):
        return self.page.run(f"document.getElementById('{element}').dataset.value")

    def number(self, element):
        return float(self.value(element))

    def await_value(self, element, wanted):
        self.page.until(f"document.getElementById('{element}').dataset.value === {json.dumps(wanted)}")

    def assert_quiet(self, server):
        """Nothing but the server was asked for anything, and nothing went wrong."""
        self.page.run("1")  # Takes in what has been reported.
        urls = {request["url"] for request in self.page.requests}
        self.assertTrue(urls)
        self.assertEqual({url for url in urls if not url.startswith((server.url, "data:"))}, set())
        self.assertEqual(self.page.problems, [])


class Figures(InBrowser):
    def test_figures_are_those_of_the_endpoints(self):
        with Server(DENSE, *POLICY) as server:
            server.generate(text=["Question: one?", "Question: two?"],
                            sampling_params={"max_new_tokens": 30, "ignore_eos": True})
            self.show(server)
            info = server.call("GET", "/server_info")[1]
            totals = info["internal_states"][0]
            self.assertEqual(self.number("tokens"), totals["generation_tokens_total"])
            self.assertEqual(self.number("prompt-tokens"), totals["prompt_tokens_total"])
            self.assertEqual(self.number("cached"), totals["cached_tokens_total"])
            self.assertEqual(self.number("requests-note"), totals["num_requests_total"])
            self.assertEqual(self.value("weight-version"), info["weight_version"])
            text = self.page.run("document.body.innerText")
            for shown in (DENSE, info["recipe"], info["weight_digest"], info["policy_hash"],
                          info["backend"], info["version"]):
                self.assertIn(shown, text)
            self.assertEqual(self.page.run("document.getElementById('state-text').textContent"), "ready")
            self.check_load(server)
            self.assert_quiet(server)
            self.check_reach(server)

    def check_load(self, server):
        """Requests that are frozen stand still, so page and endpoint can be compared."""
        threads = [threading.Thread(target=server.generate, kwargs={
            "input_ids": [5 + i, 6, 7],
            "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}) for i in range(5)]
        for thread in threads:
            thread.start()
        self.page.until("Number(document.getElementById('throughput').dataset.value) > 0")
        self.page.until("document.querySelector('#throughput-spark .line').getAttribute('d')"
                        ".split('L').length > 2")
        server.call("POST", "/pause_generation", {"mode": "in_place"})
        load = server.call("GET", "/v1/loads")[1]["loads"][0]
        self.assertEqual(load["num_running_reqs"], 5)
        polls = self.page.run("Number(document.body.dataset.polls)")
        self.page.until(f"Number(document.body.dataset.polls) >= {polls + 2}")  # Asked since then.
        self.assertEqual(self.number("running"), 5)
        self.assertEqual(self.number("queued"), load["num_waiting_reqs"])
        self.assertEqual(self.number("kv-share"), load["token_usage"])
        self.assertEqual(self.number("kv-note"), load["num_used_tokens"])
        self.assertIn("paused", self.page.run("document.getElementById('state-text').textContent"))
        server.call("POST", "/abort_request", {"abort_all": True})
        server.call("POST", "/continue_generation", {})
        for thread in threads:
            thread.join()
        self.await_value("running", "0")

    def check_reach(self, server):
        """The page's policy keeps it from a server beside ours, which would hear of it."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(0.5)
            url = f"http://127.0.0.1:{other.getsockname()[1]}/"
            failed = self.page.run(f"fetch('{url}', {{mode: 'no-cors'}}).then(() => false, () => true)")
            self.assertTrue(failed)
            self.page.run(f"void (new Image().src = '{url}')")
            with self.assertRaises(TimeoutError):
                other.accept()

    def test_an_update_shows_with_its_phases(self):
        with Server(BASE, *POLICY, "--weight-version", "41") as server:
            self.show(server)
            self.assertTrue(self.page.run("!!document.getElementById('no-update')"))
            before = self.page.run("document.getElementById('weights').innerText")
            run("push", DENSE, "--to", server.url, "--weight-version", "step-42")
            self.await_value("weight-version", "step-42")
            self.page.until("!!document.getElementById('update-version')")
            last = server.call("GET", "/octavo/v1/update")[1]["last"]
            self.assertEqual(self.value("update-version"), last["version"])
            self.assertEqual(self.number("update-pause"), last["pause_ms"])
            phases = self.page.run("Object.fromEntries([...document.querySelectorAll('[data-phase]')]"
                                   ".map((e) => [e.dataset.phase, Number(e.dataset.value)]))")
            self.assertEqual((phases["stage"], phases["seal"], phases["swap"]),
                             (last["put_seconds"], last["seal_seconds"], last["commit_seconds"]))
            self.assertAlmostEqual(sum(phases.values()), last["open_seconds"], places=3)
            after = self.page.run("document.getElementById('weights').innerText")
            self.assertNotEqual(before, after)
            live = server.call("GET", "/octavo/v1/digest")[1]["digest"]
            self.assertEqual(last["digest"], live)
            self.assertIn(live, after)
            self.check_open_update(server)
            self.assert_quiet(server)

    def check_open_update(self, server):
        update = server.call("POST", "/octavo/v1/update/begin", {"weight_version": "next"})[1]
        self.page.until("document.getElementById('update').innerText.includes('Receiving version next')")
        server.call("POST", "/octavo/v1/update/abort", {"update_id": update["update_id"]})
        self.page.until("!document.getElementById('update').innerText.includes('Receiving')")

    def test_a_server_that_leaves_is_told(self):
        server = Server(DENSE, "--threads", "1")
        self.show(server)
        server.stop()
        self.page.until("document.getElementById('state-text').textContent.startsWith('unreachable')")


class Map(InBrowser):
    def squares(self):
        return self.page.run("[...document.querySelectorAll('[data-module]')].map((e) => "
                             "[e.closest('tr')?.firstChild.textContent ?? '', e.dataset.module, "
                             "e.dataset.format])")

    def check_map(self, server):
        """Every tensor of the table stands in a square of its layer with its format."""
        policy = server.call("GET", "/octavo/v1/policy")[1]
        expected = {}
        for tensor in policy["tensors"]:
            layer = "" if tensor["layer"] is None else str(tensor["layer"])
            module = re.sub(r"\.experts\.\d+\.", ".experts.*.", tensor["name"].rsplit(".", 1)[0])
            if layer:
                module = module.split(f"layers.{layer}.", 1)[1]
            expected.setdefault((layer, module), set()).add(tensor["format"])
        shown = {(layer, module): set(formats.split()) for layer, module, formats in self.squares()}
        self.assertEqual(shown, expected)
        for format_name, sizes in policy["formats"].items():
            self.assertEqual(int(self.page.run(
                f"document.querySelector('[data-legend=\"{format_name}\"]').dataset.value")),
                sizes["tensors"])
        return policy

    def check_details(self, policy, name):
        """Hovering, focus and a tap tell which rule decided, and why."""
        row = next(t for t in policy["tensors"] if t["name"] == name)
        module = name.rsplit(".", 1)[0].split(f"layers.{row['layer']}.", 1)[1]
        find = (f"[...document.querySelectorAll('tbody tr')][{row['layer']}]"
                f".querySelector('[data-module=\"{re.sub('experts.[0-9]+', 'experts.*', module)}\"]')")
        for event in ("new MouseEvent('mouseenter')", "new FocusEvent('focus')",
                      "new MouseEvent('click')"):
            self.page.run("document.getElementById('detail').replaceChildren()")
            self.page.run(f"{find}.dispatchEvent({event})")
            self.assertEqual(self.page.run("document.getElementById('detail-rule').textContent"), row["rule"])
            self.assertEqual(self.page.run("document.getElementById('detail-reason').textContent"), row["reason"])
            for rule in row["shadowed"]:
                self.assertIn(rule, self.page.run("document.getElementById('detail').innerText"))

    def test_dense_model_with_kept_layers(self):
        with Server(DENSE, *POLICY, "--threads", "1") as server:
            self.show(server)
            policy = self.check_map(server)
            self.check_details(policy, "model.layers.0.self_attn.q_proj.weight")
            last = max(t["layer"] for t in policy["tensors"] if t["layer"] is not None)
            self.check_details(policy, f"model.layers.{last}.mlp.up_proj.weight")
            self.assert_quiet(server)

    def test_mixture_of_experts_in_nvfp4(self):
        with Server(MOE, "--format", "nvfp4", "--threads", "1") as server:
            self.show(server)
            policy = self.check_map(server)
            expert = next(t["name"] for t in policy["tensors"] if ".experts.3." in t["name"])
            self.check_details(policy, expert)
            self.check_layouts()
            self.assert_quiet(server)

    def check_layouts(self):
        """Light, dark and narrow: nothing sticks out, and text can be read against its ground."""
        contrast = """(() => {
          const style = getComputedStyle(document.documentElement);
          const light = (name) => {
            const hex = style.getPropertyValue(name).trim().slice(1);
            const [r, g, b] = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
                .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
          return ['--text', '--quiet', '--warn', '--accent'].map((name) => ratio(name, '--card'))
              .concat(ratio('--quiet', '--ground'));
        })()"""
        grounds = set()
        for width, dark in ((1280, False), (1280, True), (700, False), (360, False), (360, True)):
            self.page.look(width=width, dark=dark)
            self.page.until(f"innerWidth === {width}")
            self.assertLessEqual(self.page.run("document.documentElement.scrollWidth"), width)
            self.assertGreaterEqual(min(self.page.run(contrast)), 4.5)  # WCAG 2.1, 1.4.3.
            grounds.add(self.page.run("getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(grounds), 2)


class Keys(InBrowser):
    def test_the_page_asks_for_the_key_and_keeps_it_out_of_urls(self):
        with Server(DENSE, "--threads", "1", "--api-key", KEY) as server:
            self.page.look()
            self.page.open(server.url + "/")
            self.page.until("!document.getElementById('key-form').hidden")
            self.assertTrue(self.page.run("document.getElementById('figures').hidden"))
            self.type_key("wrong")
            self.page.until("document.getElementById('key-note').textContent.includes('not take')")
            self.type_key(KEY)
            self.page.until("!document.getElementById('figures').hidden")
            self.await_value("weight-version", "0")
            self.page.run("1")
            sent = [r["headers"].get("Authorization") for r in self.page.requests]
            self.assertIn("Bearer " + KEY, sent)
            self.assertFalse([r["url"] for r in self.page.requests if KEY in r["url"]])
            self.assertEqual(self.page.run("location.href"), server.url + "/")
            self.assertFalse(any(KEY in line for line in server.lines))

    def type_key(self, key):
        self.page.run(f"document.getElementById('key').value = {json.dumps(key)}")
        self.page.run("document.querySelector('#key-form button').click()")


if __name__ == "__main__":
    if find_chromium() is None:
        print("SKIPPED: the status page is not tested in a browser, for there is no chromium here; "
              "install the Debian package chromium (scripts/bootstrap.sh test)", file=sys.stderr)
        if len(sys.argv) > 1:
            octavo_testing.program = sys.argv.pop(1)
        outcome = unittest.main(exit=False, verbosity=2).result
        sys.exit(SKIPPED if outcome.wasSuccessful() else 1)
    octavo_testing.main()
