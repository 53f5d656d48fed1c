"""Build the packaged data from WordNet's own files: `python -m hf_medvlm.metrics.wordnet <folder of data.noun ...>`.

The folder is that of WordNet 3.0's database files (Debian: `wordnet-base`). Writes beside this module.
"""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

from hf_medvlm.metrics.wordnet import DATA

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
HEADER = "# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. See LICENSE.txt. Synonyms only.\n"


def synset_names(line: str) -> list[str]:
    """The words of one line of a `data.*` file, without adjectives' syntactic markers: `able(p)` is `able`."""
    fields = line.split(" ")
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return [re.sub(r"\((a|p|ip)\)$", "", word) for word in words]


def compact(folder: Path) -> list[str]:
    """Lines `pos name name ...` for synsets and `pos! form base ...` for irregular forms, sorted."""
    lines = set()
    for pos, suffix in FILES.items():
        for line in (folder / f"data.{suffix}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # the licence at the head of each file is indented
                lines.add(" ".join([pos, *sorted(set(synset_names(line)))]))
        for line in (folder / f"{suffix}.exc").read_text(encoding="utf-8").splitlines():
            lines.add(" ".join([f"{pos}!", *line.split()]))
    return sorted(lines)


def main(folder: str) -> None:
    text = HEADER + "".join(f"{line}\n" for line in compact(Path(folder)))
    target = Path(__file__).with_name(DATA)
    target.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
