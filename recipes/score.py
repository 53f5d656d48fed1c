"""Score any system's reports against references: metrics, baselines, intervals and a page, without a model.

    python recipes/score.py references.csv predictions.jsonl
    python recipes/score.py runs/finetune_blip/1 --clinical_metrics chexbert,bertscore --clinical_weights scorers
    python recipes/score.py ReXRank_test.json submission.json --rexrank --clinical_weights scorers

A file is JSON Lines, a table, a master file, ReXrank's JSON, or a run's folder; one file may hold both sides.
"""

import argparse
from pathlib import Path

from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.files import write_json
from hf_medvlm.data.locks import release
from hf_medvlm.data.report_texts import MISSING, PREDICTION, REFERENCE, pair_reports, read_reports
from hf_medvlm.evaluation.leaderboard import METRICS, leaderboard, rexrank_records
from hf_medvlm.evaluation.reports import score_reports
from hf_medvlm.metrics.clinical import missing_lines
from hf_medvlm.training.clinical import ClinicalArguments
from hf_medvlm.training.folders import reserve_output_dir
from hf_medvlm.training.run import leave_scores, run


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hf-medvlm score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("references", help="the reference reports")
    parser.add_argument("predictions", nargs="?", help="what the system wrote; by default in the file of references")
    parser.add_argument("--out", help="a new folder for the results; the next one under runs/score by default")
    parser.add_argument("--reference_column", help="column of the references' texts")
    parser.add_argument("--prediction_column", help="column of the system's texts")
    parser.add_argument("--id_column", help="column of the study ids, in both files")
    parser.add_argument("--patient_column", help="column of the references' patient ids, for the intervals")
    parser.add_argument("--sections", default=ALL_TEXT, help="sections of references that stand in columns of sections")
    parser.add_argument("--split", help="references of this split alone, where the file has a column `split`")
    parser.add_argument("--missing", default="stop", choices=MISSING, help="references that have no prediction")
    parser.add_argument("--train_reports", help="the training reports, for the baseline of the most frequent one")
    parser.add_argument("--prior_shown", action="store_true", help="the system saw each patient's earlier study")
    parser.add_argument("--image_folder", help="where image paths of the files start, for the page's radiographs")
    parser.add_argument("--clinical_metrics", default="", help="chexbert,bertscore,radgraph,radcliq, ...")
    parser.add_argument("--clinical_weights", help="the folder of their weights; what is missing there is named")
    parser.add_argument("--judge_url", help="endpoint of a model that judges, for judge_green and judge_radfact")
    parser.add_argument("--judge_model", default="", help="name of the judge behind --judge_url")
    parser.add_argument(
        "--judge_hosted_acknowledged", action="store_true", help="the judge may lie outside this network"
    )
    parser.add_argument("--rexrank", action="store_true", help="print ReXrank's columns, and write its JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    args = options(argv)
    out = Path(reserve_output_dir(args.out, "score", None, False, "--out"))
    named = ",".join([*(METRICS if args.rexrank else ()), args.clinical_metrics])
    asked = (args.clinical_weights, args.judge_url, args.judge_model, args.judge_hosted_acknowledged)
    columns = {"id_column": args.id_column, "sections": args.sections, "labelled": args.rexrank}
    more = columns | {"patient_column": args.patient_column, "split": args.split}
    references = read_reports(args.references, REFERENCE, args.reference_column, **more)
    predictions = read_reports(args.predictions or args.references, PREDICTION, args.prediction_column, **columns)
    pairs = pair_reports(references, predictions, args.missing)
    train = read_reports(args.train_reports, REFERENCE, None, **columns).texts if args.train_reports else {}
    print(*pairs.notes, sep="\n")
    texts = (pairs.predictions, pairs.references, pairs.studies, [t for t in train.values() if t.strip()])
    shown = [args.prior_shown if one is None else one for one in pairs.saw_prior]
    scores = score_reports(
        *texts, shown, **ClinicalArguments(named, *asked).clinical(), clinical_baselines=args.rexrank
    )
    images = args.image_folder or references.image_folder or predictions.image_folder
    info = {"recipe": "score", "dataset": Path(args.references).name, "image_folder": str(images) if images else None}
    if args.rexrank:
        write_json(out / "rexrank.json", rexrank_records(predictions.records or references.records, scores.predictions))
    leave_scores(scores, out, info, pairs.left_out)
    if args.rexrank:
        print(f"\n{leaderboard(scores, Path(predictions.path).name)}")
    else:
        print("\n".join(["", scores.table(), *missing_lines(scores.figures)]))
    release(out)
    print(f"\n{scores.n} studies; open {out / 'report.html'}")
    return out


if __name__ == "__main__":
    run(main, "--out")
