"""Run all tests: those in the browser, which mostly wait, and some more beside all others.

``python -m tests`` takes pytest's arguments, for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BESIDE = ("tests/browser", "tests/notebooks", "tests/bundled", "tests/widgets")  # about half of the time
NOTHING_TO_DO = 5  # pytest's exit code where no test was chosen


def main(arguments: list[str]) -> int:
    """Pytest's exit code, the worse of the two."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    if any(Path(argument.split("::")[0]).exists() for argument in arguments):  # some tests, named by their files
        return subprocess.call(pytest)
    with tempfile.TemporaryFile() as output:
        # A cache of its own: both would write to one.
        options = ["-o", f"cache_dir={tempfile.gettempdir()}/nbviz-browser-cache", *BESIDE]
        # One thread each: threads of several processes on the same cores wait for each other in loops.
        env = {"OMP_NUM_THREADS": "1", **os.environ}
        browser = subprocess.Popen([*pytest, *options], stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            others = subprocess.call([*pytest, *(f"--ignore={folder}" for folder in BESIDE)], env=env)
            found = browser.wait()
        finally:
            browser.kill()
        output.seek(0)
        print(", ".join(BESIDE), output.read().decode(errors="replace"), sep="\n", flush=True)
    codes = {others, found}
    return max(codes - {NOTHING_TO_DO}, default=NOTHING_TO_DO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
