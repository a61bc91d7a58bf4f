"""The converter killed with SIGKILL at random moments, 200 times. Method: a checkpoint of three
files is converted over and over into one folder; after each kill the folder is either no checkpoint
or the whole one, every finished file in it is the right one, and resuming gives equal bytes."""

import hashlib
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

import octavo_testing as octavo

sys.path.insert(0, str(octavo.ROOT / "scripts"))
import make_checkpoint  # noqa: E402

TRIALS = 200
KILLS_IN_A_ROW = 4  # Before the run is resumed to its end.
STATE_FILE = ".octavo-convert.json"
FLAGS = ["--format", "nvfp4", "--threads", "2"]


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in pathlib.Path(folder).iterdir()
            if path.is_file() and ".tmp-" not in path.name and path.name != STATE_FILE}


class KilledConversion(unittest.TestCase):
    def command(self, source, out, *more):
        return [octavo.program, "convert", str(source), str(out), *FLAGS, *more]

    def run_to_the_end(self, source, out):
        begin = time.monotonic()
        subprocess.run(self.command(source, out, "--resume"), check=True, capture_output=True)
        return time.monotonic() - begin

    def kill_one(self, source, out, seconds):
        process = subprocess.Popen(self.command(source, out, "--resume"),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def expect_sound(self, out, expected, trial):
        """Nothing in `out` is wrong, and without all of it there is no config.json."""
        if not out.exists():
            return
        found = hashes(out)
        for name, value in found.items():
            self.assertEqual(value, expected.get(name), f"trial {trial}: {name}")
        if "config.json" in found:
            self.assertEqual(found, expected, f"trial {trial}: looks complete and is not")

    def test_nothing_looks_complete_and_resume_is_equal(self):
        rng = random.Random(7)
        with octavo.folder() as folder:
            source, out, whole = folder / "in", folder / "out", folder / "whole"
            make_checkpoint.make_checkpoint(source, gigabytes=0.03, shard_gigabytes=0.012, seed=7)
            (source / "tokenizer.json").write_text("{}")
            seconds = self.run_to_the_end(source, whole)
            expected = hashes(whole)
            self.assertIn("config.json", expected)
            cut_short = 0
            for trial in range(1, TRIALS + 1):
                self.kill_one(source, out, rng.uniform(0.0, 1.1 * seconds))
                self.expect_sound(out, expected, trial)
                cut_short += not (out / "config.json").exists()
                complete = (out / "config.json").exists() and not (out / STATE_FILE).exists()
                if not complete and trial % KILLS_IN_A_ROW == 0:
                    self.run_to_the_end(source, out)
                    self.assertEqual(hashes(out), expected, f"trial {trial}: resumed")
                    self.assertFalse((out / STATE_FILE).exists())
                    complete = True
                if complete:
                    self.assertEqual(hashes(out), expected, f"trial {trial}")
                    shutil.rmtree(out)
            self.assertGreater(cut_short, TRIALS // 4, "the kills came too late to mean anything")


if __name__ == "__main__":
    octavo.main()
