"""Runs regraft commands one after another in this process, each as `python -m regraft` would.

    PYTHON -P parity_runner.py COMMANDS.json

COMMANDS.json maps a name to the words of its command. Stdout, stderr and the exit status of each
land in `told/NAME.out`, `told/NAME.err` and `told/NAME.exit` of the current folder. Used by
`parity.py`, which saves most of the starts this way; only the standard library is needed here.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import traceback
from pathlib import Path

TOLD = Path("told")


def run(words: list[str]) -> int:
    """Return the exit status of one command."""
    sys.argv = ["regraft", *words]
    try:
        runpy.run_module("regraft", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def main() -> None:
    """Run every command, and write what it said."""
    commands = json.loads(Path(sys.argv[1]).read_text())
    TOLD.mkdir(exist_ok=True)
    for name, words in commands.items():
        out = (TOLD / f"{name}.out").open("w")
        err = (TOLD / f"{name}.err").open("w")
        with out, err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(words)
        (TOLD / f"{name}.exit").write_text(str(status))


if __name__ == "__main__":
    main()
