"""Checks what no linter knows of docs/style.md: sizes of folders and modules, and how rare exceptions to rules are.

`make lint` calls it at the repository's root. Prints the counts, and exits with 1 where one is over its bound.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

FILES_PER_FOLDER = 15
LINES_PER_MODULE = 400
NOQA = 20
ANY = 182  # half of what dda0982 had
BROAD_PER_THOUSAND_LINES = 1.0

# Not code of the house, or no place where a newcomer looks for a module.
_FREE_FOLDERS = ("docs", "gen", "proto", "requirements", "control/schema/migrations")
_NOT_SOURCE = ("bench", "gen", "models", "scripts", "tests")
_BROAD = re.compile(r"^\s*except (?:\(?(?:Base)?Exception\b|:)", re.MULTILINE)


def main() -> int:
    tracked = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")  # noqa: S607  # git of PATH
    files = [PurePosixPath(name) for name in tracked if name]
    problems = [
        f"{folder}/ holds {count} files on one level; {FILES_PER_FOLDER} are the most"
        for folder, count in Counter(str(file.parent) for file in files).items()
        if count > FILES_PER_FOLDER and folder != "." and not folder.startswith(_FREE_FOLDERS)
    ]
    lines = broad = suppressed = untyped = 0
    for file in files:
        if file.suffix != ".py" or file.parts[0] == "gen":
            continue
        text = Path(file).read_text(encoding="utf-8")
        length = text.count("\n")
        if length > LINES_PER_MODULE and file.parts[0] != "tests":
            problems.append(f"{file} has {length} lines; {LINES_PER_MODULE} are the most")
        suppressed += text.count("# noqa")
        if file.parts[0] not in _NOT_SOURCE:
            lines += length
            broad += len(_BROAD.findall(text))
            untyped += len(re.findall(r"\bAny\b", text))
    rate = 1000 * broad / lines
    print(f"{lines} lines of source: {broad} broad handlers ({rate:.2f} per 1,000), {suppressed} noqa, {untyped} Any")
    if rate > BROAD_PER_THOUSAND_LINES:
        problems.append(f"{rate:.2f} broad exception handlers per 1,000 lines; {BROAD_PER_THOUSAND_LINES} are the most")
    if suppressed > NOQA:
        problems.append(f"{suppressed} times noqa; {NOQA} are the most")
    if untyped > ANY:
        problems.append(f"Any stands {untyped} times; {ANY} are the most")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
