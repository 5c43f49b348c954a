"""Step 3: the draft. The target's first layers, distilled until they guess what the target will say.

    python drafts/recipe/distill_draft.py WORK TARGET OUT --minutes 100 --threads 1 [--init DRAFT]

The loss starts as KL(p || q) (stable far from the optimum) and becomes TVD(p, q) = 1 - alpha, the
rejection probability itself (DistillSpec, arXiv:2310.08461), as training goes on.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import torch
from common import SEQUENCE_LENGTH, Corpus, Optimiser, acceptance, warmup_stable_decay
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM


def first_layers(target: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """A new model of the target's embeddings, norm, head and first num_layers layers."""
    config = LlamaConfig(**{**target.config.to_dict(), "num_hidden_layers": num_layers})
    draft = LlamaForCausalLM(config)
    missing, _ = draft.load_state_dict(target.state_dict(), strict=False)
    assert not missing, missing
    return draft


def distillation_loss(p_logits: Tensor, q_logits: Tensor, tvd_weight: float) -> Tensor:
    """(1 - w) KL(p || q) + w TVD(p, q), mean over [R, T]; logits are [R, T, V]."""
    log_p, log_q = p_logits.flatten(0, 1).log_softmax(-1), q_logits.flatten(0, 1).log_softmax(-1)
    p = log_p.exp()
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    if tvd_weight == 0:
        return kl
    tvd = 1 - torch.minimum(p, log_q.exp()).sum(-1).mean()
    return (1 - tvd_weight) * kl + tvd_weight * tvd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--init", type=pathlib.Path, help="start from this draft instead")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=100.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile both models (a minute to start)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    corpus = Corpus(args.work, args.seed)
    held = corpus.held_out(8).to(args.device)
    target = LlamaForCausalLM.from_pretrained(args.target, dtype=torch.float32).to(args.device).eval()
    target.requires_grad_(False)
    if args.init:
        draft = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        draft = first_layers(target, args.layers)
    draft.to(args.device).train()
    teacher, student = (torch.compile(target), torch.compile(draft)) if args.compile else (target, draft)
    optimiser = Optimiser(draft, args.muon_lr, args.adam_lr)
    print("start: alpha {:.3f}, greedy agreement {:.3f}".format(*acceptance(target, draft, held)), flush=True)

    begun, step, saved = time.monotonic(), 0, 0.0
    while (elapsed := time.monotonic() - begun) < args.minutes * 60:
        progress = elapsed / (args.minutes * 60)
        x = corpus.batch(args.batch).to(args.device)
        with torch.no_grad():
            p_logits = teacher(x).logits
        loss = distillation_loss(p_logits, student(x).logits, tvd_weight=max(0.0, progress - 0.3) / 0.7)
        loss.backward()
        optimiser.step(warmup_stable_decay(step, progress))
        step += 1
        if step % 100 == 0:
            alpha, agreement = acceptance(target, draft, held)
            rate = step * args.batch * SEQUENCE_LENGTH / (time.monotonic() - begun)
            print(
                f"step {step} {elapsed:.0f} s loss {loss.item():.3f} "
                f"alpha {alpha:.3f} agreement {agreement:.3f} {rate:.0f} tokens/s",
                flush=True,
            )
        if elapsed - saved > 600:  # a killed run leaves its last ten minutes' work
            draft.save_pretrained(args.out.with_name(args.out.name + "-partial"))
            saved = elapsed
    tokens = step * args.batch * SEQUENCE_LENGTH
    print("end: alpha {:.3f}, greedy agreement {:.3f}".format(*acceptance(target, draft, held)), f"{tokens:,} tokens")
    draft.bfloat16().save_pretrained(args.out)


if __name__ == "__main__":
    main()
