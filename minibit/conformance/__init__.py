"""The executable specification: cases in one schema, run and judged against any implementation.

    case        -> {"call": a public name, "args": {..}, "expect": [..] | "refuse": ..}
    answer      -> {"out": [..]} | {"refused": text} | {"skip": true}
    judgement   -> None | Deviation
    report      -> conforms, deviates, not offered, not run

`cases` reads the vectors that the package carries (``minibit/vectors/*.json``), `answer_of` calls a
function as a case says, `judge` compares bit patterns or keeps to the stated bound. `conform` does
so for all cases of a Python module, `examine` for whatever answers, such as a `Port`.
"""

from minibit.conformance.cases import Case as Case
from minibit.conformance.cases import cases as cases
from minibit.conformance.conforming import LEVELS as LEVELS
from minibit.conformance.conforming import VERDICTS as VERDICTS
from minibit.conformance.conforming import Report as Report
from minibit.conformance.conforming import all_cases as all_cases
from minibit.conformance.conforming import cases_of as cases_of
from minibit.conformance.conforming import conform as conform
from minibit.conformance.conforming import examine as examine
from minibit.conformance.conforming import level_of as level_of
from minibit.conformance.flat import write_flat as write_flat
from minibit.conformance.fuzzing import fuzz_cases as fuzz_cases
from minibit.conformance.fuzzing import smallest as smallest
from minibit.conformance.judging import VectorReport as VectorReport
from minibit.conformance.judging import judge_vectors as judge_vectors
from minibit.conformance.ports import Port as Port
from minibit.conformance.ports import request_of as request_of
from minibit.conformance.real_logs import LogReport as LogReport
from minibit.conformance.real_logs import replay_through as replay_through
from minibit.conformance.running import Deviation as Deviation
from minibit.conformance.running import answer_of as answer_of
from minibit.conformance.running import judge as judge
from minibit.conformance.values import decode as decode
from minibit.conformance.values import encode as encode

__all__ = [
    "Case",
    "Deviation",
    "LogReport",
    "Port",
    "Report",
    "VectorReport",
    "all_cases",
    "answer_of",
    "cases",
    "cases_of",
    "conform",
    "decode",
    "encode",
    "examine",
    "fuzz_cases",
    "judge",
    "judge_vectors",
    "level_of",
    "replay_through",
    "request_of",
    "smallest",
    "write_flat",
]
