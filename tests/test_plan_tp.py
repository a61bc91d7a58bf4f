"""Method: `octavo plan --tp` over the models of the tree, whose widths are known: what is legal, what
is cut unevenly and what is refused, in text, JSON and exit code."""

import unittest

import octavo_testing
from octavo_testing import DENSE, run, run_json


class PlanTp(unittest.TestCase):
    def test_a_legal_size(self):
        done = run("plan", DENSE, "--format", "mxfp8", "--tp", "4")
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], "tensor parallel 4: legal, uneven")  # 690 words of vocabulary.
        self.assertTrue(any("axis 1 of 768 in blocks of 32: 192 x 4" in line for line in lines))
        self.assertTrue(any("2 ranks to a slice" in line for line in lines))
        self.assertIn("TP 1: legal", lines)

    def test_a_size_that_cuts_a_block(self):
        done = run("plan", DENSE, "--format", "fp8", "--tp", "2", check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stdout.splitlines()[0],
                         "tensor parallel 2: model.layers.0.self_attn.k_proj.weight: axis 0 of 128 "
                         "at TP 2: a slice of 64 is no multiple of the block of 128")

    def test_json(self):
        plan = run_json("plan", DENSE, "--format", "nvfp4", "--tp", "2")
        self.assertTrue(plan["legal"])
        down = next(t for t in plan["tensors"] if t["role"] == "mlp.down")
        self.assertEqual((down["axis"], down["size"], down["block"], down["extents"]),
                         (1, 768, 16, [384, 384]))
        self.assertTrue(down["needs_shared_amax"])
        self.assertEqual({size["tp"]: size["legal"] for size in plan["sizes"]}[8], False)

    def test_what_is_refused(self):
        for flags in (("--tp", "0"), ("--tp", "x"), ("--tp", "2", "--explain", "lm_head")):
            self.assertEqual(run("plan", DENSE, *flags, check=False).returncode, 2)


if __name__ == "__main__":
    octavo_testing.main()
