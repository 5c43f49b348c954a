"""Step 2: the target, trained with an early-exit loss so that its own first layers can draft.

    python drafts/recipe/train_target.py WORK OUT --minutes 80 --threads 2 [--init TARGET]

Cross-entropy after the last layer, plus 0.4 x the cross-entropy after a random earlier layer through
the same norm and head (LayerSkip, arXiv:2404.16710), every --exit-every-th step.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import random
import time

import torch
from common import SEQUENCE_LENGTH, Corpus, Optimiser, exit_losses, warmup_stable_decay
from corpus import VOCAB_SIZE
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

NUM_LAYERS = 12
TRAINED_EXITS = (2, 3, 3, 4, 4, 5, 6, 8)  # drawn uniformly: early layers more often
REPORTED_EXITS = (2, 3, 4, 6, NUM_LAYERS)


def new_target() -> LlamaForCausalLM:
    """10.7M parameters, about 1M of them the tied embedding."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=704,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # keeps the residual stream's variance
            parameter.data.mul_(1 / math.sqrt(2 * NUM_LAYERS))
    return model


def loss_of(model: LlamaForCausalLM, x: Tensor, exit_layer: int | None) -> Tensor:
    """Cross-entropy of x [R, T] after the last layer, plus 0.4 x that after exit_layer."""
    hidden = model.model(x, output_hidden_states=True).hidden_states
    labels = x[:, 1:].flatten()
    loss = F.cross_entropy(model.lm_head(hidden[-1][:, :-1]).flatten(0, 1).float(), labels)
    if exit_layer is not None:
        early = model.lm_head(model.model.norm(hidden[exit_layer])[:, :-1])
        loss = loss + 0.4 * F.cross_entropy(early.flatten(0, 1).float(), labels)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--init", type=pathlib.Path, help="train on from this target")
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--exit-every", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)

    corpus = Corpus(args.work, args.seed)
    held = corpus.held_out(16).to(args.device)
    model = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32) if args.init else new_target()
    model.to(args.device).train()
    optimiser = Optimiser(model, muon_lr=0.02, adam_lr=4e-3)
    begun, step = time.monotonic(), 0
    while (elapsed := time.monotonic() - begun) < args.minutes * 60:
        exit_layer = random.choice(TRAINED_EXITS) if step % args.exit_every == 0 else None
        loss = loss_of(model, corpus.batch(args.batch).to(args.device), exit_layer)
        loss.backward()
        optimiser.step(warmup_stable_decay(step, elapsed / (args.minutes * 60)))
        step += 1
        if step % 50 == 0:
            rate = step * args.batch * SEQUENCE_LENGTH / (time.monotonic() - begun)
            print(f"step {step} {elapsed:.0f} s loss {loss.item():.3f} {rate:.0f} tokens/s", flush=True)
    print("held-out loss by exit layer:", exit_losses(model, held, REPORTED_EXITS))
    print(f"tokens: {step * args.batch * SEQUENCE_LENGTH:,}")
    model.bfloat16().save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.init or args.work).save_pretrained(args.out)


if __name__ == "__main__":
    main()
