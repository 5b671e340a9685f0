"""``python -m medmae.testing [METHOD ...] [--check NAME]``: run the conformance suite outside of pytest."""

from __future__ import annotations

import argparse
import sys

from medmae.core.errors import UsageError
from medmae.find import find, names

from . import CHECKS, exemption


def main() -> int:
    """Run the suite; the exit code is the number of failed checks, at most 125."""
    parser = argparse.ArgumentParser(prog="python -m medmae.testing", description="Conformance suite of medmae.")
    parser.add_argument("methods", nargs="*", help="methods to check; all of them when left out")
    parser.add_argument("--check", action="append", choices=sorted(CHECKS), help="this check only; may be repeated")
    wanted = parser.parse_args()
    failures = 0
    for method in wanted.methods or names():
        try:
            found = find(method)
        except UsageError as error:
            parser.error(str(error))
        for name in wanted.check or CHECKS:
            reason = exemption(found, name)
            line = f"exempt ({reason})" if reason else "passed"
            if reason is None:
                try:
                    CHECKS[name](found)
                except AssertionError as error:
                    failures += 1
                    line = f"FAILED: {error}"
            sys.stdout.write(f"{method:16} {name:42} {line}\n")
            sys.stdout.flush()
    return min(failures, 125)


if __name__ == "__main__":
    sys.exit(main())
