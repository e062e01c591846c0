"""The executable specification: cases in one schema, run and judged against any implementation.

    case        -> {"call": a public name, "args": {..}, "expect": [..] | "refuse": ..}
    answer      -> {"out": [..]} | {"refused": text} | {"skip": true}
    judgement   -> None | Deviation

`cases` reads the vectors that the package carries (``minibit/vectors/*.json``), `answer_of` calls a
function as a case says, `judge` compares bit patterns or keeps to the stated bound.
"""

from minibit.conformance.cases import Case as Case
from minibit.conformance.cases import cases as cases
from minibit.conformance.running import Deviation as Deviation
from minibit.conformance.running import answer_of as answer_of
from minibit.conformance.running import judge as judge
from minibit.conformance.values import decode as decode
from minibit.conformance.values import encode as encode

__all__ = ["Case", "Deviation", "answer_of", "cases", "decode", "encode", "judge"]
