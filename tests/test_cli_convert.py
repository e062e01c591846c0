"""``minibit convert``: every kind of file becomes every other, and is the same model."""

import dataclasses
import hashlib
import json
from functools import partial

import numpy as np
import pytest

from minibit.checkpoint import load_bitnet, load_gguf, save_bitnet, save_gguf
from minibit.checkpoint.gguf.container import open_gguf
from minibit.checkpoint.gguf.tokenizer import ggml_tokenizer
from minibit.ternary import TernaryMatrix
from minibit.transformer import BitNetConfig, BitNetModel, float_linear, init_params, pack_params

typer = pytest.importorskip("typer")

import commands  # noqa: E402
from minibit.cli import convert as module  # noqa: E402

CONFIG = BitNetConfig(11, 256, 256, layers=1, heads=4, kv_heads=2, max_positions=64, bos=1, eos=2)
TOKENIZER = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"é": 0}}}'
TOKENS = np.arange(24).reshape(2, 12) % 11
call, answer, refused = (
    partial(run, "convert") for run in (commands.call, commands.answer, commands.refused)
)


def tree(folder):
    """Every file under a folder with the digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def codes_of(model):
    """Codes of every projection."""
    return {
        name: value.codes() if isinstance(value, TernaryMatrix) else value
        for name, value in model.params.items()
    }


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory with a tokenizer."""
    model = BitNetModel(CONFIG, pack_params(init_params(CONFIG, seed=0)))
    save_bitnet(model, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    (tmp_path / "hf" / "generation_config.json").write_text("{}")
    return tmp_path / "hf"


@pytest.mark.parametrize("layout", ["x86", "arm", "rows"])
def test_hugging_face_to_gguf_and_back_is_the_same_model_bit_for_bit(layout, directory):
    """HF -> I2_S -> HF: the same safetensors file, the same logits, the same tokenizer."""
    gguf, back = directory.parent / "m.gguf", directory.parent / "back"
    there = answer(directory, gguf, "--kind", "i2_s", "--layout", layout)
    home = answer(gguf, back)
    assert there["digest"] == home["digest"]
    assert there["largest_scale_change"] == home["largest_scale_change"] == 0
    assert there["largest_logit_difference"] == home["largest_logit_difference"] == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (back / name).read_bytes() == (directory / name).read_bytes(), name
    assert load_bitnet(back).config == load_bitnet(directory).config
    logits = [load(path).logits(TOKENS) for load, path in ((load_bitnet, directory),
              (load_gguf, gguf), (load_bitnet, back))]  # fmt: skip
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0"])
def test_ggmls_types_round_scales_to_float16_and_the_report_says_by_how_much(kind, directory):
    """Codes equal; scales the nearest float16, so within 2**-11; logits near, and reported."""
    gguf = directory.parent / "m.gguf"
    report = answer(directory, gguf, "--kind", kind)
    before, after = load_bitnet(directory), load_gguf(gguf)
    assert report["format"] == f"GGUF, {kind.upper()}"
    assert report["projections"] == 7
    assert 0 < report["largest_scale_change"] <= 2**-11
    for name, value in before.params.items():
        if isinstance(value, TernaryMatrix):
            np.testing.assert_array_equal(after.params[name].codes(), value.codes())
            assert after.params[name].scale == np.float32(np.float16(value.scale))
    difference = np.abs(before.logits(TOKENS) - after.logits(TOKENS)).max()
    assert 0 < difference < 0.1
    assert 0 < report["largest_logit_difference"] < 0.1
    assert report["bytes"] == gguf.stat().st_size
    back = directory.parent / "back"
    home = answer(gguf, back, "--linear", "autobitlinear")
    assert home["largest_scale_change"] == home["largest_logit_difference"] == 0
    assert home["digest"] == report["digest"]


@pytest.mark.parametrize("linear", ["bitlinear", "autobitlinear"])
def test_a_directory_becomes_one_of_another_linear_class(linear, directory):
    """The same codes; scales equal but for the last bit of a reciprocal."""
    other = directory.parent / "other"
    report = answer(directory, other, "--linear", linear)
    assert report["format"] == f"Hugging Face, {linear}"
    assert report["largest_scale_change"] <= 2**-22
    written = json.loads((other / "config.json").read_text())
    assert written["quantization_config"].get("linear_class", "bitlinear") == linear
    assert (other / "generation_config.json").read_text() == "{}"


def test_gguf_becomes_gguf_of_another_kind(directory):
    """I2_S -> TQ1_0 -> TQ2_0: the second step changes nothing any more."""
    a, b, c = (directory.parent / f"{name}.gguf" for name in "abc")
    answer(directory, a, "--kind", "i2_s")
    answer(a, b, "--kind", "tq1_0")
    assert answer(b, c, "--kind", "tq2_0")["largest_scale_change"] == 0
    assert open_gguf(c).metadata["tokenizer.huggingface.json"] == TOKENIZER


def test_a_file_that_is_silent_about_its_layout_is_read_by_source_layout(directory):
    """--source-layout names the order; the default would give other weights."""
    model = load_bitnet(directory)
    path = directory.parent / "arm.gguf"
    meta = {"minibit.i2_s_layout": "x86"}  # a file that says nothing, or says it wrong
    save_gguf(model, path, "i2_s", layout="arm", metadata=meta)
    right = answer(path, directory.parent / "right", "--source-layout", "arm")
    wrong = answer(path, directory.parent / "wrong")
    assert right["digest"] == answer(directory, directory.parent / "m.gguf")["digest"]
    assert wrong["digest"] != right["digest"]


def test_a_model_of_our_own_becomes_a_directory_and_a_gguf_file(tmp_path):
    """Latent weights are packed, or kept as masters; characters become a tokenizer."""
    from minibit.language import TrainedModel, Vocabulary, recipe

    model_recipe = recipe("55k", "b1.58")
    vocabulary = Vocabulary("\n abé€")
    config = model_recipe.config(len(vocabulary))
    params = init_params(config, seed=1)
    trained = TrainedModel(model_recipe, 0, vocabulary, params, np.zeros(0, np.float32), 0.0)
    trained.save(tmp_path / "own.npz")
    report = answer(tmp_path / "own.npz", tmp_path / "hf")
    assert report["source_format"] == "minibit"
    expected = trained.model()
    for name, value in codes_of(load_bitnet(tmp_path / "hf")).items():
        np.testing.assert_array_equal(value, codes_of(expected)[name], err_msg=name)
    answer(tmp_path / "own.npz", tmp_path / "m.gguf", "--kind", "i2_s", "--layout", "rows")
    answer(tmp_path / "own.npz", tmp_path / "masters", "--linear", "online")
    kept = load_bitnet(tmp_path / "masters").params
    for name, value in params.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    text = "a bé\n€€ba"
    assert tokenizer.encode(text).ids == vocabulary.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_float_models_stay_float_and_are_no_gguf_files(tmp_path):
    """A model of float_linear goes from directory to directory; GGUF of BitNet is ternary."""
    save_bitnet(
        BitNetModel(CONFIG, init_params(CONFIG, 0), float_linear), tmp_path / "f", linear_class=None
    )
    assert answer(tmp_path / "f", tmp_path / "g")["projections"] == 0
    assert load_bitnet(tmp_path / "g").linear is float_linear
    assert "ternary projections" in refused(tmp_path / "f", tmp_path / "m.gguf", status=1)
    assert not (tmp_path / "m.gguf").exists()


def test_words_for_people_say_what_is_equal(directory):
    """Without --json: sentences, sizes, and what the format changed."""
    done = call(directory, directory.parent / "m.gguf")
    assert done.exit_code == 0
    assert "m.gguf is the model of" in done.stdout
    assert "codes          equal, 7 projections of 13 tensors" in done.stdout
    assert "rounded by the format" in done.stdout


def test_a_missing_tokenizer_is_said(directory):
    """A GGUF file without one is a model without words."""
    (directory / "tokenizer.json").unlink()
    done = call(directory, directory.parent / "m.gguf")
    assert "no tokenizer.json" in done.stderr


def byte_level(**changes):
    """A small byte-level tokenizer.json, with a pattern, a marker and room for more tokens."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": words + rest}, "behavior": "Isolated"}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    marker = {"id": 4, "content": "<s>", "special": True}
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}]
    return {
        "added_tokens": [marker, {"id": 5, "content": "<tool>", "special": False}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "post_processor": {"type": "TemplateProcessing", "single": first},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "Ġa": 2, "Ġ": 3},
            "merges": [["Ġ", "a"]],
        },
    } | changes


def test_a_byte_level_tokenizer_is_also_written_in_the_words_of_llama_cpp(directory):
    """Tokens by number, their kinds, merges, the name of the pattern: and no warning."""
    (directory / "tokenizer.json").write_text(json.dumps(byte_level()))
    done = call(directory, directory.parent / "m.gguf")
    assert done.exit_code == 0
    assert "warning" not in done.stderr
    entries = ggml_tokenizer(json.dumps(byte_level()), CONFIG.vocab_size)
    pads = [f"[PAD{i}]" for i in range(6, 11)]
    assert entries == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "Ġa", "Ġ", "<s>", "<tool>", *pads],
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 4, 5, 5, 5, 5, 5],
        "tokenizer.ggml.merges": ["Ġ a"],
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.add_bos_token": True,
    }
    metadata = open_gguf(directory.parent / "m.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert set(entries) <= set(metadata)


def test_what_llama_cpp_cannot_know_of_a_tokenizer_is_said(directory):
    """Another pattern has no name; another kind of tokenizer is carried, for minibit alone."""
    file = directory / "tokenizer.json"
    other = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated"}
    file.write_text(json.dumps(byte_level(pre_tokenizer=other)))
    assert "no name is known" in call(directory, directory.parent / "a.gguf").stderr
    file.write_text(TOKENIZER, encoding="utf-8")
    assert "llama.cpp cannot use it" in call(directory, directory.parent / "b.gguf").stderr
    assert ggml_tokenizer(TOKENIZER, 11) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no tokenizer.json"),
        ("[]", "no tokenizer.json"),
        (json.dumps(byte_level(pre_tokenizer=[1])), "no tokenizer.json"),
        (json.dumps(byte_level(added_tokens=[{"id": 4}])), "no tokenizer.json: KeyError"),
        (json.dumps(byte_level(added_tokens=[{"id": 4, "content": 5}])), "no tokenizer.json"),
        ('{"model": ' + "[" * 100_000, "nested over 64 deep"),
        (json.dumps(byte_level(added_tokens=[{"id": 11, "content": "x"}])), "number 11, of 11"),
        (json.dumps(byte_level(added_tokens=[{"id": 0, "content": "x"}])), "'a' and 'x' as 0"),
    ],
)
def test_a_broken_tokenizer_ends_the_conversion(text, message, directory):
    """Status 1, and no file: a model with the wrong words is no model."""
    (directory / "tokenizer.json").write_text(text)
    assert message in refused(directory, directory.parent / "m.gguf", status=1)
    assert not (directory.parent / "m.gguf").exists()


# --- nothing is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "other"])
def test_nothing_is_overwritten_without_being_asked(name, directory):
    """Status 2, and every byte as it was; --force replaces the whole."""
    target = directory.parent / name
    answer(directory, target)
    before = tree(directory.parent)
    assert "nothing was changed" in refused(directory, target, "--kind", "i2_s")
    assert tree(directory.parent) == before
    answer(directory, target, "--kind", "i2_s", "--force")
    assert tree(directory) == {key[3:]: v for key, v in before.items() if key.startswith("hf/")}
    load_gguf(target) if name == "m.gguf" else load_bitnet(target)


def test_force_replaces_checkpoints_only(directory):
    """A text, a folder of other things, a folder that holds folders: never."""
    other = directory.parent / "notes"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert "more than a checkpoint" in refused(directory, other, "--force")
    text = directory.parent / "letter.gguf"
    text.write_text("dear")
    assert "no GGUF file" in refused(directory, text, "--force")
    deep = directory.parent / "deep"
    answer(directory, deep)
    (deep / "inner").mkdir()
    assert "more than a checkpoint" in refused(directory, deep, "--force")
    assert (other / "thesis.tex").exists()
    assert text.read_text() == "dear"


def test_force_keeps_what_is_no_part_of_the_old_checkpoint(directory):
    """A card and notes stay and are named; weights and words of the old model go, shards too."""
    target = directory.parent / "out"
    answer(directory, target)
    old = {"README.md": "my model", "notes.txt": "a week of work", "adapter_model.safetensors": "x"}
    for name, text in old.items():
        (target / name).write_text(text)
    for name in ("vocab.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (target / name).write_text("of the old model")
    report = answer(directory, target, "--linear", "autobitlinear", "--force")
    assert report["kept"] == sorted(old)
    assert {name: (target / name).read_text() for name in old} == old
    assert set(tree(target)) == {*old, *tree(directory)}
    assert report["bytes"] == sum(
        file.stat().st_size for file in target.iterdir() if file.name not in old
    )
    text = call(directory, target, "--force").output
    assert "README.md, adapter_model.safetensors, notes.txt" in " ".join(text.split())
    assert answer(directory, directory.parent / "new")["kept"] == []


@pytest.mark.parametrize("name", ["m.gguf", "other"])
@pytest.mark.parametrize("there", [False, True])
def test_a_model_that_came_out_another_is_not_kept(name, there, directory, monkeypatch):
    """The comparison fails: status 1, no file under any name, and the old one as it was."""
    target = directory.parent / name
    if there:
        answer(directory, target)
    before = tree(directory.parent)
    right = load_gguf, load_bitnet

    def damaged(load):
        def read(path, **words):
            model = load(path, **words)
            if path != directory:
                matrix = model.params["layers.0.mlp.up_proj"]
                codes = matrix.codes()
                codes[3, 4] = (codes[3, 4] + 2) % 3 - 1
                changed = TernaryMatrix.from_codes(codes, matrix.scale)
                model.params["layers.0.mlp.up_proj"] = changed
            return model

        return read

    monkeypatch.setattr(module.checkpoint, "load_gguf", damaged(right[0]))
    monkeypatch.setattr(module.checkpoint, "load_bitnet", damaged(right[1]))
    message = refused(directory, target, "--force", status=1)
    assert "the codes of layers.0.mlp.up_proj differ" in message
    assert tree(directory.parent) == before
    assert not list(directory.parent.glob(".*"))


def test_a_link_out_of_the_directory_is_not_copied(directory, tmp_path):
    """A stranger's tokenizer.json may be a link to a secret, and what is converted be published."""
    (tmp_path / "secret").write_text("my own")
    (directory / "tokenizer.json").unlink()
    try:
        (directory / "tokenizer.json").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("no symbolic links here")
    for target in ("m.gguf", "out"):
        message = refused(directory, tmp_path / target, status=1)
        assert "'tokenizer.json' is a link out of the directory" in message
        assert not (tmp_path / target).exists()


def test_a_tokenizer_that_is_no_utf_8_is_named(directory):
    """Before a byte of the target is there."""
    (directory / "tokenizer.json").write_bytes(b"{\xff")
    message = refused(directory, directory.parent / "m.gguf", status=1)
    assert "tokenizer.json is no UTF-8 text: byte 1" in message
    assert not (directory.parent / "m.gguf").exists()


def test_a_comparison_sees_every_difference():
    """Configuration, a float, a scale, beyond and within the leeway."""
    model = BitNetModel(CONFIG, pack_params(init_params(CONFIG, seed=0)))

    def other(name, value):
        return BitNetModel(CONFIG, model.params | {name: value})

    q = "layers.0.self_attn.q_proj"
    matrix = model.params[q]
    moved = TernaryMatrix.from_codes(matrix.codes(), matrix.scale * np.float32(1.0003))
    norm = model.params["norm"].copy()
    norm[5] = np.nextafter(norm[5], 2)
    longer = BitNetModel(dataclasses.replace(CONFIG, max_positions=65), model.params)
    for theirs, message in (
        (longer, "configuration differs"),
        (other("norm", norm), "norm differs"),
        (other(q, moved), "scale of layers.0.self_attn.q_proj differs"),
    ):
        with pytest.raises(ValueError, match=message):
            module.compare(model, theirs)
    report = module.compare(model, other(q, moved), 2**-11)
    assert report["largest_scale_change"] == pytest.approx(3e-4, rel=1e-2)
    assert report["largest_logit_difference"] > 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere", "m.gguf"], "nowhere: there is no such file"),
        (["hf", "m.gguf", "--kind", "q4_0"], "--kind must be one of"),
        (["hf", "m.gguf", "--kind", "i2_s", "--layout", "ppc"], "--layout must be one of"),
        (["hf", "m.gguf", "--source-layout", "ppc"], "--source-layout must be one of"),
        (["hf", "out", "--linear", "dense"], "--linear must be one of"),
        (["hf", "m.gguf", "--linear", "bitlinear"], "for directories"),
        (["hf", "out.safetensors"], "a .gguf file or a directory"),
        (["hf", "no/such/m.gguf"], "there is no folder"),
    ],
)
def test_what_makes_no_sense_is_bad_use(words, complaint, directory, monkeypatch):
    """Status 2, one sentence, nothing written."""
    monkeypatch.chdir(directory.parent)
    before = tree(directory.parent)
    assert complaint in refused(*words)
    assert tree(directory.parent) == before


def test_a_source_of_another_kind_or_damaged_is_a_failure_that_names_it(directory):
    """Status 1: what a file is not, and the byte where a header ends early."""
    text = directory.parent / "letter.txt"
    text.write_text("dear")
    assert "no GGUF file and no model" in refused(text, directory.parent / "m.gguf", status=1)
    gguf = directory.parent / "m.gguf"
    answer(directory, gguf)
    gguf.write_bytes(gguf.read_bytes()[:1000])
    message = refused(gguf, directory.parent / "out", status=1)
    assert "m.gguf" in message
    assert "byte" in message
    assert not (directory.parent / "out").exists()


def test_a_shape_that_a_kind_cannot_hold_is_a_failure_that_names_the_projection(tmp_path):
    """TQ2_0 takes n_in in multiples of 256: no silent change to floats."""
    config = dataclasses.replace(CONFIG, hidden_size=64)
    save_bitnet(BitNetModel(config, init_params(config, 0)), tmp_path / "hf")
    message = refused(tmp_path / "hf", tmp_path / "m.gguf", status=1)
    assert "q_proj cannot be written as tq2_0" in message
    assert "i2_s in the layout 'rows' takes every shape" in message
    answer(tmp_path / "hf", tmp_path / "m.gguf", "--kind", "i2_s", "--layout", "rows")


LLAMA = dataclasses.replace(CONFIG, family="llama", own_head_dim=128, tied=False, layers=2)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", tied=True)


def grouped(config, group, linear=float_linear):
    """A model with scales of groups, in float16."""
    rng = np.random.default_rng(0)
    params = pack_params(init_params(config, 0))
    for name, value in params.items():
        if isinstance(value, TernaryMatrix):
            shape = value.shape[0], value.shape[1] // group
            scale = rng.uniform(0.04, 0.08, shape).astype(np.float16)
            params[name] = TernaryMatrix.from_codes(value.codes(), scale)
    return BitNetModel(config, params, linear)


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["q2_0", "pq2_0", "ptq1_0", "tq2_0"])
def test_group_wise_models_go_through_gguf_and_back_bit_for_bit(config, kind, tmp_path):
    """Plain floats -> blocks -> plain floats: the same files and logits, and floats beside them."""
    save_bitnet(grouped(config, 256), tmp_path / "hf", linear_class=None)
    there = answer(tmp_path / "hf", tmp_path / "m.gguf", "--kind", kind)
    home = answer(tmp_path / "m.gguf", tmp_path / "back")
    assert there["digest"] == home["digest"]
    assert there["largest_scale_change"] == home["largest_scale_change"] == 0
    assert there["largest_logit_difference"] < 1e-5
    assert home["format"] == "Hugging Face, float"
    for name in ("config.json", "model.safetensors"):
        ours, theirs = (tmp_path / folder / name for folder in ("hf", "back"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_group_wise_file_of_others_becomes_a_directory_of_floats(tmp_path):
    """A packed embedding too; and a kind whose blocks are wider than the groups is a failure."""
    model = grouped(QWEN3, 64, None)
    codes = np.random.default_rng(1).integers(-1, 2, (11, 256))
    scale = np.linspace(0.1, 0.2, 44, dtype=np.float16).reshape(11, 4)
    model.params["embed_tokens"] = TernaryMatrix.from_codes(codes, scale)
    save_gguf(model, tmp_path / "m.gguf", "q2_0")
    report = answer(tmp_path / "m.gguf", tmp_path / "hf")
    assert report["format"] == "Hugging Face, float"
    table = load_bitnet(tmp_path / "hf").params["embed_tokens"]
    np.testing.assert_array_equal(table, model.params["embed_tokens"].rows())
    failed = call(tmp_path / "m.gguf", tmp_path / "other.gguf", "--kind", "tq2_0")
    assert failed.exit_code == 1
    assert "a block of 256 columns has one scale there" in " ".join(failed.output.split())
    assert not (tmp_path / "other.gguf").exists()


def test_words_about_a_llama_name_its_readers(tmp_path):
    """llama.cpp knows its architecture, unlike a BitNet's."""
    save_bitnet(grouped(LLAMA, 256), tmp_path / "hf", linear_class=None)
    said = " ".join(call(tmp_path / "hf", tmp_path / "m.gguf", "--kind", "q2_0").output.split())
    assert "llama.cpp has the architecture" in said
    assert "bitnet-b1.58" not in said
