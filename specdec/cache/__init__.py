"""Caches that can forget: one interface, one implementation per kind of memory."""

from specdec.cache.attention import RollbackCache

__all__ = ["RollbackCache"]
