"""Method: bench/update/faults.py, of whose faults one in some is tried; what must hold after each
stands at its head. All of them, in three formats, by hand: `make bench-faults`."""

import json
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from octavo_testing import ROOT

EVERY = 9


class Faults(unittest.TestCase):
    def check(self, name):
        done = subprocess.run(
            [sys.executable, str(ROOT / "bench" / "update" / "faults.py"), octavo_testing.program,
             "--formats", name, "--every", str(EVERY)], cwd=ROOT, text=True, capture_output=True,
            check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        figures = json.loads(done.stdout)
        self.assertEqual(figures["problems"], [])
        self.assertGreater(figures["faults"], 100)
        for what in ("requests lost", "tokens that differ", "probes and digests that differ"):
            self.assertEqual(figures[what], 0, what)

    def test_blocks(self):
        self.check("fp8")


if __name__ == "__main__":
    octavo_testing.main()
