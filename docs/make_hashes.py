"""Write constraints-hashes.txt: what `pip` chooses for constraints.txt here, dependencies too, each with its SHA-256.

    python docs/make_hashes.py
    pip install --require-hashes --no-deps -r constraints-hashes.txt      # installs these very files, or refuses

The hashes are those of the files for this Python on this platform (the first line of the file says which); on another
one run the script there. Nothing is installed: pip is asked what it would do.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUT = ROOT / "constraints-hashes.txt"


def chosen() -> list[dict[str, Any]]:
    """pip's report of an installation into an empty Python: a record for each package."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", *words, "-r", str(ROOT / "constraints.txt")], check=True)
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def lines(packages: list[dict[str, Any]]) -> list[str]:
    """`name==version --hash=sha256:...`, sorted by name.

    Raises:
        SystemExit: a package without a hash, such as one from a folder.
    """
    written = []
    for package in packages:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise SystemExit(f"{name} {version} comes without a SHA-256")
        written.append(f"{name.lower()}=={version} --hash=sha256:{digest}")
    return sorted(written)


def main() -> None:
    hashes = lines(chosen())
    head = f"# CPython {platform.python_version()}, {platform.system()} {platform.machine()}; docs/make_hashes.py"
    OUT.write_text("\n".join([head, *hashes]) + "\n", encoding="utf-8")
    print(f"{OUT.name}: {len(hashes)} packages")


if __name__ == "__main__":
    main()
