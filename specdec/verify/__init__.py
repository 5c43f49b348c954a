"""Acceptance rules and the coins that drive them."""

from specdec.verify.coins import Coins, KeyedCoins, Purpose
from specdec.verify.rules import block, greedy, rejection

__all__ = ["Coins", "KeyedCoins", "Purpose", "block", "greedy", "rejection"]
