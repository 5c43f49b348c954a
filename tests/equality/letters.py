"""A tokenizer for the tiny models: 96 tokens of one to four letters, so that stop strings can cut across them."""

from __future__ import annotations

import string
from functools import cache

from models import VOCAB_SIZE
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


@cache
def letters() -> PreTrainedTokenizerFast:
    """Id 0 is padding, 1 the end of a text; then a, b, c, ..., and pieces of up to four."""
    singles = list(string.ascii_lowercase)
    pieces = [
        a + singles[(7 * i + i // 26 + 1) % 26] + singles[3 * i % 26] * (i % 3) for i, a in enumerate(singles * 3)
    ]
    words = list(dict.fromkeys(["<pad>", "</s>", *singles, *pieces]))
    vocabulary = {word: i for i, word in enumerate(words[:VOCAB_SIZE])}
    backend = Tokenizer(BPE(vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left")
