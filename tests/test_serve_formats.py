"""Method: the program serves the trained models in every format, stored, quantized at load and after
updates there and back. What is live is compared with the offline conversion, and replies after the
updates with those before them, bit for bit. Checkpoints are made to look like other tools' and must
be served with exactly the modules in BF16 that their configuration means."""

import json
import os
import shutil
import struct
import unittest

import octavo_testing
from octavo_testing import DENSE, PROBLEMS, ROOT, Server, folder, read_safetensors, run, run_json
from tiny_checkpoints import write_safetensors

MOE = "models/abacus-moe"
MLA = "models/abacus-mla"
MODELS = {"dense": DENSE, "moe": MOE, "mla": MLA}
LIGHT = ["--max-total-tokens", "4096", "--max-running-requests", "16"]

# Policy flags, what the recipe says of them, and whether CPUs emulate it.
FORMATS = [
    (["--format", "fp8"], "fp8", False),
    (["--format", "fp8-ue8m0"], "fp8-ue8m0", False),
    (["--format", "fp8-channel"], "fp8-channel", False),
    (["--format", "fp8-tensor"], "fp8-tensor", False),
    (["--format", "mxfp8"], "mxfp8", True),
    (["--format", "nvfp4", "--scope", "all"], "nvfp4-token", True),
    (["--format", "nvfp4", "--scope", "all", "--layout", "compressed-tensors"], "nvfp4-token", True),
]


def fingerprint(server):
    """Ids and logprobs of a greedy request: changes with any bit of the weights that matters."""
    reply = server.generate(text="Question: Tom has 3 apples and buys 4. How many?\nAnswer:",
                            sampling_params={"temperature": 0, "max_new_tokens": 24,
                                             "ignore_eos": True}, return_logprob=True)
    return reply["output_ids"], [x[0] for x in reply["meta_info"]["output_token_logprobs"]]


def perturbed(source, out):
    """The model with the lowest bit of every other BF16 value flipped: other weights everywhere."""
    shutil.copytree(ROOT / source, out)
    for path in out.glob("*.safetensors"):
        tensors = {}
        for name, (dtype, shape, data) in read_safetensors(path).items():
            changed = bytearray(data)
            changed[::4] = bytes(byte ^ 1 for byte in changed[::4])
            tensors[name] = (dtype, shape, bytes(changed))
        write_safetensors(path, tensors)
    return out


def update(server, source):
    status, reply = server.call("POST", "/update_weights_from_disk", {"model_path": str(source)})
    if (status, reply["success"]) != (200, True):
        raise AssertionError(reply)


def live_digest(server):
    return run_json("digest", server.url)["digest"]


class EveryFormat(unittest.TestCase):
    def check(self, model):
        with folder() as work:
            other = perturbed(MODELS[model], work / "other")
            for i, (policy, recipe, emulated) in enumerate(FORMATS):
                with self.subTest(model=model, policy=policy):
                    stored, there = work / f"{i}-a", work / f"{i}-b"
                    run("convert", MODELS[model], stored, *policy)
                    run("convert", other, there, *policy)
                    home = run_json("digest", stored)["digest"]
                    away = run_json("digest", there)["digest"]
                    self.assertNotEqual(home, away)
                    with Server(MODELS[model], *policy, *LIGHT) as server:
                        bits = fingerprint(server)
                        self.assertEqual(live_digest(server), home)
                        for source, digest in ((other, away), (ROOT / MODELS[model], home),
                                               (there, away), (stored, home)):
                            update(server, source)
                            self.assertEqual(live_digest(server), digest, source)
                        self.assertEqual(fingerprint(server), bits)
                        self.check_reports(server, recipe, emulated)
                    with Server(stored, *LIGHT) as cold:
                        self.assertEqual(live_digest(cold), home)
                        self.assertEqual(fingerprint(cold), bits)

    def check_reports(self, server, recipe, emulated):
        meta = server.generate(text="a", sampling_params={"max_new_tokens": 1})["meta_info"]
        completion = server.call("POST", "/v1/completions",
                                 {"model": "m", "prompt": "a", "max_tokens": 1})[1]
        for report in (meta, completion["metadata"], server.call("GET", "/model_info")[1],
                       server.call("GET", "/server_info")[1]):
            self.assertEqual(report["recipe"], f"serving-1/{recipe}")
            self.assertIs(report["emulated"], emulated)

    def test_dense(self):
        self.check("dense")

    def test_mixture_of_experts(self):
        self.check("moe")

    def test_latent_attention(self):
        self.check("mla")


def foreign(out, entries, *keep):
    """abacus-moe in MXFP8 as another tool would leave it: without our key, `entries` as its list."""
    run("convert", MOE, out, "--format", "mxfp8", *keep)
    path = out / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "mxfp8", "activation_scheme": "dynamic",
                                     "modules_to_not_convert": entries}
    path.write_text(json.dumps(config))
    return out


class ForeignMixedExperts(unittest.TestCase):
    """The case of SGLang's pull requests 18742 and 26287."""

    @staticmethod
    def accuracy(*where):
        return run_json("eval", *where, "--data", PROBLEMS, "--num-shots", 0)["accuracy"]

    @classmethod
    def setUpClass(cls):
        cls.bf16 = cls.accuracy(MOE)

    def check(self, entries, *keep, kept):
        with folder() as work:
            model = foreign(work / "foreign", entries, *keep)
            with Server(model) as server:
                digests = run_json("digest", server.url)["tensors"]
                scaled = {name.rsplit(".", 1)[0] for name in digests if name.endswith("_scale_inv")}
                experts = {module for module in scaled if ".experts." in module}
                self.assertEqual(len(experts), 3 * 8 * 3)  # Three of four layers of eight experts.
                self.assertFalse([module for module in scaled if module.startswith(kept)])
                before = live_digest(server)
                self.assertEqual(before, run_json("digest", model)["digest"])
                self.assertLessEqual(abs(self.accuracy("--url", server.url) - self.bf16), 0.01)
                update(server, perturbed(MOE, work / "other"))
                self.assertNotEqual(live_digest(server), before)
                update(server, ROOT / MOE)
                self.assertEqual(live_digest(server), before)
                self.assertLessEqual(abs(self.accuracy("--url", server.url) - self.bf16), 0.01)

    def test_a_kept_layer_with_a_trailing_dot(self):
        self.check(["lm_head", "model.layers.3."], "--keep", "model.layers.3",
                   kept="model.layers.3.")

    def test_one_listed_expert_keeps_those_of_its_layer(self):
        self.check(["model.layers.2.mlp.experts.5.up_proj"], "--keep", "model.layers.2.mlp.experts",
                   kept="model.layers.2.mlp.experts.")

    def test_a_weight_that_is_not_stored_as_the_list_says_is_named(self):
        with folder() as work:
            model = foreign(work / "foreign", ["model.layers.2."], "--keep", "model.layers.3")
            done = run("serve", model, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("model.layers.3.self_attn.q_proj.weight: quantization_config says mxfp8",
                          done.stderr)


def edited(source, out, change):
    """A copy of the checkpoint whose tensors are those that `change` makes of {name: tensor}."""
    shutil.copytree(source, out)
    names = {}
    for path in sorted(out.glob("*.safetensors")):
        tensors = change(read_safetensors(path))
        write_safetensors(path, tensors)
        names.update(dict.fromkeys(tensors, path.name))
    index = out / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return out


class StaticInputScales(unittest.TestCase):
    STATIC = ["--nvfp4-input-scale", "static", *LIGHT]
    NAMES = {"modelopt": "input_scale", "compressed-tensors": "input_global_scale"}

    def check(self, layout):
        module = "model.layers.1.mlp.experts.3.down_proj."
        name = module + self.NAMES[layout]
        with folder() as work:
            run("convert", MOE, work / "ones", "--format", "nvfp4", "--layout", layout)
            with Server(work / "ones", "--nvfp4-input-scale", "pow2", *LIGHT) as server:
                constant = fingerprint(server)
            with Server(work / "ones", *self.STATIC) as server:
                self.assertEqual(fingerprint(server), constant)  # Ones are that constant.
            # A power of two would only shift exponents; this rounds group scales anew.
            value = struct.pack("<f", 0.01 if layout == "modelopt" else 100.0)
            own = edited(work / "ones", work / "own", lambda tensors: {
                key: (dtype, shape, value if key.endswith(self.NAMES[layout]) else data)
                for key, (dtype, shape, data) in tensors.items()})
            with Server(own, *self.STATIC) as server:
                bits = fingerprint(server)
                self.assertNotEqual(bits, constant)
                digest = run_json("digest", own)["digest"]
                self.assertEqual(live_digest(server), digest)
                update(server, ROOT / MOE)  # BF16 brings none: they are carried over.
                self.assertEqual(live_digest(server), digest)
                self.assertEqual(fingerprint(server), bits)
            without = edited(own, work / "without", lambda tensors: {
                key: tensor for key, tensor in tensors.items() if key != name})
            done = run("serve", without, *self.STATIC, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(name, done.stderr)
            with Server(without, *LIGHT) as server:  # The other modes need none.
                self.assertEqual(live_digest(server), run_json("digest", without)["digest"])

    def test_of_modelopt(self):
        self.check("modelopt")

    def test_of_compressed_tensors(self):
        self.check("compressed-tensors")


class TinyModels(unittest.TestCase):
    """The folders that the forward passes are tested with are checkpoints that can be served."""

    def test_a_few_tokens_of_two_of_them(self):
        for name, experts in (("llama-tied", False), ("qwen3moe-step2", True)):
            with self.subTest(model=name):
                folder_of = f"tests/data/model/tiny/{name}"
                with Server(folder_of, *LIGHT) as server:
                    reply = server.generate(input_ids=[5, 6, 7], return_logprob=True,
                                            sampling_params={"temperature": 0, "ignore_eos": True,
                                                             "max_new_tokens": 4})
                    self.assertEqual(len(reply["output_ids"]), 4)
                    self.assertEqual(live_digest(server), run_json("digest", folder_of)["digest"])


class Arguments(unittest.TestCase):
    """Whatever cannot be served is one line that names the flag or the tensor."""

    def refused(self, *args, says):
        done = run(*args, check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        line = [line for line in done.stderr.splitlines() if line.startswith("octavo: ")]
        self.assertEqual(len(line), 1, done.stderr)
        for text in says:
            self.assertIn(text, line[0])

    def test_options_that_no_weight_could_take(self):
        self.refused("serve", DENSE, "--nvfp4-input-scale", "pow2",
                     says=["--nvfp4-input-scale pow2", "nvfp4 weights"])
        self.refused("serve", DENSE, "--format", "fp8", "--nvfp4-input-scale", "batch",
                     says=["--nvfp4-input-scale batch"])
        self.refused("serve", DENSE, "--format", "fp7", says=["--format", "fp7"])

    def test_static_scales_that_are_not_there(self):
        self.refused("serve", DENSE, "--format", "nvfp4", "--nvfp4-input-scale", "static",
                     says=["input_scale", "missing", "model.layers."])

    def test_weight_only_formats_are_served_and_not_converted(self):
        with folder() as work:
            self.refused("convert", DENSE, work / "out", "--format", "w8a16", says=["w8a16"])
            run("convert", DENSE, work / "fp8", "--format", "fp8")
            self.refused("serve", work / "fp8", "--format", "w4a16", says=["--format w4a16"])
            with Server(work / "fp8", "--format", "w8a16", *LIGHT) as server:
                info = server.call("GET", "/model_info")[1]
                self.assertEqual(info["recipe"], "serving-1/fp8-w8a16")
                self.assertEqual(live_digest(server), run_json("digest", work / "fp8")["digest"])
            with Server(DENSE, "--format", "w4a16", *LIGHT) as server:
                self.assertEqual(server.call("GET", "/model_info")[1]["recipe"],
                                 "serving-1/nvfp4-w4a16")

    def test_the_switch_of_sglang_is_answered_with_our_flag(self):
        os.environ["SGLANG_NVFP4_ONLINE_INPUT_SCALE"] = "1"
        self.addCleanup(os.environ.pop, "SGLANG_NVFP4_ONLINE_INPUT_SCALE")
        with Server(DENSE, *LIGHT) as server:
            lines = [line for line in server.lines if "SGLANG_NVFP4_ONLINE_INPUT_SCALE" in line]
            self.assertEqual(len(lines), 1)
            self.assertIn("--nvfp4-input-scale", lines[0])

    def test_every_mode_of_nvfp4_inputs_is_in_the_recipe(self):
        for mode in ("token", "pow2", "batch"):
            with Server(MOE, "--format", "nvfp4", "--nvfp4-input-scale", mode, *LIGHT) as server:
                self.assertEqual(server.call("GET", "/model_info")[1]["recipe"],
                                 f"serving-1/nvfp4-{mode}")


if __name__ == "__main__":
    octavo_testing.main()
