"""python -m bench.peers install NAME DIR | list | report OUT.json"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from bench.peers.catalogue import PEERS, install, interpreters
from bench.peers.table import report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Environments of the peers, and tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("install", help="make a peer's environment with pip")
    making.add_argument("name", choices=PEERS)
    making.add_argument("dir", type=Path, help="of the new environment")
    commands.add_parser("list", help="the peers, and where they are found")
    reporting = commands.add_parser("report", help="pytest-benchmark's JSON -> Markdown")
    reporting.add_argument("json", type=Path)
    asked = parser.parse_args()
    if asked.command == "install":
        python = install(PEERS[asked.name], asked.dir)
        print(f"--peer {asked.name}={python}")
    elif asked.command == "list":
        found, missing = interpreters((), os.environ)
        for name, peer in PEERS.items():
            print(f"{name}: {found.get(name) or missing[name]}; pip install {' '.join(peer.requirements)}")
    else:
        data = json.loads(asked.json.read_text(encoding="utf-8"))
        print(report([b["extra_info"] for b in data["benchmarks"]]), end="")


if __name__ == "__main__":
    main()
