"""Several processes, started by `accelerate launch`, share the prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those that profile together.

    Attributes:
        rank: 0 is the one that measures times, and reports.
        device: that accelerate gave it; None where the caller chooses.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    _state: Any = None

    @classmethod
    def joined(cls, device: str | None) -> Team:
        """The team that the launcher's environment tells of; one process by itself without a launcher.

        Args:
            device: "cpu" keeps GPUs out; None takes them where there are any.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        from accelerate import PartialState  # type: ignore[import-untyped]

        state = PartialState(cpu=not torch.cuda.is_available() if device is None else device == "cpu")
        return cls(state.process_index, state.num_processes, state.device, state)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def leave(self) -> None:
        """Ends the group, so that nobody waits for what is not coming."""
        if self._state is not None:
            self._state.destroy_process_group()
