"""The command line: `specdec generate` writes with a draft, times it and compares; `specdec check` asks a model.

`specdec profile`, `recommend` and `compare` are in `profile/`.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from jinja2 import TemplateError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from specdec.arbitrate import first_divergence
from specdec.bundled import bundled_pair, bundled_prompts
from specdec.capabilities import capabilities
from specdec.check import load, summary, table
from specdec.decode import SpeculativeOutput
from specdec.errors import OptionError
from specdec.generate import SpeculativeDecoder
from specdec.indexes import indexes
from specdec.loading import DTYPES, Loaded, load_all, native_dtype, placed
from specdec.loop import Committed
from specdec.packages import packages
from specdec.pieces import Pieces
from specdec.profile.commands import compare, recommend
from specdec.profile.profile_command import profile
from specdec.said import one_line_errors
from specdec.stats import SpeculationStats
from specdec.types import Compile

app = typer.Typer(help="Speculative decoding for Hugging Face transformers: the same output, only sooner.")
app.add_typer(packages, name="cache")
app.add_typer(indexes, name="index")
app.command()(profile)
app.command()(recommend)
app.command()(compare)
DRAFT_STYLE, TARGET_STYLE = "green", "bold yellow"
_COMPILE: dict[str, Compile] = {"yes": True, "no": False, "auto": "auto"}
_DRAFT_HELP = (
    "Draft model (directory or hub id), or one of ngram, suffix, suffix:INDEX, early-exit, early-exit:LAYERS, "
    "lookahead, tree (of the bundled draft), tree:MODEL, none; if omitted the bundled draft, with --target ngram."
)
_DTYPE_HELP = "bfloat16, float16, float32 or auto: bfloat16 where the device computes in it, else float32."
_COMPILE_HELP = (
    "yes, no or auto: run compiled graphs. yes builds what is missing, which takes a minute or two, once for a model; "
    "auto uses what is there."
)
_CHAT_HELP = "The prompt is a user's message: put it into the tokenizer's chat template."
_TEMPLATE_HELP = "Jinja file to use in place of the tokenizer's chat template, with --chat."


@app.callback()
def _main() -> None:
    """Without this, typer would make the only command the whole program."""


@dataclass
class TextStream:
    """Prints tokens as they are committed, coloured by who wrote them.

    A token may hold a part of a character: text is held back until it decodes.
    """

    console: Console
    tokenizer: PreTrainedTokenizerBase
    pieces: Pieces = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = Pieces(self.tokenizer, skip_special_tokens=True)

    def __call__(self, part: Committed) -> None:
        for i, token in enumerate(part.tokens):
            self._print(self.pieces.add(token), DRAFT_STYLE if i < part.num_accepted else TARGET_STYLE)
        if part.finished:
            self._print(self.pieces.flush(), TARGET_STYLE)

    def _print(self, text: str | None, style: str) -> None:
        if text:
            self.console.print(Text(text, style=style), end="", soft_wrap=True)


@dataclass(frozen=True)
class Chat:
    """How `--chat` turns the prompt into a conversation."""

    system: str | None = None
    template: str | None = None  # the tokenizer's own if None


def _read_prompt(prompt: str | None, file: pathlib.Path | None, target: str | None) -> str:
    if prompt is not None and file is not None:
        raise typer.BadParameter("give the prompt as an argument or with --file, not both.")
    if file is not None:
        return file.read_text(encoding="utf-8")
    if prompt == "-":
        return sys.stdin.read()
    if prompt is not None:
        return prompt
    if target is not None:
        raise typer.BadParameter("give a prompt: as an argument, with --file, or '-' for standard input.")
    return bundled_prompts()[0]["prompt"]


def _read_chat(chat: bool, system: str | None, template: pathlib.Path | None) -> Chat | None:
    """What was asked for by --chat, --system and --chat-template; None for a prompt as it stands."""
    if chat:
        return Chat(system, None if template is None else template.read_text(encoding="utf-8"))
    for option, value in (("--system", system), ("--chat-template", template)):
        if value is not None:
            raise typer.BadParameter(f"{option} is a part of a conversation: add --chat, or leave it out.")
    return None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, chat: Chat | None = None
) -> tuple[str, dict[str, Any]]:
    """The text that the model continues, and its tokens.

    Args:
        chat: put the prompt into the chat template, which writes all special tokens itself.

    Returns:
        The text, and a dict of `input_ids` and `attention_mask`, both [1, T] int64.

    Raises:
        OptionError: there is no chat template, or it fails or does without the system message.
    """
    if chat is None:
        return prompt, dict(tokenizer(prompt, return_tensors="pt"))
    if chat.template is None and tokenizer.chat_template is None:
        raise OptionError(
            "--chat needs a chat template and this tokenizer has none, as is usual for models that were not "
            "trained to converse: leave out --chat, or pass a Jinja file with --chat-template FILE."
        )
    messages = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    messages.append({"role": "user", "content": prompt})
    apply: Any = tokenizer.apply_chat_template
    options = {"chat_template": chat.template, "add_generation_prompt": True}
    try:
        text = apply(messages, tokenize=False, **options)
        inputs = apply(messages, return_tensors="pt", return_dict=True, **options)
        unheard = chat.system is not None and chat.system not in text
        unheard = unheard and text == apply(messages[-1:], tokenize=False, **options)
    except TemplateError as error:
        raise OptionError(
            f"the chat template failed: {error}. Correct it, pass another with --chat-template FILE, or leave out "
            "what it does not know (some know no --system)."
        ) from None
    if unheard:
        raise OptionError(
            "the chat template leaves the system message out: leave out --system and write it into the prompt, or "
            "pass another template with --chat-template FILE."
        )
    return text, dict(inputs)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; '-' reads standard input.")] = None,
    file: Annotated[pathlib.Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    target: Annotated[str | None, typer.Option(help="Model directory or hub id; bundled if omitted.")] = None,
    draft: Annotated[str | None, typer.Option(help=_DRAFT_HELP)] = None,
    chat: Annotated[bool, typer.Option("--chat", help=_CHAT_HELP)] = False,
    system: Annotated[str | None, typer.Option(help="System message, with --chat.")] = None,
    chat_template: Annotated[pathlib.Path | None, typer.Option(help=_TEMPLATE_HELP)] = None,
    num_draft_tokens: Annotated[str, typer.Option("--num-draft-tokens", "-k", help="An integer, or 'auto'.")] = "auto",
    compile: Annotated[str, typer.Option("--compile", help=_COMPILE_HELP)] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling, with a temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of torch's generator.")] = 0,
    dtype: Annotated[str, typer.Option(help=_DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice if omitted.")] = None,
    repeats: Annotated[int, typer.Option(min=0, help="Timed runs of each side; 0 only writes.")] = 3,
) -> None:  # fmt: skip
    """Writes with a draft, then measures it against plain decoding in the same run."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    console = Console(highlight=False)
    if dtype not in ("auto", *DTYPES):
        raise typer.BadParameter(f"--dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}.")
    if num_draft_tokens != "auto" and not num_draft_tokens.isdecimal():
        raise typer.BadParameter(f"--num-draft-tokens must be an integer or 'auto', got {num_draft_tokens!r}.")
    if compile not in _COMPILE:
        raise typer.BadParameter(f"--compile must be {', '.join(_COMPILE)}, got {compile!r}.")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with one_line_errors(ValueError):
        text = _read_prompt(prompt, file, target)
        conversation = _read_chat(chat, system, chat_template)
        loaded = load_all(target, draft, DTYPES.get(dtype) or native_dtype(device), device)
        if loaded.drafter is not None:
            loaded.drafter.check(loaded.target)  # before anything is printed
        count: Any = "auto" if num_draft_tokens == "auto" else int(num_draft_tokens)
        decoder = SpeculativeDecoder(loaded.drafter, count, compile=_COMPILE[compile])
        text, inputs = encode_prompt(loaded.tokenizer, text, conversation)
        arguments: dict[str, Any] = {
            "input_ids": inputs["input_ids"].to(device),
            "attention_mask": inputs["attention_mask"].to(device),
            "max_new_tokens": max_new_tokens,
            "do_sample": temperature > 0,
        }
        if temperature > 0:
            arguments |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        _run(console, loaded, decoder, arguments, text, repeats)


@app.command()
def check(
    model: Annotated[str | None, typer.Argument(help="Model directory or hub id; bundled if omitted.")] = None,
    dtype: Annotated[str, typer.Option(help=_DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, ...; the model's own if omitted.")] = None,
) -> None:
    """Says what a model's memory allows: trees, chains, batches, or nothing; as target or as draft."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if dtype not in ("auto", *DTYPES):
        raise typer.BadParameter(f"--dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}.")
    wanted = DTYPES.get(dtype) or native_dtype(device)
    with one_line_errors(ValueError):
        loaded = bundled_pair(wanted)[0] if model is None else load(model, wanted, attention)
        found = capabilities(placed(loaded, device))
    console = Console(highlight=False)
    dtype_name = str(found.dtype).removeprefix("torch.")
    console.print(Text(f"{found.model}, {dtype_name}, {found.attention} attention", style="bold"))
    console.print(table(found))
    console.print(summary(found))
    if found.layout is None:
        raise typer.Exit(1)


def _run(
    console: Console,
    loaded: Loaded,
    decoder: SpeculativeDecoder,
    arguments: dict[str, Any],
    text: str,
    repeats: int,
) -> None:
    """Streams one speculative run, then times both sides alternately and compares their outputs."""
    legend = (("prompt", "dim"), ("accepted draft token", DRAFT_STYLE), ("target's own token", TARGET_STYLE))
    console.print(*(Text(words, style=style) for words, style in legend), sep=" | ")
    console.rule(style="dim")
    console.print(Text(text, style="dim"), end="", soft_wrap=True)
    decoder.generate(loaded.target, on_commit=TextStream(console, loaded.tokenizer), **arguments)
    console.print()
    console.rule(style="dim")
    if not repeats:
        return
    plain_seconds, fast_seconds = [], []
    plain = fast = None
    reference_target: Any = loaded.target
    for _ in range(repeats):  # alternately, so that a noisy machine disturbs both sides
        begun = time.perf_counter()
        plain = reference_target.generate(**arguments)
        plain_seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        fast = decoder.generate(loaded.target, **arguments, return_dict_in_generate=True)
        fast_seconds.append(time.perf_counter() - begun)
    assert isinstance(plain, torch.Tensor)
    assert isinstance(fast, SpeculativeOutput)
    assert fast.speculation is not None
    length = arguments["input_ids"].shape[1]
    new, reference = fast.sequences[0, length:].tolist(), plain[0, length:].tolist()
    rates = [n / statistics.median(s) for n, s in ((len(reference), plain_seconds), (len(new), fast_seconds))]
    console.print(_table(rates, fast.speculation))
    graphs = _graphs(fast.speculation)
    if graphs is not None:
        console.print(graphs)
    console.print(_verdict(loaded, arguments, new, reference))


def _table(rates: list[float], stats: SpeculationStats) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "tokens/s", "ratio", "tokens a forward", "acceptance rate"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("target.generate()", f"{rates[0]:.1f}", "1.00", "1.00", "")
    table.add_row(
        "specdec.generate()",
        f"{rates[1]:.1f}",
        f"{rates[1] / rates[0]:.2f}",
        f"{stats.acceptance_length:.2f}",
        f"{stats.acceptance_rate:.2f}",
    )
    return table


def _graphs(stats: SpeculationStats) -> Text | None:
    """One line: what ran compiled, and why not the rest."""
    roles = stats.graphs.roles
    if not roles:
        return None
    return Text("; ".join(f"{role}: {how}" for role, how in roles.items()), style="dim")


def _verdict(loaded: Loaded, arguments: dict[str, Any], new: list[int], reference: list[int]) -> Text:
    """One sentence: are the outputs equal, and if not, why."""
    if arguments["do_sample"]:
        return Text("sampled: the two texts differ, their distribution is the same.")
    if new == reference:
        return Text(f"outputs are equal: {len(new)} of {len(new)} tokens.", style="green")
    found = first_divergence(loaded.target, arguments["input_ids"][0].tolist(), new, reference)
    if found is None:
        return Text(f"outputs are equal up to the shorter one's end ({len(new)} and {len(reference)} tokens).", "red")
    dtype = str(loaded.target.dtype).removeprefix("torch.")
    words = [repr(loaded.tokenizer.decode([t])) for t in (found.token, found.other)]
    place = f"outputs are equal up to token {found.position + 1} of {len(new)}: {words[0]} here, {words[1]} there."
    if found.is_near_tie:
        return Text(
            f"{place} A near-tie: computed more precisely, their logits are {found.gap:.4f} apart, which "
            f"{dtype}'s own error of up to {found.noise:.4f} on each can turn. Either order is right.",
            style="yellow",
        )
    return Text(
        f"{place} Their logits are {found.gap:.4f} apart, more than {dtype} rounding ({found.noise:.4f}) explains: "
        "please report this as a bug.",
        style="red",
    )
