"""The language-neutral vectors: one schema, every case holds, and every case catches its bugs."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import minibit
from minibit.conformance import cases, decode, encode, judge
from minibit.conformance.cases import functions_named, notes, read_file, vector_files
from minibit.conformance.exact import EXACT
from minibit.conformance.generate import differences, main
from minibit.conformance.mutations import MUTATIONS, answer_with
from minibit.conformance.running import answer_of, offered_as
from minibit.conformance.schema import KEYWORDS, faults
from minibit.conformance.writing import dump

FILES = vector_files()
CASES = [case for name in FILES for case in cases(name)]
PAIRS = [(case, mutation) for case in CASES for mutation in case.mutations]


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case, path, monkeypatch):
    """What the case expects, with the kernels and with plain NumPy."""
    monkeypatch.setenv("MINIBIT_KERNELS", path)
    answer = answer_of(case, minibit)
    deviation = judge(case, answer)
    assert deviation is None, f"{deviation}; {answer.get('refused')}"


@pytest.mark.parametrize(("case", "mutation"), PAIRS, ids=lambda v: getattr(v, "id", v))
def test_mutation_is_caught(case, mutation):
    """The case fails where its function is wrong in the way that the case is about: in silence."""
    answer = answer_with(case, mutation, minibit)
    deviation = judge(case, answer)
    assert deviation is not None
    misread = "codes go past the payload's end" in answer.get("refused", "")
    assert misread or "out" in answer, deviation  # where it must refuse, too, it runs


@pytest.mark.parametrize("name", FILES)
def test_file_is_as_the_schema_says(name):
    """Fields, types and patterns; the number of tests; ids of the file, each once."""
    content = read_file(name)
    assert not list(faults(content, read_file("schema")))
    ids = [entry["id"] for entry in content["cases"]]
    assert content["numberOfTests"] == len(ids) == len(set(ids))
    assert content["module"] == name
    assert all(identity.startswith(f"{name}/") for identity in ids)


@pytest.mark.parametrize("name", FILES)
def test_file_is_written_as_the_writer_writes_it(name):
    """So that a change of one case is a change of its lines alone."""
    path = Path(minibit.__file__).parent / "vectors" / f"{name}.json"
    assert path.read_text(encoding="utf-8") == dump(read_file(name))


@pytest.mark.parametrize("name", FILES)
def test_flags_notes_and_mutations_belong_together(name):
    """A note for every flag and no other; the mutations of a case are those of its flags."""
    flags = {flag for case in cases(name) for flag in case.flags}
    assert flags == set(notes(name))
    for case in cases(name):
        assert {mutation.split("/")[1] for mutation in case.mutations} == set(case.flags), case.id


def test_every_mutation_has_a_case():
    """No wrong variant is listed that nothing is tried on."""
    assert {mutation for _, mutation in PAIRS} == set(MUTATIONS)


UNNAMED = {  # what no case names, and why
    **dict.fromkeys(
        (
            *("absmax_quantize_reference", "absmean_quantize_reference", "head_matmul_reference"),
            *("dequantize_nf4_reference", "nf4_matmul_reference", "quantize_nf4_reference"),
            *("ternary_matmul_int8_reference", "ternary_matmul_reference", "topk_mask_reference"),
        ),
        "the cases of the function whose plain version it is run it, without kernels",
    ),
    **dict.fromkeys(
        ("ClusterResult", "Progress", "Split", "StepResult", "TrainResult"),
        "a record: its fields are in the answers of what returns it",
    ),
    **dict.fromkeys(("Sampled", "Units"), "settings, which cases name by their methods"),
    "Dual": "how tangents are carried is an implementation's own; `jvp` says what comes of them",
    "Pullback": "what `vjp` returns, and its cases call",
    "Traffic": "counts bytes of connections, which are no function of arguments",
    "train_on": "needs worker processes; the result is that of `train`",
    "local_cluster": "starts worker processes",
    "load_text": "reads a file as it is",
    "shipped_log": "a file of the package",
    "random_checkpoint": "bytes to measure by, whose values no format states",
    **dict.fromkeys(
        (
            "Sampled.keep",
            "Sampled.measure",
            "Sampled.measure_chunks",
            "Units.keep",
            "Units.measure",
        ),
        "a part of `NoiseStep.step`, whose cases have its sums, scores and choices",
    ),
    **dict.fromkeys(
        (
            *("Decoder.append", "Decoder.forget", "Decoder.generate", "Decoder.logits"),
            *("KVCache.claim", "KVCache.extend", "KVCache.reserve"),
        ),
        "state on the way to what other cases have: the logits and words of a whole text",
    ),
    "Adam.step": "what the cases of `Adam` call, step after step",
    "PagedAdam.step": "Adam in pages, which tests hold equal to Adam",
    "custom_jvp.defjvp": "gives a function the rule that the cases of `custom_jvp` have",
    **dict.fromkeys(
        ("from_mxfp4", "from_nvfp4", "to_mxfp4", "to_nvfp4"),
        "a format of hardware beside NF4, whose oracle is the package gguf",
    ),
    "Plan.differences": "words for a message",
    **dict.fromkeys(("Diagnosis", "doctor"), "an opinion on a file, from statistics"),
    "RotatedMatrix": "a product after `walsh_hadamard`, whose law is Sylvester's matrix",
    "RotatedMatrix.turned": "`walsh_hadamard` with its own signs and block",
    "walsh_hadamard": "its rounding is bounded, and its law is Sylvester's matrix",
    "optimal_codebook": "an integral to the last bits of float32, for which ports have no use",
    "LogError.of": "names a file in a message",
    "TernaryMatrix.rows": "scale times codes, both of which the cases of products have",
    "PagedAdam.close": "gives files back",
    "StepLog.close": "gives the lock on a file back",
}


def named_by_cases():
    """Return all public names that some case names."""
    return set().union(*map(functions_named, CASES))


def test_every_public_callable_is_named_by_a_case_or_has_a_reason():
    """Names at the top, and methods; and no reason is kept for one that a case names."""
    top = {name: getattr(minibit, name) for name in minibit.__all__}
    public = {name for name, value in top.items() if callable(value)}
    for name, cls in top.items():
        bases = cls.__mro__ if inspect.isclass(cls) else ()
        own = [vars(base) for base in bases if base.__module__.startswith("minibit.")]
        public |= {
            f"{name}.{method}"
            for members in own
            for method, value in members.items()
            if not method.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, classmethod | staticmethod))
        }
    assert public - named_by_cases() == set(UNNAMED)


def test_cases_name_two_hundred_public_callables():
    """Functions, classes, methods, and functions of rooms."""
    assert len(named_by_cases()) >= 200


def test_vectors_are_small():
    """A suite that every port can carry: below 4 MB."""
    folder = Path(minibit.__file__).parent / "vectors"
    assert sum(path.stat().st_size for path in folder.glob("*.json")) < 4_000_000


def test_cases_call_public_names():
    """The call, and functions and objects among its arguments; of a room and a class, too."""
    for case in CASES:
        for name in functions_named(case):
            room, _, inner = name.rpartition(".")
            owner = offered_as(room, minibit) if room else minibit
            public = dir(owner) if room else minibit.__all__
            assert inner in public, f"{case.id}: {name}"
            assert not inner.startswith("_"), f"{case.id}: {name}"


@pytest.mark.parametrize("name", FILES)
def test_exact_expectations_are_those_of_the_generator(name):
    """Fractions and integers, without the function under test, give the same bits."""
    assert list(differences(name)) == []


def test_the_generator_checks_all_files_by_default(capsys):
    """Without names it goes through every file of the schema, and finds nothing."""
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_the_generator_reports_what_differs(monkeypatch, capsys):
    """A changed expectation is named by its case, and the exit status is 1."""
    monkeypatch.setitem(EXACT, "absmean_quantize", lambda w: (np.int8(w), np.float32(0)))
    assert main(["--check", "absmean"]) == 1
    assert "absmean/mean-of-magnitudes: result 0 at [0, 1]" in capsys.readouterr().out


def test_reading_form_is_that_of_the_bits():
    """What people read beside the bits is what they say."""

    def check(value):
        """Compare at any depth."""
        if isinstance(value, dict) and "reads" in value:
            assert encode(decode(value), reads=True)["reads"] == value["reads"]
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                check(item)

    for name in FILES:
        check(read_file(name)["cases"])


def test_values_travel_as_bits():
    """-0, NaN, subnormal numbers, 64-bit integers, truth values and empty arrays come back."""
    for array in (
        np.float32([-0.0, np.nan, 1e-45, np.inf]),
        np.array([[2**64 - 1, 1]], np.uint64),
        np.array([True, False]),
        np.zeros((2, 0), np.int8),
        np.float16([1.5]),
    ):
        back = decode(json.loads(json.dumps(encode(array))))
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()
        assert back.shape == array.shape
    assert decode(encode((3, 0.5, True, "text", None))) == (3, 0.5, True, "text", None)
    assert decode(encode(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dtype": "float32", "shape": [2], "bits": "3f800000"}, "1 entries"),
        ({"dtype": "float32", "shape": [1], "bits": "3f80"}, "8 hexadecimal digits"),
        ({"dtype": "float80", "shape": [1], "bits": "3f80"}, "lacks dtype"),
    ],
)
def test_values_that_are_none_are_refused(value, message):
    """The message says what does not agree."""
    with pytest.raises(ValueError, match=message):
        decode(value)


def test_judging_keeps_zeros_apart_and_nan_together():
    """-0 is not 0; NaN equals NaN, whatever its bits; dtype and shape count."""
    case = cases("absmean")[0]
    for expected, answer, where in (
        (np.float32([0.0]), np.float32([-0.0]), "result 0 at [0]"),
        (np.float32([np.nan]), -np.float32([np.nan]), None),
        (np.float32([1.0]), np.float64([1.0]), "dtype of result 0"),
        (np.float32([1.0]), np.float32([[1.0]]), "shape of result 0"),
    ):
        changed = type(case)(**{**vars(case), "expect": [encode(expected)]})
        deviation = judge(changed, {"out": [encode(answer)]})
        assert (deviation and deviation.where) == where


def test_the_schema_uses_no_keyword_that_the_validator_lacks():
    """A keyword that is not known would be ignored in silence."""

    def check(schema):
        """Look at a schema and those inside."""
        extra = {"$schema", "$defs", "title", "description"}
        assert schema.keys() <= KEYWORDS | extra, schema.keys() - KEYWORDS - extra
        for key in ("properties", "$defs"):
            for inner in schema.get(key, {}).values():
                check(inner)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                check(schema[key])
        for key in ("anyOf", "oneOf"):
            for inner in schema.get(key, []):
                check(inner)

    check(read_file("schema"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numberOfTests": "3"}, "numberOfTests"),
        ({"extra": 1}, "'extra' is no key here"),
        ({"cases": [{"id": "absmean/x"}]}, "lacks 'call'"),
        ({"notes": {"flag": {"shows": "x"}}}, "lacks 'goes_wrong'"),
    ],
)
def test_the_validator_finds_what_is_wrong(change, message):
    """Types, unknown keys and missing ones, each with its place."""
    reports = list(faults({**read_file("absmean"), **change}, read_file("schema")))
    assert any(message in report for report in reports), reports
