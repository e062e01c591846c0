// The noise contract in JavaScript, written from the docstrings of minibit/philox.py and
// minibit/noise.py: what a port needs. Usage: node noise.mjs path/to/vectors/noise.json
// Prints one line a case and fails at the first difference.
import { readFileSync } from "node:fs";

const [NOISE, INITIAL, UNITS, INPUTS] = [0, 1, 3, 4];
const TWO32 = 1n << 32n, MASK = TWO32 - 1n;

function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter.map(BigInt);
  let [k0, k1] = key.map(BigInt);
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2511f53n * c0, p1 = 0xcd9e8d57n * c2; // 32 x 32 -> 64 bits
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & MASK, (p0 >> 32n) ^ c3 ^ k1, p0 & MASK];
    [k0, k1] = [(k0 + 0x9e3779b9n) & MASK, (k1 + 0xbb67ae85n) & MASK];
  }
  return [c0, c1, c2, c3].map(Number);
}

const keyOf = (seed) => [seed & MASK, seed >> 32n];
const even = (word) => word % 2 === 0;

function words({ seed, domain, step, count, lane = 0, start = 0 }) {
  const out = [];
  for (let m = start; m < start + count; m++) {
    const counter = [Math.floor(m / 4), domain * 2 ** 24, lane, step];
    out.push(philox4x32(counter, keyOf(seed))[m % 4]);
  }
  return out;
}

function draws64({ count, ...stream }) {
  const w = words({ ...stream, count: 2 * count });
  return Array.from({ length: count }, (_, i) => BigInt(w[2 * i]) * TWO32 + BigInt(w[2 * i + 1]));
}

function uniform({ shape, ...stream }) {
  const w = words({ ...stream, count: 2 * shape });
  return Array.from({ length: shape }, (_, i) =>
    ((w[2 * i] >>> 5) * 2 ** 26 + (w[2 * i + 1] >>> 6)) / 2 ** 53);
}

function integers({ high, shape, ...stream }) {
  return draws64({ ...stream, count: shape }).map((u) => (u * BigInt(high)) >> 64n);
}

function numerator(share) { // a BigInt is a numerator already
  if (typeof share === "bigint") return share;
  const scaled = share * 2 ** 32, below = Math.floor(scaled), rest = scaled - below; // exact
  return BigInt(rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below);
}

function noiseConstants({ density }) {
  const p = numerator(density), q = TWO32 - p;
  let bits = 4;
  while (bits < 16 && (p << BigInt(bits + 1)) <= TWO32) bits++;
  const block = 1n << BigInt(bits), table = [];
  let ways = 1n, total = 0n; // of 2**(32 B) equally likely outcomes
  for (let j = 0n; j <= block; j++) {
    total += ways * p ** j * q ** (block - j);
    const threshold = (total << 64n) >> (32n * block);
    if (threshold >= (1n << 64n) - 1n) break;
    table.push(threshold);
    ways = (ways * (block - j)) / (j + 1n);
  }
  return [Number(p), bits, table];
}

function sparseNoise({ seed, step, perturbation, size, density, blocks }) {
  const [, bits, table] = noiseConstants({ density });
  const block = 2 ** bits, found = new Map();
  blocks ??= Array.from({ length: Math.ceil(size / block) }, (_, i) => i);
  for (const i of blocks) {
    let draw = 0, left = [];
    const next = () => {
      if (left.length === 0) {
        const counter = [i, draw++ + NOISE * 2 ** 24, perturbation, step];
        left = philox4x32(counter, keyOf(seed));
      }
      return left.shift();
    };
    const u = BigInt(next()) * TWO32 + BigInt(next());
    const count = table.filter((threshold) => threshold <= u).length;
    const taken = new Map();
    while (taken.size < count) {
      const word = next(), position = word >>> (32 - bits);
      if (!taken.has(position)) taken.set(position, even(word) ? 1 : -1);
    }
    for (const [position, sign] of taken) found.set(i * block + position, sign);
  }
  const positions = [...found.keys()].filter((at) => at < size).sort((a, b) => a - b);
  return [positions, positions.map((at) => found.get(at))];
}

function initialCodes({ seed, shape, zeros, layer }) {
  const Z = numerator(zeros);
  return words({ seed, domain: INITIAL, step: 0, count: shape, lane: layer })
    .map((w) => (BigInt(w) < Z ? 0 : even(w) ? 1 : -1));
}

function subset(stream, n, count) {
  const taken = new Set();
  draws64({ ...stream, count }).forEach((u, i) => {
    const j = n - count + i, t = Number((u * BigInt(j + 1)) >> 64n);
    taken.add(taken.has(t) ? j : t);
  });
  return [...taken].sort((a, b) => a - b);
}

const drawUnits = ({ seed, step, layer, n_out, count }) =>
  subset({ seed, domain: UNITS, step, lane: layer }, n_out, count);
const drawInputs = ({ seed, step, layer, unit, n_in, count }) =>
  subset({ seed, domain: INPUTS, step, lane: 2 ** 20 * layer + unit }, n_in, count);

const functions = {
  philox4x32: ({ counter, key }) => philox4x32(counter, key),
  words, uniform, integers, noise_constants: noiseConstants, sparse_noise: sparseNoise,
  initial_codes: initialCodes, draw_units: drawUnits, draw_inputs: drawInputs,
};

const WIDE = new Set(["seed", "high", "density", "zeros"]); // integers kept as BigInt
function entry(dtype, word) {
  const value = BigInt("0x" + word);
  if (dtype === "float64") {
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, value);
    return view.getFloat64(0);
  }
  return BigInt.asIntN(4 * word.length, value) < 0n && dtype[0] === "i"
    ? BigInt.asIntN(4 * word.length, value) : value;
}
// Arrays of integers and floats, rows of several axes as lists.
function decode(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(decode);
  const { dtype, shape, bits } = value;
  let list = bits === "" ? [] : bits.split(" ").map((word) => entry(dtype, word));
  for (const n of shape.slice(1).reverse())
    list = Array.from({ length: list.length / n }, (_, i) => list.slice(i * n, (i + 1) * n));
  return shape.length ? list : list[0];
}
const numbers = (value) => Array.isArray(value) ? value.map(numbers)
  : typeof value === "bigint" ? Number(value) : value;
const parse = (value, name) => WIDE.has(name) ? decode(value) : numbers(decode(value));
const canonical = (value) => Array.isArray(value) ? `[${value.map(canonical).join(",")}]`
  : String(value);

for (const { id, call, args: given, expect } of
  JSON.parse(readFileSync(process.argv[2], "utf8")).cases) {
  const args = Object.fromEntries(Object.entries(given).map(([k, v]) => [k, parse(v, k)]));
  const nested = args.shape instanceof Array || call === "sparse_noise_many"
    || (args.counter && args.counter[0] instanceof Array); // what this port does not offer
  if (!nested) {
    const result = functions[call](args);
    const expected = expect.length === 1 ? decode(expect[0]) : expect.map(decode);
    if (canonical(result) !== canonical(expected)) {
      console.error(`${id}: ${canonical(result)} instead of ${canonical(expected)}`);
      process.exit(1);
    }
  }
  console.log(nested ? `skip ${id}` : id);
}
