"""What the device itself counts while something runs: memory at its highest, energy where it is reported."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import torch

_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
_RAPL = pathlib.Path("/sys/class/powercap")


class PeakMemory:
    """Bytes in use at most since `start`: of the GPU's allocator, or this process' resident memory on Linux."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Forgets earlier peaks."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # resets the peak, proc(5)
            except OSError:
                return

    def stop(self) -> int | None:
        """The peak; None where nothing reports it."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not _STATUS.exists():
            return None
        lines = _STATUS.read_text().splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return None if peak is None else 1024 * int(peak.split()[1])


class Energy:
    """Joules since `start`, of the whole package or board, whoever used it; None where nothing reports them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: float | None = None

    def start(self) -> None:
        self._begun = self._joules()

    def stop(self) -> float | None:
        ended = self._joules()
        if self._begun is None or ended is None or ended < self._begun:  # a counter that began anew
            return None
        return ended - self._begun

    def _joules(self) -> float | None:
        if self._device.type == "cuda":
            return _gpu_joules(self._device)
        try:
            zones = [p for p in _RAPL.glob("intel-rapl:*") if p.name.count(":") == 1]
            return sum(int((p / "energy_uj").read_text()) for p in zones) / 1e6 if zones else None
        except (OSError, ValueError):  # readable by root only on most machines
            return None


def _gpu_joules(device: torch.device) -> float | None:
    """By NVML, which torch uses itself where its Python binding is installed."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        number = device.index if device.index is not None else torch.cuda.current_device()
        uuid = torch.cuda.get_device_properties(number).uuid
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError:
        return None


def processor_name() -> str:
    """What people call this CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or sys.platform
