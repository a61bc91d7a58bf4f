"""The package octavo without torch: buffers in and out, policies, and updates of a real server
whose digest is that of `octavo push`. Standard library alone.

Usage: PYTHONPATH=build/python test_package.py OCTAVO"""

import array
import json
import pathlib
import struct
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import octavo_testing as testing  # noqa: E402
import tiny_checkpoints as tiny  # noqa: E402

try:
    import octavo
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

TINY = testing.ROOT / "tests" / "data" / "model" / "tiny" / "qwen3-tied"


def weights_of(folder):
    """(name, memoryview of uint16 or float, dtype) of every tensor of a checkpoint."""
    for name, (dtype, shape, data) in tiny.read_checkpoint(folder).items():
        code = {"BF16": "H", "F32": "f"}[dtype]
        yield name, memoryview(bytearray(data)).cast("B").cast(code, shape or [1]), dtype


class Quantize(unittest.TestCase):
    def setUp(self):
        self.values = array.array("f", [(i % 97 - 48) / 16 for i in range(128 * 64)])
        self.matrix = memoryview(self.values).cast("B").cast("f", [128, 64])

    def test_kinds_names_shapes_and_dtypes(self):
        parts = octavo.quantize(self.matrix, "fp8")
        self.assertEqual(list(parts), ["codes", "scales"])
        self.assertEqual((parts["codes"].dtype, parts["codes"].shape), ("F8_E4M3", (128, 64)))
        self.assertEqual((parts["scales"].dtype, parts["scales"].shape), ("F32", (1, 1)))
        named = octavo.quantize(self.matrix, "nvfp4", name="a.weight", layout="compressed-tensors")
        self.assertEqual(list(named), ["a.weight_packed", "a.weight_scale",
                                       "a.weight_global_scale", "a.input_global_scale"])

    def test_results_are_buffers_and_dlpack(self):
        parts = octavo.quantize(self.matrix, "fp8")
        view = memoryview(parts["scales"])
        self.assertEqual((view.format, view.shape), ("f", (1, 1)))
        self.assertEqual(view[0, 0], struct.unpack("f", struct.pack("f", 3.0 / 448))[0])
        self.assertEqual(memoryview(parts["codes"]).tobytes(), parts["codes"].tobytes())
        again = octavo.View.from_dlpack(parts["scales"].__dlpack__())
        self.assertEqual((again.dtype, again.shape, again.address),
                         ("F32", (1, 1), parts["scales"].view().address))
        self.assertEqual(parts["codes"].__dlpack_device__(), (1, 0))
        # A capsule nobody takes frees what it holds; one that was taken cannot be taken again.
        capsule = parts["codes"].__dlpack__()
        octavo.View.from_dlpack(capsule)
        with self.assertRaises(TypeError):
            octavo.View.from_dlpack(capsule)

    def test_results_outlive_each_other(self):
        codes = octavo.quantize(self.matrix, "fp8")["codes"]
        view = memoryview(octavo.quantize(self.matrix, "fp8")["codes"])
        self.assertEqual(view.tobytes(), codes.tobytes())

    def test_nothing_is_copied_or_written(self):
        before = self.values.tobytes()
        view = octavo.as_view(self.matrix)
        self.assertEqual((view.address, view.strides), (self.values.buffer_info()[0], (64, 1)))
        octavo.quantize(self.matrix, "mxfp8", threads=octavo.Threads(2))
        self.assertEqual(self.values.tobytes(), before)

    def test_strides_are_honoured(self):
        wide = memoryview(array.array("f", [0.0] * (256 * 64))).cast("B").cast("f", [256 * 64])
        for row in range(128):
            wide[2 * row * 64:(2 * row + 1) * 64] = self.values[row * 64:(row + 1) * 64]
        rows = wide.cast("B").cast("f", [256, 64])[::2]
        self.assertEqual(octavo.as_view(rows).strides, (128, 1))
        for name in ("fp8", "nvfp4", "bf16"):
            self.assertEqual([a.tobytes() for a in octavo.quantize(rows, name).values()],
                             [a.tobytes() for a in octavo.quantize(self.matrix, name).values()])

    def test_dtype_says_what_bits_are(self):
        bits = array.array("H", [0x3F80] * 64)
        view = memoryview(bits).cast("B").cast("H", [2, 32])
        parts = octavo.quantize(view, "mxfp8", dtype="BF16")
        self.assertEqual(set(parts["codes"].tobytes()), {0x78})  # 1 = 256 * 2^-8.
        with self.assertRaisesRegex(ValueError, "as wide as U16"):
            octavo.quantize(view, "mxfp8", dtype="F32")
        with self.assertRaisesRegex(octavo.InvalidArgumentError, "U16"):
            octavo.quantize(view, "mxfp8")

    def test_shared_scales(self):
        small = memoryview(array.array("f", [0.5] * 32)).cast("B").cast("f", [2, 16])
        alone = octavo.quantize(small, "nvfp4")["tensor_scale"]
        shared = octavo.quantize(small, "nvfp4", shared_amax=octavo.amax(self.matrix))
        self.assertNotEqual(alone.tobytes(), shared["tensor_scale"].tobytes())
        self.assertEqual(octavo.amax(self.matrix), 3.0)

    def test_errors_name_what_is_wrong(self):
        with self.assertRaisesRegex(ValueError, "fp5"):
            octavo.quantize(self.matrix, "fp5")
        with self.assertRaisesRegex(octavo.InvalidArgumentError, "x.weight.*multiple of 32"):
            octavo.quantize(memoryview(self.values).cast("B").cast("f", [512, 16]), "mxfp8",
                            name="x.weight")
        self.values[65] = float("nan")
        with self.assertRaisesRegex(octavo.InvalidArgumentError, r"\[1, 1\]"):
            octavo.quantize(self.matrix, "fp8")
        for bad in (3, "text", None):
            with self.assertRaisesRegex(TypeError, "__dlpack__ or the buffer protocol"):
                octavo.quantize(bad, "fp8")


class Policy(unittest.TestCase):
    def test_of_a_model_folder(self):
        policy = octavo.Policy.from_model(testing.ROOT / testing.DENSE, format="fp8")
        weight = policy["model.layers.0.mlp.up_proj.weight"]
        self.assertEqual((weight.role, weight.layer, weight.format), ("mlp.up", 0, "fp8"))
        self.assertEqual([part.kind for part in weight.parts], ["codes", "scales"])
        self.assertIn(weight.name, policy.quantized())
        self.assertNotIn("model.norm.weight", policy.quantized())
        plan = testing.run_json("plan", testing.DENSE, "--format", "fp8")
        self.assertEqual(policy.table_hash, plan["hash"])
        self.assertEqual(list(policy), [row["name"] for row in plan["tensors"]])
        again = octavo.Policy.from_manifest(policy.manifest())
        self.assertEqual(dict(again), dict(policy))

    def test_of_a_policy_file(self):
        with testing.folder() as folder:
            path = folder / "policy.toml"
            path.write_text('format = "fp8"\nkeep_last = 2\n')
            policy = octavo.Policy.from_model(testing.ROOT / testing.DENSE, policy=path)
        self.assertEqual(policy["model.layers.7.mlp.up_proj.weight"].format, "bf16")
        self.assertEqual(policy["model.layers.7.mlp.up_proj.weight"].rule, "--keep-last 2")

    def test_errors(self):
        with self.assertRaises(octavo.NotFoundError):
            octavo.Policy.from_model("nowhere")
        with self.assertRaises(octavo.CorruptError):
            octavo.Policy.from_manifest("{}")
        with self.assertRaises(octavo.InvalidArgumentError):
            octavo.Policy.from_model("a", format="fp8", policy="b")


class Updates(unittest.TestCase):
    """Against a real server of a random tiny model."""

    def check_same_as_push(self, flags):
        with testing.folder() as folder:
            other = folder / "other"
            other.mkdir()
            for path in TINY.iterdir():
                (other / path.name).write_bytes(path.read_bytes())
            # Other weights: every BF16 number twice as large.
            path = other / "model.safetensors"
            tensors = {}
            for name, (dtype, shape, data) in tiny.read_checkpoint(TINY).items():
                bits = struct.unpack(f"<{len(data) // 2}H", data)
                doubled = [b + 0x80 if b & 0x7F80 else b for b in bits]
                tensors[name] = (dtype, shape, struct.pack(f"<{len(bits)}H", *doubled))
            tiny.write_safetensors(path, tensors)
            with testing.Server(TINY, *flags) as server:
                client = octavo.Client(server.url)
                first = client.checksum()["digest"]
                pushed = testing.run_json("push", other, "--to", server.url)["digest"]
                self.assertNotEqual(first, pushed)
                for quantize in ("engine", "trainer"):
                    with client.update() as update:
                        update.put_all((n, octavo.as_view(m, d)) for n, m, d in weights_of(TINY))
                    self.assertEqual(client.checksum()["digest"], first)
                    with client.update(quantize=quantize, bucket_bytes=5000) as update:
                        for name, matrix, dtype in weights_of(other):
                            update.put(name, matrix, dtype)
                    self.assertEqual(update.report["digest"], pushed, (flags, quantize))
                    self.assertEqual(client.checksum()["digest"], pushed)

    def test_the_digest_is_that_of_push_wherever_it_is_quantized(self):
        for flags in (["--format", "fp8"], ["--format", "nvfp4", "--scope", "all"],
                      ["--format", "fp8-tensor"]):
            with self.subTest(flags=flags):
                self.check_same_as_push(flags)

    def test_an_exception_leaves_the_server_as_it_was(self):
        with testing.Server(TINY, "--format", "fp8", "--api-key", "k") as server:
            client = octavo.Client([server.url], api_key="k")
            before = client.checksum()
            with self.assertRaisesRegex(RuntimeError, "on purpose"):
                with client.update(version=9) as update:
                    name, matrix, dtype = next(weights_of(TINY))
                    update.put(name, matrix, dtype)
                    raise RuntimeError("on purpose")
            self.assertEqual(client.checksum(), before)
            with self.assertRaisesRegex(octavo.InvalidArgumentError, "model"):
                with client.update() as update:  # Everything is missing.
                    pass
            with self.assertRaisesRegex(octavo.InvalidArgumentError, "nothing.weight"):
                with client.update() as update:
                    update.put("nothing.weight", matrix, dtype)
            self.assertEqual(client.checksum(), before)
            with self.assertRaisesRegex(octavo.InvalidArgumentError, "`with` block"):
                update.put(name, matrix, dtype)
            self.assertEqual(len(client.checksum("*mlp*")["tensors"]),
                             sum("mlp" in name for name in before["tensors"]))
            with self.assertRaises(octavo.OctavoError):
                octavo.Client(server.url, api_key="wrong").checksum()

    def test_the_manifest_says_what_is_served(self):
        with testing.Server(TINY, "--format", "fp8", "--keep-first", "1") as server:
            policy = octavo.Client(server.url).manifest()
        plan = testing.run_json("plan", TINY, "--format", "fp8", "--keep-first", "1")
        self.assertEqual(policy.table_hash, plan["hash"])
        self.assertEqual(policy.tied_head, "lm_head.weight")
        self.assertEqual(policy.weight_version, "0")
        json.loads(policy.manifest())

    def test_nobody_there_is_an_error_of_its_own(self):
        client = octavo.Client("http://127.0.0.1:1", connect_timeout_s=1)
        with self.assertRaises(octavo.UnavailableError):
            client.manifest()
        with self.assertRaises(ConnectionError):
            with client.update():
                pass


if __name__ == "__main__":
    testing.main()
