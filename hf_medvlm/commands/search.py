"""The nearest studies of an index to a text, or to an image.

hf-medvlm search index "left pleural effusion"
hf-medvlm search index --image chest.dcm --top 20 --page found.html
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The index and what to look for."""
    parser.add_argument("index", help="the folder that `hf-medvlm index` wrote")
    parser.add_argument("text", nargs="?", help="what to look for, in the words of a report")
    parser.add_argument("--image", help="look for studies like this one instead: PNG, JPEG or DICOM")
    parser.add_argument("--top", type=int, default=10, help="how many studies")
    parser.add_argument("--model", help="the model, where it no longer lies where the index was made with it")
    parser.add_argument("--page", help="the page with thumbnails; search.html in the index by default")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default an accelerator where there is one")


def run(args: argparse.Namespace) -> None:
    """Print the hits and write the page."""
    import time
    from pathlib import Path

    from hf_medvlm.inference import load
    from hf_medvlm.inference.search import Index, write_search_page

    if (args.text is None) == (args.image is None):
        raise ValueError('say what to look for: a text, as in `hf-medvlm search INDEX "pleural effusion"`, or --image')
    if args.top < 1:
        raise ValueError(f"--top {args.top}: ask for one study or more")
    index = Index(args.index)
    predictor = load(args.model or index.model, args.device)
    index.check_model(predictor)
    query = predictor.embed_texts([args.text]) if args.text is not None else predictor.embed([args.image])
    start = time.perf_counter()
    hits = index.hits(index.nearest(query, args.top, predictor.device)[0])
    seconds = time.perf_counter() - start
    for hit in hits:
        print(f"{hit.rank:>3}  {hit.score:.4f}  {hit.study_id}  {hit.image}")
    print(f"searched {index.rows} studies in {seconds:.2f} s")
    words = args.text if args.text is not None else f"like {Path(args.image).name}"
    print(write_search_page(index, words, hits, args.page or Path(args.index) / "search.html"))
