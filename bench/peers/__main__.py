"""python -m bench.peers install NAME DIR | list"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.peers.catalogue import PEERS, install, interpreters


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Environments of the peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("install", help="make a peer's environment with pip")
    making.add_argument("name", choices=PEERS)
    making.add_argument("dir", type=Path, help="of the new environment")
    commands.add_parser("list", help="the peers, and where they are found")
    asked = parser.parse_args()
    if asked.command == "install":
        python = install(PEERS[asked.name], asked.dir)
        print(f"--peer {asked.name}={python}")
    else:
        found, missing = interpreters((), os.environ)
        for name, peer in PEERS.items():
            print(f"{name}: {found.get(name) or missing[name]}; pip install {' '.join(peer.requirements)}")


if __name__ == "__main__":
    main()
