#!/usr/bin/env python3
"""`make test-openapi`: schemathesis tries docs/openapi.json on a live server.

Schemathesis comes from PyPI into a virtual environment that is thrown away. It sends what the
document allows and what it does not, and every answer must be one that is documented: a status of
the list, a body of the schema, never a 5xx without cause. Calls that hold generation back (pause,
release, overwritten weights) are tried apart from those that would wait for it. In the end the
server must still give the bits of the beginning.

Usage: run_schemathesis.py [--octavo PROGRAM] [--examples N] [--seed N]
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import octavo_testing  # noqa: E402

VERSION = "4.32.5"
MODEL = octavo_testing.DENSE
DOCUMENT = ROOT / "docs" / "openapi.json"
HOLDING = "^/(pause_generation|release_memory_occupation|weights_checker)$"
RESUMING = "^/(continue_generation|resume_memory_occupation|health|server_info|v1/loads|flush_cache)$"
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,"
          "response_schema_conformance,unsupported_method")
PROBE = {"text": "Question: Tom has 3 apples and buys 4 more. How many?\nAnswer:",
         "return_logprob": True, "sampling_params": {"temperature": 0, "max_new_tokens": 24}}


def install(folder):
    """The program `st` in a new virtual environment."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", f"schemathesis=={VERSION}"],
                   check=True)
    return folder / "bin" / "st"


def try_calls(program, server, args, *selection):
    """One run; True when every answer was documented."""
    command = [program, "run", DOCUMENT, "--url", server.url, "--checks", CHECKS,
               "--phases", "examples,coverage,fuzzing", "--request-timeout", "60", "--no-color",
               "--suppress-health-check", "filter_too_much,too_slow", "--max-examples",
               str(args.examples), "--seed", str(args.seed), *selection]
    return subprocess.run([str(x) for x in command], check=False).returncode == 0


def probe(server):
    reply = server.generate(**PROBE)
    return reply["output_ids"], reply["meta_info"]["output_token_logprobs"]


def resume(server, model):
    """Back to serving the weights of the folder, whatever was called."""
    update_id = server.call("GET", "/octavo/v1/update")[1].get("update_id", "none")
    for path, body in (("/octavo/v1/update/abort", {"update_id": update_id}),
                       ("/resume_memory_occupation", {}), ("/continue_generation", {}),
                       ("/update_weights_from_disk", {"model_path": str(model)})):
        status, reply = server.call("POST", path, body)
        if status != 200:
            raise AssertionError(f"{path}: {status} {json.dumps(reply)}")


def run(args):
    with tempfile.TemporaryDirectory(prefix="octavo-openapi-") as folder:
        program = install(pathlib.Path(folder))
        # Weight calls write where they are told to: below a folder that is thrown away.
        root = pathlib.Path(folder) / "models"
        shutil.copytree(octavo_testing.ROOT / MODEL, root / "served")
        with octavo_testing.Server(root / "served", "--threads", "1", "--model-root",
                                   root) as server:
            before = probe(server)
            good = try_calls(program, server, args, "--exclude-path-regex", HOLDING)
            good &= probe(server) == before
            good &= try_calls(program, server, args, "--include-path-regex",
                              f"{HOLDING}|{RESUMING}")
            resume(server, root / "served")
            good &= probe(server) == before
            good &= server.stop() == 0
    return good


def main():
    parser = argparse.ArgumentParser(description="Tries docs/openapi.json on a live server.")
    parser.add_argument("--octavo", default=octavo_testing.program, help="the built program")
    parser.add_argument("--examples", type=int, default=50, help="random calls of an operation")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    octavo_testing.program = str(pathlib.Path(args.octavo).resolve())
    sys.exit(0 if run(args) else 1)


if __name__ == "__main__":
    main()
