"""Method: every line of docs/live-updates.md is pasted into a shell, in the order of the page, against
a server that its first line started; its program for PyTorch runs with a stand-in for torch. What is
live afterwards is what `octavo digest` says of the offline conversion."""

import contextlib
import ctypes
import pathlib
import re
import shlex
import subprocess
import sys
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from octavo_testing import BASE, DENSE, ROOT, Server, folder, read_safetensors, run, run_json

URL = "http://127.0.0.1:30000"


class Tensor:
    """As much of a BF16 tensor as the page asks for."""

    def __init__(self, shape, data):
        self.shape, self.data = shape, data
        self.buffer = ctypes.create_string_buffer(data, len(data))

    def detach(self):
        return self

    def to(self, *_):
        return self

    def contiguous(self):
        return self

    def numel(self):
        return len(self.data) // 2

    def data_ptr(self):
        return ctypes.addressof(self.buffer)


class Model:
    def __init__(self, path):
        self.tensors = read_safetensors(ROOT / path / "model.safetensors")

    def named_parameters(self):
        return [(name, Tensor(shape, data)) for name, (_, shape, data) in self.tensors.items()]


class Page(unittest.TestCase):
    page = (ROOT / "docs" / "live-updates.md").read_text(encoding="utf-8")

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```", self.page, re.M | re.S)

    @contextlib.contextmanager
    def started(self):
        """The server of the page's first line, with versions in a folder that goes away."""
        flags = shlex.split(self.blocks("sh")[0])[2:]
        with folder() as work:
            self.work = work
            at = flags.index("--port")
            del flags[at:at + 2]
            flags[flags.index("--state-dir") + 1] = work / "versions"
            with Server(*flags, "--threads", "1") as server:
                yield server

    def live(self, server, model):
        run("convert", model, self.work / "converted", "--format", "fp8", "--keep-last", "2")
        self.assertEqual(run_json("digest", server.url)["digest"],
                         run_json("digest", self.work / "converted")["digest"])

    def test_every_line_works_as_pasted(self):
        blocks = self.blocks("sh")
        self.assertGreater(len(blocks), 4)
        with self.started() as server:
            for block in blocks[1:]:
                script = block.replace(URL, server.url).replace("build/octavo",
                                                                octavo_testing.program)
                script = script.replace("curl -s", "curl --fail-with-body -s")
                done = subprocess.run(["sh", "-ec", script], cwd=ROOT, capture_output=True,
                                      text=True, timeout=60, check=False)
                self.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}\n{done.stderr}")
                self.assertNotIn('"success":false', done.stdout)
            self.live(server, DENSE)

    def test_the_program_for_pytorch(self):
        program = next(block for block in self.blocks("python") if "def push" in block)
        torch = types.ModuleType("torch")
        torch.bfloat16 = None
        with self.started() as server:
            names = {}
            sys.modules["torch"] = torch
            try:
                exec(compile(program.replace(URL, server.url), "live-updates.md", "exec"), names)
            finally:
                del sys.modules["torch"]
            model = Model(DENSE)
            before = dict(model.tensors)
            report = names["push"](model, "7")
            self.assertEqual((report["success"], report["version"]), (True, "7"))
            self.assertEqual(model.tensors, before)
            self.live(server, DENSE)
            missing = Model(BASE)
            del missing.tensors["model.norm.weight"]
            with self.assertRaises(OSError):
                names["push"](missing, "8")
            self.assertIs(server.call("GET", "/octavo/v1/update")[1]["open"], False)
            self.live_is_still("7", server)

    def live_is_still(self, version, server):
        self.assertEqual(server.call("GET", "/get_weight_version")[1]["weight_version"], version)


if __name__ == "__main__":
    octavo_testing.main()
