"""All fuzzers, one after the other, each with its share of the time.

    python tests/hostile/fuzz.py SECONDS SEED FOLDER

A part that found something does not keep the others from running. FOLDER gets the models that ended
a process. Exit code 1: some part found something.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: Script and its share of the time.
PARTS = {
    "hostile/fuzz_models.py": 0.5,
    "hostile/texts.py": 0.15,
    "hostile/templates.py": 0.1,
    "hostile/grammars.py": 0.1,
    "support/fuzz_gguf.py": 0.15,
}


def main() -> int:
    seconds, seed, folder = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    failed = []
    for script, share in PARTS.items():
        sys.stdout.write(f"{script}: {share * seconds:,.0f} s\n")
        sys.stdout.flush()
        further = [folder] if script.endswith("models.py") else []
        command = [sys.executable, TESTS / script, str(share * seconds), seed, *further]
        if subprocess.run(command, check=False).returncode:
            failed.append(script)
    sys.stdout.write(f"found something: {', '.join(failed) or 'no part'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
