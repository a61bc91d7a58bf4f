"""Checkpoints of other converters: our bytes under the configurations that others write, in every
dialect that is read. Method: plan, audit and convert must see the table that was kept; then one
disagreement between verdict and storage at a time."""

import json
import struct
import unittest

import octavo_testing as octavo
import tiny_checkpoints as tiny

MODEL = "models/abacus-moe"
NUM_LAYERS = 4
LAST = f"model.layers.{NUM_LAYERS - 1}"
UP = "model.layers.1.mlp.experts.2.up_proj"


def args(bits, strategy, dynamic, **more):
    """Quantization arguments as compressed-tensors writes them."""
    return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True,
            "dynamic": dynamic, "actorder": None, "observer_kwargs": {}, **more}


def compressed_tensors(fmt, weights, inputs, ignore, targets=("Linear",)):
    return {"quant_method": "compressed-tensors", "format": fmt,
            "quantization_status": "compressed", "version": "0.12.2", "ignore": ignore,
            "config_groups": {"group_0": {"targets": list(targets), "weights": weights,
                                          "input_activations": inputs,
                                          "output_activations": None}},
            "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}}


def rename(old, new):
    def edit(tensors):
        for name in [n for n in tensors if n.endswith(old)]:
            tensors[name[:-len(old)] + new] = tensors.pop(name)
    return edit


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
          "weight_block_size": [128, 128]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
CT_LAST = ["lm_head", r"re:.*layers\.3\..*", r"re:.*mlp\.gate$"]
LISTED = ["lm_head", f"{LAST}."]

# Name -> (flags of convert, quantization_config, change to the tensors).
FORMS = {
    "blocks, a trailing dot": (["--format", "fp8", "--keep-last", 1],
                               {**BLOCKS, "modules_to_not_convert": LISTED}, None),
    "blocks with BF16 scales": (["--format", "fp8-ue8m0", "--keep-last", 1],
                                {**BLOCKS, "scale_fmt": "ue8m0", "ignored_layers": LISTED},
                                lambda tensors: tensors.update(
                                    {n: ("BF16", t[1], b"".join(
                                        t[2][i + 2:i + 4] for i in range(0, len(t[2]), 4)))
                                     for n, t in tensors.items() if n.endswith("_scale_inv")})),
    "per tensor": (["--format", "fp8-tensor", "--keep-last", 1],
                   {"quant_method": "fp8", "activation_scheme": "dynamic",
                    "modules_to_not_convert": LISTED}, None),
    "mxfp8 of miles": (["--format", "mxfp8", "--keep-last", 1],
                       {"quant_method": "mxfp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                        "weight_block_size": [1, 32], "scale_fmt": "ue8m0",
                        "modules_to_not_convert": LISTED}, None),
    "mxfp8, one expert listed": (["--format", "mxfp8", "--keep", "layers.1.mlp.experts"],
                                 {"quant_method": "mxfp8", "modules_to_not_convert": [UP]}, None),
    "ModelOpt NVFP4": (["--format", "nvfp4", "--keep-last", 1],
                       {**NVFP4, "ignore": ["lm_head", f"{LAST}*", "*.self_attn*"]}, None),
    "ModelOpt NVFP4 without input scales": (
        ["--format", "nvfp4"], {**NVFP4, "ignore": ["lm_head", "*.self_attn*"]},
        lambda tensors: [tensors.pop(n) for n in list(tensors) if n.endswith(".input_scale")]),
    "ModelOpt FP8": (["--format", "fp8-tensor", "--keep", "self_attn"],
                     {"quant_method": "modelopt", "quant_algo": "FP8",
                      "ignore": ["lm_head", "*self_attn*"]},
                     lambda tensors: tensors.update(
                         {n[:-len("weight_scale")] + "input_scale":
                          ("F32", [], struct.pack("<f", 0.25)) for n in list(tensors)
                          if n.endswith(".weight_scale")})),
    "compressed-tensors blocks": (
        ["--format", "fp8", "--keep-last", 1],
        compressed_tensors("float-quantized", args(8, "block", False, block_structure=[128, 128]),
                           args(8, "group", True, group_size=128), CT_LAST),
        rename("_scale_inv", "_scale")),
    "compressed-tensors channel": (
        ["--format", "fp8-channel", "--keep-last", 1],
        compressed_tensors("float-quantized", args(8, "channel", False), args(8, "token", True),
                           CT_LAST), None),
    "compressed-tensors mxfp8": (
        ["--format", "mxfp8", "--keep-last", 1],
        compressed_tensors("mxfp8-quantized", args(8, "group", False, group_size=32),
                           args(8, "group", True, group_size=32), CT_LAST),
        rename("_scale_inv", "_scale")),
    "compressed-tensors nvfp4": (
        ["--format", "nvfp4", "--scope", "all", "--layout", "compressed-tensors", "--keep-last", 1],
        compressed_tensors("nvfp4-pack-quantized", args(4, "tensor_group", False, group_size=16),
                           args(4, "tensor_group", "local", group_size=16), CT_LAST), None),
}


def write(folder, config, tensors, hf_quant=None):
    """A checkpoint of one file."""
    folder.mkdir()
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    if hf_quant is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(hf_quant))


class Foreign(unittest.TestCase):
    def make(self, folder, form):
        """The foreign checkpoint of a form, and ours."""
        flags, quantization, edit = FORMS[form]
        octavo.run("convert", MODEL, folder / "ours", *flags)
        tensors = tiny.read_checkpoint(folder / "ours")
        config = json.loads((folder / "ours" / "config.json").read_text())
        config["quantization_config"] = quantization
        if edit:
            edit(tensors)
        write(folder / "theirs", config, tensors)
        return folder / "theirs", folder / "ours"

    def formats(self, model):
        return {t["name"]: t["format"] for t in octavo.run_json("plan", model)["tensors"]}

    def test_every_form_is_read_as_what_was_kept(self):
        for form in FORMS:
            with self.subTest(form), octavo.folder() as folder:
                theirs, ours = self.make(folder, form)
                self.assertEqual(self.formats(theirs), self.formats(ours))
                audit = octavo.run_json("audit", theirs, check=False)
                codes = {f["code"] for f in audit["findings"] if f["severity"] != "info"}
                # Things to know about, which are as they are in the form.
                codes -= {"entry-trailing-dot", "kept-by-one-expert", "engine-differs-other"}
                want = {"input-scale-missing"} if "without input scales" in form else set()
                self.assertEqual(codes, want, audit["findings"])
                octavo.run("convert", theirs, folder / "back", "--format", "bf16")
                octavo.run("convert", ours, folder / "want", "--format", "bf16")
                self.assertEqual(tiny.read_checkpoint(folder / "back"),
                                 tiny.read_checkpoint(folder / "want"))

    def test_modelopts_own_file_alone_says_it_too(self):
        with octavo.folder() as folder:
            theirs, ours = self.make(folder, "ModelOpt NVFP4")
            config = json.loads((theirs / "config.json").read_text())
            quantization = config.pop("quantization_config")
            write(folder / "alone", config, tiny.read_checkpoint(theirs),
                  {"producer": {"name": "modelopt"},
                   "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None,
                                    "group_size": 16,
                                    "exclude_modules": quantization["ignore"]}})
            self.assertEqual(self.formats(folder / "alone"), self.formats(ours))
            octavo.run("audit", folder / "alone")

    def test_mixed_precision_is_judged_layer_by_layer(self):
        with octavo.folder() as folder:
            octavo.run("convert", MODEL, folder / "nvfp4", "--format", "nvfp4")
            octavo.run("convert", MODEL, folder / "fp8", "--format", "fp8-tensor")
            tensors = tiny.read_checkpoint(folder / "nvfp4")
            layers = {}
            for name, tensor in tiny.read_checkpoint(folder / "fp8").items():
                module = name.rpartition(".")[0]
                if ".self_attn." in name and name.endswith((".weight", ".weight_scale")):
                    tensors[name] = tensor
                    layers.update({module: {"quant_algo": "FP8"}} if "_proj" in name else {})
                elif ".experts." in name and name.endswith(".weight"):
                    layers[module] = {"quant_algo": "NVFP4", "group_size": 16}
            config = json.loads((folder / "nvfp4" / "config.json").read_text())
            config["quantization_config"] = {"quant_method": "modelopt",
                                             "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"],
                                             "quantized_layers": layers}
            write(folder / "mixed", config, tensors)
            formats = self.formats(folder / "mixed")
            self.assertEqual(formats[UP + ".weight"], "nvfp4")
            self.assertEqual(formats["model.layers.0.self_attn.q_proj.weight"], "fp8-tensor")
            findings = octavo.run_json("audit", folder / "mixed", check=False)["findings"]
            self.assertEqual([f for f in findings if f["code"] == "config-format"], [])
            # One layer's experts under the other algorithm: each of their weights is named.
            for name in layers:
                if "layers.2.mlp.experts" in name:
                    layers[name] = {"quant_algo": "FP8"}
            write(folder / "wrong", config, tensors)
            done = octavo.run("audit", folder / "wrong", "--json", check=False)
            self.assertEqual(done.returncode, 1)
            wrong = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "config-format"]
            self.assertEqual({f["tensor"].split(".mlp.")[0] for f in wrong}, {"model.layers.2"})
            self.assertIn("expected fp8-tensor by rule quant_algo FP8, got nvfp4",
                          wrong[0]["message"])

    def test_verdicts_that_disagree_with_what_is_stored_name_the_tensor(self):
        cases = {  # Form -> (list key, entry that is added or taken away, code, tensor).
            "blocks, a trailing dot": ("modules_to_not_convert", "model.layers.1.mlp.experts",
                                       "expected-bf16"),
            "mxfp8 of miles": ("modules_to_not_convert", "model.layers.1.", "expected-bf16"),
            "ModelOpt NVFP4": ("ignore", "model.layers.1.mlp.experts", "expected-bf16"),
            "compressed-tensors channel": ("ignore", r"re:.*layers\.1\.mlp\.experts.*",
                                           "expected-bf16"),
        }
        for form, (key, entry, code) in cases.items():
            with self.subTest(form), octavo.folder() as folder:
                theirs, _ = self.make(folder, form)
                config = json.loads((theirs / "config.json").read_text())
                quantization = config["quantization_config"]
                quantization[key] = quantization[key] + [entry]
                (theirs / "config.json").write_text(json.dumps(config))
                self.expect_finding(theirs, code, UP + ".weight")
                # The other way round: nothing of the last layer is listed, and it has no codes.
                quantization[key] = [e for e in quantization[key] if "3" not in e and e != entry]
                (theirs / "config.json").write_text(json.dumps(config))
                self.expect_finding(theirs, "expected-quantized",
                                    LAST + ".mlp.experts.0.up_proj.weight")

    def expect_finding(self, model, code, tensor):
        done = octavo.run("audit", model, "--json", check=False)
        self.assertEqual(done.returncode, 1, done.stdout)
        found = [f["tensor"] for f in json.loads(done.stdout)["findings"] if f["code"] == code]
        self.assertIn(tensor, found)

    def test_what_is_not_read_is_named_by_its_key(self):
        with octavo.folder() as folder:
            theirs, _ = self.make(folder, "compressed-tensors channel")
            config = json.loads((theirs / "config.json").read_text())
            weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
            weights["type"] = "int"
            (theirs / "config.json").write_text(json.dumps(config))
            done = octavo.run("plan", theirs, check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn("config_groups.group_0.weights.type: expected \"float\", got \"int\"",
                          done.stderr)


if __name__ == "__main__":
    octavo.main()
