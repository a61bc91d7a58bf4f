"""The converter against a second implementation of docs/formats.md (scripts/
make_conformance_formats.py, plain Python): hostile weights in every format, from BF16 and from
every format, and equal files for any number of threads. Method: all bytes compared."""

import hashlib
import json
import pathlib
import struct
import sys
import unittest

import octavo_testing as octavo
import tiny_checkpoints as tiny

sys.path.insert(0, str(octavo.ROOT / "scripts"))
import make_conformance_formats as formats  # noqa: E402

LAYER = "model.layers.0."
SETS = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["mlp.gate_proj", "mlp.up_proj"], ["self_attn.o_proj"], ["mlp.down_proj"]]
# Beside the flags: nvfp4 would leave the attention alone.
FLAGS = {name: ["--format", name] for name in ("fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor",
                                                "mxfp8")}
FLAGS["nvfp4"] = ["--format", "nvfp4", "--scope", "all"]
FLAGS["nvfp4-compressed-tensors"] = [*FLAGS["nvfp4"], "--layout", "compressed-tensors"]


def decode(parts, rows, cols):
    """FP32 values of a stored weight, docs/formats.md "Decode"."""
    product = formats.multiply
    if "weight_packed" in parts or "weight_scale_2" in parts:
        packed = parts.get("weight_packed", parts["weight"] if "weight" in parts else None)[2]
        scales = [formats.e4m3_value(byte) for byte in parts["weight_scale"][2]]
        if "weight_scale_2" in parts:
            small = struct.unpack("<f", parts["weight_scale_2"][2])[0]
            scales = [product(scale, small) for scale in scales]
        else:
            large = struct.unpack("<f", parts["weight_global_scale"][2])[0]
            scales = [formats.divide(scale, large) for scale in scales]
        values = []
        for place in range(rows * cols):
            code = packed[place // 2] >> (4 * (place % 2)) & 15
            magnitude = formats.E2M1_VALUES[code & 7]
            values.append(product(-magnitude if code & 8 else magnitude, scales[place // 16]))
        return values
    codes = [formats.e4m3_value(code) for code in parts["weight"][2]]
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    dtype, shape, data = parts[name]
    if dtype == "U8":
        return [product(code, 2.0**(data[place // 32] - 127)) for place, code in enumerate(codes)]
    scales = struct.unpack(f"<{len(data) // 4}f", data)
    if len(scales) == 1 and shape == []:
        return [product(code, scales[0]) for code in codes]
    if name == "weight_scale":
        return [product(code, scales[place // cols]) for place, code in enumerate(codes)]
    blocks = -(-cols // 128)
    return [product(code, scales[place // cols // 128 * blocks + place % cols // 128])
            for place, code in enumerate(codes)]


def parts_of(tensors, module):
    return {name[len(module) + 1:]: tensor for name, tensor in tensors.items()
            if name.startswith(module + ".")}


def hashes(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


class Convert(unittest.TestCase):
    def expect_encoded(self, fmt, values_of, shapes, out):
        """Every linear weight in `out` has the bytes that `fmt` gives for its values."""
        tensors = tiny.read_checkpoint(out)
        for members in SETS:
            amax = max(formats.amax_of(values_of[module]) for module in members)
            for module in members:
                want = formats.encode(fmt, shapes[module], values_of[module], amax)
                got = parts_of(tensors, LAYER + module)
                self.assertEqual(sorted(got), sorted(want), f"{fmt} {module}")
                for part, (dtype, shape, data) in want.items():
                    self.assertEqual(got[part][:2], (dtype, shape), f"{fmt} {module} {part}")
                    self.assertEqual(first_difference(data, got[part][2]), None,
                                     f"{fmt} {module} {part}")

    def test_every_format_from_bf16(self):
        with octavo.folder() as folder:
            weights = tiny.write_tiny(folder / "in", hidden=160, mlp=576)
            shapes = {m: weights[f"{LAYER}{m}.weight"][0] for members in SETS for m in members}
            values = {m: [formats.bf16_value(bits) for bits in weights[f"{LAYER}{m}.weight"][1]]
                      for members in SETS for m in members}
            source = tiny.read_checkpoint(folder / "in")
            for fmt, flags in FLAGS.items():
                with self.subTest(fmt):
                    octavo.run("convert", folder / "in", folder / fmt, *flags)
                    self.expect_encoded(fmt, values, shapes, folder / fmt)
                    out = tiny.read_checkpoint(folder / fmt)
                    for name, tensor in source.items():
                        if "proj" not in name:
                            self.assertEqual(out[name], tensor, name)

    def test_every_format_from_every_format(self):
        with octavo.folder() as folder:
            weights = tiny.write_tiny(folder / "in", hidden=64, mlp=160, seed=2)
            modules = [m for members in SETS for m in members]
            shapes = {m: weights[f"{LAYER}{m}.weight"][0] for m in modules}
            for fmt, flags in FLAGS.items():
                octavo.run("convert", folder / "in", folder / fmt, *flags)
            for source in FLAGS:
                stored = tiny.read_checkpoint(folder / source)
                values = {m: decode(parts_of(stored, LAYER + m), *shapes[m]) for m in modules}
                self.expect_bf16(folder, source, values)
                for target, flags in FLAGS.items():
                    with self.subTest(source=source, target=target):
                        out = folder / f"{source}-to-{target}"
                        octavo.run("convert", folder / source, out, *flags)
                        if not self.expect_shortcut(source, target, stored, out, modules, values,
                                                    shapes):
                            self.expect_encoded(target, values, shapes, out)

    def expect_bf16(self, folder, source, values):
        out = folder / f"{source}-to-bf16"
        octavo.run("convert", folder / source, out, "--format", "bf16")
        self.assertNotIn("quantization_config", json.loads((out / "config.json").read_text()))
        tensors = tiny.read_checkpoint(out)
        self.assertFalse([name for name in tensors if "scale" in name])
        for module, floats in values.items():
            want = b"".join(struct.pack("<H", formats.bf16_bits(value)) for value in floats)
            got = tensors[f"{LAYER}{module}.weight"]
            self.assertEqual((got[0], first_difference(want, got[2])), ("BF16", None), module)

    def expect_shortcut(self, source, target, stored, out, modules, values, shapes):
        """True when the way is exact, and then not by decoding and encoding (docs/formats.md)."""
        got = tiny.read_checkpoint(out)
        if source == target:
            self.assertEqual(got, stored)
            self.assertEqual(json.loads((out / "config.json").read_text()),
                             json.loads((out.parent / source / "config.json").read_text()))
            return True
        nvfp4 = source.startswith("nvfp4") and target.startswith("nvfp4")
        blocks = (source, target) in (("fp8-ue8m0", "mxfp8"), ("fp8-ue8m0", "fp8"))
        survives = (source, target) == ("mxfp8", "fp8-ue8m0")
        if not (nvfp4 or blocks or survives):
            return False
        for module in modules:
            here, there = parts_of(stored, LAYER + module), parts_of(got, LAYER + module)
            if nvfp4:
                codes = [p.get("weight_packed", p.get("weight")) for p in (here, there)]
                self.assertEqual(codes[0][2], codes[1][2], module)
                self.assertEqual(here["weight_scale"], there["weight_scale"], module)
                scales = [struct.unpack("<f", (p.get("weight_scale_2") or
                                               p["weight_global_scale"])[2])[0]
                          for p in (here, there)]
                self.assertEqual(scales[1], formats.divide(1.0, scales[0]), module)
            elif blocks:
                self.assertEqual(here["weight"], there["weight"], module)
            # Exact either way: what is stored decodes to the same values, or was encoded anew.
            same = decode(there, *shapes[module]) == values[module]
            if survives and not same:
                amax = formats.amax_of(values[module])
                want = formats.encode(target, shapes[module], values[module], amax)
                self.assertEqual({p: t[2] for p, t in there.items()},
                                 {p: t[2] for p, t in want.items()}, module)
            elif not nvfp4:
                self.assertTrue(same, module)
        return True

    def test_threads_change_no_byte(self):
        with octavo.folder() as folder:
            tiny.write_tiny(folder / "in", hidden=192, mlp=1088, seed=3)
            for fmt in ("fp8", "mxfp8", "nvfp4"):
                results = []
                for threads in (1, 2, 3, 7):
                    out = folder / f"{fmt}-{threads}"
                    octavo.run("convert", folder / "in", out, *FLAGS[fmt], "--threads", threads)
                    results.append(hashes(out))
                for other in results[1:]:
                    self.assertEqual(other, results[0], fmt)

    def test_stacked_experts_and_prefixes_give_the_same_weights(self):
        with octavo.folder() as folder:
            prefix = "model.language_model."
            tiny.write_tiny_moe(folder / "plain", stacked=False)
            tiny.write_tiny_moe(folder / "stacked", stacked=True)
            tiny.write_tiny_moe(folder / "nested", stacked=False, prefix=prefix)
            for fmt in ("fp8", "mxfp8", "nvfp4"):
                outs = {}
                for source in ("plain", "stacked", "nested"):
                    out = folder / f"{source}-{fmt}"
                    octavo.run("convert", folder / source, out, "--format", fmt)
                    outs[source] = tiny.read_checkpoint(out)
                self.assertIn(LAYER + "mlp.experts.2.down_proj.weight_scale"
                              + ("" if fmt == "nvfp4" else "_inv"), outs["plain"])
                self.assertEqual(outs["stacked"], outs["plain"], fmt)
                nested = {name.replace(prefix, "model."): tensor
                          for name, tensor in outs["nested"].items()}
                self.assertEqual(nested, outs["plain"], fmt)

    def test_report_tells_role_rule_and_errors(self):
        with octavo.folder() as folder:
            tiny.write_tiny(folder / "in", hidden=160, mlp=576)
            report = octavo.run_json("convert", folder / "in", folder / "out", *FLAGS["nvfp4"])
            lines = {line["name"]: line for line in report["tensors"]}
            down = lines[LAYER + "mlp.down_proj.weight"]
            self.assertEqual((down["role"], down["format"]), ("mlp.down", "nvfp4"))
            self.assertTrue(down["rule"].startswith("--format nvfp4"))
            self.assertGreater(down["subnormal_scale_share"], 0.1)  # Its subnormals.
            self.assertGreater(down["saturated_share"], 0.0)  # Under scales that became 0.
            up = lines[LAYER + "mlp.up_proj.weight"]
            self.assertGreater(up["max_error"], 0.0)
            self.assertIsNone(lines["model.norm.weight"]["relative_rms_error"])


class Sources(unittest.TestCase):
    """Sources other than a plain BF16 checkpoint, through the program."""

    def rewrite(self, folder, edit):
        """Spoils (tensors, config) of a checkpoint; then it has one file and no index."""
        tensors = tiny.read_checkpoint(folder)
        config = json.loads((folder / "config.json").read_text())
        edit(tensors, config)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        tiny.write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config))

    def write_floats(self, folder, dtype, letter, values_of):
        """A checkpoint in `dtype`; gives the one that holds its BF16 roundings."""
        tiny.write_tiny(folder / dtype, hidden=64, mlp=160, num_files=1)
        tiny.write_tiny(folder / "rounded", hidden=64, mlp=160, num_files=1)

        def to_floats(tensors, _):
            for name, (_, shape, data) in tensors.items():
                values = values_of([formats.bf16_value(b)
                                    for b in struct.unpack(f"<{len(data) // 2}H", data)])
                tensors[name] = (dtype, shape, struct.pack(f"<{len(values)}{letter}", *values))

        self.rewrite(folder / dtype, to_floats)
        stored = tiny.read_checkpoint(folder / dtype)

        def to_rounded(tensors, _):
            for name, (_, shape, data) in stored.items():
                values = struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)
                bits = [formats.bf16_bits(value) for value in values]
                tensors[name] = ("BF16", shape, struct.pack(f"<{len(bits)}H", *bits))

        self.rewrite(folder / "rounded", to_rounded)
        return folder / dtype, folder / "rounded"

    def test_f32_and_f16_are_rounded_to_bf16_first(self):
        # Both scales leave values that BF16 does not hold, and ties between two that it does.
        cases = {"F32": ("f", lambda v: [x * (1 + 2.0**-9 + 2.0**-8 * (i % 2))
                                         for i, x in enumerate(v)]),
                 "F16": ("e", lambda v: [max(-60000.0, min(60000.0, x * 1.0029)) for x in v])}
        for dtype, (letter, values_of) in cases.items():
            with octavo.folder() as folder:
                source, rounded = self.write_floats(folder, dtype, letter, values_of)
                for fmt, flags in FLAGS.items():
                    with self.subTest(dtype=dtype, fmt=fmt):
                        out, want = folder / fmt, folder / f"{fmt}-rounded"
                        octavo.run("convert", source, out, *flags)
                        octavo.run("convert", rounded, want, *flags)
                        ours, theirs = tiny.read_checkpoint(out), tiny.read_checkpoint(want)
                        self.assertEqual(sorted(ours), sorted(theirs))
                        for name, tensor in theirs.items():
                            if tensor[0] == "BF16":
                                self.assertEqual(ours[name], tiny.read_checkpoint(source)[name])
                            else:
                                self.assertEqual(ours[name], tensor, name)
                        # The roundings are what it was encoded from, and a direct run says so.
                        octavo.run("audit", out, "--against", source)
                        octavo.run("convert", source, folder / f"{fmt}-direct", *flags, "--direct")
                        direct = tiny.read_checkpoint(folder / f"{fmt}-direct")
                        self.assertTrue(any(direct[n] != t for n, t in theirs.items()
                                            if t[0] != "BF16"), fmt)

    def test_mtp_layers_may_be_left_out_though_the_config_names_one(self):
        with octavo.folder() as folder:
            octavo.run("convert", "models/abacus-mla", folder / "out", "--format", "fp8")
            config = json.loads((folder / "out" / "config.json").read_text())
            self.assertEqual(config["num_nextn_predict_layers"], 1)
            self.assertFalse([name for name in tiny.read_checkpoint(folder / "out")
                              if "layers.4." in name])
            octavo.run("audit", folder / "out", "--against", "models/abacus-mla")

    def test_scales_of_a_kv_cache_are_carried_through(self):
        with octavo.folder() as folder:
            tiny.write_tiny(folder / "in", hidden=64, mlp=160)
            scales = {LAYER + "self_attn.k_proj.k_scale": ("F32", [], struct.pack("<f", 0.5)),
                      LAYER + "self_attn.v_proj.v_scale": ("F32", [], struct.pack("<f", 2.0)),
                      LAYER + "self_attn.attn.k_scale": ("F32", [1], struct.pack("<f", 3.0))}
            self.rewrite(folder / "in", lambda tensors, _: tensors.update(scales))
            for fmt, flags in FLAGS.items():
                octavo.run("convert", folder / "in", folder / fmt, *flags)
                out = tiny.read_checkpoint(folder / fmt)
                for name, tensor in scales.items():
                    self.assertEqual(out[name], tensor, f"{fmt} {name}")
            octavo.run("convert", folder / "fp8", folder / "again", "--format", "mxfp8")
            self.assertEqual({n: t for n, t in tiny.read_checkpoint(folder / "again").items()
                              if n in scales}, scales)

    def test_calibrated_input_scales_that_end_here_are_named(self):
        module = LAYER + "mlp.up_proj"
        with octavo.folder() as folder:
            tiny.write_tiny(folder / "in", hidden=64, mlp=160)
            octavo.run("convert", folder / "in", folder / "fp8", *FLAGS["fp8-tensor"])
            octavo.run("convert", folder / "in", folder / "nvfp4", *FLAGS["nvfp4"])

            def calibrate(tensors, config):
                tensors[module + ".input_scale"] = ("F32", [], struct.pack("<f", 0.125))
                config["quantization_config"].pop("octavo")
                if "quant_algo" not in config["quantization_config"]:
                    config["quantization_config"] = {
                        "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}

            for name in ("fp8", "nvfp4"):
                self.rewrite(folder / name, calibrate)
            (folder / "nvfp4" / "hf_quant_config.json").unlink()
            # What is stored as asked passes through as it is, its input scales and all.
            octavo.run("convert", folder / "fp8", folder / "same", *FLAGS["fp8-tensor"])
            self.assertEqual(tiny.read_checkpoint(folder / "same"),
                             tiny.read_checkpoint(folder / "fp8"))
            cases = {("fp8", "nvfp4"): False, ("fp8", "bf16"): False, ("fp8", "fp8"): False,
                     ("nvfp4", "fp8"): False, ("nvfp4", "nvfp4-compressed-tensors"): True}
            for (source, target), is_carried in cases.items():
                with self.subTest(source=source, target=target):
                    out = folder / f"{source}-to-{target}"
                    flags = FLAGS.get(target, ["--format", target])
                    done = octavo.run("convert", folder / source, out, *flags, "--json")
                    report = json.loads(done.stdout)
                    line = next(t for t in report["tensors"] if t["name"] == module + ".weight")
                    if is_carried:
                        self.assertEqual((done.stderr, report["warnings"]), ("", []))
                        divisor = tiny.read_checkpoint(out)[module + ".input_global_scale"][2]
                        self.assertEqual(struct.unpack("<f", divisor), (8.0,))
                        continue
                    self.assertIn("its activation scale 0.125 is not carried over", line["note"])
                    self.assertIn(f"1 scales of activations, such as {module}.input_scale, are not "
                                  "carried over", done.stderr)
                    self.assertEqual(len(report["warnings"]), 1)

    def test_inverse_scales_are_read_as_divisors_when_told(self):
        with octavo.folder() as folder:
            tiny.write_tiny(folder / "in", hidden=160, mlp=576)
            for fmt in ("fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor"):
                octavo.run("convert", folder / "in", folder / fmt, *FLAGS[fmt])
                octavo.run("convert", folder / fmt, folder / f"{fmt}-bf16", "--format", "bf16")
                good = tiny.read_checkpoint(folder / fmt)

                def invert(tensors, config):
                    config["quantization_config"].pop("octavo")
                    for name, (dtype, shape, data) in tensors.items():
                        if "_scale" in name:
                            scales = struct.unpack(f"<{len(data) // 4}f", data)
                            inverse = [formats.divide(1.0, scale) for scale in scales]
                            tensors[name] = (dtype, shape,
                                             struct.pack(f"<{len(inverse)}f", *inverse))

                self.rewrite(folder / fmt, invert)
                flags = ["--source-scales", "inverse"]
                out = folder / f"{fmt}-mended"
                octavo.run("convert", folder / fmt, out, *FLAGS[fmt], *flags)
                mended = tiny.read_checkpoint(out)
                self.assertEqual(sorted(mended), sorted(good))
                for name, tensor in good.items():
                    if "_scale" in name:  # Reciprocals of reciprocals: at most an ulp or two off.
                        want, got = (struct.unpack(f"<{len(t[2]) // 4}f", t[2])
                                     for t in (tensor, mended[name]))
                        for a, b in zip(want, got):
                            self.assertLessEqual(abs(a - b), abs(a) * 2.0**-22, name)
                    else:
                        self.assertEqual(mended[name], tensor, name)
                octavo.run("audit", out)
                # An FP8 checkpoint as it should be is refused under the flag.
                done = octavo.run("convert", out, folder / "no", "--format", "mxfp8", *flags,
                                  check=False)
                if fmt != "fp8-tensor":  # One scale a tensor is too few to tell.
                    self.assertEqual(done.returncode, 2)
                    self.assertIn("seem to multiply", done.stderr)
            done = octavo.run("convert", folder / "in", folder / "no", "--format", "fp8", *flags,
                              check=False)
            self.assertIn("no FP8 weights", done.stderr)


class Refusals(unittest.TestCase):
    def test_stacked_codes_are_refused_by_name(self):
        with octavo.folder() as folder:
            tiny.write_tiny_moe(folder / "in", stacked=True)
            path = folder / "in" / "model.safetensors"
            tensors = octavo.read_safetensors(path)
            name = LAYER + "mlp.experts.gate_up_proj"
            shape = tensors[name][1]
            tensors[name] = ("F8_E4M3", shape, b"\0" * (shape[0] * shape[1] * shape[2]))
            tensors[name + "_scale_inv"] = ("F32", [shape[0], 3, 1], b"\0" * 12 * shape[0])
            tiny.write_safetensors(path, tensors)
            done = octavo.run("convert", folder / "in", folder / "out", "--format", "bf16",
                              check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"{name}: stacked experts are read in BF16, F16 and F32", done.stderr)

    def expect_refused(self, folder, edit, needle):
        """`edit` spoils (tensors, config) of an FP8 checkpoint; the message holds `needle`."""
        tiny.write_tiny(folder / "in", hidden=160, mlp=576, num_files=1)
        octavo.run("convert", folder / "in", folder / "fp8", "--format", "fp8")
        path = folder / "fp8" / "model-00001-of-00001.safetensors"
        tensors = octavo.read_safetensors(path)
        config = json.loads((folder / "fp8" / "config.json").read_text())
        edit(tensors, config)
        tiny.write_safetensors(path, tensors)
        (folder / "fp8" / "model.safetensors.index.json").unlink()
        (folder / "fp8" / "config.json").write_text(json.dumps(config))
        done = octavo.run("convert", folder / "fp8", folder / "out", "--format", "mxfp8",
                          check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(needle, done.stderr)
        self.assertFalse((folder / "out" / "config.json").exists())

    def test_what_is_not_read_is_named(self):
        up = LAYER + "mlp.up_proj.weight"

        def inverse(tensors, config):
            config["quantization_config"].pop("octavo", None)
            dtype, shape, data = tensors[up + "_scale_inv"]
            scales = [1 / s for s in struct.unpack(f"<{len(data) // 4}f", data)]
            tensors[up + "_scale_inv"] = (dtype, shape, struct.pack(f"<{len(scales)}f", *scales))

        def int4(tensors, config):
            config.pop("quantization_config")
            del tensors[up], tensors[up + "_scale_inv"]
            tensors[LAYER + "mlp.up_proj.qweight"] = ("U8", [1], b"\0")

        cases = {
            "without its scale": (lambda t, c: t.pop(up + "_scale_inv"), "found neither"),
            "an orphan scale": (lambda t, c: t.update({"x.weight_scale": ("F32", [], b"\0" * 4)}),
                                "x.weight_scale: a scale, but"),
            "inverse scales": (inverse, "seem to divide"),
            "integers": (int4, "INT4"),
            "another method": (lambda t, c: c["quantization_config"].update(quant_method="gptq"),
                               "gptq"),
            "fnuz": (lambda t, c: c["quantization_config"].update(fmt="e4m3fnuz"), "e4m3fnuz"),
            "an input scale of another type": (
                lambda t, c: t.update({up[:-len("weight")] + "input_scale":
                                       ("U8", [1], b"\1")}), "input_scale: expected [] F32"),
            "a NaN code": (lambda t, c: t.update(
                {up: ("F8_E4M3", t[up][1], b"\x7f" + t[up][2][1:])}), "up_proj"),
        }
        for title, (edit, needle) in cases.items():
            with self.subTest(title), octavo.folder() as folder:
                self.expect_refused(folder, edit, needle)


def first_difference(want, got):
    """None when equal, else (place, wanted, got)."""
    if want == got:
        return None
    if len(want) != len(got):
        return ("length", len(want), len(got))
    place = next(i for i, (a, b) in enumerate(zip(want, got)) if a != b)
    return (place, want[place], got[place])


if __name__ == "__main__":
    octavo.main()
