"""Mutants of what a forward sees and of what is read off it: window.py, target.py, feeding.py."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WINDOW, _TARGET, _FEEDING = "window.py", "target.py", "feeding.py"
_TESTS = "tests/test_window.py"
_GREEDY = "tests/lossless/test_greedy_equality.py::test_equals_generate"
_RAGGED = [f"{_GREEDY}[llama-model-3-sdpa]", f"{_GREEDY}[gpt2-model-3-sdpa]"]
_SHIPPED = "tests/lossless/test_shipped_bugs.py"
_TREES = "tests/lossless/test_trees.py"
_MODELS = "tests/test_models.py::test_equals_generate"

MUTANTS = [
    Mutant(
        "a node's position is its index, not its depth",
        _WINDOW,
        "node_depth = node_index + 1 if ancestors is None else ancestors.sum(-1).gather(1, node_index)",
        "node_depth = node_index + 1",
        [
            "tests/lossless/test_shipped_bugs.py::test_tree_positions_under_rope",
            _TESTS,
            f"{_TREES}::test_greedy_equality",
        ],
    ),
    Mutant(
        "drafts stand one position too early",
        _WINDOW,
        "positions = torch.where(is_node, last + node_depth, torch.minimum(slots, last))",
        "positions = torch.where(is_node, last + node_depth - 1, torch.minimum(slots, last))",
        [_TESTS, *_RAGGED],
    ),
    Mutant(
        "padding in front shifts what is read",
        _WINDOW,
        "places = slots if offsets is None else (slots - offsets[:, None]).clamp(min=0)",
        "places = slots",
        [f"{_MODELS}[bloom-model-3]"],
    ),
    Mutant(
        "level rows' padding is one slot short",
        _WINDOW,
        "columns = torch.arange(plan.extent, device=slots.device) >= offsets[:, None]",
        "columns = torch.arange(plan.extent, device=slots.device) >= offsets[:, None] - 1",
        [f"{_MODELS}[bloom-model-3]", f"{_MODELS}[falcon_alibi-model-3]"],
    ),
    Mutant(
        "a node sees its elder siblings",
        _WINDOW,
        "torch.where(in_tree & is_node, (related & causal) | is_self, causal)",
        "causal",
        [_TESTS, f"{_TREES}::test_greedy_equality"],
    ),
    Mutant(
        "a node sees its parent only, not what is above it",
        _WINDOW,
        "while hops < proposal.depth:",
        "while False:",
        [_TESTS, f"{_TREES}::test_greedy_equality"],
    ),
    Mutant(
        "a node does not see itself",
        _WINDOW,
        "reach = eye | (proposal.parents[:, :, None] == nodes)",
        "reach = proposal.parents[:, :, None] == nodes",
        [_TESTS],
    ),
    Mutant(
        "a sliding window is one token too wide",
        _WINDOW,
        "near = queries[:, :, None] - positions[:, None, :] < size",
        "near = queries[:, :, None] - positions[:, None, :] <= size",
        ["tests/test_models.py::test_the_page_says_what_the_probe_finds[mistral]"],
    ),
    Mutant(
        "a sliding window counts a tree's slots, not its depths",
        _WINDOW,
        "if window.ancestors is not None:",
        "if False:",
        ["tests/test_models.py::test_the_page_says_what_the_probe_finds[mistral]", f"{_TREES}::test_every_memory"],
    ),
    Mutant(
        "ragged rows are masked as if they were level",
        _WINDOW,
        "masked = not (level and (width == 1 or",
        "masked = not ((level or width == 1) and (width == 1 or",
        [*_RAGGED, "tests/cache/test_state_machine.py::test_any_program_leaves_the_memory_of_the_text[llama]"],
    ),
    Mutant(
        "hidden keys still enter the softmax",
        _WINDOW,
        "hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)",
        "hidden = torch.full((), -2.0, dtype=dtype, device=mask.device)",
        _RAGGED,
    ),
    Mutant(
        "pending tokens of a shorter row are taken for nodes",
        _WINDOW,
        "node = index - num_pending[:, None]  # [B, W], < 0 where pending",
        "node = (index - num_pending.min()).expand(len(num_pending), -1)",
        [_TESTS, *_RAGGED],
    ),
    Mutant(
        "all rows' logits are those behind the longest row's root",
        _TARGET,
        "place = torch.tensor([keep.index(r) for r in roots], device=logits.device)",
        "place = torch.full((len(roots),), len(keep) - 1, device=logits.device)",
        _RAGGED,
    ),
    Mutant(
        "logits of ragged rows are read from the first row's root",
        _TARGET,
        "index = torch.tensor(roots, device=logits.device)[:, None] - first",
        "index = torch.tensor(roots[:1] * len(roots), device=logits.device)[:, None] - first",
        [f"{_MODELS}[mamba2-model-3]"],  # its rows feed again as much as each has to, in windows of one width
    ),
    Mutant(
        "recurrent states are kept level though rows differ",
        _TARGET,
        "self.replays = any(kind.num_states for kind in kinds)",
        "self.replays = False",
        [f"{_MODELS}[mamba2-model-3]", f"{_MODELS}[falcon_h1-model-3]"],
    ),
    Mutant(
        "what inference mode left on a model stays there",
        _TARGET,
        "if buffer is not None and buffer.is_inference():",
        "if buffer is None:",
        ["tests/test_probe.py::test_no_inference_tensor_is_left_on_the_model", "tests/wrapped/test_offload.py"],
    ),
    Mutant(
        "a prompt in parts is read past each row's last token",
        _FEEDING,
        "return [min(chunk, p - 1) for p in pending]",
        "return [min(chunk, p) for p in pending]",
        ["tests/test_equality.py::test_equals_generate[prefill_chunk_size-3-greedy-model]"],
    ),
    Mutant(
        "recurrent rows that are ahead do not wait",
        _FEEDING,
        "return [width if p > width else 0 for p in pending]",
        "return [min(width, p) for p in pending]",
        [f"{_MODELS}[mamba2-model-3]"],
    ),
]
