"""The ports of docs/ports: each conforms in what it offers; broken copies are told their bug."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from minibit.conformance.conforming import all_cases, examine
from minibit.conformance.ports import Port

PORTS = Path(__file__).resolve().parents[1] / "docs" / "ports"
NODE = shutil.which("node")
JAVASCRIPT = pytest.param(
    "js",
    marks=pytest.mark.skipif(NODE is None, reason="node is not installed"),
)
TORCH = pytest.param(
    "torch",
    marks=[
        pytest.mark.peers,
        pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch: [peers]"),
    ],
)
FILES = {"js": "minibit.mjs", "torch": "minibit_torch.py"}
RUN = {"js": [str(NODE), str(PORTS / "js/adapter.mjs")]}
RUN["torch"] = [sys.executable, str(PORTS / "torch/adapter.py")]
OFFERED = {"js": {"absmean_quantize"}, "torch": {"absmean_quantize", "jvp"}}
BROKEN = {  # flag of the hint: what is changed in the port
    "js": {
        "half-away": (
            "x + 6755399441055744 - 6755399441055744",
            "Math.sign(x) * Math.round(Math.abs(x))",
        ),
        "divides-by-gamma": ("rint(f32(x * inverse))", "rint(f32(x / gamma))"),
        "one-division": ("f32(f32(1 / token", "f32(127 * f32(1 / token"),
    },
    "torch": {
        "divides-by-gamma": ("(w * (1 / gamma))", "(w / gamma)"),
        "codes-times-gamma": ("codes * (1 / (1 / gamma))", "codes * gamma"),
        "zero-slope": ("return x_dot.clone()", "return torch.zeros_like(x_dot)"),
    },
}
COPIES = [
    pytest.param(port.values[0], flag, marks=port.marks)
    for port in (JAVASCRIPT, TORCH)
    for flag in BROKEN[port.values[0]]
]


@pytest.mark.parametrize("port", [JAVASCRIPT, TORCH])
def test_port_conforms(port):
    """No case that it offers deviates, and it offers what its page says."""
    with Port(RUN[port]) as asked:
        report = examine(asked.answer)
    assert report.passed, [f"{r.case.id}: {r.detail}" for r in report.smallest()]
    conforming = {result.case.call for result in report.results if result.verdict == "conforms"}
    assert OFFERED[port] <= conforming


@pytest.mark.parametrize(("port", "flag"), COPIES)
def test_a_broken_copy_is_reported_with_the_right_hint(port, flag, tmp_path):
    """One line is changed; the report names the flag of that very bug."""
    text = (PORTS / port / FILES[port]).read_text(encoding="utf-8")
    old, new = BROKEN[port][flag]
    assert text.count(old) == 1
    copy = tmp_path / FILES[port]
    copy.write_text(text.replace(old, new), encoding="utf-8")
    chosen = [case for case in all_cases() if flag in case.flags]
    with Port([*RUN[port], str(copy)]) as asked:
        report = examine(asked.answer, chosen)
    flags = {name for result in report.results if result.deviation for name, _ in result.hints()}
    assert flag in flags, [result.detail for result in report.results]
