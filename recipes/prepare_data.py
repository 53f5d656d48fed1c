"""Turn a corpus, as it is downloaded, into one master file of studies, with its counts and its reasons.

    python recipes/prepare_data.py mimic-cxr --root physionet.org/mimic-cxr-jpg --out mimic/master.jsonl
    python recipes/prepare_data.py iu-xray --root NLMCXR --out iu/master.jsonl --labels text --verify_images
    python recipes/prepare_data.py roco --root roco-dataset --out roco/master.jsonl --chest_xray
    python recipes/prepare_data.py table --root hospital --table reports.csv --out ours/master.jsonl \\
        --text_columns findings,impression --patient_column patient --date_column date --convert png --size 512

Beside the master file stand `rejected.jsonl` (what was left out: file, line, reason) and `statistics.md`, `.csv`,
`.json`. Every recipe takes it: `--dataset mimic/master.jsonl --image_folder physionet.org/mimic-cxr-jpg`.
"""

import logging
import os
import sys

from hf_medvlm.data.disk import sentence
from hf_medvlm.data.prepare import prepare, prepare_part, report
from hf_medvlm.data.prepare_options import parse_options


def main(argv: list[str] | None = None) -> dict:
    options = parse_options(argv, __doc__)
    if options.shard:
        prepare_part(options)
        return {}
    summary, rejected = prepare(options)
    report(summary, rejected, options)
    return summary


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("HF_MEDVLM_DEBUG"):
            raise
        sys.exit(f"error: {sentence(error, sys.argv[1:], '--out')}")
