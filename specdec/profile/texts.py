"""The target's own outputs: written once, kept, and used for every draft."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError, SpecdecError
from specdec.profile.engine import Engine
from specdec.profile.options import Options
from specdec.profile.prompts import Prompt, encode
from specdec.profile.workspace import Workspace, key_of

Tick = Callable[[int], None]


def write_texts(
    prompts: Iterable[Prompt], engine: Engine, options: Options, space: Workspace, longest: int | None, tick: Tick
) -> None:
    """Lets the target continue this process' share of the prompts, plainly, at each temperature.

    One prompt a call: the text then depends on the seed and the prompt only, however many processes share the work.

    Args:
        longest: the target's context; prompts that leave no room for the new tokens are skipped, by name.
        tick: told the number of prompts that are done.
    """
    done = {record["index"] for record in space.own("texts") if record.get("last", True)}
    with space.open("texts") as records:
        for number, prompt in enumerate(prompts):
            if number % space.world != space.rank or prompt.index in done:
                tick(number + 1)
                continue
            tokens, reason = encoded(prompt, engine.tokenizer, options, longest)
            if reason is not None:
                records.add({"index": prompt.index, "skip": reason})
            else:
                try:
                    records.add_all(_continued(prompt, tokens, engine, options))
                except (SpecdecError, torch.OutOfMemoryError) as error:
                    records.add({"index": prompt.index, "skip": f"{type(error).__name__} while it was continued"})
            tick(number + 1)


def encoded(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, options: Options, longest: int | None
) -> tuple[list[int], str | None]:
    """The prompt's tokens, or why it is skipped."""
    try:
        tokens = encode(prompt, tokenizer, chat=options.chat)
    except InputError as error:
        return [], str(error).partition(":")[0]
    if not tokens:
        return [], "no tokens"
    if longest is not None and len(tokens) + options.new_tokens > longest:
        return [], f"longer than the context of {longest} tokens, with {options.new_tokens} new ones"
    return tokens, None


def _continued(prompt: Prompt, tokens: list[int], engine: Engine, options: Options) -> list[dict[str, Any]]:
    """A record a temperature."""
    texts = [
        engine.run([tokens], None, 0, temperature, options.new_tokens, prompt.index).tokens[0]
        for temperature in options.temperatures
    ]
    return [
        {
            "index": prompt.index,
            "key": key_of(tokens),
            "name": prompt.name,
            "domain": prompt.domain,
            "temperature": temperature,
            "prompt": tokens,
            "text": text,
            "last": number + 1 == len(texts),  # the prompt is done
        }
        for number, (temperature, text) in enumerate(zip(options.temperatures, texts, strict=True))
    ]
