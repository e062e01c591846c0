"""Histories: questions to a log, its edits as bytes, and the compact form, in Python integers.

A reader of `exact/steps.py` with a writer beside it. `wrong` names one mistake.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby, islice, pairwise
from math import prod
from typing import Any

import numpy as np

from minibit.conformance.exact.steps import MAGIC, Bits, Damage, Log

__all__ = ["HISTORIES", "WRONG", "as_bytes"]

Step = dict[str, Any]
Names = list[tuple[int, int]]  # seed and number that a step is drawn by


class Writer:
    """Codes of a payload, written from the highest bit of a byte to the lowest."""

    def __init__(self) -> None:
        self.bits = ""

    def uniform(self, value: int, size: int) -> None:
        """Write truncated binary."""
        width = (size - 1).bit_length()
        short = 2**width - size
        value, width = (value, width - 1) if value < short else (value + short, width)
        self.bits += f"{value:0{width}b}" if width > 0 else ""

    def gamma(self, value: int) -> None:
        """Write as many zeros as there are bits after the first, and the number."""
        self.bits += "0" * (value.bit_length() - 1) + f"{value:b}"

    def subset(self, positions: list[int], n: int) -> None:
        """Write increasing positions by their gaps."""
        start, reader = 0, Bits(b"")
        for k, position in zip(range(len(positions), 0, -1), positions, strict=True):
            room = reader.room(n, start, k)
            m = reader.modulus(room, k)
            q, rest = divmod(position - start, m)
            self.bits += "0" * q + "1" * (q < (room - 1) // m)
            self.uniform(rest, min(m, room - q * m))
            start = position + 1

    def bytes(self) -> bytes:
        """Fill the last byte with zeros."""
        padded = self.bits + "0" * (-len(self.bits) % 8)
        return bytes(int(padded[at : at + 8], 2) for at in range(0, len(padded), 8))


class History(Log):
    """A log and its edits."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    # --- Reading

    def read(self, file: Any) -> None:
        """Read a file: header, plan, steps with the names of their draws, ends of records."""
        self.data = bytes(np.asarray(file, np.uint8).tolist())
        self.head, crc, self.end = self.header(self.data)
        self.plan = self.head["plan"]
        self.start_crc, self.found = crc, [*self.records(self.data, crc, self.end)]
        counts = [count for _, count, _, _ in self.found]
        self.drawn: Names = [*islice(self.names(self.head, sum(counts)), sum(counts))]
        self.choices = [s for p, n, _, _ in self.found for s in self.unpack(self.plan, p, n)]
        self.end = self.found[-1][3] if self.found else self.end

    def walk_steps(self, steps: list[Step], names: Names) -> Iterator[list[int]]:
        """Yield the weights before the first step, and after each."""
        weights = self.initial(self.plan)
        yield weights
        for step, name in zip(steps, names, strict=True):
            total: dict[int, int] = {}
            for position, move in self.moves_of(self.plan, step, *name):
                total[position] = total.get(position, 0) + move
            weights = list(weights)
            for position, move in total.items():
                weights[position] = max(-1, min(1, weights[position] + move))
            yield weights

    def weights(self, step: int | None = None) -> list[int]:
        """Return the weights after so many steps, all by default."""
        last = len(self.choices) if step is None else step
        self.check("step", 0 <= last <= len(self.choices))
        return next(islice(self.walk_steps(self.choices, self.drawn), last, None))

    def layers(self, flat: list[int]) -> dict[str, Any]:
        """Cut weights into layers."""
        out, at = {}, 0
        for name, shape in zip(self.plan["names"], self.plan["shapes"], strict=True):
            out[name] = np.array(flat[at : at + prod(shape)], np.int8).reshape(shape)
            at += prod(shape)
        return out

    def sha(self, flat: list[int]) -> str:
        """SHA-256 of weights as int8."""
        return hashlib.sha256(bytes(w & 255 for w in flat)).hexdigest()

    # --- Writing

    def pack(self, steps: list[Step]) -> bytes:
        """Code the choices of a record."""
        bits, plan = Writer(), self.plan
        if plan["method"] == "sampled":
            codes = np.concatenate([step["codes"] for step in steps]).tolist()
            bits.bits = "".join({0: "0", 1: "10", -1: "11"}[code] for code in codes)
            return struct.pack("<I", steps[0]["numerator"]) + bits.bytes()
        counts = [[len(q) for q in step["positions"]] for step in steps]
        least = [min(column) for column in zip(*counts, strict=True)]
        most = [max(column) for column in zip(*counts, strict=True)]
        for low, high in zip(least, most, strict=True):
            bits.gamma(low + 1)
            bits.gamma(high - low + 1)
        for step in steps:
            for layer, (q, signs) in enumerate(zip(step["positions"], step["signs"], strict=True)):
                bits.uniform(len(q) - least[layer], most[layer] - least[layer] + 1)
                bits.subset(q.tolist(), plan["units"][layer] * plan["inputs"][layer])
                bits.bits += "".join("1" if sign < 0 else "0" for sign in signs.tolist())
        return bits.bytes()

    def start(self, header: Any) -> bytes:
        """Frame a header: sorted keys, no spaces, ASCII."""
        spaces = None if self.wrong == "spaces-in-the-header" else (",", ":")
        keys = self.wrong != "keys-as-they-come"
        text = json.dumps(header, sort_keys=keys, separators=spaces).encode()
        begin = struct.pack("<8sHI", MAGIC, 1, len(text)) + text
        return begin + zlib.crc32(begin).to_bytes(4, "little")

    def framed(self, steps: list[Step], names: Names, done: int, crc: int) -> bytes:
        """Frame steps behind the first `done`, 32 a record, each density in records of its own."""
        states = [*self.walk_steps(steps, names)]
        out, at = b"", done
        for _, alike in groupby(steps[done:], lambda step: step.get("numerator")):
            group = [*alike]
            size = 33 if self.wrong == "33-steps-a-record" else 32
            for record in (group[i : i + size] for i in range(0, len(group), size)):
                at += len(record)
                payload = self.pack(record)
                head = struct.pack("<BI", len(record), len(payload))
                check = (zlib.crc32(head, crc) & 0xFFFF).to_bytes(2, "little")
                digest = bytes.fromhex(self.sha(states[at]))[:8]
                body = head + check + payload + digest
                crc = zlib.crc32(body, 0 if self.wrong == "crc-of-record-alone" else crc)
                out += body + crc.to_bytes(4, "little")
        return out

    def copy(self, edit: Any, steps: list[Step], names: Names, segments: Any = None) -> Any:
        """Write an edited log: a header that says what was done, and all records anew."""
        header = {**self.head, "edits": [*self.head.get("edits", []), edit]}
        if self.wrong == "edits-replaced":
            header["edits"] = [edit]
        if segments:
            header["segments"] = segments
        begin = self.start(header)
        crc = zlib.crc32(begin[:-4])
        return as_bytes(begin + self.framed(steps, names, 0, crc))

    # --- Questions

    def log_create(self, header: Any) -> Any:
        """Write a log without steps."""
        return (as_bytes(self.start(header)),)

    def log_append(self, file: Any, steps: Any) -> Any:
        """Write more steps behind a log."""
        self.read(file)
        every = self.choices + [vars(step) for step in steps]
        names = [*islice(self.names(self.head, len(every)), len(every))]
        crc = int.from_bytes(self.data[self.end - 4 : self.end], "little")
        tail = self.framed(every, names, len(self.choices), crc)
        return (as_bytes(self.data[: self.end] + tail),)

    def log_open(self, file: Any) -> Any:
        """Count steps, records and good bytes; tell where the file is torn."""
        self.read(file)
        torn = -1 if self.end == len(self.data) else self.end
        records = len(self.choices) if self.wrong == "a-record-per-step" else len(self.found)
        good = len(self.data) if self.wrong == "torn-bytes-counted" else self.end
        return len(self.choices), records, good, torn

    def log_recover(self, file: Any) -> Any:
        """Cut a torn tail off."""
        self.read(file)
        return (as_bytes(self.data if self.wrong == "tail-kept" else self.data[: self.end]),)

    def log_salvage(self, file: Any) -> Any:
        """Copy the records before the damage."""
        data = bytes(np.asarray(file, np.uint8).tolist())
        for stop in range(len(data), 0, -1):
            try:
                self.read(list(data[:stop]))
                break
            except Damage:
                continue
        if self.wrong == "header-alone":
            self.end -= sum(len(p) + 19 for p, *_ in self.found)
        return (as_bytes(data[: self.end]),)

    def log_verify(self, file: Any) -> Any:
        """Return the digest of the last weights."""
        self.read(file)
        text = self.sha(self.weights())
        return (text[:16] if self.wrong == "cut" else text,)

    def log_digest(self, file: Any, at: Any) -> Any:
        """Return digests of the weights after some steps."""
        self.read(file)
        late = self.wrong == "before-the-step"
        wanted = {max(0, step - late): "" for step in at.tolist()}
        if self.wrong == "names-hashed":
            return ([hashlib.sha256(b"w1").hexdigest()] * len(at),)
        for step, flat in enumerate(self.walk_steps(self.choices, self.drawn)):
            if step in wanted:
                wanted[step] = self.sha(flat)
        return ([wanted[max(0, step - late)] for step in at.tolist()],)

    def log_weights_at(self, file: Any, step: int) -> Any:
        """Return the weights after so many steps."""
        return self.log_replay(file, step)

    def log_replay(self, file: Any, until: int | None = None) -> Any:
        """Return the weights after the first `until` steps."""
        self.read(file)
        until = until - 1 if until and self.wrong == "one-step-less" else until
        until = None if self.wrong == "all-steps" else until
        return (self.layers(self.weights(until)),)

    def log_walk(self, file: Any, at: Any) -> Any:
        """Return the weights after some steps, end to end."""
        self.read(file)
        if self.wrong == "first-steps":
            at = np.arange(len(at))
        states = [*self.walk_steps(self.choices, self.drawn)]
        return (np.array([states[step] for step in at.tolist()], np.int8),)

    def log_slice(self, file: Any, layer: Any, rows: Any, step: int | None = None) -> Any:
        """Return rows of a layer."""
        self.read(file)
        names = self.plan["names"]
        layer = names.index(layer) if isinstance(layer, str) else layer
        step = None if self.wrong == "last-step" else step
        params = [*self.layers(self.weights(step)).values()]
        w = params[0 if self.wrong == "first-layer" else layer]
        rows = np.sort(np.ravel(rows)) if self.wrong == "rows-sorted" else np.ravel(rows)
        return (w[:, rows].T if self.wrong == "columns" else w[rows],)

    def log_diff(self, file: Any, a: int, b: int) -> Any:
        """Return weights after b minus those after a."""
        self.read(file)
        before, after = self.weights(a), self.weights(b)
        turn = -1 if self.wrong == "turned-round" else 1
        return (self.layers([turn * (y - x) for x, y in zip(before, after, strict=True)]),)

    def log_blame(self, file: Any, layer: Any, row: int, column: int = 0) -> Any:
        """Return step, value before and value after, of each change of a weight."""
        self.read(file)
        states = [self.layers(flat) for flat in self.walk_steps(self.choices, self.drawn)]
        if self.wrong == "row-and-column-exchanged":
            row, column = column, row
        values = [int(state[layer][row, column]) for state in states]
        pairs = enumerate(pairwise(values))
        late = int(self.wrong == "steps-from-1")
        table = [(s + late, a, b) for s, (a, b) in pairs if a != b or self.wrong == "every-step"]
        return (np.array(table, np.int64).reshape(-1, 3),)

    def answer_table(self, x: Any) -> Any:
        """Return the answers of the first layer alone: its largest sum, the first of several."""
        out = []
        for flat in self.walk_steps(self.choices, self.drawn):
            logits = np.asarray(x, np.int64) @ self.layers(flat)[self.plan["names"][0]].T
            last = self.wrong == "last-of-equals"
            size = logits.shape[1]
            out.append(size - 1 - logits[:, ::-1].argmax(axis=1) if last else logits.argmax(axis=1))
        return np.array(out, np.int64)

    def log_answers(self, file: Any, logits: Any, x: Any) -> Any:
        """Return the answers of all weights."""
        self.read(file)
        table = self.answer_table(x)
        return (table[1:] if self.wrong == "first-weights-left-out" else table,)

    def log_bisect(self, file: Any, logits: Any, sample: Any, label: int) -> Any:
        """Whether the last answer is the label, since which step (-1: always), and all changes."""
        self.read(file)
        answers = self.answer_table(np.asarray(sample)[None])[:, 0].tolist()
        right = [answer == label for answer in answers]
        steps = range(len(answers) - 1)
        flips = [s for s in steps if right[s] != right[s + 1]]
        which = 0 if self.wrong == "first-turn" else -1
        since = flips[which] if flips else -1
        since += self.wrong == "steps-from-1"
        changes = [(s, *answers[s : s + 2]) for s in steps if answers[s] != answers[s + 1]]
        return right[-1], since, np.array(changes, np.int64).reshape(-1, 3)

    def log_steps(self, file: Any) -> Any:
        """Return all choices."""
        self.read(file)
        turn = -1 if self.wrong == "sign-exchanged" else 1
        for step in self.choices:
            if "codes" in step:
                step["codes"] = turn * step["codes"]
            else:
                step["signs"] = [turn * sign for sign in step["signs"]]
                if self.wrong == "gaps-kept":
                    step["positions"] = [np.diff(q, prepend=0) for q in step["positions"]]
        return (self.choices,)

    def name_of(self, step: int) -> tuple[int, int]:
        """Seed and number of a step, also of one to come."""
        at = 0
        for seed, first, count in self.head.get("segments", []):
            if step < at + count:
                return seed, first + step - at
            at += count
        return self.plan["seed"], step

    def log_drawn_by(self, file: Any, step: int) -> Any:
        """Return seed and number of a step."""
        self.read(file)
        seed, number = self.name_of(step)
        seed = self.plan["seed"] if self.wrong == "seed-of-plan" else seed
        return seed, step if self.wrong == "numbered-from-file" else number

    def log_seed_ahead(self, file: Any) -> Any:
        """Return the seed of the steps to come."""
        self.read(file)
        plan = self.wrong == "seed-of-plan"
        return (self.plan["seed"] if plan else self.name_of(len(self.choices))[0],)

    def log_shares(self, file: Any, workers: Any) -> Any:
        """Return the shares of each step, checked by their running CRC."""
        self.read(file)
        return ([[list(share) for share in own] for own in self.tags(workers)],)

    def tags(self, workers: Any) -> list[Any]:
        """Read the lines beside a log."""
        crc, tags = self.start_crc, [()] * len(self.choices)
        for line in bytes(np.asarray(workers, np.uint8).tolist()).splitlines(keepends=True):
            if not line.endswith(b"\n") and self.wrong != "cut-line-read":
                break
            fields = json.loads(line)
            body = {"shares": fields["shares"], "step": fields["step"]}
            crc = zlib.crc32(json.dumps(body, separators=(",", ":")).encode(), crc)
            self.check("workers-crc", crc == fields["crc"])
            if fields["step"] < len(self.choices):
                tags[fields["step"]] = fields["shares"]
        return tags

    def log_snapshots(self, file: Any, every: int = 32) -> Any:
        """Write weights at most `every` steps apart, base-3 digits, as a file beside the log."""
        self.read(file)
        out, last, done = b"\x89MBS\r\n\x1a\n", 0, 0
        states = [*self.walk_steps(self.choices, self.drawn)]
        for (_, count, _, stop), (_, ahead, _, _) in zip(self.found, self.found[1:], strict=False):
            done += count
            if done + ahead - last > every:
                padded = states[done] + [0] * (-len(states[done]) % 5)
                two = self.wrong == "digits-of-codes"  # 2 for -1
                digits = [w % 3 if two else w + 1 for w in padded]
                out += struct.pack("<I", done) + self.data[stop - 4 : stop]
                powers = (81, 27, 9, 3, 1) if self.wrong == "highest-first" else (1, 3, 9, 27, 81)
                out += bytes(
                    sum(d * p for d, p in zip(digits[at : at + 5], powers, strict=True))
                    for at in range(0, len(digits), 5)
                )
                last = done
        return (as_bytes(out),)

    # --- Edits

    def edit(self, kind: str, file: Any, steps: Any) -> Any:
        """Turn the moves of some steps round, or leave them out."""
        self.read(file)
        chosen = sorted(set(np.ravel(steps).tolist()))
        source = self.sha(self.weights(0 if self.wrong == "source-of-the-first" else None))
        every = [dict(step) for step in self.choices]
        for n in [] if self.wrong == "nothing-done" else chosen:
            if "codes" in every[n]:
                every[n]["codes"] = every[n]["codes"] * (-1 if kind == "negate" else 0)
            elif kind == "negate":
                every[n]["signs"] = [-sign for sign in every[n]["signs"]]
            else:
                every[n] = {name: [part[:0] for part in every[n][name]] for name in every[n]}
        edit = {"edit": kind, "steps": intervals(chosen), "source": source}
        return (self.copy(edit, every, self.drawn, self.head.get("segments")),)

    def log_negate(self, file: Any, steps: Any) -> Any:
        """Turn moves round."""
        return self.edit("negate", file, steps)

    def log_mask(self, file: Any, steps: Any) -> Any:
        """Leave moves out."""
        return self.edit("mask", file, steps)

    def log_concat(self, file: Any, other: Any) -> Any:
        """Join two logs."""
        second = History(self.wrong)
        second.read(other)
        self.read(file)
        names = self.drawn + second.drawn
        if self.wrong == "numbered-from-file":
            names = [(seed, n) for n, (seed, _) in enumerate(names)]
        span = [len(self.choices), len(names)]
        edit: Any = {"edit": "concat", "steps": [span], "source": self.sha(self.weights())}
        return (self.copy(edit, self.choices + second.choices, names, segments_of(names)),)

    def log_fork(self, file: Any, step: int, seed: int | None = None) -> Any:
        """Keep the first steps, and let another seed draw what follows."""
        self.read(file)
        edit: Any = {"edit": "fork", "steps": [[0, step]], "source": self.sha(self.weights(step))}
        segments = self.head.get("segments")
        if seed is not None:
            edit["seed"] = seed
            ahead = [seed, 0 if self.wrong == "numbered-from-0" else step, 2**32 - step]
            segments = [*segments_of(self.drawn[:step]), ahead]
        return (self.copy(edit, self.choices[:step], self.drawn[:step], segments),)

    def log_merge(self, file: Any, other: Any) -> Any:
        """Add the other's own steps behind this log's."""
        second = History()
        second.read(other)
        self.read(file)
        mine, theirs = (
            [(*name, self.pack([step])) for name, step in zip(log.drawn, log.choices, strict=True)]
            for log in (self, second)
        )
        both = [*zip(mine, theirs, strict=False)]
        shared = next((n for n, (a, b) in enumerate(both) if a != b), len(both))
        kept = 0 if self.wrong == "parent-twice" else shared
        names = self.drawn + second.drawn[kept:]
        steps = self.choices + second.choices[kept:]
        if self.wrong == "seed-of-plan":
            names = [(self.plan["seed"], number) for _, number in names]
        span = [[len(mine), len(steps)]] if len(steps) > len(mine) else []
        edit: Any = {"edit": "merge", "steps": span, "source": self.sha(self.weights())}
        edit |= {"parent": shared, "other": second.sha(second.weights())}
        return (self.copy(edit, steps, names, segments_of(names)),)

    def log_revert(self, file: Any, workers: Any, name: str) -> Any:
        """Leave out what a contributor measured."""
        self.read(file)
        tags, every = self.tags(workers), [dict(step) for step in self.choices]
        touched = [n for n, own in enumerate(tags) if any(who == name for _, _, who in own)]
        for n in touched:
            ranges = [range(first, stop) for first, stop, who in tags[n] if who == name]
            if self.wrong == "whole-step":
                ranges = [range(2**10)]
            every[n] = self.without(every[n], {i for r in ranges for i in r})
        edit: Any = {"edit": "revert", "steps": intervals(touched), "contributor": name}
        edit["source"] = self.sha(self.weights())
        return (self.copy(edit, every, self.drawn, self.head.get("segments")),)

    def without(self, step: Step, gone: set[int]) -> Step:
        """Drop perturbations, or drawn units, counted over all layers."""
        if "codes" in step:
            kept = [0 if i in gone else code for i, code in enumerate(step["codes"].tolist())]
            return {**step, "codes": np.array(kept, np.int8)}
        positions, signs, first = [], [], 0
        for layer, (q, sign) in enumerate(zip(step["positions"], step["signs"], strict=True)):
            inputs = self.plan["inputs"][layer]
            stays = np.array([first + int(p) // inputs not in gone for p in q], bool)
            positions.append(q[stays])
            signs.append(sign[stays])
            first += 0 if self.wrong == "units-from-0" else self.plan["units"][layer]
        return {"positions": positions, "signs": signs}

    # --- The compact form

    def compact(self, file: Any, step: int | None = None) -> Any:
        """Three subsets per layer: zeros that moved, others that changed, those that turned."""
        self.read(file)
        flat, bits, at = self.weights(step), Writer(), 0
        begin = self.initial(self.plan)
        for shape in self.plan["shapes"]:
            size = prod(shape)
            pairs = [*zip(begin[at : at + size], flat[at : at + size], strict=True)]
            at += size
            zeros = [b for a, b in pairs if a == 0]
            moved = [i for i, b in enumerate(zeros) if b]
            others = [(a, b) for a, b in pairs if a]
            changed = [i for i, (a, b) in enumerate(others) if a != b]
            turned = [n for n, i in enumerate(changed) if others[i][1]]
            signs = "".join("1" if zeros[i] < 0 else "0" for i in moved)
            early = self.wrong == "signs-at-the-end"
            for part, among in ((moved, zeros), (changed, others), (turned, changed)):
                bits.gamma(len(part) + (self.wrong != "gamma-of-count" or not part))
                bits.subset(part, len(among))
                if part is moved and not early:
                    bits.bits += signs
            bits.bits += signs if early else ""
        digest = bytes.fromhex(self.sha(flat))
        return (as_bytes(bits.bytes() + digest[: 4 if self.wrong == "short-digest" else 8]),)

    def expand(self, plan: Any, data: Any) -> Any:
        """Read the compact form."""
        self.plan, raw = plan, bytes(np.asarray(data, np.uint8).tolist())
        bits, out = Bits(raw[:-8]), []
        for layer in self.layers(self.initial(plan)).values():
            flat = layer.reshape(-1).tolist()
            zeros = [i for i, w in enumerate(flat) if w == 0]
            others = [i for i, w in enumerate(flat) if w]
            for i in bits.subset(bits.gamma() - 1, len(zeros)):
                flat[zeros[i]] = 2  # the sign follows behind all of them
            for i in [i for i in zeros if flat[i] == 2]:
                flat[i] = self.sign(bits)
            changed = [others[i] for i in bits.subset(bits.gamma() - 1, len(others))]
            turned = [changed[i] for i in bits.subset(bits.gamma() - 1, len(changed))]
            for i in changed:
                keeps = self.wrong == "turned-to-zero" or i not in turned
                flat[i] = 0 if keeps else -flat[i]
                if self.wrong == "all-turned":
                    flat[i] = flat[i] or 1
            out += flat
        if self.wrong == "":
            self.check("digest", bytes.fromhex(self.sha(out))[:8] == raw[-8:])
        return (self.layers(out),)

    # --- The plan

    def initial_params(self, plan: Any) -> Any:
        """Draw the first weights of each layer."""
        self.plan = plan
        if self.wrong == "one-stream":  # for all layers
            size = sum(prod(shape) for shape in plan["shapes"])
            flat = self.noise.initial_codes(plan["seed"], size, plan["zeros"], 0)
            return (self.layers(flat.tolist()),)
        seed = plan["seed"] % 2**32 if self.wrong == "seed-of-32-bits" else plan["seed"]
        lanes = [0 if self.wrong == "lane-left-out" else n for n in range(len(plan["shapes"]))]
        flat = []
        for lane, shape in zip(lanes, plan["shapes"], strict=True):
            flat += self.noise.initial_codes(seed, prod(shape), plan["zeros"], lane).tolist()
        return (self.layers(flat),)

    def sparse_update(self, plan: Any, step: int, choice: Any) -> Any:
        """Sum the moves of a choice by position."""
        total: dict[int, int] = {}
        for position, move in self.moves_of(plan, vars(choice), plan["seed"], step):
            held = 0 if self.wrong == "last-of-several" else total.get(position, 0)
            total[position] = held + (-move if self.wrong == "sign-of-update" else move)
        clamp = self.wrong == "clamped-sums"
        places = sorted(total)
        if self.wrong == "zeros-dropped":
            places = [p for p in places if total[p]]
        deltas = [max(-1, min(1, total[p])) if clamp else total[p] for p in places]
        return np.array(places, np.int64), np.array(deltas, np.int32)


def as_bytes(data: bytes) -> Any:
    """Return bytes as an array."""
    return np.frombuffer(data, np.uint8)


def intervals(numbers: list[int]) -> list[list[int]]:
    """Join increasing numbers."""
    out: list[list[int]] = []
    for number in numbers:
        if out and out[-1][1] == number:
            out[-1][1] += 1
        else:
            out.append([number, number + 1])
    return out


def segments_of(names: Names) -> list[list[int]]:
    """Join names to segments."""
    out: list[list[int]] = []
    for seed, number in names:
        if out and out[-1][0] == seed and out[-1][1] + out[-1][2] == number:
            out[-1][2] += 1
        else:
            out.append([seed, number, 1])
    return out


FLAGS = {
    "StepLog.create": "spaces-in-the-header keys-as-they-come",
    "StepLog.append": "33-steps-a-record crc-of-record-alone",
    "StepLog.open": "a-record-per-step torn-bytes-counted",
    "StepLog.recover": "tail-kept",
    "StepLog.salvage": "header-alone",
    "StepLog.verify": "cut",
    "StepLog.digest": "before-the-step names-hashed",
    "StepLog.replay": "one-step-less all-steps",
    "StepLog.weights_at": "one-step-less all-steps",
    "StepLog.walk": "first-steps",
    "StepLog.slice": "last-step first-layer rows-sorted columns",
    "StepLog.diff": "turned-round",
    "StepLog.blame": "row-and-column-exchanged steps-from-1 every-step",
    "StepLog.answers": "first-weights-left-out last-of-equals",
    "StepLog.bisect": "first-turn steps-from-1",
    "StepLog.steps": "sign-exchanged gaps-kept",
    "StepLog.drawn_by": "seed-of-plan numbered-from-file",
    "StepLog.seed_ahead": "seed-of-plan",
    "StepLog.shares": "cut-line-read",
    "StepLog.snapshots": "highest-first digits-of-codes",
    "StepLog.negate": "nothing-done source-of-the-first edits-replaced",
    "StepLog.mask": "nothing-done",
    "StepLog.concat": "numbered-from-file",
    "StepLog.fork": "numbered-from-0",
    "StepLog.merge": "parent-twice seed-of-plan",
    "StepLog.revert": "whole-step units-from-0",
    "compact": "gamma-of-count signs-at-the-end short-digest",
    "expand": "turned-to-zero all-turned digest-not-compared",
    "initial_params": "one-stream seed-of-32-bits lane-left-out",
    "sparse_update": "last-of-several sign-of-update clamped-sums zeros-dropped",
}


def asked(name: str, wrong: str = "") -> Callable[..., Any]:
    """Return the function of a public name, with a log of its own at each call."""
    method = name.replace("StepLog.", "log_")
    return lambda **args: getattr(History(wrong), method)(**args)


HISTORIES: dict[str, Callable[..., Any]] = {name: asked(name) for name in FLAGS}
WRONG: dict[str, Callable[..., Any]] = {
    f"{name}/{flag}": asked(name, flag) for name, flags in FLAGS.items() for flag in flags.split()
}
