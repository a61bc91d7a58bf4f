"""Method: bench/soak/run.py for five minutes, or as many as the argument says; what it holds the
server to stands at its head. Its traffic is paced, so that other tests run beside it. By hand, for
an hour: bench/soak/run.py --minutes 60."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def main():
    """test_soak.py PROGRAM [MINUTES]; returns the exit code."""
    minutes = sys.argv[2] if len(sys.argv) > 2 else "5"
    return subprocess.run([sys.executable, str(ROOT / "bench" / "soak" / "run.py"), sys.argv[1],
                           "--minutes", minutes], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
