"""A page on this machine: drop a radiograph, see the report or the findings, where they are, and the nearest studies.

    hf-medvlm demo runs/train_medklip/1
    hf-medvlm demo runs/train_dual_encoder/1 --index index

Nothing leaves the machine: the page answers on the loopback alone. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, an index, the port."""
    parser.add_argument("run", help="the run, checkpoint or Hub id of the model")
    parser.add_argument("--index", help="an index that `hf-medvlm index` made with this model: shows nearest studies")
    parser.add_argument("--port", type=int, default=7860, help="where the page is; 0 takes a free one")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default an accelerator where there is one")


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from hf_medvlm.inference import load
    from hf_medvlm.inference.demo import HOST, Demo, make_server
    from hf_medvlm.inference.search import Index

    index = Index(args.index) if args.index else None
    demo = Demo(load(args.run, args.device), index)
    try:
        server = make_server(demo, args.port)
    except OSError as error:
        raise OSError(f"port {args.port} cannot be taken ({error.strerror}); name another with --port, or 0") from error
    print(f"open http://{HOST}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
