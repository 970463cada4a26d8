#!/usr/bin/env python3
"""Holds docs/threats.md against the tests that there are: `threats-check.py LIST`, from the project's root.

LIST is what `cargo nextest list --workspace --message-format json` prints. Each test that the page names must exist, a
name that ends in `*` at least once, and each attack must be numbered and have one test at least. A test is named
`crate::path::name`; of an integration test the binary comes after the crate.
"""

import fnmatch
import json
import re
import sys
from pathlib import Path

PAGE = Path("docs/threats.md")
# Tests that the page names and that come with what is not there yet, a line each. Missing once there are none.
PENDING = Path(".ci/threats-pending.txt")
ATTACKS = 29


def tests(listed):
    """The full names of all tests."""
    for suite in json.loads(listed)["rust-suites"].values():
        parts = [suite["package-name"]]
        if suite["kind"] == "test":
            parts.append(suite["binary-name"])
        yield from ("::".join([*parts, case]) for case in suite["testcases"])


def rows(text):
    """The rows of the page's tables: what stands in the first column, and the tests that the row names."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| --"):
            yield line.split("|")[1].strip(), re.findall(r"`([a-z-]+(?:::[a-z0-9_*]+)+)`", line)


def main():
    known = set(tests(Path(sys.argv[1]).read_text()))
    pending = set(PENDING.read_text().split()) if PENDING.exists() else set()
    listed = list(rows(PAGE.read_text()))
    wrong = []
    named = set()
    for first, names in listed:
        for name in names:
            named.add(name)
            exists = bool(fnmatch.filter(known, name)) if "*" in name else name in known
            if not exists and name not in pending:
                wrong.append(f"{PAGE}: {first}: there is no test {name}")
            if exists and name in pending:
                wrong.append(f"{PENDING}: {name} is there now; take the line out")
    wrong += [f"{PENDING}: {PAGE} does not name {name}" for name in sorted(pending - named)]
    numbers = [first for first, names in listed if first.isdigit() and names]
    for number in range(1, ATTACKS + 1):
        if numbers.count(str(number)) != 1:
            wrong.append(f"{PAGE}: attack {number} has {numbers.count(str(number))} rows with tests, not one")
    print("\n".join(wrong) or f"{len(named)} tests are named, {len(pending)} of them to come")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
