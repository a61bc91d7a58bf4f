"""liboctavo.so as a C program and a linker see it: the header is C11, nothing but octavo_* with the
version OCTAVO_1 is exported, and every weight of random models, quantized through the ABI in every
format, has the bytes of `octavo convert`. Method: a C program, nm, and ctypes."""

import ctypes
import json
import pathlib
import re
import subprocess
import sys
import unittest

import octavo_testing as octavo
import tiny_checkpoints as tiny

sys.path.insert(0, str(octavo.ROOT / "scripts"))
import make_conformance_formats as formats  # noqa: E402

TINY = octavo.ROOT / "tests" / "data" / "model" / "tiny"
FORMATS = ("fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8", "nvfp4")
HEADER = octavo.ROOT / "include" / "octavo" / "octavo.h"
ERROR_BYTES = 4 + 2048


def library_path():
    return pathlib.Path(octavo.program).parent / "liboctavo.so"


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64))]


class Part(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("kind", ctypes.c_char_p), ("tensor", Tensor),
                ("num_bytes", ctypes.c_size_t)]


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("format", ctypes.c_int32),
                ("layout", ctypes.c_int32), ("name", ctypes.c_char_p),
                ("shared_amax", ctypes.POINTER(ctypes.c_float)), ("direct", ctypes.c_int32),
                ("threads", ctypes.c_void_p)]


class Buf(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Library:
    """The few calls that the comparison needs."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.lib.octavo_quantized_free.argtypes = [ctypes.c_void_p]
        self.lib.octavo_quantized_num_parts.argtypes = [ctypes.c_void_p]
        self.lib.octavo_quantized_part.argtypes = [ctypes.c_void_p, ctypes.c_int32,
                                                   ctypes.c_void_p, ctypes.c_void_p]
        self.lib.octavo_policy_manifest.argtypes = [ctypes.c_void_p] * 3
        self.lib.octavo_policy_free.argtypes = [ctypes.c_void_p]

    def call(self, name, *args):
        error = ctypes.create_string_buffer(ERROR_BYTES)
        status = getattr(self.lib, name)(*args, error)
        if status != 0:
            raise AssertionError(f"{name}: {status}: {error.raw[4:].split(bytes(1))[0].decode()}")

    @staticmethod
    def tensor(dtype, shape, data):
        codes = {"F16": 12, "BF16": 13, "F32": 14}
        extents = (ctypes.c_int64 * len(shape))(*shape)
        return Tensor(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), codes[dtype],
                      len(shape), extents, None)

    @staticmethod
    def options(name, format_name, shared_amax=None):
        amax = None if shared_amax is None else ctypes.pointer(ctypes.c_float(shared_amax))
        number = ("bf16", *FORMATS).index(format_name)
        return Options(ctypes.sizeof(Options), number, 0, name.encode(), amax, 0, None)

    def amax(self, source, name, format_name):
        out = ctypes.c_float()
        self.call("octavo_amax", ctypes.byref(self.tensor(*source)),
                  ctypes.byref(self.options(name, format_name)), ctypes.byref(out))
        return out.value

    def quantize(self, source, name, format_name, shared_amax):
        """{name: (dtype, shape, bytes)}, as a checkpoint has it."""
        handle = ctypes.c_void_p()
        self.call("octavo_quantize", ctypes.byref(self.tensor(*source)),
                  ctypes.byref(self.options(name, format_name, shared_amax)),
                  ctypes.byref(handle))
        names = {1: "U8", 9: "F8_E4M3", 13: "BF16", 14: "F32"}
        parts = {}
        for index in range(self.lib.octavo_quantized_num_parts(handle)):
            part = Part()
            self.call("octavo_quantized_part", handle, index, ctypes.byref(part))
            tensor = part.tensor
            parts[part.name.decode()] = (names[tensor.dtype],
                                         [tensor.shape[i] for i in range(tensor.ndim)],
                                         ctypes.string_at(tensor.data, part.num_bytes))
        self.lib.octavo_quantized_free(handle)
        return parts

    def manifest(self, folder):
        """What the folder's own configuration says."""
        handle, text = ctypes.c_void_p(), Buf()
        self.call("octavo_policy_load", str(folder).encode(), None, ctypes.byref(handle))
        self.call("octavo_policy_manifest", handle, ctypes.byref(text))
        manifest = json.loads(ctypes.string_at(text.data, text.size))
        self.lib.octavo_buf_free(ctypes.byref(text))
        self.lib.octavo_policy_free(handle)
        return manifest


class SameBytes(unittest.TestCase):
    def compare(self, library, source, converted):
        """Every weight of a converted folder against the ABI; how many were quantized."""
        plain, stored = tiny.read_checkpoint(source), tiny.read_checkpoint(converted)
        manifest = library.manifest(converted)
        groups = {}
        for row in manifest["tensors"]:
            if row["group"] is not None and row["name"] in plain:
                groups.setdefault(row["group"], []).append(
                    library.amax(plain[row["name"]], row["name"], row["format"]))
        num_quantized = 0
        for row in manifest["tensors"]:
            if row["name"] not in plain or row["format"] == "bf16":
                continue
            shared = None if row["group"] is None else max(groups[row["group"]])
            parts = library.quantize(plain[row["name"]], row["name"], row["format"], shared)
            for name, part in parts.items():
                self.assertEqual(part, stored[name], name)
            num_quantized += 1
        return num_quantized

    def test_every_weight_in_every_format_has_the_bytes_of_convert(self):
        library = Library(library_path())
        counts = dict.fromkeys(FORMATS, 0)
        for source in sorted(path.parent for path in TINY.glob("*/config.json")):
            for name in FORMATS:
                with octavo.folder() as folder:
                    out = folder / "out"
                    flags = ["--scope", "all"] if name == "nvfp4" else []
                    done = octavo.run("convert", source, out, "--format", name, *flags, check=False)
                    if done.returncode != 0:  # No weight of it is wide enough.
                        self.assertIn("width", done.stderr + done.stdout)
                        continue
                    with self.subTest(model=source.name, format=name):
                        counts[name] += self.compare(library, source, out)
        print("weights compared:", counts)
        for name, count in counts.items():
            self.assertGreater(count, 20, name)


class AsCSeesIt(unittest.TestCase):
    def test_a_c11_program_builds_without_a_warning_and_runs(self):
        library = library_path()
        with octavo.folder() as folder:
            program = folder / "c_abi"
            done = subprocess.run(
                ["gcc", "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror",
                 f"-I{HEADER.parent.parent}", str(octavo.ROOT / "tests" / "c_abi.c"), "-o",
                 str(program), f"-L{library.parent}", "-loctavo", f"-Wl,-rpath,{library.parent}"],
                text=True, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            lines = subprocess.run([str(program), octavo.DENSE], cwd=octavo.ROOT, text=True,
                                   capture_output=True, check=True).stdout.splitlines()
        self.assertEqual(lines[-1], "policy model.layers.0.mlp.up_proj.weight fp8")
        # Values from -5 by eighths: all are BF16 numbers, and the largest magnitude is 6.875.
        values = [place / 8 - 5 for place in range(96)]
        by_name = {tuple(line.split()[:3]): bytes.fromhex(line.split()[3]) for line in lines[:-1]}
        self.assertEqual(by_name["bf16", "x.weight", "BF16"],
                         b"".join(tiny.bf16_bits(value).to_bytes(2, "little") for value in values))
        codes = by_name["mxfp8", "x.weight", "F8_E4M3"]
        scales = by_name["mxfp8", "x.weight_scale_inv", "U8"]
        for place, value in enumerate(values):
            got = formats.e4m3_value(codes[place]) * 2.0 ** (scales[place // 32] - 127)
            self.assertLessEqual(abs(got - value), abs(value) / 16 + 2.0 ** -9)  # Half a step.

    def test_exports_the_functions_of_the_header_and_nothing_else(self):
        lines = subprocess.run(["nm", "-D", "--defined-only", "--with-symbol-versions",
                                str(library_path())], text=True, capture_output=True,
                               check=True).stdout.splitlines()
        exported = {line.split()[-1] for line in lines} - {"OCTAVO_1"}
        declared = re.findall(r"OCTAVO_API[^;(]*?(octavo_\w+)\(", HEADER.read_text())
        self.assertGreater(len(declared), 30)
        self.assertEqual(exported, {f"{name}@@OCTAVO_1" for name in declared})


if __name__ == "__main__":
    if len(sys.argv) > 1 and not (pathlib.Path(sys.argv[1]).parent / "liboctavo.so").exists():
        print("skipped: this build has no liboctavo.so")
        sys.exit(77)
    octavo.main()
