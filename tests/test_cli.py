"""Method: the program as a newcomer meets it: help, wrong flags, missing and broken files. Each
mistake must give its exit code and one line that names the thing; no command may print a trace."""

import json
import shutil
import socket
import unittest

import octavo_testing
from octavo_testing import BASE, DENSE, ROOT, folder, run, run_json

COMMANDS = ["plan", "convert", "audit", "digest", "serve", "push", "eval", "bench", "conformance"]


class Help(unittest.TestCase):
    def test_every_command_explains_itself_with_an_example(self):
        self.assertIn("convert", run("--help").stdout)
        self.assertRegex(run("--version").stdout, r"octavo \d+\.\d+")
        for command in COMMANDS:
            text = run(command, "--help").stdout
            self.assertIn(f"octavo {command} ", text, command)
            self.assertIn("Example", text, command)


class Mistakes(unittest.TestCase):
    def refused(self, *args, says, code=2):
        done = run(*args, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(says, done.stderr)
        self.assertLessEqual(len(done.stderr.strip().splitlines()), 3, done.stderr)

    def test_usage(self):
        self.refused(says="subcommand")
        self.refused("plan", DENSE, "--fromat", "fp8", says="--fromat")
        self.refused("plan", DENSE, "--format", "fp9", says="fp9")
        self.refused("plan", DENSE, "--keep-last", "2", says="--format")
        self.refused("convert", DENSE, says="OUT")

    def test_policies_that_cannot_be(self):
        self.refused("plan", DENSE, "--format", "fp8", "--keep-last", "9", says="0 to 8")
        self.refused("plan", DENSE, "--format", "fp8", "--keep", "model.layers.77", says="77")
        self.refused("plan", DENSE, "--format", "fp8", "--keep", "*q_proj*", says="q_proj")

    def test_missing_and_broken_models(self):
        self.refused("plan", "models/none", "--format", "fp8", says="models/none")
        self.refused("digest", "README.md", says="README.md")
        with folder() as work:
            broken = work / "model"
            shutil.copytree(ROOT / DENSE, broken)
            weights = broken / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:100_000])
            self.refused("digest", broken, says="model.safetensors")
            self.refused("serve", broken, says="model.safetensors")
            (broken / "config.json").write_text("{")
            self.refused("plan", broken, says="config.json")

    def test_settings_that_are_not_served_can_be_converted(self):
        with folder() as path:
            shutil.copytree(ROOT / DENSE, path / "model")
            config = json.loads((path / "model" / "config.json").read_text())
            config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.0}
            config.pop("rope_parameters", None)
            config["rope_theta"] = 10000.0
            (path / "model" / "config.json").write_text(json.dumps(config))
            self.refused("serve", path / "model", "--port", "0",
                         says="rope_scaling: attn_factor: expected no such member of a yarn rope")
            run("plan", path / "model", "--format", "fp8")
            run("convert", path / "model", path / "fp8", "--format", "fp8")
            run("audit", path / "fp8", "--against", path / "model")
            self.refused("serve", path / "fp8", "--port", "0", says="attn_factor")

    def test_a_busy_port_is_one_clear_line(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = run("serve", DENSE, "--port", port, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(str(port), done.stderr)


class Plan(unittest.TestCase):
    def test_json_has_a_row_for_every_tensor_with_its_reason(self):
        plan = run_json("plan", DENSE, "--format", "fp8", "--keep-last", "2")
        rows = {row["name"]: row for row in plan["tensors"]}
        kept = rows["model.layers.7.mlp.up_proj.weight"]
        self.assertEqual((kept["format"], rows["model.layers.0.mlp.up_proj.weight"]["format"]),
                         ("bf16", "fp8"))
        self.assertIn("--keep-last", kept["rule"])
        self.assertTrue(kept["reason"])
        self.assertRegex(plan["hash"], "^[0-9a-f]{32}$")

    def test_explains_one_tensor(self):
        text = run("plan", DENSE, "--format", "fp8", "--keep-last", "2", "--explain",
                   "model.layers.7.mlp.up_proj").stdout
        self.assertIn("--keep-last", text)

    def test_alias_flags_mean_the_same(self):
        ours = run_json("plan", DENSE, "--format", "fp8", "--keep-last", "2")
        theirs = run_json("plan", DENSE, "--format", "fp8", "--num-layers-at-end-in-bf16", "2")
        self.assertEqual(ours["hash"], theirs["hash"])


class Convert(unittest.TestCase):
    def test_converts_audits_and_digests(self):
        with folder() as work:
            out = work / "fp8"
            report = run_json("convert", DENSE, out, "--format", "fp8", "--keep-last", "2")
            self.assertLess(report["bytes_out"], 0.75 * report["bytes_in"])
            audit = run_json("audit", out, "--against", DENSE)
            self.assertEqual([f for f in audit["findings"] if f["severity"] == "error"], [])
            again = work / "again"
            run("convert", DENSE, again, "--format", "fp8", "--keep-last", "2", "--threads", "1")
            for path in sorted(out.iterdir()):
                self.assertEqual(path.read_bytes(), (again / path.name).read_bytes(), path.name)
            stored = json.loads((out / "config.json").read_text())["quantization_config"]
            self.assertEqual(stored["octavo"]["hash"],
                             run_json("plan", out)["hash"])
            self.assertNotEqual(run_json("digest", out)["digest"],
                                run_json("digest", DENSE)["digest"])

    def test_audit_sees_one_changed_byte_against_the_source(self):
        with folder() as work:
            out = work / "fp8"
            run("convert", DENSE, out, "--format", "fp8", "--keep-last", "2")
            path = out / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1000] ^= 1
            path.write_bytes(bytes(data))
            done = run("audit", out, "--against", DENSE, check=False)
            self.assertEqual(done.returncode, 1)

    def test_never_writes_over_its_source_or_a_stranger(self):
        done = run("convert", DENSE, DENSE, "--format", "fp8", check=False)
        self.assertEqual(done.returncode, 2)
        with folder() as work:
            (work / "precious.txt").write_text("mine")
            done = run("convert", BASE, work, "--format", "fp8", check=False)
            self.assertEqual(done.returncode, 2)
            self.assertEqual((work / "precious.txt").read_text(), "mine")


if __name__ == "__main__":
    octavo_testing.main()
