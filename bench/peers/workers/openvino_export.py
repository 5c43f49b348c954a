"""A checkpoint of transformers -> OpenVINO's files, with optimum-intel. Runs in OpenVINO's environment, by itself.

python openvino_export.py MODEL TOKENIZER OUT
"""

from __future__ import annotations

import sys

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    model, tokenizer, out = sys.argv[1:]
    # Not compressed to 8 bits; the weights stay in the checkpoint's own dtype.
    exported = OVModelForCausalLM.from_pretrained(model, export=True, load_in_8bit=False, compile=False)
    exported.save_pretrained(out)
    # The pipeline wants a tokenizer even where it is given token ids.
    to, back = convert_tokenizer(AutoTokenizer.from_pretrained(tokenizer), with_detokenizer=True)
    openvino.save_model(to, f"{out}/openvino_tokenizer.xml")
    openvino.save_model(back, f"{out}/openvino_detokenizer.xml")


if __name__ == "__main__":
    main()
