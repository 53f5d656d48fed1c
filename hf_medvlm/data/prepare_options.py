"""The command line of `recipes/prepare_data.py`: a corpus, its options, and a YAML file of defaults for them."""

from __future__ import annotations

from argparse import (
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    BooleanOptionalAction,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_medvlm.data.files import check_place, read_yaml
from hf_medvlm.data.parquet import is_parquet
from hf_medvlm.data.prepare_parts import parse_shard
from hf_medvlm.data.quality import LABEL_POLICIES
from hf_medvlm.data.sources.base import Corpus, nearest
from hf_medvlm.data.sources.chexpert_plus import load_chexpert_plus
from hf_medvlm.data.sources.iu_xray import load_iu_xray
from hf_medvlm.data.sources.nih import load_nih
from hf_medvlm.data.sources.padchest import load_padchest
from hf_medvlm.data.sources.padchest_gr import LANGUAGES, load_padchest_gr
from hf_medvlm.data.sources.rexgradient import load_rexgradient
from hf_medvlm.data.sources.roco import load_roco
from hf_medvlm.data.sources.table import load_table
from hf_medvlm.data.sources.vindr import load_vindr
from hf_medvlm.errors import clipped
from hf_medvlm.shipped import find_shipped

WHOLE: Mapping[str, tuple[Callable[[Path], Corpus], str]] = {
    "iu-xray": (load_iu_xray, "Open-i, Kaggle or R2Gen files"),
    "chexpert-plus": (load_chexpert_plus, "CheXpert Plus: reports, CheXbert's labels, priors by their number"),
    "rexgradient": (load_rexgradient, "ReXGradient-160K: reports of 79 sites"),
    "padchest": (load_padchest, "PadChest: Spanish reports with its own labels"),
    "vindr-cxr": (load_vindr, "VinDr-CXR: radiologists' labels and boxes, no reports"),
    "nih": (load_nih, "NIH ChestX-ray14: labels and follow-ups, no reports"),
}
"""Corpora that are read without options of their own: reader, and what `--help` says of them."""

NO_ENGLISH_REPORT = {"padchest": "Spanish", "vindr-cxr": "made of labels", "nih": "made of labels"}


def parse_options(argv: Sequence[str] | None = None, description: str = "") -> Namespace:
    """The options of one corpus; `--config x.yaml` sets defaults, the command line wins.

    Raises:
        ValueError: an option or a key of the YAML file that the corpus does not have; the message names its neighbour.
    """
    import sys

    given = list(sys.argv[1:] if argv is None else argv)
    parser, corpora = _parser(description)
    if given and given[0] in corpora and "--config" in given[:-1]:
        path = given[given.index("--config") + 1]
        given[1:1] = _yaml_options(path, corpora[given[0]])
    options, unknown = parser.parse_known_args(given)
    if unknown:
        names = [name for action in corpora[options.corpus]._actions for name in action.option_strings]
        raise ValueError(
            f"{options.corpus}: unknown option {unknown[0]!r:.100}{nearest(unknown[0].split('=')[0], names)}"
        )
    check_place(options.out, "--out")
    if options.size is not None and (options.size < 16 or not (options.convert or options.cache)):
        raise ValueError(
            f"--size is the longer side of the copies that --convert png makes or of the pictures of --cache, 16 or "
            f"more; got {options.size}"
        )
    if options.format == "llava" and is_parquet(options.out):
        raise ValueError(f"--format llava writes JSON: give --out another ending than that of {options.out}")
    if options.convert and options.cache:
        raise ValueError(
            "--convert png writes copies of the images and --cache prepared pictures; one of them is enough"
        )
    language = NO_ENGLISH_REPORT.get(options.corpus) or ("Spanish" if getattr(options, "language", "") == "es" else "")
    if options.labels == "text" and language:
        raise ValueError(f"--labels text reads English reports; those of {options.corpus} are {language}; leave it out")
    shares = {"--validate": options.validate, "--test": options.test}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {share}: a share of the patients, from 0 to 1, is needed")
    if sum(shares.values()) > 1:
        raise ValueError(f"--validate {options.validate} and --test {options.test} are more than all patients")
    if options.workers is not None and not 1 <= options.workers <= 1024:
        raise ValueError(f"--workers {options.workers}: from 1 to 1,024 processes can be started")
    if options.shard and options.merge:
        raise ValueError("--shard prepares a part and --merge joins them; take --merge when all parts are there")
    if options.shard:
        parse_shard(options.shard)
    if options.min_characters < 1:
        raise ValueError(f"--min_characters must be at least 1, got {options.min_characters}")
    return options


def read_corpus(options: Namespace) -> Corpus:
    """Read any corpus but MIMIC-CXR, or a table, from `options.root` (`prepare` reads MIMIC-CXR in parts).

    Raises:
        ValueError: the folder holds no such corpus, or a broken one; the message names the file and the line.
    """
    root = options.root
    if options.corpus in WHOLE:
        return WHOLE[options.corpus][0](root)
    if options.corpus == "roco":
        return load_roco(root, options.chest_xray)
    if options.corpus == "padchest-gr":
        return load_padchest_gr(root, options.language)
    table = root / options.table if (root / options.table).exists() else options.table
    return load_table(
        *(table, options.image_column, options.text_columns, options.patient_column),
        *(options.split_column, options.date_column, root, root, options.encoding),
    )


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The defaults, and the lines of the description as they are."""


class _Parser(ArgumentParser):
    """One whose errors are `ValueError`s of one line; those of its subcommands too."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message if len(message) < 900 else clipped(message))


def _parser(description: str) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    style: dict[str, Any] = {"formatter_class": _Help, "allow_abbrev": False}
    common = ArgumentParser(add_help=False, allow_abbrev=False)
    add = common.add_argument
    add("--root", required=True, type=Path, help="the corpus as it was downloaded; image paths are relative to it")
    add(
        "--out",
        required=True,
        type=Path,
        help="the master file, Parquet where it ends in .parquet, else JSONL; rejected.jsonl and statistics.* are "
        "written beside it",
    )
    add("--config", type=Path, help="a YAML file of these options")
    add("--format", choices=("studies", "llava"), default="studies", help="a master file of studies, or LLaVA's JSON")
    add("--rows", choices=("study", "image"), default="study", help="one row a study, or one a frontal image")
    add("--min_characters", type=int, default=30, help="shorter texts are left out")
    add("--verify_images", action=BooleanOptionalAction, default=False, help="decode every image")
    add("--convert", choices=("png",), help="write copies of the images and let the paths lead to them")
    add("--cache", type=Path, help="fill this folder with prepared pictures, for --image_cache of every recipe")
    add(
        "--size",
        type=int,
        help="longer side in pixels: of the copies, else as it is; of the pictures of --cache, else 512",
    )
    add("--image_cache", type=Path, help="folder of the copies; by default beside --out")
    add("--labels", choices=("corpus", "text"), default="corpus", help="the corpus's own, or read from the reports")
    add("--label_policy", choices=tuple(LABEL_POLICIES), default="keep", help="what becomes of uncertain findings")
    add("--boxes", type=Path, help="boxes of located findings: MS-CXR's .json or .csv, RSNA's or VinDr-CXR's .csv")
    add("--progression", type=Path, help="MS-CXR-T's .csv: how findings changed since the prior study")
    add("--radgraph", type=Path, help="RadGraph's annotations of the reports (.json): the triplets that MedKLIP learns")
    add(
        "--validate",
        type=float,
        default=0.1,
        help="patients' share for validation, where there is no split",
    )
    add(
        "--test",
        type=float,
        default=0.1,
        help="patients' share for the test, where there is no split",
    )
    add("--seed", type=int, default=0, help="seed of a split that is drawn")
    add("--shard", metavar="K/N", help="prepare the K-th of N parts, on any machine; then run --merge")
    add(
        "--merge",
        action=BooleanOptionalAction,
        default=False,
        help="join the parts of --shard, which lie beside --out, with the options that they were made with",
    )
    add("--workers", type=int, help="processes; by default as many as there are processors")

    parser = _Parser(description=description, **style)
    kinds: Any = parser.add_subparsers(dest="corpus", required=True)
    mimic = kinds.add_parser("mimic-cxr", parents=[common], help="MIMIC-CXR and MIMIC-CXR-JPG", **style)
    mimic.add_argument("--image_suffix", choices=(".jpg", ".dcm", ".png"), help="ending of image files; else looked up")
    roco = kinds.add_parser("roco", parents=[common], help="ROCO, its repository or the Kaggle files", **style)
    roco.add_argument("--chest_xray", action=BooleanOptionalAction, default=False, help="only chest radiographs")
    padchest_gr = kinds.add_parser("padchest-gr", parents=[common], help="PadChest-GR: sentences with boxes", **style)
    padchest_gr.add_argument("--language", choices=LANGUAGES, default="en", help="language of the reports")
    whole = {name: kinds.add_parser(name, parents=[common], help=text, **style) for name, (_, text) in WHOLE.items()}
    table = kinds.add_parser("table", parents=[common], help="any table with images and text", **style)
    table.add_argument(
        "--table",
        required=True,
        help="a file or data set in --root, or a Hub id; images inside it are exported to --root",
    )
    table.add_argument("--image_column", help="column of the image paths, or several by commas; else known by name")
    table.add_argument("--text_columns", help="names divided by commas; else findings, impression, report, text")
    table.add_argument("--patient_column", help="tells patients apart; else known by its name (patient_id, subject_id)")
    table.add_argument("--split_column", help="holds train, validate, test; else split if it does")
    table.add_argument("--date_column", help="orders a patient's studies; else study_date or date if there")
    table.add_argument("--encoding", help="of a text file, cp1252 say; by default UTF-8, or what its mark says")
    return parser, {"mimic-cxr": mimic, "roco": roco, "padchest-gr": padchest_gr, "table": table} | whole


def _yaml_options(path: str, parser: ArgumentParser) -> list[str]:
    """The YAML file's keys as command-line words, so that types and choices are checked as there."""
    values = read_yaml(find_shipped(path, "recipes", ".yaml"))
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    names = actions.keys() - {"help", "config"}
    words = []
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"{path}: unknown key {name!r:.100}{nearest(str(name), names)}")
        action = actions[name]
        if isinstance(action, BooleanOptionalAction) or isinstance(value, bool):
            if not (isinstance(action, BooleanOptionalAction) and isinstance(value, bool)):
                wanted = "true or false" if isinstance(action, BooleanOptionalAction) else "a value"
                raise ValueError(f"{path}: {name}: {wanted} is needed, not {value!r:.60}")
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (list, dict)) for v in value)):
            raise ValueError(f"{path}: {name}: a single value is needed, not {str(value):.60}")
        elif value is not None:
            words.append(f"--{name}=" + (",".join(map(str, value)) if isinstance(value, list) else str(value)))
    return words
