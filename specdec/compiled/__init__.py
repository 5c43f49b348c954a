"""The fast path: a model's forward, masks, cache writes and greedy acceptance as one graph, compiled once and kept."""

from specdec.compiled.choose import compiled, note_uncompiled
from specdec.compiled.runner import CompiledRunner
from specdec.compiled.sampled import Chance, chance
from specdec.compiled.store import Package, Store

__all__ = ["Chance", "CompiledRunner", "Package", "Store", "chance", "compiled", "note_uncompiled"]
