"""Caches that can forget: one interface over every kind of memory."""

from specdec.cache.kinds import LayerKind, layer_kinds
from specdec.cache.rollback import RollbackCache

__all__ = ["LayerKind", "RollbackCache", "layer_kinds"]
