"""Writing: a text that a character model goes on with, for longer than its context."""

from __future__ import annotations

from minibit.language.characters import Vocabulary
from minibit.noise import TOKENS, uniform
from minibit.transformer import BitNetModel, Decoder, sample

__all__ = ["write_text"]


def write_text(
    model: BitNetModel,
    vocabulary: Vocabulary,
    prompt: str,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """Go on with a text of characters, for longer than the model's context.

    Whenever the context is full, the model reads the last half of it anew and goes on from there;
    so it does with a prompt that is longer. `count` characters follow the prompt, which is no part
    of the result; temperature, top_k, top_p and seed are as for `minibit.transformer.generate`, so
    the same numbers draw the same places. A ValueError if the prompt is empty or has a character
    that the vocabulary has not.

    Examples
    --------
    >>> from minibit.language import recipe, train_language
    >>> trained = train_language(recipe("55k", "b1.58"), stop=0)
    >>> len(write_text(trained.model(), trained.vocabulary, "A", 70))
    70
    """
    if not prompt:
        raise ValueError("prompt must have one character at least")
    limit = model.config.max_positions
    half = max(1, limit // 2)
    text: list[int] = vocabulary.encode(prompt).tolist()
    begin, decoder = len(text), Decoder(model)
    decoder.append(text if begin <= limit else text[-half:])
    for step in range(begin, begin + count):
        if len(decoder.text) == limit:
            decoder.forget(half)
        number = float(uniform(seed, 1, domain=TOKENS, step=step)[0])
        token = sample(decoder.logits(), number, temperature=temperature, top_k=top_k, top_p=top_p)
        text.append(token)
        if len(decoder.text) < limit:
            decoder.append([token])
    return vocabulary.decode(text[begin:])
