"""Runs deploy/verify/verify.py many times in one process. Reads a list of calls as JSON, prints a list of their results.

A call is {"argv": [...]} with, if a file is to be changed for it, "file" and "flip" ([offset, bits]). The path of
deploy/verify is the first argument.
"""

import contextlib
import io
import json
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import verify  # noqa: E402


def run(call):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = verify.main(call["argv"])
    return {"code": code, **json.loads(said.getvalue())}


def run_changed(call):
    if "file" not in call:
        return run(call)
    with open(call["file"], "rb") as file:
        original = file.read()
    at, bits = call["flip"]
    changed = bytearray(original)
    changed[at] ^= bits
    try:
        with open(call["file"], "wb") as file:
            file.write(changed)
        return run(call)
    finally:
        with open(call["file"], "wb") as file:
            file.write(original)


json.dump([run_changed(call) for call in json.load(sys.stdin)], sys.stdout)
