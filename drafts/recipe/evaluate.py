"""Step 5: the model card's figures, on held-out text and held-out prompts.

    python drafts/recipe/evaluate.py WORK [--pair drafts/pair] [--threads 1]

WORK is the folder that corpus.py made (its held.npy is read).
"""

from __future__ import annotations

import argparse
import pathlib

import torch
from common import Corpus, acceptance, exit_losses
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

import specdec

EXITS = (2, 3, 4, 6, 12)


def loop(
    target: LlamaForCausalLM, drafter: specdec.Drafter, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> specdec.SpeculationStats:
    """Counters over all held-out prompts, 96 new tokens each, four draft tokens."""
    total = specdec.SpeculationStats()
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for item in specdec.bundled_prompts():
        ids = tokenizer(item["prompt"], return_tensors="pt").input_ids
        out = specdec.generate(
            target,
            ids,
            drafter=drafter,
            num_draft_tokens=4,
            max_new_tokens=96,
            return_dict_in_generate=True,
            **sampling,
        )
        total.drafted += out.speculation.drafted
        total.accepted += out.speculation.accepted
        total.row_rounds += out.speculation.row_rounds
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--pair", type=pathlib.Path, default=pathlib.Path("drafts/pair"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    target = LlamaForCausalLM.from_pretrained(args.pair / "target", dtype=torch.float32).eval()
    draft = LlamaForCausalLM.from_pretrained(args.pair / "draft", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.pair / "target")
    held = Corpus(args.work, seed=0).held_out(32)
    print("target, held-out loss by exit layer:", exit_losses(target, held, EXITS))
    print("draft, held-out loss:", exit_losses(draft, held, (draft.config.num_hidden_layers,)))
    print("alpha {:.3f}, greedy agreement {:.3f}".format(*acceptance(target, draft, held)))
    target.eval()
    draft.eval()
    for name, drafter in (("draft", specdec.ModelDrafter(draft)), ("n-gram", specdec.NgramDrafter())):
        for temperature in (0.0, 0.8, 1.0):
            stats = loop(target, drafter, tokenizer, temperature)
            print(
                f"{name}, temperature {temperature}: acceptance rate {stats.acceptance_rate:.3f}, "
                f"acceptance length {stats.acceptance_length:.2f}"
            )


if __name__ == "__main__":
    main()
