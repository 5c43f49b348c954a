"""A draft with a tokenizer of its own, for drafting across tokenizers.

    python drafts/recipe/train_other_draft.py WORK drafts/pair/target drafts/pair/draft drafts/other --minutes 40

Step 1 trains the tokenizer: a byte-level BPE of 1536 entries, on the library's tests (the target's saw the modules),
which splits numbers into digits and puts <s> before a text. Step 2 distils the draft. Its blocks start as those of the
draft of the target's own tokenizer, its embeddings as means of that one's.

The two models read one text in different tokens, so their distributions meet where both have a token's end. There the
teacher's p over its tokens becomes one over the student's by each token's first piece in the student's tokens, and
the loss is KL(p || q), later blended into the total variation distance as in distill_draft.py. Where only the student
has a token's end, inside a token of the teacher's, it learns the text's next piece.

The texts are the running Python's standard library (PSF licence), as in corpus.py.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from common import Optimiser, warmup_stable_decay
from corpus import stdlib_sources
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 1536
TARGET_WINDOW = 384  # target tokens of a window
BOS, PAD, END = 0, 1, 2  # ids of the special tokens
IGNORED = -1


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose first tokens are <s>, <pad> and <|endoftext|>; digits stand alone."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
    )


@dataclass(frozen=True)
class Text:
    """One text in tokens of one kind, <|endoftext|> (counted as a byte) before each file."""

    ids: np.ndarray  # [T]
    ends: np.ndarray  # [T] bytes up to each token's end

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, files: list[str], end: int) -> Text:
        """Encodes the files, in which `end` is the id of <|endoftext|>."""
        ids: list[int] = []
        for encoding in tokenizer.backend_tokenizer.encode_batch(files, add_special_tokens=False):
            ids += [end, *encoding.ids]
        width = np.ones(len(tokenizer), dtype=np.int64)
        for token, index in tokenizer.get_vocab().items():
            width[index] = 1 if index == end else len(token)  # a character of a byte-level token is a byte
        array = np.array(ids, dtype=np.int64)
        return cls(array, width[array].cumsum())


class Parallel:
    """Windows of one text in both tokenizers' tokens."""

    def __init__(self, target: Text, draft: Text, seed: int) -> None:
        assert target.ends[-1] == draft.ends[-1], (target.ends[-1], draft.ends[-1])
        self._target, self._draft = target, draft
        shared = np.flatnonzero(np.isin(target.ends, draft.ends))  # target tokens that end where a draft token ends
        self._starts = shared[shared < len(target.ids) - TARGET_WINDOW - 1] + 1
        self._rng = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random windows; see `_rows`."""
        return self._rows(self._rng.choice(self._starts, size))

    def first(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same windows on every call, evenly spread; see `_rows`."""
        return self._rows(self._starts[np.linspace(0, len(self._starts) - 1, size).astype(np.int64)])

    def _rows(self, starts: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Target tokens [B, T]; draft tokens [B, D] behind <s>; for each of these the piece that follows, or -1 on
        padding, and the target token with the same end, or -1 where there is none (both [B, D])."""
        rows = []
        for start in starts:
            ends = self._target.ends[start : start + TARGET_WINDOW]
            low, high = np.searchsorted(self._draft.ends, [self._target.ends[start - 1], ends[-1]], side="right")
            mine = self._draft.ends[low : high + 1]
            place = np.searchsorted(ends, mine[:-1])
            same = np.where(ends[place.clip(max=len(ends) - 1)] == mine[:-1], place, IGNORED)
            pieces = self._draft.ids[low : high + 1]  # one more than is fed
            rows.append((np.append(BOS, pieces[:-1]), pieces, np.append(IGNORED, same)))
        width = max(len(r[0]) for r in rows)
        pad = [
            np.stack([np.pad(r[i], (0, width - len(r[i])), constant_values=PAD if i == 0 else IGNORED) for r in rows])
            for i in range(3)
        ]
        target = np.stack([self._target.ids[s : s + TARGET_WINDOW] for s in starts])
        return (torch.from_numpy(target), *(torch.from_numpy(p) for p in pad))


def pieces_of(target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast) -> list[list[int]]:
    """Each target token in draft tokens."""
    out: list[list[int]] = [[] for _ in range(len(target))]
    for token, index in target.get_vocab().items():
        known = draft.backend_tokenizer.token_to_id(token) if token in target.all_special_tokens else None
        out[index] = [known] if known is not None else [t.id for t in draft.backend_tokenizer.model.tokenize(token)]
    return out


def new_draft(
    init: LlamaForCausalLM, target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """`init` with other tokens: each starts as the mean of those that spell it."""
    changes = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": END}
    model = LlamaForCausalLM(LlamaConfig(**{**init.config.to_dict(), **changes}))
    weights = {n: w for n, w in init.state_dict().items() if "embed_tokens" not in n and "lm_head" not in n}
    model.load_state_dict(weights, strict=False)
    old, new = init.get_input_embeddings().weight, model.get_input_embeddings().weight
    with torch.no_grad():
        for index, spelled in enumerate(pieces_of(draft, target)):
            new[index] = old[spelled].mean(0) if spelled else old.mean(0)
    return model


def losses(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, first: Tensor, batch: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(p || q), TVD(p, q), greedy agreement where both tokens end, and cross-entropy of the text everywhere."""
    read, fed, follows, same = batch
    with torch.no_grad():
        p = target(read).logits.softmax(-1)
        row, place = (same >= 0).nonzero(as_tuple=True)
        p = p[row, same[row, place]]
        p = torch.zeros(len(p), VOCAB_SIZE).index_add_(1, first, p)  # [S, V of the draft]
    log_q = draft(fed).logits.log_softmax(-1)
    text = F.nll_loss(log_q.flatten(0, 1), follows.flatten(), ignore_index=IGNORED, reduction="none").view(fed.shape)
    met = log_q[row, place]
    kl = (p * (p.clamp(min=1e-9).log() - met)).sum(-1)
    tvd = 1 - torch.minimum(p, met.exp()).sum(-1)
    agreement = (p.argmax(-1) == met.argmax(-1)).float()
    return kl.mean(), tvd.mean(), agreement.mean(), text


def training_loss(kl: Tensor, tvd: Tensor, text: Tensor, batch: tuple[Tensor, ...], weight: float) -> Tensor:
    """Soft labels where both tokens end, the text's own pieces elsewhere, each by its share of the tokens."""
    follows, same = batch[2], batch[3]
    counted, soft = (follows >= 0).sum(), (same >= 0).sum()
    inside = text[(same < 0) & (follows >= 0)].sum() / counted
    return ((1 - weight) * kl + weight * tvd) * (soft / counted) + inside


@torch.no_grad()
def report(target: LlamaForCausalLM, draft: LlamaForCausalLM, first: Tensor, held: Parallel, rows: int) -> str:
    """Figures over held-out windows."""
    draft.eval()
    batch = held.first(rows)
    sums = [torch.zeros(()) for _ in range(4)]
    for part in zip(*(t.split(4) for t in batch), strict=True):
        kl, tvd, agreement, text = losses(target, draft, first, part)
        counted = (part[2] >= 0).sum()
        for i, value in enumerate((kl, 1 - tvd, agreement, text.sum() / counted)):
            sums[i] += value * len(part[0]) / rows
    draft.train()
    return "held out: KL {:.3f}, alpha {:.3f}, greedy agreement {:.3f}, loss {:.3f} nats a piece".format(*sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path, help="for the encoded texts, kept for the next run")
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("init", type=pathlib.Path, help="a draft of the target's tokenizer")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)

    library, tests, held_texts = stdlib_sources()
    target_tokenizer = AutoTokenizer.from_pretrained(args.target)
    tokenizer = train_tokenizer(tests)
    tokenizer.save_pretrained(args.out)
    end = target_tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def parallel(texts: list[str], seed: int) -> Parallel:
        return Parallel(Text.of(target_tokenizer, texts, end), Text.of(tokenizer, texts, END), seed)

    corpus, held = parallel(library + library + tests, args.seed), parallel(list(held_texts.values()), 0)
    target = LlamaForCausalLM.from_pretrained(args.target, dtype=torch.float32).eval().requires_grad_(False)
    draft = new_draft(
        LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32), target_tokenizer, tokenizer
    ).train()
    first = torch.tensor([p[0] if p else PAD for p in pieces_of(target_tokenizer, tokenizer)])
    optimiser = Optimiser(draft, args.muon_lr, args.adam_lr)
    print("start,", report(target, draft, first, held, 16), flush=True)

    begun, step, saved, tokens = time.monotonic(), 0, 0.0, 0
    while (elapsed := time.monotonic() - begun) < args.minutes * 60:
        progress = elapsed / (args.minutes * 60)
        batch = corpus.batch(args.batch)
        kl, tvd, _, text = losses(target, draft, first, batch)
        training_loss(kl, tvd, text, batch, max(0.0, progress - 0.3) / 0.7).backward()
        optimiser.step(warmup_stable_decay(step, progress))
        step, tokens = step + 1, tokens + int((batch[2] >= 0).sum())
        if step % 100 == 0:
            print(f"step {step} {elapsed:.0f} s {tokens:,} pieces,", report(target, draft, first, held, 16), flush=True)
        if elapsed - saved > 300:  # a killed run leaves its last five minutes' work
            draft.save_pretrained(args.work / "partial")
            saved = elapsed
    draft.bfloat16().save_pretrained(args.out)
    draft.float()
    print(f"end, {tokens:,} pieces,", report(target, draft, first, held, 32))


if __name__ == "__main__":
    main()
