"""The package octavo with PyTorch and NumPy: DLPack without a copy, sources that hash the same
afterwards, odd strides, FSDP2 over two processes, and updates of a real server whose digest is that
of `octavo push`. `make test-torch` makes the environment that it needs.

Usage: torch_package.py OCTAVO"""

import hashlib
import os
import pathlib
import subprocess
import sys
import unittest

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import octavo_testing as testing  # noqa: E402
import tiny_checkpoints as tiny  # noqa: E402

import octavo  # noqa: E402

TINY = testing.ROOT / "tests" / "data" / "model" / "tiny"
FSDP2 = pathlib.Path(__file__).resolve().parent / "torch_fsdp2.py"
FORMATS = ("fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8", "nvfp4")


def sha(tensor):
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
                          ).hexdigest()


def parts_of(tensor, name, **kwargs):
    return {kind: array.tobytes() for kind, array in octavo.quantize(tensor, name, **kwargs).items()}


def checkpoint_tensors(folder):
    """{name: BF16 or F32 tensor}."""
    tensors = {}
    for name, (dtype, shape, data) in tiny.read_checkpoint(folder).items():
        kind = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
        tensors[name] = torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)
    return tensors


class Tensors(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(7)
        self.matrix = torch.randn(260, 160, dtype=torch.bfloat16)

    def test_contiguous_tensors_are_not_copied(self):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            tensor = self.matrix.to(dtype)
            view = octavo.as_view(tensor)
            self.assertEqual((view.address, view.shape), (tensor.data_ptr(), (260, 160)))
        array = np.ones((4, 5), np.float32)
        self.assertEqual(octavo.as_view(array).address, array.ctypes.data)

    def test_results_are_not_copied_either(self):
        parts = octavo.quantize(self.matrix, "fp8")
        for part in parts.values():
            self.assertEqual(torch.from_dlpack(part).data_ptr(), part.view().address)
            self.assertEqual(np.asarray(part).ctypes.data, part.view().address)
        kept = torch.from_dlpack(octavo.quantize(self.matrix, "bf16")["codes"])
        self.assertEqual(kept.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(kept, self.matrix))

    def test_the_values_are_the_matrix_up_to_the_format(self):
        parts = octavo.quantize(self.matrix, "fp8-channel")
        codes = torch.from_dlpack(parts["codes"]).view(torch.float8_e4m3fn).float()
        values = codes * torch.from_dlpack(parts["scales"])
        # Half a step of E4M3 is 1/16 of a normal value; a subnormal's is 2^-10 of its scale.
        scale = torch.from_dlpack(parts["scales"])
        bound = self.matrix.float().abs() / 16 + scale * 2.0 ** -10
        self.assertTrue(bool(((values - self.matrix.float()).abs() <= bound * 1.0001).all()))

    def test_sources_hash_the_same_before_and_after(self):
        for tensor in (self.matrix, self.matrix.float(), self.matrix[:256].t(),
                       torch.nn.Parameter(self.matrix.clone())):
            before = sha(tensor)
            for name in FORMATS:
                octavo.quantize(tensor, name, shared_amax=octavo.amax(tensor),
                                threads=octavo.Threads(2))
            self.assertEqual(sha(tensor), before)

    def test_strides_of_any_kind_give_the_bytes_of_a_contiguous_copy(self):
        wide = torch.randn(520, 320, dtype=torch.float32)
        for tensor in (wide.t(), wide[::2, ::5].contiguous().t(), wide[3::2], wide[:, 64:192],
                       wide[:, ::2], wide.to(torch.bfloat16).t()[1:97],
                       wide[:1].expand(64, 320)):
            for name in FORMATS:
                if tensor.shape[1] % 32 != 0 and name in ("mxfp8", "nvfp4"):
                    continue
                self.assertEqual(parts_of(tensor, name), parts_of(tensor.contiguous(), name))
        backwards = np.ascontiguousarray(wide.numpy())[::-1, ::-1]
        self.assertEqual(parts_of(backwards, "fp8"), parts_of(backwards.copy(), "fp8"))

    def test_f32_is_rounded_to_bf16_first_unless_direct(self):
        wide = self.matrix.float() * (1 + 2.0 ** -12)
        self.assertEqual(parts_of(wide, "fp8"), parts_of(wide.to(torch.bfloat16), "fp8"))
        self.assertNotEqual(parts_of(wide, "fp8", direct=True), parts_of(wide, "fp8"))

    def test_flushed_subnormals_change_nothing(self):
        tensor = torch.full((64, 64), 2.0 ** -130, dtype=torch.float32)
        expected = parts_of(tensor, "fp8-channel")
        if torch.set_flush_denormal(True):
            try:
                self.assertEqual(parts_of(tensor, "fp8-channel"), expected)
            finally:
                torch.set_flush_denormal(False)

    def test_parameters_read_only_arrays_and_fp8_are_taken(self):
        array = np.ones((4, 32), np.float16)
        expected = parts_of(array, "mxfp8")
        array.flags.writeable = False
        self.assertEqual(parts_of(array, "mxfp8"), expected)
        view = octavo.as_view(torch.zeros(4, 4).to(torch.float8_e4m3fn))
        self.assertEqual(view.dtype, "F8_E4M3")
        with self.assertRaises((TypeError, RuntimeError, ValueError)):
            octavo.quantize(torch.zeros(4, 4, dtype=torch.complex64), "fp8")

    def test_importing_octavo_imports_neither_torch_nor_numpy(self):
        code = ("import octavo, sys; assert not {'torch', 'numpy'} & set(sys.modules), "
                "sorted(sys.modules)")
        subprocess.run([sys.executable, "-c", code], check=True)


class Updates(unittest.TestCase):
    def test_an_update_has_the_digest_of_push_and_mutates_nothing(self):
        for model, flags in (("qwen3-tied", ["--format", "fp8"]),
                             ("qwen3moe-norm", ["--format", "nvfp4", "--scope", "all"]),
                             ("deepseek-plain", ["--format", "mxfp8"]),
                             ("deepseek-plain", ["--format", "fp8-tensor"])):
            folder = TINY / model
            tensors = checkpoint_tensors(folder)
            before = {name: sha(tensor) for name, tensor in tensors.items()}
            with testing.Server(folder, *flags, "--load-format", "dummy") as server:
                client = octavo.Client(server.url)
                for quantize in ("engine", "trainer"):
                    with client.update(quantize=quantize, threads=octavo.Threads(2)) as update:
                        update.put_all(tensors.items())
                    pushed = testing.run_json("push", folder, "--to", server.url)["digest"]
                    with self.subTest(model=model, flags=flags, quantize=quantize):
                        self.assertEqual(update.report["digest"], pushed)
            self.assertEqual({name: sha(tensor) for name, tensor in tensors.items()}, before)

    def test_fsdp2_over_two_processes_sends_what_push_sends(self):
        folder = TINY / "qwen3-tied"
        with testing.Server(folder, "--format", "fp8", "--load-format", "dummy") as server:
            self.run_fsdp2(folder, server.url, "send")
            client = octavo.Client(server.url)
            live = client.checksum()
            self.assertEqual(live["weight_version"], "41")
            pushed = testing.run_json("push", folder, "--to", server.url)["digest"]
            self.assertEqual(live["digest"], pushed)
            # Rank 0 that fails, in the middle or before it begins, leaves nobody waiting.
            for how in ("fail", "refused"):
                self.run_fsdp2(folder, server.url, how)
                self.assertEqual(client.checksum()["digest"], pushed)

    def run_fsdp2(self, folder, url, how):
        with testing.folder() as store:
            ranks = [subprocess.Popen([sys.executable, str(FSDP2), str(folder), url, how,
                                       str(store / "store"), str(rank)], text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      env={**os.environ, "OMP_NUM_THREADS": "1"})
                     for rank in range(2)]
            outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
        self.assertEqual([rank.returncode for rank in ranks], [0, 0], "\n".join(outputs))


if __name__ == "__main__":
    testing.main()
