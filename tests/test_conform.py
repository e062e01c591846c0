"""The conformance kit: what it reports of modules and ports, good, wrong and unruly ones."""

import io
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import minibit
from commands import answer, call, refused
from minibit.conformance import (
    answer_of,
    cases,
    conform,
    decode,
    encode,
    fuzz_cases,
    judge,
    judge_vectors,
    replay_through,
    smallest,
)
from minibit.conformance.conforming import LEVELS, all_cases, examine, level_of
from minibit.conformance.flat import write_flat
from minibit.conformance.fuzzing import DRAWS
from minibit.conformance.mutations import MUTATIONS, answer_with
from minibit.conformance.ports import MOST_FAULTS_IN_A_ROW, Port
from minibit.conformance.serving import main as serve
from minibit.noise_step import Plan, SampledStep

ABSMEAN = cases("absmean")
ECHO = """
import json, sys
for line in sys.stdin:
    case = json.loads(line)
    print(json.dumps({"id": case["id"], "skip": True}), flush=True)
"""


def port(tmp_path, code):
    """Write a port in Python, and return its command."""
    path = tmp_path / "port.py"
    path.write_text(code)
    return [sys.executable, str(path)]


def test_minibit_conforms_to_itself():
    """Every case of some modules, none of them skipped, on each level that has cases."""
    chosen = [case for case in all_cases() if case.module in ("absmean", "layers", "noise")]
    report = conform(minibit, chosen)
    assert report.passed
    assert report.counts() == {"conforms": len(chosen)}
    assert sum(report.counts(level).total() for level in LEVELS) == len(chosen)


def test_what_is_not_offered_is_no_deviation_and_nothing_is_no_conformance():
    """A port may offer one function; one that offers none has not passed."""
    one = types.SimpleNamespace(absmean_quantize=minibit.absmean_quantize)
    report = conform(one, ABSMEAN)
    assert report.passed
    assert report.counts()["conforms"] == sum(c.call == "absmean_quantize" for c in ABSMEAN)
    assert not conform(types.SimpleNamespace(), ABSMEAN).passed


def test_a_wrong_variant_is_named_by_its_flag():
    """A port that rounds half away from zero is told so, with the smallest case that shows it."""
    wrong = types.SimpleNamespace(absmean_quantize=MUTATIONS["absmean_quantize/half-away"])
    report = conform(wrong, ABSMEAN)
    (result,) = report.smallest()
    assert result.answer_is_that_of == "absmean_quantize/half-away"
    assert [flag for flag, _ in result.hints()] == ["half-away"]
    assert result.detail.startswith("result 0 at [0, ")
    wrong = [r.case for r in report.results if r.verdict == "deviates" and not r.case.refuse]
    assert len(result.case.args["w"]["bits"]) == min(len(case.args["w"]["bits"]) for case in wrong)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('loading...', flush=True); input()", "no JSON but 'loading...'"),
        ("import sys; sys.exit(3)", "ended, with status 3"),
        ("raise OSError('no weights')", "its last words: 'OSError: no weights'"),
        ("import time; time.sleep(60)", "no answer within 0.2 seconds"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended, with status"),
        (ECHO.replace('case["id"]', '"another"'), "an answer to 'another', which was not asked"),
        (ECHO.replace('{"id": case["id"], "skip": True}', "[1, 2]"), "no object with an id"),
        (ECHO.replace('"skip": True', '"out": [], "skip": True'), "neither out nor refused"),
        (ECHO.replace('"skip": True', '"done": True'), "neither out nor refused"),
        ("while True: print('x' * 4096, end='')", "a line without an end"),
        ("while True: print('y')", "no JSON but 'y'"),
        ("import time; print('{\"id\": ', end='', flush=True); time.sleep(60)", "no answer within"),
        ("print('{\"id\": ', end='')", "a line without an end"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n'); input()", "no JSON but"),
    ],
)
def test_an_unruly_port_is_reported_and_never_waited_for(tmp_path, monkeypatch, code, words):
    """Nonsense, death, silence, another id: the fault is named, and the rest is not asked."""
    limit = 0.2 if "within" in words else 60.0  # a busy machine is slow to start a program
    monkeypatch.setattr("minibit.conformance.ports.STARTS_WITHIN", limit)
    monkeypatch.setattr("minibit.conformance.ports.MOST_LINE", 1 << 16)
    begin = time.monotonic()
    with Port(port(tmp_path, code), seconds=limit) as asked:
        report = examine(asked.answer, ABSMEAN[:6])
    assert time.monotonic() - begin < 30
    assert words in report.results[0].detail
    verdicts = [result.verdict for result in report.results]
    asked_again = MOST_FAULTS_IN_A_ROW
    assert verdicts == ["deviates"] * asked_again + ["not run"] * (6 - asked_again)
    assert not report.passed


def test_a_port_that_dies_of_one_case_is_begun_anew(tmp_path):
    """Only that case deviates; those after it are answered."""
    code = ECHO.replace(
        "    print", "    if case['id'] == 'absmean/clip-not-round': 1 / 0\n    print"
    )
    with Port(port(tmp_path, code)) as asked:
        report = examine(asked.answer, ABSMEAN[:6])
    deviating = [result for result in report.results if result.verdict == "deviates"]
    assert [result.case.id for result in deviating] == ["absmean/clip-not-round"]
    assert "ZeroDivisionError" in deviating[0].detail
    assert report.counts()["not offered"] == 5


def test_a_port_that_does_not_read_is_ended(tmp_path):
    """A request larger than a pipe does not block the kit."""
    large = ABSMEAN[0].__class__(**{**vars(ABSMEAN[0]), "args": {"w": "0" * 10_000_000}})
    with Port(port(tmp_path, "import time; time.sleep(60)"), seconds=0.5) as asked:
        asked.seconds, asked.answers = 0.5, 1
        asked._start()
        assert "no answer within" in asked.answer(large)["fault"]


def test_a_second_line_per_case_is_an_answer_to_another(tmp_path):
    """Who answers twice is out of step, and told so."""
    code = ECHO.replace(
        "flush=True)", "flush=True)\n    print(json.dumps({'id': 'more'}), flush=True)"
    )
    with Port(port(tmp_path, code)) as asked:
        report = examine(asked.answer, ABSMEAN[:2])
    assert "an answer to 'more'" in report.results[1].detail


def test_a_module_prints_without_disturbing_its_answers(tmp_path, capfd, monkeypatch):
    """What a module writes to standard output is no answer."""
    path = tmp_path / "port_module.py"
    path.write_text("print('hello')\nfrom minibit import absmean_quantize\n")
    report = answer("conform", path, "--only", "absmean_quantize")
    assert report["passed"]
    assert report["conforms"] == sum("absmean_quantize" in case.call for case in ABSMEAN)


def test_the_server_of_a_module_writes_types_and_messages(monkeypatch, capfd):
    """So that a Python port is judged by the exception that it raises, too."""
    case = next(case for case in ABSMEAN if case.refuse)
    line = json.dumps({"id": case.id, "call": case.call, "args": case.args})
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    monkeypatch.setattr("minibit.conformance.serving.os.dup2", lambda *_: None)
    assert serve(["minibit"]) == 0
    written = json.loads(capfd.readouterr().out)
    assert written["id"] == case.id
    assert "ValueError" in written["types"]
    assert case.names in written["refused"]


def test_command_reports_a_table_and_hints(tmp_path):
    """Exit status 1, the flag's hint, and the same as JSON."""
    path = tmp_path / "port_module.py"
    path.write_text(
        "from minibit.conformance.mutations import MUTATIONS\n"
        "absmean_quantize = MUTATIONS['absmean_quantize/half-away']\n"
    )
    done = call("conform", path)
    assert done.exit_code == 1
    assert "this is 'half-away': exact halves are rounded away" in done.stdout
    assert "not offered: " in done.stdout
    report = answer("conform", path, status=1)
    assert report["deviates"] == len(report["deviations"]) > 0
    assert report["calls"]["absmean_quantize"]["deviates"] == report["deviates"]
    assert sum(report["levels"][level]["deviates"] for level in LEVELS) == report["deviates"]
    assert report["deviations"][0]["hints"][0]["goes_wrong"]


def test_command_refuses_what_makes_no_sense(tmp_path):
    """No port, two of them, none that exists, no such case: exit status 2."""
    assert "name one of MODULE" in refused("conform")
    assert "name one of MODULE" in refused("conform", "minibit", "--list")
    assert "no module 'no_such_port'" in refused("conform", "no_such_port")
    assert "no module" in refused("conform", tmp_path / "none.py")
    assert "no such program" in refused("conform", "--port", "no-such-program x")
    assert "No closing quotation" in refused("conform", "--port", "node 'x")
    assert "no case has it" in refused("conform", "minibit", "--only", "no such case")
    assert "must be positive" in refused("conform", "minibit", "--seconds", "0")
    assert "go with MODULE or --port" in refused("conform", "--list", "--fuzz", 3)
    assert "go with MODULE or --port" in refused("conform", "minibit", "--fuzz", 3, "--log", "x")
    assert "--fuzz must be positive" in refused("conform", "minibit", "--fuzz", -1)
    assert "no call has it" in refused("conform", "minibit", "--fuzz", 1, "--only", "sample")
    assert "a wrong variant's name" in refused("conform", "--mutants", "--only", "no such")


def test_random_cases_come_back_from_their_names():
    """A case is the same whatever else is drawn; another seed draws others; minibit conforms."""
    few, more = (dict(fuzz(count, 5)) for count in (1, 2))
    assert set(few) < set(more)
    assert all(more[name].args == case.args for name, case in few.items())
    assert {case.call for case in few.values()} == set(DRAWS)
    (first, _), (other, _) = (next(fuzz_cases(1, seed, only="topk_mask")) for seed in (5, 6))
    assert first.args == few[first.id].args != other.args
    report = examine(lambda case: answer_of(case, minibit), more.values())
    assert report.counts() == {"conforms": len(more)}


def fuzz(count, seed):
    """Random cases by name."""
    return ((case.id, case) for case, _ in fuzz_cases(count, seed))


@pytest.mark.parametrize(
    ("mutation", "name", "shape"),
    [
        ("topk_mask/highest-index", "x", [1, 2]),
        ("topk_mask/largest-values", "x", [1, 2]),
        ("layer_norm/over-all-rows", "x", [2, 1]),
        ("quantize_nf4/low-half-first", "w", [1, 1]),
    ],
)
def test_the_smallest_failing_case_is_found(mutation, name, shape):
    """Of a wrong variant: two entries that tie, two rows of one entry, one weight."""

    def fails(case):
        """Whether the variant deviates."""
        return judge(case, answer_with(case, mutation, minibit)) is not None

    call = mutation.partition("/")[0]
    drawn = (pair for pair in fuzz_cases(100, 0, only=call) if pair[0].call == call)
    case, choices = next((case, choices) for case, choices in drawn if fails(case))
    small = smallest(case, choices, fails)
    assert fails(small)
    assert small.args[name]["shape"] == shape


def test_command_fuzzes_and_prints_the_smallest_case(tmp_path):
    """Exit status 1, and the request that fails, ready to be sent again."""
    path = tmp_path / "port_module.py"
    path.write_text(
        "from minibit.conformance.mutations import MUTATIONS\n"
        "topk_mask = MUTATIONS['topk_mask/highest-index']\n"
    )
    done = call("conform", path, "--fuzz", 20, "--only", "topk_mask")
    assert done.exit_code == 1
    request = json.loads(re.search(r"that was found: (\{.*\})", done.stdout)[1])
    assert request["call"] == "topk_mask"
    assert request["args"]["x"]["shape"] == [1, 2]
    assert "this is 'highest-index'" in done.stdout


@pytest.mark.parametrize("call", ["StepLog.digest", "StepLog"])
def test_a_real_log_goes_through_a_port_record_by_record(call, tmp_path):
    """A port gives digests, or all weights; one that goes wrong is told in which record."""
    path = small_log(tmp_path)

    def port(case):
        """Offer one of the two calls."""
        return answer_of(case, minibit) if case.call == call else {"skip": True}

    log, report = minibit.StepLog.open(path), replay_through(port, path)
    assert report.passed
    assert report.digests == tuple(log.digest(record.end_step) for record in log.records)

    def wrong(case):
        """Answer with another weight, or digest, from the third record on."""
        answer = port(case)
        if "out" in answer and call == "StepLog":
            states = decode(answer["out"][0])
            states[log.records[2].first + 1 :, 0] ^= 1
            return {"out": [encode(states), answer["out"][1]]}
        if "out" in answer:
            answer["out"][0][2:] = ["00" * 32] * (len(log.records) - 2)
        return answer

    report = replay_through(wrong, path)
    assert (report.passed, report.wrong) == (False, 2)


def small_log(folder):
    """Write a log of four records."""
    plan = Plan("sampled", 3, ("w1",), ((3, 5),), zeros=2**31, perturbations=4)
    with minibit.StepLog.create(folder / "run.steps", {"plan": plan.to_dict()}) as log:
        for _ in range(4):
            log.append([SampledStep(2**30, np.int8([1, 0, -1, 1]))] * 2)
    return folder / "run.steps"


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"skip": True}, "neither StepLog.digest nor StepLog is offered"),
        ({"refused": "no"}, "no"),
        ({"fault": "no answer within 1 seconds"}, "no answer within 1 seconds"),
        ({"out": []}, "no digests: "),
        ({"out": [["00" * 32]]}, "1 digests of 4 records"),
        ({"out": [encode(np.zeros((2, 15), np.int8))]}, "weights after 8 steps were asked for"),
        ({"out": [{"dtype": "int8"}]}, "no digests: no array"),
        ({"out": "text"}, "no digests: "),
    ],
)
def test_what_is_no_replay_is_reported(answer, fault, tmp_path):
    """Nothing offered, a refusal, a fault, other answers: why there are no digests."""
    report = replay_through(lambda case: answer, small_log(tmp_path))
    assert not report.passed
    assert fault in report.fault


def test_command_replays_a_log(tmp_path):
    """A line per record, and how many agree; a file that is no log is an error."""
    path = small_log(tmp_path)
    done = answer("conform", "minibit", "--log", path)
    assert (done["passed"], done["agree"], done["records"]) == (True, 4, 4)
    assert done["digests"][-1] == minibit.StepLog.open(path).verify()
    text = call("conform", "minibit", "--log", path).stdout
    assert f"record    3  {done['digests'][-1]}" in text
    assert "the first 4 of 4 records replay to their digests" in text
    (tmp_path / "none.py").write_text("")
    answer("conform", tmp_path / "none.py", "--log", path, status=1)
    assert call("conform", "minibit", "--log", tmp_path / "none.py").exit_code == 1


def test_known_bugs_judge_the_vectors(monkeypatch):
    """All are caught by every case that names them; a bug that does nothing is told as missed."""
    report = judge_vectors(ABSMEAN, "absmean_quantize/")
    assert report.passed
    assert report.share == 1
    monkeypatch.setitem(MUTATIONS, "absmean_quantize/half-away", minibit.absmean_quantize)
    report = judge_vectors(ABSMEAN, "absmean_quantize/")
    assert not report.passed
    assert report.missing["absmean_quantize/half-away"]
    assert not report.catching["absmean_quantize/half-away"]
    done = call("conform", "--mutants", "--only", "absmean_quantize/half-away")
    assert done.exit_code == 1
    assert "absmean_quantize/half-away: no case catches it" in done.stdout
    assert "0 of 1 known bugs are caught: 0.0%" in done.stdout


def test_list_names_every_case():
    """Id, call, level and flags; all of it as JSON."""
    listed = answer("conform", "--list")["cases"]
    assert [case["id"] for case in listed] == [case.id for case in all_cases()]
    assert {case["level"] for case in listed} <= set(LEVELS)
    assert "absmean/half-to-even  absmax_quantize  [codes]" in call("conform", "--list").stdout


def test_flat_files_hold_every_word(tmp_path):
    """One file per module; the words of a case's arrays come back from its lines."""
    done = answer("conform", "--write", tmp_path / "flat")
    assert done["cases"] == len(all_cases())
    text = (tmp_path / "flat" / "absmean.txt").read_text()
    blocks = {block.split()[1]: block.splitlines() for block in text.split("\n\n") if block.strip()}
    assert list(blocks) == [case.id for case in ABSMEAN]
    for case in ABSMEAN:
        if case.call != "absmean_quantize":
            continue
        name, dtype, axes, *words = blocks[case.id][2].removeprefix("arg ").split()
        lengths, bits = words[: int(axes)], words[int(axes) :]
        back = decode({"dtype": dtype, "shape": list(map(int, lengths)), "bits": " ".join(bits)})
        np.testing.assert_array_equal(back, decode(case.args[name]))
        assert blocks[case.id][-1] == ("exact" if case.exact else f"refuse ValueError {case.names}")


def test_flat_lines_tell_nested_values(tmp_path):
    """Lists and objects say how many parts follow; text is quoted; functions are JSON."""
    case = ABSMEAN[0].__class__(
        **{
            **vars(ABSMEAN[0]),
            "args": {
                "params": {"w1": ABSMEAN[0].args["w"]},
                "layout": "x 86",
                "gain": None,
                "l": [],
            },
        }
    )
    (path,) = write_flat([case], tmp_path)
    lines = path.read_text().splitlines()
    assert lines[2] == "arg params object 1"
    assert lines[3].startswith("arg params.w1 float32 2 1 4 ")
    assert lines[4:7] == ['arg layout text "x 86"', "arg gain null", "arg l list 0"]
    slope = next(case for case in ABSMEAN if case.call == "jvp")
    (path,) = write_flat([slope], tmp_path)
    assert 'arg fn function {"function": "fake_quant' in path.read_text()


def test_levels_follow_what_a_case_asks_for():
    """Exact quantisers are codes; slopes are training."""
    assert level_of(ABSMEAN[0]) == "codes"
    assert level_of(next(case for case in ABSMEAN if case.call == "jvp")) == "training"


def test_pytest_runs_each_case_as_a_test(tmp_path):
    """With the option, cases follow the tests: passed, skipped, or failed with the bug's name."""
    (tmp_path / "my_port.py").write_text(
        "from minibit import absmax_quantize\n"
        "from minibit.conformance.mutations import MUTATIONS\n"
        "absmean_quantize = MUTATIONS['absmean_quantize/half-away']\n"
    )
    plugin = ["-p", "minibit.conformance.pytest_plugin", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugin, "--minibit-port"]
    environment = {**os.environ, "PYTHONPATH": str(Path(minibit.__file__).parents[1])}

    def run(name):
        """Run pytest in the folder of the port."""
        return subprocess.run(
            [*command, name], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    done = run("my_port.py")
    assert done.returncode == 1, done.stdout
    assert "half-away: exact halves are rounded away" in done.stdout
    offered = [case for case in all_cases() if case.call == "absmax_quantize"]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > len(offered)
    assert run("no_such_port").returncode == 4


def test_a_port_that_rounds_half_up_is_told_so_in_every_case_that_shows_it():
    """JavaScript's Math.round: halves of one sign alone are wrong."""
    port = types.SimpleNamespace(absmean_quantize=MUTATIONS["absmean_quantize/half-up"])
    wrong = [r for r in conform(port, ABSMEAN).results if r.verdict == "deviates"]
    assert len(wrong) > 1
    assert {r.answer_is_that_of for r in wrong} == {"absmean_quantize/half-up"}
