"""Tokenizers that differ in everything that translation may trip over, and models that speak them."""

from __future__ import annotations

import copy
import random
import string
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEXT = (
    "def heap(items, key=None):\n    for index, item in enumerate(items):\n        return 'naïve café, 中文 ß 12345'\n"
    "The quick brown Fox jumps over the lazy dog. It's the end of the World, isn't it?\n"
)
CHARACTERS = 94


@cache
def characters(seed: int = 0) -> PreTrainedTokenizerFast:
    """Every token one character, so that a text has one spelling only; the ids in an order of their own."""
    words = ["<pad>", "</s>", " ", *string.printable[: CHARACTERS - 1]]
    ids = list(range(len(words)))
    if seed:
        random.Random(seed).shuffle(ids)
    backend = Tokenizer(kinds.BPE(dict(zip(words, ids, strict=True)), merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def renamed(model: PreTrainedModel, mine: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model with its tokens under the other tokenizer's ids; `other` has the same tokens."""
    new = copy.deepcopy(model)
    vocabulary = other.get_vocab()
    order = torch.tensor([vocabulary[t] for t, _ in sorted(mine.get_vocab().items(), key=lambda item: item[1])])
    with torch.no_grad():
        for matrix in (new.get_input_embeddings(), new.get_output_embeddings()):
            weight = matrix.weight.clone()
            matrix.weight[order] = weight[: len(order)]
    return new


@cache
def byte_level(merges: int, bos: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with `bos` it puts <s> before a text."""
    backend = Tokenizer(kinds.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=259 + merges,
        special_tokens=["<s>", "</s>", "<role>"][not bos :],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **({"bos_token": "<s>"} if bos else {}))


@cache
def unigram(prepend: str = "always") -> PreTrainedTokenizerFast:
    """Llama's and T5's kind: spaces are part of words, one stands before every text, unknown characters are bytes."""
    words = ["\u2581", *TEXT.replace("\n", " ").replace(" ", " \u2581").split()]
    words = [w for w in words if w.lstrip("\u2581").isascii()]
    pieces = dict.fromkeys([*words, *string.ascii_letters, *string.digits])
    pieces |= dict.fromkeys(w[:n] for w in words for n in (2, 3, 4) if len(w) > n)
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    table = [*special, *((f"<0x{b:02X}>", -20.0) for b in range(256)), *((p, -2.0 - 8 / len(p)) for p in pieces)]
    backend = Tokenizer(kinds.Unigram(table, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, accents dropped, spaces lost, texts between [CLS] and [SEP], unknown words."""
    words = TEXT.lower().replace("(", " ").replace("\n", " ").split()
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation, *(f"##{c}" for c in string.ascii_lowercase)]
    names = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(w for w in words if w.isalpha())])
    backend = Tokenizer(kinds.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )


TONGUES = {
    "bytes": lambda: byte_level(100),
    "bytes with BOS": lambda: byte_level(30, bos=True),
    "unigram": unigram,
    "unigram, first": lambda: unigram("first"),
    "word pieces": word_pieces,
    "characters": characters,
}
