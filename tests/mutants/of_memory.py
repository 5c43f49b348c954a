"""Mutants of specdec/cache/: rollback of attention, of rings, of recurrent states."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_ROLLBACK, _LAYERS, _SLIDING = "cache/rollback.py", "cache/layers.py", "cache/sliding.py"
_RECURRENT, _EXCHANGE = "cache/recurrent.py", "cache/exchange.py"
_MACHINE = "tests/cache/test_state_machine{}.py::test_any_program_leaves_the_memory_of_the_text[{}]"
_ANSWER = "tests/test_models.py::test_the_page_says_what_the_probe_finds[{}]"
_WINDOWS = ("mistral", "gemma2", "gpt_oss", "mamba2", "lfm2")
_WIDE = "tests/lossless/test_trees.py::test_every_memory[mistral-wide-3]"
_ROWS = "tests/cache/test_rows.py"
# The probe asks whether a model's trees come out right: with a broken cache it falls back to chains, and says so here.
_PROBE = ["tests/test_probe.py::test_full_attention_passes", "tests/cache/test_attention.py"]


def _machine(*names: str) -> list[str]:
    """The probe's answer for each family, which a broken cache changes, then random programs on its memory."""
    programs = [_MACHINE.format("_windows" if name in _WINDOWS else "", name) for name in names]
    return [*(_ANSWER.format(name) for name in names), *programs]


ROLLBACK = [
    Mutant(
        "one token too many stays in the cache",
        _ROLLBACK,
        "self.lengths.add_(num_kept)",
        "self.lengths.add_(num_kept + 1)",
        _machine("llama"),
    ),
    Mutant(
        "a tree's accepted path is not moved",
        _ROLLBACK,
        "layer.move(*moved)",
        "moved",
        _PROBE,
    ),
    Mutant(
        "a tree's path is moved one slot too far",
        _ROLLBACK,
        "destination = self.lengths[:, None] + steps\n",
        "destination = self.lengths[:, None] + steps + 1\n",
        _PROBE,
    ),
    Mutant(
        "a tree's path is read one slot too far",
        _ROLLBACK,
        "torch.where(keep >= 0, self.lengths[:, None] + keep, destination)",
        "torch.where(keep >= 0, self.lengths[:, None] + keep + 1, destination)",
        _PROBE,
    ),
    Mutant(
        "the host counts tokens that the states do not cover",
        _ROLLBACK,
        "return [max(c for c in self._covered if c <= kept or c == self._covered[0]) for kept in num_kept]",
        "return list(num_kept)",
        _machine("mamba2"),
    ),
    Mutant(
        "recurrent states are not put back",
        _ROLLBACK,
        "if len(self._covered) > 1:\n            num_kept = self._restore_states(num_kept)",
        "if len(self._covered) > 1:\n            self._restore_states(num_kept + 99)",
        _machine("mamba2", "lfm2"),
    ),
    Mutant(
        "recurrent states are put back one forward too far",
        _ROLLBACK,
        "chosen = (covered <= num_kept[:, None]).sum(1) - 1",
        "chosen = ((covered < num_kept[:, None]).sum(1) - 1).clamp(min=0)",
        _machine("mamba2"),
    ),
    Mutant(
        "a window that may be rejected is taken for kept",
        _ROLLBACK,
        "if is_kept and len(self._covered) == 1:",
        "if len(self._covered) == 1:",
        _machine("mamba2"),
    ),
    Mutant(
        "tokens that may be rejected are not counted for the ring",
        _ROLLBACK,
        "if opening.is_open or committed is None:",
        "if opening.is_open:",
        [_WIDE, *_machine("mistral")],
    ),
    Mutant(
        "rows leave and their lengths stay",
        _ROLLBACK,
        "self.lengths = self.lengths[rows]\n",
        "self.lengths = self.lengths[: len(rows)]\n",
        _machine("llama"),
    ),
    Mutant(
        "rows leave and the encoder's keys stay",
        _ROLLBACK,
        "self.cross.batch_select_indices(rows)",
        "self.cross.batch_select_indices(torch.arange(len(rows)))",
        [f"tests/test_models.py::test_rows_end_one_by_one[{name}]" for name in ("t5", "whisper")],
    ),
    Mutant(
        "a row that fills a gap keeps its memory behind",
        _ROLLBACK,
        "self._permute(order)  # what may run out of memory has, but for this",
        "pass",
        [_ROWS],
    ),
    Mutant(
        "rows come back in the order that they stand in",
        _ROLLBACK,
        "self._permute(sorted(range(len(requests)), key=requests.__getitem__))",
        "self._permute(range(len(requests)))",
        [_ROWS],
    ),
    Mutant(
        "a cache that grows copies all but its last slot",
        _LAYERS,
        "new[:, :, : old.shape[2]] = old",
        "new[:, :, : old.shape[2] - 1] = old[:, :, :-1]",
        _machine("llama"),
    ),
    Mutant(
        "a ring takes a window that is one token too wide",
        _SLIDING,
        "opening.width > self.size - self.window + 1",
        "opening.width > self.size - self.window + 2",
        ["tests/cache/test_ring_edges.py"],
    ),
    Mutant(
        "an error takes the last column from a cache",
        _EXCHANGE,
        "whole = (held <= torch.tensor(lengths)[:, None]).all(0)",
        "whole = (held < torch.tensor(lengths)[:, None]).all(0)",
        [f"{_ROWS}::test_an_error_takes_nothing_from_a_cache_that_agreed"],
    ),
    Mutant(
        "buffers begin as NaN",
        _LAYERS,
        "buffers.append(torch.zeros(shape, dtype=states.dtype, device=states.device))",
        "buffers.append(torch.full(shape, torch.nan, dtype=states.dtype, device=states.device))",
        _machine("llama"),
    ),
    Mutant(
        "level rows write one slot too early",
        _LAYERS,
        "start = extent - opening.width\n            self.keys[:batch_size, :, start:extent] = key_states",
        "start = max(0, extent - opening.width - 1)\n"
        "            self.keys[:batch_size, :, start : start + opening.width] = key_states",
        _machine("llama"),
    ),
    Mutant(
        "rows leave and the first ones' keys stay",
        _LAYERS,
        "taken = buffer[rows.to(buffer.device), :, :extent]",
        "taken = buffer[torch.arange(len(rows)) % len(buffer), :, :extent]",
        _machine("llama"),
    ),
    Mutant(
        "only keys are moved, not values",
        _LAYERS,
        "for buffer in (self.keys, self.values):\n            flat",
        "for buffer in (self.keys,):\n            flat",
        _PROBE,
    ),
]

RINGS = [
    Mutant(
        "a ring is one place too small for its drafts",
        _SLIDING,
        "self.size = max(self.size, self.window - 1 + num_loose)",
        "self.size = max(self.size, self.window - 2 + num_loose)",
        _machine("mistral", "gemma2", "gpt_oss"),
    ),
    Mutant(
        "a ring never grows for wide trees",
        _SLIDING,
        "self.size = max(self.size, self.window - 1 + num_loose)",
        "pass",
        [_WIDE, *_machine("mistral")],
    ),
    Mutant(
        "the ring's newest slot is taken for the window's first",
        _SLIDING,
        "return self._ring(slots[:, -1])",
        "return self._ring(slots[:, 0])",
        _machine("mistral"),
    ),
    Mutant(
        "of a wide window the padding is kept",
        _SLIDING,
        "index = (committed[:, None] - len(steps) + steps).clamp(min=0)",
        "index = (opening.width - len(steps) + steps).clamp(min=0).expand(len(committed), -1)",
        _machine("mistral"),
    ),
    Mutant(
        "a ring that grows keeps its places",
        _SLIDING,
        "(held % self.places)\n",
        "(place % self.places).expand_as(held)\n",
        _machine("mistral"),
    ),
]

STATES = [
    Mutant(
        "a snapshot is no copy",
        _RECURRENT,
        "self.snapshots.append({key: state.clone() for key, state in self.state_tensors()})",
        "self.snapshots.append(dict(self.state_tensors()))",
        _machine("mamba2", "lfm2"),
    ),
    Mutant(
        "all rows go back with the first one",
        _RECURRENT,
        "goes_back = (place == index).view(-1,",
        "goes_back = (place[:1] == index).expand(len(place)).reshape(-1,",
        _machine("mamba2"),
    ),
    Mutant(
        "a state that did not exist is kept, not zeroed",
        _RECURRENT,
        "torch.zeros_like(state) if old is None else old",
        "state if old is None else old",
        _machine("mamba2"),
    ),
    Mutant(
        "rows leave and the first ones' states stay",
        _RECURRENT,
        "getattr(self, name)[index] = state[rows.to(state.device)]",
        "getattr(self, name)[index] = state[torch.arange(len(rows)) % len(state)]",
        ["tests/test_models.py::test_rows_end_one_by_one[mamba2]", *_machine("mamba2")],
    ),
    Mutant(
        "convolutions are not part of a snapshot",
        _RECURRENT,
        '_STATES = ("conv_states", "recurrent_states")',
        '_STATES = ("recurrent_states",)',
        _machine("mamba2"),
    ),
]

EXCHANGE = [
    Mutant(
        "padding is shifted on the way out",
        _EXCHANGE,
        "padded[row, :, mask] = source[row, :, : int(mask.sum())]",
        "padded[row, :, : int(mask.sum())] = source[row, :, : int(mask.sum())]",
        [_ROWS],
    ),
    Mutant(
        "padding is taken in",
        _EXCHANGE,
        "kept = states[row, :, : len(keep)][:, keep]",
        "kept = states[row, :, : len(keep)]",
        [_ROWS],
    ),
]

MUTANTS = [*ROLLBACK, *RINGS, *STATES, *EXCHANGE]
