"""``minibit generate`` and ``minibit chat``: a language model goes on with a text, or answers.

Tokens are printed as they come, in whole characters. Ctrl-C ends a text where it stands. A chat
keeps what the model has read: each turn costs its own tokens only.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from minibit.base import checked_json
from minibit.cli import texts
from minibit.cli.common import BadUse, Output, bad_use, check_choice, command
from minibit.cli.models import SHIPPED, model_path, read_model
from minibit.cli.texts import TEMPLATES, Characters, Numbers, Turn, read_text, read_tokens
from minibit.transformer import BitNetModel, Decoder, check_sampling

Model = Annotated[Path, "MODEL", "A model directory, a .gguf or a .npz file, or shipped."]
Count = Annotated[int, typer.Option("--count", min=1, help="Most tokens of a text or an answer.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every draw.")]
Temperature = Annotated[float, "0 takes the most probable token each time."]
TopK = Annotated[int | None, "Draw from the K most probable."]
TopP = Annotated[float | None, "Draw from the fewest that hold this share."]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Default: one for each CPU, if the model is large.")
]
TokenizerFile = Annotated[Path | None, "A tokenizer.json, if not the model's own."]


@dataclass
class Loaded:
    """A model, how it speaks, and what ends its texts."""

    model: BitNetModel
    tokens: texts.Tokens
    template: str | None  # the text of its chat template
    where: str  # that lies, for messages
    stop: set[int]
    seconds: float  # to load it
    threads: int | None

    @property
    def room(self) -> int:
        """Tokens that a text may have."""
        return self.model.config.max_positions

    @property
    def slides(self) -> bool:
        """Whether a full text goes on from its last half: models of our own have little room."""
        return isinstance(self.tokens, Characters)

    def decoder(self) -> Decoder:
        """Return a decoder that has read nothing."""
        return Decoder(self.model, threads=self.threads)


@dataclass
class Answer:
    """Tokens that were drawn, why they ended, and when they came."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    stopped: str = "count"
    times: list[float] = field(default_factory=list)  # of the start, then of every token

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first, which waits for the prompt to be read."""
        count = len(self.times) - 2
        return count / (self.times[-1] - self.times[1]) if count > 0 else None


@command
def generate(
    out: Output,
    model: Model = SHIPPED,
    prompt: Annotated[str | None, "The text to go on with; '-' reads standard input."] = None,
    count: Count = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    threads: Threads = None,
    tokenizer: TokenizerFile = None,
    ids: Annotated[bool, "Prompt and text are numbers of tokens."] = False,
) -> dict[str, Any]:
    """Let a language model go on with a text."""
    sampling = _sampling(temperature, top_k, top_p, seed)
    words = f"; to go on with a text: generate --prompt {shlex.quote(str(model))}"
    is_text = " " in str(model) or not re.search(r"[/\\]|\.\w+$", str(model))
    loaded = _load(model, tokenizer, ids, threads, words if is_text else "")
    text = sys.stdin.read() if prompt == "-" else prompt or ""
    first, decoder = _prompt(loaded, text), loaded.decoder()
    _append(decoder, first, loaded)
    if model == SHIPPED and not model.exists():
        out.say("The model in the package: 221k ternary weights, one book.", style="dim")
    out.write(text if not ids else "")
    answer = _answer(out, decoder, count, sampling, loaded)
    out.write("\n")
    out.say()
    out.say(_summary(answer, loaded), style="dim")
    out.status = int(answer.stopped == "interrupted")
    fields = {"prompt": text, "prompt_tokens": len(first), **_fields(answer)}
    return {**fields, "load_seconds": loaded.seconds, "seed": seed}


@command
def chat(
    out: Output,
    model: Model,
    system: Annotated[str | None, "What the model is told first."] = None,
    template: Annotated[str | None, f"{', '.join(TEMPLATES)}; default: the model's own."] = None,
    count: Count = 512,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    threads: Threads = None,
    tokenizer: TokenizerFile = None,
) -> dict[str, Any]:
    """Talk with a language model, line by line; /new forgets, /exit or Ctrl-D ends."""
    sampling = _sampling(temperature, top_k, top_p, seed)
    check_choice("--template", template, TEMPLATES)
    loaded = _load(model, tokenizer, False, threads)
    name = template or texts.template_name(loaded.template, loaded.where) or "plain"
    turn = TEMPLATES[name]
    end = loaded.tokens.token(turn.end)
    if end is None:
        raise BadUse(
            f"template {name} ends an answer with {turn.end!r}, which is no token of this "
            "model: choose another by --template"
        )
    loaded.stop.add(end)
    out.say(f"Template {name}. /new forgets, /exit or Ctrl-D ends, Ctrl-C stops an answer.")
    bos = _bos(loaded)
    first = [] if bos is None else [bos]
    if system is not None:
        first += turn.message(loaded.tokens, "system", system)
    turns = _talk(out, loaded, turn, first, count, sampling)
    rates = [fields["tokens_per_second"] for fields in turns if fields["tokens_per_second"]]
    return {
        "template": name,
        "turns": turns,
        "tokens_per_second": sum(rates) / len(rates) if rates else None,
        "load_seconds": loaded.seconds,
        "seed": seed,
    }


def _talk(
    out: Output,
    loaded: Loaded,
    turn: Turn,
    first: list[int],
    count: int,
    sampling: dict[str, Any],
) -> list[dict[str, Any]]:
    """Take line after line and answer each; return the turns."""
    decoder, pending, turns = loaded.decoder(), first, []
    while (line := _ask(out)) is not None:
        if line.strip() in ("/exit", "/quit"):
            break
        if line.strip() == "/new":
            decoder, pending = loaded.decoder(), first
            out.say("Forgotten.", style="dim")
        if line.strip() in ("/new", ""):
            continue
        try:
            message = turn.message(loaded.tokens, "user", line)
            tokens = [*pending, *message, *turn.opening(loaded.tokens)]
            _append(decoder, tokens, loaded)
        except ValueError as error:
            out.warn(f"that was not read: {error}; /new begins again")
            continue
        answer = _answer(out, decoder, count, sampling, loaded)
        pending = turn.closing(loaded.tokens)
        out.write("\n")
        out.say(_summary(answer, loaded), style="dim")
        turns.append({"user": line, "prompt_tokens": len(tokens), **_fields(answer)})
    return turns


def _sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> dict[str, Any]:
    """Return options of `Decoder.generate`; refuse those that cannot be drawn with."""
    with bad_use():
        check_sampling(temperature, top_k, top_p)
    if seed >= 2**64:
        raise BadUse(f"--seed must be below 2**64, got {seed}")
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}


def _answer(
    out: Output, decoder: Decoder, count: int, sampling: dict[str, Any], loaded: Loaded
) -> Answer:
    """Draw tokens and print them as they come, until something ends them."""
    answer, stream = Answer(), texts.TextStream(loaded.tokens.decode)

    def show(text: str) -> None:
        answer.text += text
        out.write(text)

    answer.times.append(time.perf_counter())
    try:
        while (missing := count - len(answer.tokens)) > 0:
            for token in decoder.generate(missing, stop=loaded.stop, **sampling):
                answer.times.append(time.perf_counter())
                answer.tokens.append(token)
                show(stream.push(token))
            full = len(decoder.text) == loaded.room
            if len(answer.tokens) < count and not (full and loaded.slides):
                answer.stopped = "positions" if full else "end"
                break
            if full and loaded.slides:
                decoder.forget(max(1, loaded.room // 2))
    except KeyboardInterrupt:
        answer.stopped = "interrupted"
    show(stream.end())
    return answer


def _append(decoder: Decoder, tokens: list[int], loaded: Loaded) -> None:
    """Add tokens to a text; where texts slide, forget the oldest if there is no room."""
    half = max(1, loaded.room // 2)
    if not loaded.slides or len(decoder.text) + len(tokens) <= half:
        decoder.append(tokens)
        return
    for begin in range(0, len(tokens), half):  # nothing is read before its logits are asked for
        decoder.forget(min(len(decoder.text), loaded.room - half))
        decoder.append(tokens[begin : begin + half])
    decoder.forget(half)


def _ask(out: Output) -> str | None:
    """Return the next line that is typed, or None at the end, which Ctrl-C is too."""
    if sys.stdin.isatty():
        out.write("> ")
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    if not line and sys.stdin.isatty():
        out.write("\n")
    return line.rstrip("\r\n") if line else None


def _load(
    path: Path, tokenizer: Path | None, ids: bool, threads: int | None = None, hint: str = ""
) -> Loaded:
    """Read a model of any kind, and how it speaks."""
    path = model_path(path, hint)
    if tokenizer is not None and not tokenizer.is_file():
        raise BadUse(f"--tokenizer {tokenizer}: there is no such file")
    own: texts.Tokens | None = Numbers() if ids else None
    if own is None and tokenizer is not None:
        own = read_tokens(read_text(tokenizer), str(tokenizer))
    start = time.perf_counter()
    source = read_model(path)
    seconds, text = time.perf_counter() - start, source.text("tokenizer.json")
    if own is None and text is not None:
        own = read_tokens(text, source.place("tokenizer.json"))
    if own is None:
        if not 256 <= source.model.config.vocab_size <= 512:
            raise BadUse(f"{path} has no tokenizer: give one by --tokenizer FILE")
        own = texts.Bytes()
    stop = set(source.model.config.ends)
    if (generation := source.text("generation_config.json")) is not None:
        settings = checked_json(generation.encode(), f"the generation_config.json of {path}")
        ends = settings.get("eos_token_id")
        listed = ends if isinstance(ends, list) else [ends]
        stop |= {token for token in listed if isinstance(token, int)}
    return Loaded(source.model, own, *source.template(), stop, seconds, threads)


def _bos(loaded: Loaded) -> int | None:
    """Return the token that begins a text, if there is one; one that no text can have is named."""
    bos, size = loaded.model.config.bos, loaded.model.config.vocab_size
    if bos is not None and bos >= size:
        raise ValueError(f"the configuration's bos token is {bos}, beyond the vocabulary of {size}")
    return bos


def _prompt(loaded: Loaded, text: str) -> list[int]:
    """Return the tokens of a prompt: the model's first token, if it has one, then the text."""
    tokens, bos = loaded.tokens.encode(text) if text else [], _bos(loaded)
    if bos is not None and tokens[:1] != [bos] and not isinstance(loaded.tokens, Numbers):
        tokens = [bos, *tokens]
    if not tokens:
        newline = loaded.tokens.token("\n")
        if newline is None:
            raise BadUse("this model has no token that begins a text: give a --prompt")
        tokens = [newline]
    return tokens


def _fields(answer: Answer) -> dict[str, Any]:
    """Return what a script may want to know of an answer."""
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "new_tokens": len(answer.tokens),
        "stopped": answer.stopped,
        "prompt_seconds": answer.times[1] - answer.times[0] if answer.tokens else None,
        "seconds": answer.times[-1] - answer.times[0],
        "tokens_per_second": answer.rate,
    }


def _summary(answer: Answer, loaded: Loaded) -> str:
    """Say how many tokens came, how fast, and why no more."""
    why = {
        "count": "as many as asked for",
        "end": "the model ended the text",
        "positions": f"its {loaded.room} positions are full",
        "interrupted": "stopped",
    }[answer.stopped]
    speed = f", {answer.rate:.1f} tokens per second" if answer.rate is not None else ""
    count = len(answer.tokens)
    return f"[{count} token{'' if count == 1 else 's'}{speed}; {why}]"
