"""One script a peer, run by the interpreter of that peer's own environment; see wire.py."""
