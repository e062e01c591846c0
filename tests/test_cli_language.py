"""``minibit generate`` and ``minibit chat``: text in, text out, whole characters in between."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.checkpoint import HUGGING_FACE, load_bitnet, load_gguf, random_checkpoint, save_gguf
from minibit.transformer import BitNetConfig, Decoder, generate, init_params

typer = pytest.importorskip("typer")
tokenizers = pytest.importorskip("tokenizers")

from commands import answer, call, refused  # noqa: E402
from minibit.cli import language  # noqa: E402
from minibit.cli.common import Output  # noqa: E402
from minibit.cli.models import Source, companions_of  # noqa: E402
from minibit.cli.texts import (  # noqa: E402
    TEMPLATES,
    Bytes,
    Characters,
    Numbers,
    Published,
    TextStream,
    template_name,
)

MARKERS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|im_start|>", "<|im_end|>"),
]
# As published with microsoft/bitnet-b1.58-2B-4T and, in essence, with Llama 3 and ChatML models.
PUBLISHED_TEMPLATES = {
    "bitnet": "{% for message in messages %}{{ message['role'] | capitalize + ': ' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
    "llama3": "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}",
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def make_tokenizer() -> str:
    """A small byte-level BPE with the markers of chats, as JSON."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=MARKERS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat and the user: assistant: " * 3], trainer)
    return tokenizer.to_str()


TOKENIZER = make_tokenizer()
WORDS = Published(TOKENIZER, "tokenizer.json")
CONFIG = BitNetConfig(300, 64, 192, 2, heads=4, kv_heads=2, max_positions=120, bos=0, eos=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model directory with a tokenizer and BitNet's chat template."""
    path = tmp_path_factory.mktemp("models") / "model"
    random_checkpoint(path, CONFIG)
    (path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    settings = {"chat_template": PUBLISHED_TEMPLATES["bitnet"]}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory):
    """A random model directory without a tokenizer, with few enough tokens to speak bytes."""
    path = tmp_path_factory.mktemp("models") / "bytes"
    random_checkpoint(path, BitNetConfig(256, 64, 192, 2, heads=4, kv_heads=2, max_positions=120))
    return path


# --- Whole characters


@given(st.text(max_size=30), st.booleans())
def test_a_stream_tells_every_text_whole_and_no_broken_character(text, as_bytes):
    """Joined, the parts are the text; none holds U+FFFD that the text has not."""
    tokens = Bytes() if as_bytes else WORDS
    ids = tokens.encode(text, typed=True)
    stream = TextStream(tokens.decode)
    parts = [stream.push(token) for token in ids] + [stream.end()]
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_a_character_of_four_tokens_appears_with_the_last():
    """Nothing, nothing, nothing, then all of it."""
    stream = TextStream(WORDS.decode)
    ids = WORDS.encode("x🎩")
    assert len(ids) == 5
    assert [stream.push(token) for token in ids] == ["x", "", "", "", "🎩"]


def test_bytes_that_are_no_character_do_not_wait_for_ever():
    """The beginning of a character waits; what can be none any more is told as broken."""
    stream = TextStream(Bytes().decode)
    assert [stream.push(byte) for byte in b"\xc3a"] == ["", "\ufffda"]
    told = [stream.push(0x80) for _ in range(200)]
    assert told[:6] == ["", "", "", "\ufffd", "\ufffd", "\ufffd"]
    assert "".join(told) + stream.end() == "\ufffd" * 200


@given(st.lists(st.integers(0, 299) | st.sampled_from([0x80, 0xE1, 0xF0, 0xC3]), max_size=20))
def test_any_tokens_at_all_can_be_told(ids):
    """What a random model says: the parts join to what decoding all of it gives."""
    for tokens in (Bytes(), WORDS):
        stream = TextStream(tokens.decode)
        parts = [stream.push(token) for token in ids] + [stream.end()]
        assert "".join(parts) == tokens.decode(ids)


def test_control_characters_are_shown_and_not_obeyed(capsys):
    """A model cannot clear the screen of who reads it; line ends and tabs pass."""
    Output(as_json=False).write("a\x1b[2Jb\n\tc\x07\x9b\ud800")
    assert capsys.readouterr().out == "a\\x1b[2Jb\n\tc\\x07\\x9b\\ud800"


# --- Tokens


def test_what_people_type_is_never_a_marker():
    """In a chat, a marker in a message is text; in a prompt it is the marker."""
    marker = WORDS.token("<|eot_id|>")
    assert WORDS.encode("a<|eot_id|>b").count(marker) == 1
    typed = WORDS.encode("a<|eot_id|>b", typed=True)
    assert marker not in typed
    assert WORDS.decode(typed) == "a<|eot_id|>b"
    for turn in TEMPLATES.values():
        if turn.end.startswith("<|"):
            ids = turn.message(WORDS, "user", turn.end)
            assert ids.count(WORDS.token(turn.end)) == 1


@pytest.mark.parametrize("name", PUBLISHED_TEMPLATES)
def test_a_rendered_chat_is_that_of_the_published_template(name):
    """Token by token, for a chat with a system message and two turns."""
    jinja2 = pytest.importorskip("jinja2")
    turn = TEMPLATES[name]
    said = [("system", "be brief "), ("user", " the cat?"), ("assistant", "a hat"), ("user", "é")]
    messages = [{"role": role, "content": text} for role, text in said]
    text = jinja2.Template(PUBLISHED_TEMPLATES[name], keep_trailing_newline=True).render(
        messages=messages, add_generation_prompt=True
    )
    ids = [token for role, content in said for token in turn.message(WORDS, role, content)]
    ids += turn.opening(WORDS)
    assert WORDS._tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids == WORDS.encode(text)
    whole = turn.message(WORDS, "assistant", "a hat")
    assert whole == [*turn.opening(WORDS), *WORDS.encode("a hat"), *turn.closing(WORDS)]


def name_of(folder):
    """The name of a directory's chat template."""
    return template_name(*Source(folder, "Hugging Face", None, companions_of(folder)).template())


def test_a_template_is_recognised_by_its_markers(tmp_path):
    """In tokenizer_config.json, as one or as a list, or in chat_template.jinja; never run."""
    assert name_of(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text("{}")
    assert name_of(tmp_path) is None
    for name, text in PUBLISHED_TEMPLATES.items():
        settings.write_text(json.dumps({"chat_template": text}))
        assert name_of(tmp_path) == name
        listed = [{"name": "tools", "template": "x"}, {"name": "default", "template": text}]
        settings.write_text(json.dumps({"chat_template": listed}))
        assert name_of(tmp_path) == name
    (tmp_path / "chat_template.jinja").write_text(PUBLISHED_TEMPLATES["llama3"])
    assert name_of(tmp_path) == "llama3"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja has another chat template"):
        name_of(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for damaged in (b"{", b"[" * 100_000, b"\xff"):
        settings.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json( is|:) (no |.* nested)"):
            name_of(tmp_path)


def test_a_character_without_a_token_is_named():
    """Not dropped in silence."""
    from minibit.language import Vocabulary

    vocabulary = Vocabulary("ab c")
    for tokens in (Published(vocabulary.tokenizer(), "here"), Characters(vocabulary)):
        assert tokens.encode("a cab") == [0, 2, 3, 0, 1]
        with pytest.raises(ValueError, match="'é'"):
            tokens.encode("caé")
    with pytest.raises(ValueError, match="here is no tokenizer"):
        Published('{"model": 1}', "here")
    with pytest.raises(ValueError, match="got '-1'"):
        Numbers().encode("1 2, 3 -1")
    with pytest.raises(ValueError, match=r"needs <\|eot_id\|>"):
        TEMPLATES["bitnet"].message(Characters(Vocabulary("User: hi")), "user", "hi")


def changed(**fields):
    """The tokenizer with some of its fields changed."""
    return json.dumps(json.loads(TOKENIZER) | fields)


def test_a_prompt_is_neither_cut_nor_padded():
    """Published files may ask for both, and mean batches of training."""
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": MARKERS[0],
    }  # fmt: skip
    text = "the cat and the hat"
    for fields in ({"truncation": cut}, {"padding": pad}):
        for typed in (False, True):
            tokens = Published(changed(**fields), "here")
            assert tokens.encode(text, typed=typed) == WORDS.encode(text)


def test_a_tokenizer_that_makes_its_package_panic_is_an_error_in_words():
    """What its Rust code raises is no Exception: it must not pass every `except`."""
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(ValueError, match="here is no tokenizer: Precompiled"):
        Published(changed(normalizer=charsmap), "here")
    slow = {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "a"}
    with pytest.raises(ValueError, match="here fails on this text"):
        Published(changed(normalizer=slow), "here").encode("a" * 40 + "b")
    strip = {"type": "Strip", "content": "a", "start": 5, "stop": 5}
    with pytest.raises(ValueError, match=r"here fails on tokens \[\d+\]"):
        Published(changed(decoder=strip), "here").decode(WORDS.encode("a"))


# --- minibit generate


def test_a_generated_text_is_that_of_the_library(folder):
    """The first token before the prompt; then what `generate` yields, with the same seed."""
    options = {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "seed": 5}
    words = ("--temperature", 1.1, "--top-k", 50, "--top-p", 0.9, "--seed", 5)
    reply = answer("generate", folder, "--prompt", "the cat", "--count", 30, *words)
    prompt = [0, *WORDS.encode("the cat")]
    expected = list(generate(load_bitnet(folder), prompt, 30, **options, stop=[1]))
    assert reply["tokens"] == expected
    assert reply["prompt_tokens"] == len(prompt)
    assert reply["new_tokens"] == len(expected)
    assert reply["text"] == WORDS.decode(expected) or "\ufffd" in reply["text"]
    assert reply["stopped"] == ("count" if len(expected) == 30 else "end")
    assert reply["tokens_per_second"] > 0
    assert reply["seconds"] >= reply["prompt_seconds"] > 0
    other = answer("generate", folder, "--prompt", "the cat", "--count", 30, "--seed", 6)
    assert other["tokens"] != reply["tokens"]


def test_people_read_the_prompt_the_text_and_the_speed(folder):
    """On standard output; with --json the words go to standard error."""
    done = call("generate", folder, "--prompt", "the hat", "--count", 12, "--temperature", 0)
    assert done.exit_code == 0
    assert done.stdout.startswith("the hat")
    assert "tokens per second" in done.stdout
    quiet = call("generate", folder, "--prompt", "the hat", "--count", 12, "--json")
    assert len(quiet.stdout.splitlines()) == 1
    assert quiet.stderr.startswith("the hat")


def test_the_prompt_may_come_from_standard_input_or_be_empty(folder, bytes_folder):
    """'-' reads it; without one, the model's first token begins, or a line end."""
    typed = answer("generate", folder, "--prompt", "-", "--count", 5, typed="the cat")
    assert typed["prompt"] == "the cat"
    assert (
        typed["tokens"] == answer("generate", folder, "--prompt", "the cat", "--count", 5)["tokens"]
    )
    assert answer("generate", folder, "--count", 5)["prompt_tokens"] == 1
    assert answer("generate", bytes_folder, "--count", 5)["prompt_tokens"] == 1


def test_a_text_ends_where_generation_config_says(folder, tmp_path):
    """Each of the listed tokens ends it, and is not told."""
    words = ("--prompt", "the cat", "--count", 10, "--temperature", 0)
    whole = answer("generate", folder, *words)["tokens"]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [299, whole[4]]}))
    reply = answer("generate", copy, *words)
    assert reply["tokens"] == whole[: whole.index(whole[4])]
    assert reply["stopped"] == "end"
    (copy / "generation_config.json").write_text("nothing")
    assert "no JSON" in refused("generate", copy, *words, status=1)


def test_a_text_ends_where_the_positions_end(bytes_folder):
    """And says so."""
    reply = answer("generate", bytes_folder, "--prompt", "the cat", "--count", 500)
    assert reply["stopped"] == "positions"
    assert reply["prompt_tokens"] + reply["new_tokens"] == 120


def test_ctrl_c_ends_a_text_where_it_stands(folder, monkeypatch):
    """What came so far is told; the status says that it was interrupted."""
    real = Decoder.generate

    def interrupted(self, *arguments, **options):
        for number, token in enumerate(real(self, *arguments, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(Decoder, "generate", interrupted)
    reply = answer("generate", folder, "--prompt", "the cat", status=1)
    assert reply["new_tokens"] == 3
    assert reply["stopped"] == "interrupted"


def test_with_ids_a_text_is_numbers(folder):
    """The tokens themselves, nothing added."""
    reply = answer("generate", folder, "--ids", "--prompt", "7 8,9", "--count", 4)
    assert reply["prompt_tokens"] == 3
    assert [int(word) for word in reply["text"].split()] == reply["tokens"]
    assert "got 'x'" in refused("generate", folder, "--ids", "--prompt", "x", status=1)
    assert "[0, 299], got 300" in refused("generate", folder, "--ids", "--prompt", "300", status=1)


def test_a_gguf_file_speaks_by_the_tokenizer_in_it(folder, tmp_path):
    """Under the key that GGUF's specification has for it; else --tokenizer is asked for."""
    model, words = load_bitnet(folder), ("--prompt", "the cat", "--count", 8, "--temperature", 0)
    with_it, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
    options = {"kind": "i2_s", "layout": "rows"}
    save_gguf(model, with_it, **options, metadata={HUGGING_FACE: TOKENIZER})
    save_gguf(model, without, **options)
    expected = answer("generate", folder, *words)["tokens"]
    assert answer("generate", with_it, *words)["tokens"] == expected
    reply = answer("generate", without, *words, "--tokenizer", folder / "tokenizer.json")
    assert reply["tokens"] == expected


def test_a_model_of_our_own_speaks_characters(tmp_path):
    """The ``.npz`` of a training run: the vocabulary is in it."""
    from minibit.language import TrainedModel, Vocabulary, recipe, write_text

    vocabulary = Vocabulary("\n abcdefgh")
    model_recipe = recipe("55k", "b1.58")
    trained = TrainedModel(
        model_recipe,
        0,
        vocabulary,
        init_params(model_recipe.config(len(vocabulary)), 0),
        np.zeros(1, np.float32),
        0.0,
    )
    trained.save(tmp_path / "own.npz")
    reply = answer("generate", tmp_path / "own.npz", "--prompt", "a cab", "--count", 9)
    assert len(reply["text"]) == 9
    assert set(reply["text"]) <= set("\n abcdefgh")
    assert "'z'" in refused("generate", tmp_path / "own.npz", "--prompt", "zoo", status=1)
    turns = answer("chat", tmp_path / "own.npz", "--count", 50, typed="a bad cab\n")["turns"]
    assert "\n" not in turns[0]["text"]
    done = call("chat", tmp_path / "own.npz", typed="zoo\na cab\n")
    assert "not read: text has the character 'z'" in done.stderr
    assert done.exit_code == 0
    long = answer("generate", tmp_path / "own.npz", "--prompt", "a cab " * 20, "--count", 200)
    assert long["text"] == write_text(
        trained.model(), vocabulary, "a cab " * 20, 200, temperature=0.8
    )


def test_without_a_model_the_one_in_the_package_writes():
    """The same text for a seed, another for another; its characters are those of the book."""
    from minibit.language import shipped_model, write_text

    model, vocabulary = shipped_model()
    words = ("generate", "--prompt", "CAT, n. ", "--count", 100)
    reply = answer(*words, "--seed", 3)
    assert reply["text"] == answer(*words, "--seed", 3)["text"]
    assert reply["text"] == write_text(model, vocabulary, "CAT, n. ", 100, temperature=0.8, seed=3)
    assert reply["text"] != answer(*words, "--seed", 4)["text"]
    assert answer("generate", "--ids", "--prompt", "5 6", "--count", 3)["prompt_tokens"] == 2
    done = call("generate", "--count", 5)
    assert done.exit_code == 0
    assert "The model in the package" in done.output
    assert refused("chat")  # a model of one book answers nobody


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("words", [["generate"], ["chat"], ["convert", "out.gguf"]])
def test_a_pipe_for_a_model_is_not_waited_for(words, tmp_path):
    """Nobody writes to it: an error in place of a wait without end."""
    os.mkfifo(tmp_path / "pipe")
    command, *target = words
    assert "pipe: is no file" in refused(command, tmp_path / "pipe", *target, status=1)


def test_what_makes_no_sense_is_refused_by_name(folder, tmp_path, bytes_folder):
    """Status 2, one sentence, no traceback."""
    assert "no such file" in refused("generate", tmp_path / "none")
    assert "temperature must lie" in refused("generate", folder, "--temperature", -1)
    assert "temperature must lie" in refused("generate", folder, "--temperature", "nan")
    assert "top_p must lie" in refused("generate", folder, "--top-p", 0)
    assert "top_k must be" in refused("generate", folder, "--top-k", 0)
    assert "--seed" in refused("generate", folder, "--seed", 2**64)
    assert "--count" in refused("generate", folder, "--count", 0)
    assert "--threads" in refused("generate", folder, "--threads", 0)
    assert "--tokenizer" in refused("generate", folder, "--tokenizer", tmp_path / "none")
    assert "--template must be" in refused("chat", folder, "--template", "own")
    assert "no token of this model" in refused("chat", bytes_folder, "--template", "llama3")
    (tmp_path / "text").write_text("hello")
    assert "is no directory" in refused("generate", tmp_path / "text", status=1)


def test_what_does_not_work_is_told_in_one_sentence(folder, tmp_path):
    """Status 1: a damaged tokenizer, a prompt that is too long, a model that is none."""
    long = "the cat " * 200
    assert "at most 120 tokens" in refused("generate", folder, "--prompt", long, status=1)
    (tmp_path / "bad.json").write_text("{}")
    words = ("--tokenizer", tmp_path / "bad.json")
    assert "bad.json is no tokenizer" in refused("generate", folder, *words, status=1)
    assert "config.json" in refused("generate", tmp_path, status=1)
    assert "surrogate" in refused("generate", folder, "--prompt", "a\udcff", status=1)


def test_a_model_of_many_tokens_without_a_tokenizer_is_refused(tmp_path):
    """Its tokens are no bytes."""
    random_checkpoint(tmp_path / "m", BitNetConfig(513, 64, 64, 1, 2, 1, max_positions=32))
    assert "no tokenizer" in refused("generate", tmp_path / "m")
    assert (
        len(answer("generate", tmp_path / "m", "--ids", "--prompt", "512", "--count", 3)["tokens"])
        == 3
    )


def test_without_the_tokenizers_package_a_sentence_names_it(folder, monkeypatch):
    """What to install, and status 2."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install -e '.[app]'" in refused("generate", folder)


# --- minibit chat


def test_each_turn_goes_on_from_all_that_was_said(folder):
    """The answers are those of the whole conversation, read anew."""
    words = ("--count", 6, "--temperature", 0, "--system", "be brief")
    reply = answer("chat", folder, *words, typed="the cat?\n\nthe hat?\n/exit\nnever read\n")
    assert reply["template"] == "bitnet"
    assert [turn["user"] for turn in reply["turns"]] == ["the cat?", "the hat?"]
    turn, model = TEMPLATES["bitnet"], load_bitnet(folder)
    said = [0, *turn.message(WORDS, "system", "be brief")]
    for part in reply["turns"]:
        before = len(said)
        said += [*turn.message(WORDS, "user", part["user"]), *turn.opening(WORDS)]
        assert part["tokens"] == list(generate(model, said, 6, stop=[1, WORDS.token("<|eot_id|>")]))
        grown = part["prompt_tokens"] - (len(said) - before)
        assert grown == before if before == len(said) else grown >= 0
        said += [*part["tokens"], *turn.closing(WORDS)]


def test_a_turn_reads_only_its_own_tokens(folder, monkeypatch):
    """The cache is kept: over all turns, every token is read once."""
    decoders = []
    real = language.Decoder

    def remembered(*arguments, **options):
        decoders.append(real(*arguments, **options))
        return decoders[-1]

    monkeypatch.setattr(language, "Decoder", remembered)
    turns = answer("chat", folder, "--count", 4, typed="the cat?\nthe hat?\n")["turns"]
    assert len(decoders) == 1
    total = sum(turn["prompt_tokens"] + turn["new_tokens"] for turn in turns)
    assert len(decoders[0].text) == total
    assert decoders[0].cache.length >= total - 1


def test_new_forgets_and_a_full_chat_says_how_to_go_on(folder):
    """/new gives the first answer again; what does not fit is refused, and the chat lives on."""
    words = ("--count", 5, "--temperature", 0)
    twice = answer("chat", folder, *words, typed="the cat?\n/new\nthe cat?\n")["turns"]
    assert twice[0]["tokens"] == twice[1]["tokens"]
    assert twice[0]["prompt_tokens"] == twice[1]["prompt_tokens"]
    done = call("chat", folder, *words, typed="the cat " * 200 + "\n/new\nthe cat?\n")
    assert done.exit_code == 0
    assert "at most 120 tokens" in done.stderr
    assert "/new begins again" in done.stderr


def test_ctrl_c_stops_an_answer_and_not_the_chat(folder, monkeypatch):
    """The next line is answered."""
    real = Decoder.generate

    def interrupted(self, *arguments, **options):
        for number, token in enumerate(real(self, *arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(Decoder, "generate", interrupted)
    turns = answer("chat", folder, typed="the cat?\nthe hat?\n")["turns"]
    assert [turn["stopped"] for turn in turns] == ["interrupted", "interrupted"]
    assert [turn["new_tokens"] for turn in turns] == [2, 2]


def test_a_chat_without_a_word_ends_well(folder, bytes_folder):
    """End of input at once; a model without a template gets the plain one."""
    assert answer("chat", folder)["turns"] == []
    assert answer("chat", bytes_folder)["template"] == "plain"
    assert answer("chat", folder, "--template", "chatml")["template"] == "chatml"


PIECES = {"é": 0, "e": 1, "▁": 2, "f": 3, "i": 4}


def pieces(normalizer):
    """A tokenizer.json of five characters, with a normalizer."""
    model = {"type": "BPE", "vocab": PIECES, "merges": []}
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}
    )


SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.mark.parametrize(
    ("normalizer", "text", "tokens"),
    [
        ({"type": "NFC"}, "e\u0301", [0]),
        ({"type": "NFKC"}, "\ufb01", [3, 4]),
        (
            {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
            "é",
            [1],
        ),
        (SPACE, "e e", [1, 2, 1]),
        (
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACE]},
            "e",
            [2, 1],
        ),
    ],
    ids=str,
)
def test_a_normalizer_may_join_drop_and_replace_characters(normalizer, text, tokens):
    """What it makes of a text has tokens, so the text has; a character without one is named."""
    published = Published(pieces(normalizer), "here")
    assert published.encode(text) == published.encode(text, typed=True) == tokens
    with pytest.raises(ValueError, match="no token for 'z'"):
        published.encode("z")


def test_a_tokenizer_that_ends_its_process_is_refused():
    """A map of characters that claims gigabytes: the crate aborts, and this process goes on."""
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "////////"}
    with pytest.raises(ValueError, match="here is no tokenizer: reading it ended a process"):
        Published(pieces(charsmap), "here")


def test_end_tokens_and_template_travel_in_a_gguf_file(tmp_path):
    """Several end tokens, those of generation_config.json, and the chat template."""
    config = BitNetConfig(
        300, 256, 256, 1, heads=4, kv_heads=2, max_positions=64, eos=(5, 7, 9, 11)
    )
    random_checkpoint(tmp_path / "a", config)
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [5, 13]}')
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"chat_template": "<|im_start|>"}')
    call("convert", tmp_path / "a", tmp_path / "a.gguf")
    loaded = language._load(tmp_path / "a.gguf", None, True)
    assert loaded.model.config.ends == (5, 7, 9, 11)
    assert loaded.stop == {5, 7, 9, 11, 13}
    assert template_name(loaded.template, "") == "chatml"
    call("convert", tmp_path / "a.gguf", tmp_path / "b")
    assert load_bitnet(tmp_path / "b").config == config
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "<|im_start|>"


@pytest.mark.parametrize(
    ("family", "template", "end"),
    [("llama", "llama3", "<|eot_id|>"), ("qwen3", "chatml", "<|im_end|>")],
)
def test_other_families_write_and_chat_from_directories_and_gguf_files(
    family, template, end, tmp_path
):
    """Tokens are the library's, the template that of the file, and its end ends an answer."""
    stop = WORDS.token(end)
    config = BitNetConfig(
        300, 256, 512, 1, 4, 2, 120, family=family, own_head_dim=128, bos=0, eos=(1, stop)
    )
    directory, gguf = tmp_path / "a", tmp_path / "a.gguf"
    random_checkpoint(directory, config)
    (directory / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    (directory / "chat_template.jinja").write_text(PUBLISHED_TEMPLATES[template])
    call("convert", directory, gguf, "--kind", "q2_0")
    words = ("--count", 6, "--temperature", 0)
    for path, model in ((directory, load_bitnet(directory)), (gguf, load_gguf(gguf))):
        prompt = [0, *WORDS.encode("the cat")]
        reply = answer("generate", path, "--prompt", "the cat", *words)
        assert reply["tokens"] == list(generate(model, prompt, 6, stop=[1, stop]))
        chat = answer("chat", path, *words, typed="the cat?\n/exit\n")
        assert chat["template"] == template
        turn = TEMPLATES[template]
        said = [0, *turn.message(WORDS, "user", "the cat?"), *turn.opening(WORDS)]
        assert chat["turns"][0]["tokens"] == list(generate(model, said, 6, stop=[1, stop]))
        assert language._load(path, None, True).stop == {1, stop}


def test_a_first_token_beyond_the_vocabulary_is_named_when_a_text_begins(tmp_path):
    """Random small models have one: they load and compute; only text needs the token."""
    random_checkpoint(
        tmp_path / "a", BitNetConfig(300, 64, 64, 1, 4, 2, 64, bos=128000, eos=128001)
    )
    assert load_bitnet(tmp_path / "a").logits([[1, 2]]).shape == (1, 2, 300)
    words = ("generate", tmp_path / "a", "--prompt", "a", "--count", 2)
    assert "bos token is 128000, beyond the vocabulary of 300" in refused(*words, status=1)
