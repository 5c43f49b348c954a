"""The whole of `specdec profile`, phase by phase: texts, agreement, costs, loop, summary."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.bundled import bundled_pair
from specdec.errors import InputError, OptionError, UnsupportedModelError
from specdec.loading import DTYPES, check_device, native_dtype, placed
from specdec.probe import probe
from specdec.profile.agreement import measure_agreement
from specdec.profile.contenders import BUNDLED, Contender, contenders, renamed
from specdec.profile.costing import REPEATS, Costing, contexts_of, cost_grid
from specdec.profile.engine import Engine
from specdec.profile.files import save
from specdec.profile.fit import fit_costs
from specdec.profile.looping import Run, num_runs, run_loop
from specdec.profile.meters import processor_name
from specdec.profile.options import Options
from specdec.profile.prediction import predicted_of
from specdec.profile.prompts import PromptFile, bundled, open_prompts
from specdec.profile.sample import Item, chosen_prompts, items_of, sampled_counts
from specdec.profile.schema import Machine, Profile
from specdec.profile.sharing import Team
from specdec.profile.summary import Facts, summarise
from specdec.profile.texts import Tick, write_texts
from specdec.profile.workspace import Workspace
from specdec.target import ModelRunner, input_device
from specdec.version import __version__

PHASES = ("texts", "agreement", "costs", "loop")
Progress = Callable[[str, int, int], None]  # phase, done, of how many


@dataclass(slots=True)
class Profiling:
    """One run.

    Args:
        options: what was asked for.
        out: the directory.
        progress: told how far each phase is.
    """

    options: Options
    out: pathlib.Path
    resume: bool = False
    progress: Progress = lambda _phase, _done, _total: None
    team: Team = field(default_factory=Team)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = field(default=False, init=False)
    space: Workspace = field(init=False)
    prompts: PromptFile = field(init=False)
    engine: Engine = field(init=False)
    contenders: list[Contender] = field(init=False)
    runner: ModelRunner = field(init=False)
    items: list[Item] = field(default_factory=list, init=False)

    def run(self) -> Profile | None:
        """Measures what is missing, and sums up; an interrupt (Ctrl-C) ends measuring early, not the summary.

        Returns:
            The profile, also saved; None in processes that do not lead.

        Raises:
            SpecdecError: what was asked for cannot be done; nothing has been measured then.
        """
        self._open()
        try:
            self._measure()
        except KeyboardInterrupt:
            self.interrupted = True
            self.notes.append("interrupted: go on with --resume")
        self.team.leave()
        if not self.team.leads:
            return None
        loop_prompts = [item.index for item in self.items]
        profile = summarise(
            self.space,
            self.options,
            self._facts(),
            self.engine.tokenizer,
            loop_prompts,
            self.notes,
            complete=not self.interrupted,
        )
        save(profile, self.out)
        return profile

    def _open(self) -> None:
        """Everything that can be wrong is found here, before anything is measured."""
        options = self.options
        path, limit = options.prompts, options.max_prompts
        self.prompts = bundled(limit=limit) if path is None else open_prompts(path, limit=limit)
        self.space = Workspace(self.out, self.team.rank, self.team.world)
        target, draft, tokenizer = self._load()
        if options.chat is True and tokenizer.chat_template is None:
            raise OptionError("--chat needs a chat template and this tokenizer has none: leave --chat out.")
        # What else a checkpoint asks for (forced or suppressed tokens, min_p) would be in the loop's texts, and not
        # in the distributions that target and draft are compared by. The target was loaded here, for nobody else.
        own = target.generation_config
        target.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
        )
        self.runner = ModelRunner(target)
        probe(self.runner)
        if self.runner.layout.stepwise:
            raise UnsupportedModelError(
                f"{type(target).__name__} cannot verify several tokens at once, so that no draft can pay: decode "
                "without. `specdec check` says why."
            )
        device = str(input_device(target))
        self.contenders = renamed(contenders(target, tokenizer, draft, options.drafts, options.strategies, device))
        self.engine = Engine(target, tokenizer, options.compile, options.seed)
        if self.team.leads:
            self.space.begin(options, self.resume, self.prompts.path)
        self.team.wait()

    def _load(self) -> tuple[PreTrainedModel, PreTrainedModel | None, PreTrainedTokenizerBase]:
        options = self.options
        device = options.device if self.team.device is None else str(self.team.device)
        if device == "auto" and (options.target is None or not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"  # nothing to spread, or nowhere to
        if device != "auto":
            check_device(device)
        dtype = DTYPES.get(options.dtype) or native_dtype("cuda" if device == "auto" else device)
        if options.target is None:
            target, draft, tokenizer = bundled_pair(dtype)
            return placed(target, device), placed(draft, device), tokenizer
        spread: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {}
        model = AutoModelForCausalLM.from_pretrained(
            options.target, dtype=dtype, **spread, trust_remote_code=False
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(options.target, trust_remote_code=False)
        return (model if spread else placed(model, device)), None, tokenizer

    def _measure(self) -> None:
        options, space = self.options, self.space
        longest = self._context()
        write_texts(self.prompts, self.engine, options, space, longest, self._tick("texts", len(self.prompts)))
        self.team.wait()
        first = next((t for t in space.all("texts") if "text" in t), None)
        if first is None:
            raise InputError("none of the prompts can be used: " + ", ".join(t["skip"] for t in space.all("texts")))
        texts = len(options.temperatures) * -(-len(self.prompts) // self.team.world)
        self.contenders = [c.settled(self.engine.target, first["prompt"] + first["text"]) for c in self.contenders]
        tick = self._tick("agreement", texts)
        measure_agreement(self.contenders, self.engine, options, space, self.notes.append, tick)
        self.team.wait()
        if self.team.leads:
            self._run_loops(longest)

    def _context(self) -> int | None:
        """Tokens that the target and every draft that is compared token by token have room for; None without an end."""
        scorers = [c.scorer for c in self.contenders if c.scorer is not None]
        limits = [self.runner.max_positions, *(ModelRunner(s).max_positions for s in scorers)]
        return min((n for n in limits if n is not None), default=None)

    def _run_loops(self, longest: int | None) -> None:
        """What takes a clock: on the leading process, while the others have ended."""
        options, space = self.options, self.space
        here = sorted((t["index"], t["domain"]) for t in space.all("texts") if t.get("last"))
        chosen = chosen_prompts(here, options.loop_prompts)
        self.items = items_of(space.all("texts"), chosen)
        points = cost_grid(self.contenders, options, contexts_of(self.items, options, longest))
        for contender in (None, *self.contenders):  # warm: code paths, allocator, graphs
            for temperature in options.temperatures:
                self.engine.run([self.items[0].tokens], contender, 2, temperature, min(8, options.new_tokens), 0)
        tick = self._tick("costs", REPEATS * len(points))
        costing = Costing(points, self.items, self.engine, space, self.notes.append, tick)
        costing.catch_up(0.0)
        costs = fit_costs(space.all("costs"))
        predicted = predicted_of(space.all("agreement"), costs, options.batches, options.seed)

        def runs(batch: int, temperature: float) -> Sequence[Run]:
            found = []
            for turn, contender in enumerate(self.contenders):
                found.append(Run(None, 0, turn))
                speedups = {
                    k: predicted[place].speedup
                    for k in options.num_draft_tokens
                    if (place := (contender.info.name, temperature, batch, k)) in predicted
                }
                counts = set(sampled_counts(options.num_draft_tokens))
                counts |= {max(speedups, key=lambda k: speedups[k])} if speedups else set()
                found += [Run(contender, k) for k in sorted(counts)]
            return found

        tick = self._tick("loop", num_runs(self.items, runs, options))
        run_loop(self.items, runs, self.engine, options, space, self.notes.append, tick, costing.catch_up)

    def _tick(self, phase: str, total: int) -> Tick:
        return lambda done: self.progress(phase, min(done, total), total)

    def _facts(self) -> Facts:
        options, target = self.options, self.engine.target
        device = input_device(target)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
        machine = Machine(
            device=name,
            threads=torch.get_num_threads(),
            processes=self.team.world,
            dtype=str(target.dtype).removeprefix("torch."),
            compile="yes" if options.compile else "no",
            specdec=__version__,
            torch=torch.__version__,
            transformers=transformers.__version__,
        )
        return Facts(
            machine=machine,
            target=options.target or BUNDLED,
            parameters=sum(p.numel() for p in target.parameters()),
            prompts=BUNDLED if options.prompts is None else str(options.prompts),
            skipped=self.prompts.skipped,
            drafts=[c.info for c in self.contenders],
            predicts_batches=not self.runner.layout.level,
        )


def profiled(options: Options, out: pathlib.Path, **settings: Any) -> Profile | None:
    """`Profiling(...).run()` with the processes that a launcher started."""
    return Profiling(options, out, team=Team.joined(options.device), **settings).run()
