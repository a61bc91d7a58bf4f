"""Method: launch lines as other launchers write them, against the real program: what must start is
asked what it was told, what must not start is held to one line on stderr that names the flag; and
docs/serving.md lists every flag of --help, with none that is not there."""

import json
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import GREEDY, ONE_THREAD, PROMPT, object_error, weight_error
from octavo_testing import BASE, DENSE, ROOT, Server, folder, run

# What AReaL's launcher writes for a model on one GPU, and slime's and miles' fields as flags.
AREAL = f"""--model-path {DENSE} --random-seed 1 --disable-radix-cache --torch-compile-max-bs 32
--triton-attention-num-kv-splits 8 --num-continuous-decode-steps 1 --load-format auto
--attention-backend fa3 --context-length 2048 --mem-fraction-static 0.05 --chunked-prefill-size -1
--max-prefill-tokens 32768 --schedule-policy lpm --schedule-conservativeness 1.0 --cpu-offload-gb 0
--dtype bfloat16 --kv-cache-dtype auto --dp-size 1 --ep-size 1 --max-loaded-loras 8
--lora-backend triton --log-level warning --log-level-http warning --log-requests-level 0
--enable-metrics --decode-log-interval 1 --tokenizer-path {DENSE} --tokenizer-mode auto
--trust-remote-code --tp-size 1 --base-gpu-id 3 --nnodes 1 --node-rank 0
--dist-init-addr 127.0.0.1:9999 --host 127.0.0.1""".split()
SLIME = f"""--model-path={DENSE} --trust-remote-code --random-seed=1234 --enable-memory-saver
--nccl-port=12345 --nnodes=1 --node-rank=0 --dist-init-addr=127.0.0.1:2345 --gpu-id-step=1
--base-gpu-id=0 --tp-size=1 --dp-size=1 --pp-size=1 --ep-size=1 --skip-server-warmup
--enable-draft-weights-cpu-backup --enable-metrics --mem-fraction-static=0.05
--cuda-graph-max-bs=256 --moe-runner-backend=triton --fp8-gemm-backend=triton
--max-running-requests=64 --served-model-name=actor --weight-version=7
--quantization=fp8""".split()


class Starts(unittest.TestCase):
    def info(self, server):
        status, info = server.call("GET", "/server_info")
        self.assertEqual(status, 200)
        return info

    def warnings(self, server):
        return [line for line in server.lines if " warning " in line]

    def test_the_line_of_areal(self):
        with Server(*AREAL, *ONE_THREAD) as server:
            info = self.info(server)
            self.assertEqual(info["model_path"], DENSE)
            self.assertEqual((info["tp_size"], info["dp_size"], info["base_gpu_id"]), (1, 1, 3))
            self.assertEqual((info["context_length"], info["random_seed"]), (2048, 1))
            self.assertEqual((info["disable_radix_cache"], info["kv_cache_dtype"]),
                             (True, "bf16"))
            self.assertEqual(info["chunked_prefill_size"], 512)
            self.assertGreater(info["max_total_tokens"], 2048)
            ignored = [line for line in self.warnings(server) if "without a meaning" in line]
            self.assertEqual(len(ignored), 1, server.lines)
            for name in ("--torch-compile-max-bs", "--attention-backend", "--trust-remote-code",
                         "--dist-init-addr"):
                self.assertIn(name, ignored[0])
                self.assertIn(name, info["ignored_flags"])
            for name in ("--tp-size", "--dtype", "--chunked-prefill-size", "--enable-metrics"):
                self.assertNotIn(name, ignored[0])
            self.assertEqual(len(server.generate(text=PROMPT, sampling_params=GREEDY)["output_ids"]),
                             GREEDY["max_new_tokens"])

    def test_the_fields_of_slime_with_equals_signs(self):
        with Server(*SLIME, *ONE_THREAD) as server:
            info = self.info(server)
            self.assertEqual(info["served_model_name"], "actor")
            self.assertEqual((info["weight_format"], info["weight_version"]), ("fp8", "7"))
            self.assertEqual((info["enable_memory_saver"], info["max_running_requests"]),
                             (True, 64))
            self.assertEqual(server.call("GET", "/v1/models")[1]["data"][0]["id"], "actor")

    def test_seeds_begin_where_they_are_told(self):
        seeds = []
        for _ in range(2):
            with Server(DENSE, *ONE_THREAD, "--random-seed", "11") as server:
                replies = [server.generate(text=PROMPT, sampling_params={"max_new_tokens": 16})
                           for _ in range(2)]
                seeds.append([(r["meta_info"]["seed"], r["output_ids"]) for r in replies])
        self.assertEqual(seeds[0], seeds[1])
        self.assertNotEqual(seeds[0][0][0], seeds[0][1][0])

    def test_overrides_are_merged_into_the_config(self):
        # Both places where this folder's file has it; the rest of the inner object stays.
        override = json.dumps({"rope_theta": 5000.0, "rope_parameters": {"rope_theta": 5000.0}})
        with Server(DENSE, *ONE_THREAD) as server:
            plain = server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        with Server(DENSE, *ONE_THREAD, "--json-model-override-args", override) as server:
            other = server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
            self.assertEqual(self.info(server)["json_model_override_args"], json.loads(override))
            # An update from disk is read with the same changes.
            status, reply = server.call("POST", "/update_weights_from_disk", {"model_path": DENSE})
            self.assertEqual(status, 200, reply)
            again = server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        logprobs = [[x[0] for x in r["meta_info"]["output_token_logprobs"]]
                    for r in (plain, other, again)]
        self.assertNotEqual(logprobs[0], logprobs[1])
        self.assertEqual(logprobs[1], logprobs[2])

    def test_quantization_takes_what_a_folder_stores(self):
        with folder() as path:
            run("convert", DENSE, path / "m", "--format", "fp8", "--keep-last", "2")
            with Server(path / "m", *ONE_THREAD, "--quantization", "fp8") as server:
                self.assertEqual(self.info(server)["weight_format"], "fp8")
            done = run("serve", path / "m", "--port", "0", "--quantization", "mxfp8", check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn("expected a checkpoint of format mxfp8, got fp8", done.stderr)

    def test_without_a_tokenizer(self):
        with Server(DENSE, *ONE_THREAD, "--skip-tokenizer-init") as server:
            self.assertEqual(self.info(server)["tokenizer_path"], "")
            self.assertEqual(server.call("POST", "/generate", {"text": "x"})[0], 400)
            server.generate(input_ids=[5, 6], sampling_params=GREEDY)

    def test_an_open_address_without_a_key_is_warned_of_once(self):
        with Server(DENSE, *ONE_THREAD, "--host", "0.0.0.0") as server:
            self.assertEqual(sum("open to the network" in x for x in server.lines), 1)
        for flags in (("--host", "0.0.0.0", "--api-key", "k"), ("--host", "127.0.0.1"), ()):
            with Server(DENSE, *ONE_THREAD, *flags) as server:
                self.assertEqual(sum("open to the network" in x for x in server.lines), 0)


class Refusals(unittest.TestCase):
    def refused(self, *flags):
        """The one line on stderr of a launch that must fail before anything is loaded."""
        done = run("serve", *flags, "--port", "0", check=False, timeout=30)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        return done.stderr

    def test_more_than_one_rank(self):
        for flag in ("--tp", "--tp-size", "--tensor-parallel-size", "--dp", "--dp-size",
                     "--data-parallel-size", "--ep-size", "--ep", "--expert-parallel-size",
                     "--pp-size", "--pipeline-parallel-size", "--nnodes", "--moe-dp-size",
                     "--attn-cp-size"):
            message = self.refused(DENSE, flag, "2")
            self.assertIn(flag, message)
            self.assertIn("expected 1, got 2", message)
            if flag.startswith("--t"):
                self.assertIn("could be cut for TP 2", message)
        self.assertIn("k_proj.weight: axis 0 of 128 at TP 2: a slice of 64 is no multiple of the "
                      "block of 128", self.refused(DENSE, "--format", "fp8", "--tp", "2"))

    def test_flags_that_would_be_missed(self):
        for flags in (("--enable-lora",), ("--lora-paths", "a=b", "c=d"), ("--dtype", "float16"),
                      ("--ssl-keyfile", "k"), ("--is-embedding",), ("--device", "cuda"),
                      ("--disaggregation-mode", "prefill"), ("--config", "x.yaml"),
                      ("--rl-on-policy-target", "fsdp"), ("--torchao-config", "int4wo-128"),
                      ("--revision", "v2")):
            self.assertIn(flags[0], self.refused(DENSE, *flags))

    def test_unknown_flags_name_the_nearest(self):
        for flag, nearest in (("--max-running-request", "--max-running-requests"),
                              ("--model_path", "--model-path"), ("--kv-cache-dytpe",
                              "--kv-cache-dtype"), ("--mem-frac", "--mem-fraction"),
                              ("--tp_size", "--tp-size")):
            message = self.refused(DENSE, flag, "1")
            self.assertIn(f"{flag}: no such flag; did you mean {nearest}", message)
            self.assertIn(nearest, self.refused(DENSE, f"{flag}=1"))
        self.assertEqual(self.refused(DENSE, "--frobnicate"),
                         "octavo: --frobnicate: no such flag\n")
        self.assertIn("models/none", self.refused(DENSE, "models/none"))

    def test_quantizations(self):
        for method in ("awq", "gptq", "bitsandbytes", "w8a8_int8", "mxfp4", "gguf"):
            message = self.refused(DENSE, "--quantization", method)
            self.assertIn("--quantization", message)
            self.assertIn(method, message)
        self.assertIn("--format", self.refused(DENSE, "--quantization", "fp8", "--format", "nvfp4"))
        # Needs a folder that stores it.
        self.assertIn("got bf16", self.refused(DENSE, "--quantization", "compressed-tensors"))

    def test_models(self):
        self.assertIn("--model-path", self.refused())
        self.assertIn("--model-path", self.refused(DENSE, "--model-path", BASE))
        self.assertIn("overrides", self.refused(DENSE, "--json-model-override-args", "{"))
        self.assertIn("num_hidden_layers", self.refused(
            DENSE, "--json-model-override-args", '{"num_hidden_layers": "six"}'))
        self.assertIn("--chat-template", self.refused(DENSE, "--chat-template", "chatml"))
        self.assertIn("none", self.refused(DENSE, "--model-root", "models/none"))


class ModelRoot(unittest.TestCase):
    """Paths in weight requests stay below --model-root, links resolved."""

    def test_paths_that_lead_out_change_nothing(self):
        with tempfile.TemporaryDirectory(prefix="octavo-root-") as outside:
            link = pathlib.Path(outside) / "link"
            link.symlink_to(ROOT / "models")
            inside = pathlib.Path(outside) / "root"
            inside.mkdir()
            (inside / "out").symlink_to(ROOT / DENSE)
            copy = inside / "copy"
            shutil.copytree(ROOT / DENSE, copy)
            with Server(DENSE, *ONE_THREAD, "--model-root", str(inside)) as server:
                self.assertEqual(server.call("GET", "/server_info")[1]["model_root"],
                                 str(inside.resolve()))
                above = inside / ".."
                for path in (DENSE, str(ROOT / DENSE), str(above / inside.name / "out"),
                             f"{inside}/out", str(above / link.name / "abacus-dense"), "/",
                             "/etc/passwd", "..", f"{inside}/none", "a\0b"):
                    status, reply = server.call("POST", "/update_weights_from_disk",
                                                {"model_path": path, "weight_version": "9"})
                    weight_error(self, status, reply, "model_path")
                self.assertEqual(server.call("GET", "/weight_version")[1]["weight_version"], "0")
                status, reply = server.call("POST", "/update_weights_from_disk",
                                            {"model_path": str(copy), "weight_version": "9"})
                self.assertEqual(status, 200, reply)
                (copy / "extra.json").symlink_to("/etc/passwd")
                status, reply = server.call("POST", "/update_weights_from_disk",
                                            {"model_path": str(copy)})
                weight_error(self, status, reply, "extra.json")


class Bounds(unittest.TestCase):
    def test_a_body_beyond_the_limit(self):
        with Server(DENSE, *ONE_THREAD, "--max-body-bytes", "64KiB") as server:
            object_error(self, *server.call("POST", "/generate", b"x" * (64 * 1024 + 1)), 413)
            self.assertEqual(server.call("POST", "/generate", b"x" * 64 * 1024)[0], 400)

    def test_a_full_queue(self):
        # One runs, one waits, and the third is told to come back.
        with Server(DENSE, *ONE_THREAD, "--max-running-requests", "1",
                    "--max-queued-requests", "1") as server:
            server.call("POST", "/pause_generation", {"mode": "in_place"})
            body = {"input_ids": [[5], [6], [7]], "sampling_params": GREEDY}
            object_error(self, *server.call("POST", "/generate", body), 503)
            self.assertEqual(server.stop(signal.SIGTERM), 0)


class Documentation(unittest.TestCase):
    def test_every_flag_of_help_is_in_the_table_and_no_other(self):
        text = run("serve", "--help").stdout
        helped = set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]+", text.split("Examples:")[0]))
        rows = [line for line in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
                .splitlines() if line.startswith("| `--")]
        listed = {name for row in rows
                  for name in re.findall(r"--[a-z0-9][a-z0-9-]+", row.split("|")[1])}
        # Words of the descriptions name other flags; only the left column of --help declares.
        declared = set()
        for line in text.splitlines():
            if re.match(r"  (-h,)?--", line):
                declared |= set(re.findall(r"--[a-z0-9][a-z0-9-]+", line.split("  ")[1]))
        self.assertTrue(declared <= helped)
        self.assertEqual(sorted(declared - listed - {"--help"}), [])
        self.assertEqual(sorted(listed - declared), [])


if __name__ == "__main__":
    octavo_testing.main()
