/**
 * minibit in JavaScript: noise, packings, quantisers, and the replay of a training log.
 *
 * One ES module without a dependency: it runs in Node and in a browser. It follows the contracts
 * (docstrings, docs/log_format.md) and is held by the package's vectors:
 *
 *     minibit conform --port "node docs/ports/js/adapter.mjs"
 *
 * Arrays are flat and typed, in C order; a function that works along the last axis takes its length
 * as `width`. Where a product of integers may pass 2^53, a double is wrong in silence: such products
 * are made of 16-bit halves or of BigInts. Where minibit computes in float32, every operation here
 * is followed by `f32`, which rounds a double's result exactly as float32 hardware would.
 * A refusal is a RangeError that names the argument.
 */

const f32 = Math.fround;
const WORD = 4294967296; // 2^32
const MASK = 0xffffffffn;
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** Refuse an argument by its name. */
function refuse(name, message) {
  throw new RangeError(`${name} ${message}`);
}

/** The integer `value`, if it lies from `least` to `most`. */
function integer(name, value, least, most) {
  if (!Number.isInteger(value) || value < least || value > most)
    refuse(name, `must be an integer from ${least} to ${most}, got ${value}`);
  return value;
}

/** Round half to even, for |x| below 2^51: there, doubles above 2^52 have no fraction to keep. */
function rint(x) {
  return x + 6755399441055744 - 6755399441055744;
}

// ------------------------------------------------------------------------------ Philox4x32-10

/** Domains: uses that never share a counter. */
export const [NOISE, INITIAL, BATCH, UNITS, INPUTS, SHIFTS, LEVELS] = [0, 1, 2, 3, 4, 5, 6];
export const USER = 255;

const M0 = 0xd2511f53, M1 = 0xcd9e8d57; // multipliers
const W0 = 0x9e3779b9, W1 = 0xbb67ae85; // steps of the key
const word = new Uint32Array(4); // the four words that `encrypt` writes

/** High 32 bits of a 32 x 32 product, by 16-bit halves: no partial product passes 2^32. */
function multiplyHigh(a, b) {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const low = aLow * bHigh, high = aHigh * bLow;
  const middle = ((aLow * bLow) >>> 16) + (low & 0xffff) + (high & 0xffff);
  return (aHigh * bHigh + (low >>> 16) + (high >>> 16) + (middle >>> 16)) >>> 0;
}

/** Ten rounds on one counter; the result lies in `word` until the next call. */
function encrypt(c0, c1, c2, c3, k0, k1) {
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(M0, c0), low0 = Math.imul(M0, c0);
    const high1 = multiplyHigh(M1, c2), low1 = Math.imul(M1, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  [word[0], word[1], word[2], word[3]] = [c0, c1, c2, c3];
}

/** Encrypt counters (n, 4) with keys (1 or n, 2), flat Uint32Arrays. */
export function philox4x32(counter, key) {
  const out = new Uint32Array(counter.length);
  for (let i = 0; i < counter.length; i += 4) {
    const k = key.length === 2 ? 0 : i / 2;
    encrypt(counter[i], counter[i + 1], counter[i + 2], counter[i + 3], key[k], key[k + 1]);
    out.set(word, i);
  }
  return out;
}

/** The key of a seed below 2^64, a BigInt or a whole number: its low half, then its high half. */
function keyOf(seed) {
  const whole = BigInt(seed);
  if (whole < 0n || whole >> 64n) refuse("seed", `must lie from 0 to 2^64 - 1, got ${whole}`);
  return [Number(whole & MASK), Number(whole >> 32n)];
}

/** Words start, ..., start + count - 1 of a stream, as a Uint32Array. */
export function words(seed, domain, step, count, lane = 0, start = 0) {
  const [k0, k1] = keyOf(seed);
  integer("domain", domain, 0, 255);
  integer("step", step, 0, WORD - 1);
  integer("lane", lane, 0, WORD - 1);
  integer("start", start, 0, 4 * WORD);
  integer("count", count, 0, 4 * WORD - start);
  const out = new Uint32Array(count);
  let block = Math.floor(start / 4);
  let at = start % 4;
  for (let i = 0; i < count; block++, at = 0) {
    encrypt(block, domain * 2 ** 24, lane, step, k0, k1);
    while (at < 4 && i < count) out[i++] = word[at++];
  }
  return out;
}

/** Doubles in [0, 1), multiples of 2^-53: 27 bits of one word above 26 of the next. */
export function uniform(seed, count, { domain = USER, step = 0, lane = 0 } = {}) {
  const w = words(seed, domain, step, 2 * count, lane);
  const bits = (i) => (w[2 * i] >>> 5) * 2 ** 26 + (w[2 * i + 1] >>> 6);
  return Float64Array.from({ length: count }, (_, i) => bits(i) / 2 ** 53);
}

/** floor(u limit / 2^64) of the 64-bit draw u = 2^32 high + low, exactly. */
function scaleDown(high, low, limit) {
  return (((BigInt(high) << 32n) | BigInt(low)) * limit) >> 64n;
}

/** Integers in [0, high) for high up to 2^63, as a BigInt64Array. */
export function integers(seed, high, count, { domain, step = 0, lane = 0 }) {
  const limit = BigInt(high);
  if (limit < 1n || limit > 1n << 63n) refuse("high", `must lie from 1 to 2^63, got ${limit}`);
  const w = words(seed, domain, step, 2 * count, lane);
  const number = (_, i) => scaleDown(w[2 * i], w[2 * i + 1], limit);
  return BigInt64Array.from({ length: count }, number);
}

// ------------------------------------------------------------------------------- sparse noise

/** The numerator over 2^32 of a share in [0, 1], ties to even; a BigInt is the numerator itself. */
export function numeratorOf(name, share) {
  const exact = typeof share === "bigint" ? Number(share) : rint(share * WORD); // an exact product
  if (!(exact >= 0 && exact <= WORD)) refuse(name, `must lie in [0, 1], got ${share}`);
  return exact;
}

/** {numerator, bits, table} of a density: T_j = floor(2^64 P(k <= j)), as a BigUint64Array. */
export function noiseConstants(density) {
  const numerator = numeratorOf("density", density);
  let bits = 16;
  while (bits > 4 && numerator * 2 ** bits > WORD) bits--;
  return { numerator, bits, table: countTable(numerator, bits) };
}

const tables = new Map();

/**
 * The table of a numerator, which its block size follows from.
 *
 * Every P lies between two numbers in fixed point. With 256 fractional bits the two nearly always
 * have the same floor; with 32 B bits nothing is rounded. Few bits and no bound are wrong for some.
 */
function countTable(numerator, bits) {
  if (tables.has(numerator)) return tables.get(numerator);
  const size = 2 ** bits;
  const p = BigInt(numerator), q = BigInt(WORD) - p;
  const least = (1n << 64n) - 1n;
  let table = q === 0n ? Array(size).fill(0n) : [];
  for (const fraction of p && q ? [256n, BigInt(32 * size)] : []) {
    let low = q << (fraction - 32n), high = low; // 1 - density
    const up = (x, divisor) => (x + divisor - 1n) / divisor;
    for (let i = 0; i < bits; i++) { // P(0) = (1 - density)^B by squaring
      low = (low * low) >> fraction;
      high = up(high * high, 1n << fraction);
    }
    let below = low, above = high, open = false;
    table = [];
    for (let j = 0; j < size; j++) {
      const floor = below >> (fraction - 64n);
      if (floor >= least) break;
      open = floor !== above >> (fraction - 64n);
      if (open) break;
      table.push(floor);
      const more = BigInt(size - j) * p, fewer = BigInt(j + 1) * q;
      low = (low * more) / fewer; // P(k = j + 1), from below and from above
      high = up(high * more, fewer);
      below += low;
      above += high;
    }
    if (!open) break;
  }
  tables.set(numerator, BigUint64Array.from(table));
  return tables.get(numerator);
}

/** {positions, signs} of one perturbation, increasing; `blocks` draws only some of its blocks. */
export function sparseNoise(seed, step, perturbation, size, density, blocks = null) {
  const { bits, table } = noiseConstants(density);
  const [k0, k1] = keyOf(seed);
  integer("step", step, 0, WORD - 1);
  integer("perturbation", perturbation, 0, WORD - 1);
  integer("size", size, 0, Number.MAX_SAFE_INTEGER);
  const width = 2 ** bits, total = Math.ceil(size / width);
  const chosen = blocks === null ? null : [...new Set(blocks)].sort((a, b) => a - b);
  chosen?.forEach((block) => integer("blocks", block, 0, total - 1));
  const highs = Array.from(table, (t) => Number(t >> 32n));
  const lows = Array.from(table, (t) => Number(t & MASK));
  const positions = [], signs = [];
  for (let i = 0; i < (chosen?.length ?? total) && table.length; i++) {
    const block = chosen === null ? i : chosen[i];
    encrypt(block, NOISE * 2 ** 24, perturbation, step, k0, k1);
    const high = word[0], low = word[1];
    let count = 0; // #{j : T_j <= u}
    while (count < highs.length
      && (highs[count] < high || (highs[count] === high && lows[count] <= low))) count++;
    const entries = new Map(); // position -> sign; who comes first stays
    for (let draw = 0, at = 2; entries.size < count; at++) {
      if (at === 4) {
        encrypt(block, NOISE * 2 ** 24 + ++draw, perturbation, step, k0, k1);
        at = 0;
      }
      const position = word[at] >>> (32 - bits);
      if (!entries.has(position)) entries.set(position, word[at] & 1 ? -1 : 1);
    }
    for (const position of [...entries.keys()].sort((a, b) => a - b)) {
      if (block * width + position >= size) break; // the last block is cut
      positions.push(block * width + position);
      signs.push(entries.get(position));
    }
  }
  return { positions, signs: Int8Array.from(signs) };
}

/** Initial weights of a layer: 0 where a word is below the numerator, else its lowest bit's sign. */
export function initialCodes(seed, count, zeros, layer = 0) {
  const numerator = numeratorOf("zeros", zeros);
  const drawn = words(seed, INITIAL, 0, count, integer("layer", layer, 0, WORD - 1));
  return Int8Array.from(drawn, (w) => (w < numerator ? 0 : w & 1 ? -1 : 1));
}

/** Floyd's algorithm: `count` distinct numbers below n, increasing. */
function subset(seed, domain, step, lane, n, count) {
  if (count === n) return Array.from({ length: n }, (_, i) => i); // all: nothing is drawn
  const w = words(seed, domain, step, 2 * count, lane);
  const taken = new Set();
  for (let i = 0; i < count; i++) {
    const j = n - count + i;
    const t = Number(scaleDown(w[2 * i], w[2 * i + 1], BigInt(j + 1)));
    taken.add(taken.has(t) ? j : t);
  }
  return [...taken].sort((a, b) => a - b);
}

/** Distinct units of a layer. */
export function drawUnits(seed, step, layer, nOut, count) {
  integer("n_out", nOut, 0, 2 ** 24);
  return subset(seed, UNITS, step, layer, nOut, integer("count", count, 0, nOut));
}

/** Distinct inputs of a unit: its lane is 2^20 layer + unit. */
export function drawInputs(seed, step, layer, unit, nIn, count) {
  integer("layer", layer, 0, 2 ** 12 - 1);
  integer("unit", unit, 0, 2 ** 20 - 1);
  integer("n_in", nIn, 0, 2 ** 24);
  const lane = layer * 2 ** 20 + unit;
  return subset(seed, INPUTS, step, lane, nIn, integer("count", count, 0, nIn));
}

// ----------------------------------------------------------------------------------- packings

/** Refuse what is no ternary code. */
function checkCodes(codes) {
  const bad = codes.findIndex((code) => code !== -1 && code !== 0 && code !== 1);
  if (bad >= 0) refuse("codes", `must be -1, 0 or 1, got ${codes[bad]} at ${bad}`);
  return codes;
}

/** Refuse packed bytes of another length. */
function checkLength(packed, length) {
  if (packed.length !== length) refuse("packed", `must have ${length} bytes, got ${packed.length}`);
}

/** Refuse the 2-bit code 3, which stands for no weight. */
function checkTwos(packed) {
  const bad = packed.findIndex((byte) => byte & (byte >> 1) & 0x55);
  if (bad >= 0) refuse("packed", `holds the 2-bit code 3 in byte ${bad}`);
}

/** Two bits a code, four codes a byte, the first lowest; the last byte is filled with weight 0. */
export function pack2(codes) {
  checkCodes(codes);
  const packed = new Uint8Array(Math.ceil(codes.length / 4)).fill(0b01010101);
  codes.forEach((code, i) => { packed[i >> 2] += code * 4 ** (i & 3); }); // 01 is weight 0
  return packed;
}

export function unpack2(packed, count) {
  checkLength(packed, Math.ceil(integer("count", count, 0, 4 * WORD) / 4));
  checkTwos(packed);
  return Int8Array.from({ length: count }, (_, i) => ((packed[i >> 2] >> (2 * (i & 3))) & 3) - 1);
}

const POWERS = [1, 3, 9, 27, 81];

/** Five base-3 digits a byte, the first code the lowest digit. */
export function packBase3(codes) {
  checkCodes(codes);
  const packed = new Uint8Array(Math.ceil(codes.length / 5)).fill(121); // five digits 1: weight 0
  codes.forEach((code, i) => { packed[Math.floor(i / 5)] += code * POWERS[i % 5]; });
  return packed;
}

export function unpackBase3(packed, count) {
  checkLength(packed, Math.ceil(integer("count", count, 0, 4 * WORD) / 5));
  const bad = packed.findIndex((byte) => byte > 242);
  if (bad >= 0) refuse("packed", `must be 0..242, got ${packed[bad]} at ${bad}`);
  const digit = (i) => Math.floor(packed[Math.floor(i / 5)] / POWERS[i % 5]) % 3;
  return Int8Array.from({ length: count }, (_, i) => digit(i) - 1);
}

/** Hugging Face's layout: byte row r holds rows r, R + r, 2R + r and 3R + r, R = ceil(n_out / 4). */
export function toHF(codes, nOut, nIn) {
  checkCodes(codes);
  const quarter = Math.ceil(nOut / 4);
  const packed = new Uint8Array(quarter * nIn); // missing rows are bits 00, which decode to -1
  for (let row = 0; row < nOut; row++) {
    const shift = 2 * Math.floor(row / quarter), start = (row % quarter) * nIn;
    for (let i = 0; i < nIn; i++) packed[start + i] |= (codes[row * nIn + i] + 1) << shift;
  }
  return packed;
}

export function fromHF(packed, nOut, nIn) {
  const quarter = Math.ceil(integer("n_out", nOut, 0, WORD) / 4);
  checkLength(packed, quarter * nIn);
  checkTwos(packed);
  const codes = new Int8Array(nOut * nIn);
  for (let row = 0; row < nOut; row++) {
    const shift = 2 * Math.floor(row / quarter), start = (row % quarter) * nIn;
    for (let i = 0; i < nIn; i++) codes[row * nIn + i] = ((packed[start + i] >> shift) & 3) - 1;
  }
  return codes;
}

// --------------------------------------------------------------------------------- quantisers

const SMALLEST = f32(1e-5); // gamma and absmax are at least this

/** Weights as float32, all finite. */
function finite(name, values) {
  const array = Float32Array.from(values);
  const bad = array.findIndex((x) => !Number.isFinite(x));
  if (bad >= 0) refuse(name, `must be finite, got ${array[bad]} at ${bad}`);
  return array;
}

/** {codes, gamma}: the mean magnitude, summed in doubles and rounded once; then 1 / gamma first. */
export function absmeanQuantize(w) {
  const weights = finite("w", w);
  if (!weights.length) refuse("w", "must not be empty");
  const gamma = Math.max(f32(weights.reduce((sum, x) => sum + Math.abs(x), 0) / w.length), SMALLEST);
  const inverse = f32(1 / gamma);
  const code = (x) => Math.max(-1, Math.min(1, rint(f32(x * inverse))));
  return { codes: Int8Array.from(weights, code), gamma };
}

/** {codes, scale}: int8 along rows of `width`, scale = (1 / max(absmax, 1e-5)) * 127 in float32. */
export function absmaxQuantize(x, width) {
  const tokens = finite("x", x);
  const codes = new Int8Array(x.length), scale = new Float32Array(width ? x.length / width : 0);
  for (let row = 0; row < scale.length; row++) {
    const token = tokens.subarray(row * width, (row + 1) * width);
    scale[row] = f32(f32(1 / token.reduce((most, v) => Math.max(most, Math.abs(v)), SMALLEST)) * 127);
    token.forEach((v, i) => { codes[row * width + i] = rint(f32(v * scale[row])); });
  }
  return { codes, scale };
}

export const NF4_CODE = Float32Array.of(
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
);
const MIDPOINTS = Float32Array.from({ length: 15 }, (_, i) => f32(NF4_CODE[i] + NF4_CODE[i + 1]) / 2);
const TINY = f32(1e-38); // what divides a block is at least this

/** {packed, absmax}: the first code of a byte is in its high half; a lone last one is joined by 7. */
export function quantizeNF4(w, block = 64) {
  const weights = finite("w", w);
  if (!weights.length) refuse("w", "must not be empty");
  if (![32, 64, 128, 256, 512, 1024, 2048, 4096].includes(block)) refuse("block", `got ${block}`);
  const absmax = new Float32Array(Math.ceil(w.length / block));
  const packed = new Uint8Array(Math.ceil(w.length / 2)).fill(w.length % 2 ? 7 : 0, -1);
  absmax.forEach((_, b) => {
    const part = weights.subarray(b * block, (b + 1) * block);
    const largest = part.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const divisor = Math.max(largest, TINY), inverse = f32(1 / divisor);
    const whole = part.length === block; // a shorter last block divides, and keeps the clamped value
    absmax[b] = whole ? largest : divisor;
    part.forEach((x, i) => {
      const s = Math.max(-1, Math.min(1, f32(whole ? x * inverse : x / divisor)));
      const code = MIDPOINTS.reduce((count, bound) => count + (s > bound), 0); // a tie goes down
      const at = b * block + i;
      packed[at >> 1] |= at & 1 ? code : code << 4;
    });
  });
  return { packed, absmax };
}

export function dequantizeNF4({ packed, absmax }, count, block = 64) {
  const code = (i) => (i & 1 ? packed[i >> 1] & 15 : packed[i >> 1] >> 4);
  const value = (_, i) => NF4_CODE[code(i)] * absmax[Math.floor(i / block)];
  return Float32Array.from({ length: count }, value);
}

/** Mark the k largest magnitudes of each row; of equal ones the lowest index wins. */
export function topkMask(x, width, k) {
  const mask = new Uint8Array(x.length);
  const bad = x.findIndex(Number.isNaN);
  if (bad >= 0) refuse("x", `must hold no NaN, got one at ${bad}`);
  integer("k", k, 1, width);
  for (let start = 0; start < x.length; start += width) {
    const order = Array.from({ length: width }, (_, i) => start + i);
    const before = (i, j) => {
      const a = Math.abs(x[i]), b = Math.abs(x[j]); // inf - inf is NaN, and no order
      return a > b ? -1 : a < b ? 1 : i - j;
    };
    for (const i of order.sort(before).slice(0, k)) mask[i] = 1;
  }
  return mask;
}

/** Mark the n largest magnitudes of every m neighbours in rows of `width`. */
export function blockTopkMask(x, width, n, m) {
  if (width % integer("m", m, 1, WORD)) refuse("m", `must divide the last axis ${width}, got ${m}`);
  return topkMask(x, m, n);
}

// ------------------------------------------------------------------------------ layers, the MLP

/** An array like x to write into: integers become float32. */
const floats = (x, length) => new (x instanceof Float64Array ? Float64Array : Float32Array)(length);

/** y = x W^T for rows x of nIn and ternary W (nOut, nIn), as additions alone. */
export function ternaryLinear(x, w, nOut, nIn, y = floats(x, Math.floor(x.length / nIn) * nOut)) {
  if (x.length % nIn) refuse("x", `must have rows of ${nIn}, got ${x.length} entries`);
  for (let token = 0; token < y.length / nOut; token++)
    for (let unit = 0; unit < nOut; unit++) {
      let sum = 0; // a double: exact for integers, and rounded once
      for (let i = 0; i < nIn; i++) {
        const code = w[unit * nIn + i];
        if (code > 0) sum += x[token * nIn + i];
        else if (code < 0) sum -= x[token * nIn + i];
      }
      y[token * nOut + unit] = sum;
    }
  return y;
}

/** Rows of int8 codes times ternary codes: exact int32 sums. */
export function ternaryMatmulInt8(x, w, nOut, nIn) {
  return ternaryLinear(x, w, nOut, nIn, new Int32Array(Math.floor(x.length / nIn) * nOut));
}

/** Quantise tokens, multiply exactly, scale: y = z (gamma / scale), each step a float32. */
export function ternaryMatmul(x, w, nOut, nIn, gamma = 1) {
  const { codes, scale } = absmaxQuantize(x, nIn);
  const factor = (row) => f32(f32(gamma) / scale[row]);
  const sums = ternaryMatmulInt8(codes, w, nOut, nIn);
  return Float32Array.from(sums, (z, i) => f32(z) * factor(Math.floor(i / nOut)));
}

/** x / sqrt(mean x^2 + eps) of every row, off which `centre` takes the mean first. */
function normalise(x, width, eps, centre) {
  if (!(eps > 0 && eps < Infinity)) refuse("eps", `must be positive and finite, got ${eps}`);
  if (!width) refuse("x", "must have a last axis that is not empty");
  const z = floats(x, x.length);
  for (let start = 0; start < x.length; start += width) {
    const row = Array.from(x.subarray(start, start + width));
    const mean = centre ? row.reduce((a, b) => a + b, 0) / width : 0;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / width;
    row.forEach((v, i) => { z[start + i] = (v - mean) / Math.sqrt(variance + eps); });
  }
  return z;
}

/** (x - mean) / sqrt(mean (x - mean)^2 + eps): eps is inside the root. */
export const layerNorm = (x, width, eps = 1e-5) => normalise(x, width, eps, true);

/** gain x / sqrt(mean x^2 + eps). */
export const rmsNorm = (x, width, gain = null, eps = 1e-5) =>
  normalise(x, width, eps, false).map((z, i) => z * (gain ? gain[i % width] : 1));

/** max(x, 0); NaN stays NaN. */
export const relu = (x) => floats(x, x.length).map((_, i) => (x[i] <= 0 ? 0 : x[i]));
export const squaredRelu = (x) => relu(x).map((v) => v * v);

/** What an int8 layer hands on: codes / scale, in float32 whatever the precision of x. */
function rounded(x, width) {
  const { codes, scale } = absmaxQuantize(x, width);
  return floats(x, x.length).map((_, i) => f32(codes[i] / scale[Math.floor(i / width)]));
}

/**
 * Logits of the ternary MLP. `layers` are {codes, nOut, nIn}, first to last.
 *
 * h <- relu(layer_norm(h W^T)); with int8 activations all hidden layers but the last round what the
 * norm returns, before relu: a scale from what relu lets through would be another one.
 */
export function mlp(layers, x, { logitScale = 1, eps = 1e-5, activations = "float" } = {}) {
  if (activations !== "float" && activations !== "int8") refuse("activations", `got ${activations}`);
  let h = x;
  layers.forEach(({ codes, nOut, nIn }, layer) => {
    h = ternaryLinear(h, codes, nOut, nIn);
    if (layer === layers.length - 1) return;
    h = layerNorm(h, nOut, eps);
    if (activations === "int8" && layer < layers.length - 2) h = rounded(h, nOut);
    h = relu(h);
  });
  return h.map((v) => logitScale * v);
}

/** The MLP of a replayed log, as a function from pixels (rows of n_in) to logits. */
export function modelOf(header, weights) {
  const { recipe, data, plan } = header;
  let start = 0;
  const layers = plan.shapes.map(([nOut, nIn]) => {
    const codes = weights.subarray(start, (start += nOut * nIn));
    return { codes, nOut, nIn };
  });
  const input = (pixel) => f32(f32(pixel) * f32(data.input_scale)) + f32(data.input_offset);
  const options = { logitScale: recipe.logit_scale, activations: recipe.activations ?? "float" };
  return (pixels) => mlp(layers, Float32Array.from(pixels, input), options);
}

// ----------------------------------------------------------------------------- CRC-32, SHA-256

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

/** Running CRC-32 of zlib, PNG and Ethernet. */
export function crc32(bytes, crc = 0) {
  crc = ~crc;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** First 32 fractional bits of the n-th roots of the first primes, by integers. */
function rootsOfPrimes(n, count) {
  const roots = [];
  for (let prime = 2; roots.length < count; prime++) {
    let divisor = 2;
    while (prime % divisor) divisor++;
    if (divisor < prime) continue;
    const wanted = BigInt(prime) << BigInt(32 * n);
    let root = 0n;
    for (let bit = 1n << 36n; bit; bit >>= 1n) if ((root | bit) ** BigInt(n) <= wanted) root |= bit;
    roots.push(Number(root & MASK));
  }
  return roots;
}
const SHA_START = rootsOfPrimes(2, 8), SHA_ROUNDS = rootsOfPrimes(3, 64);
const turn = (x, by) => (x >>> by) | (x << (32 - by));

/** SHA-256 of bytes, as 32 bytes. */
export function sha256(bytes) {
  const whole = bytes.length & ~63; // the last block or two are padded
  const tail = new Uint8Array(bytes.length - whole < 56 ? 64 : 128);
  tail.set(bytes.subarray(whole));
  tail[bytes.length - whole] = 128;
  new DataView(tail.buffer).setBigUint64(tail.length - 8, 8n * BigInt(bytes.length));
  const state = Int32Array.from(SHA_START), w = new Int32Array(64);
  const absorb = (block) => {
    for (let i = 0; i < 16; i++) w[i] = block.getInt32(4 * i);
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15], y = w[i - 2];
      const s0 = turn(x, 7) ^ turn(x, 18) ^ (x >>> 3), s1 = turn(y, 17) ^ turn(y, 19) ^ (y >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25), choice = (e & f) ^ (~e & g);
      const t1 = h + s1 + choice + SHA_ROUNDS[i] + w[i];
      const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22), majority = (a & b) ^ (a & c) ^ (b & c);
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + s0 + majority) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { state[i] += x; });
  };
  for (let at = 0; at < whole; at += 64) absorb(new DataView(bytes.buffer, bytes.byteOffset + at, 64));
  for (let at = 0; at < tail.length; at += 64) absorb(new DataView(tail.buffer, at, 64));
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((x, i) => out.setInt32(4 * i, x));
  return new Uint8Array(out.buffer);
}

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

// ------------------------------------------------------------------------------ the log's bytes

/** A log is damaged, or says what no log says; `offset` is the byte. */
export class LogError extends RangeError {
  constructor(message, offset) {
    super(`${message} (byte ${offset})`);
    this.offset = offset;
  }
}

/** JSON of which no digit is lost: whole numbers beyond 2^53 are BigInts; no key may come twice. */
export function parseJSON(text) {
  const objects = []; // the keys of every object that is open
  for (const [token, key] of text.matchAll(/("(?:[^"\\]|\\.)*")\s*:|"(?:[^"\\]|\\.)*"|[{}]/g)) {
    if (token === "{") objects.push(new Set());
    else if (token === "}") objects.pop();
    else if (key !== undefined && objects.length) {
      const name = JSON.parse(key), keys = objects.at(-1);
      if (keys.has(name)) refuse("text", `has the key ${key} twice`);
      keys.add(name);
    }
  }
  const marked = text.replace(
    /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g,
    (token) => (/^-?\d{16,}$/.test(token) ? `"\\u0000${token}"` : token),
  );
  return JSON.parse(marked, (key, value) => {
    if (typeof value === "number" && !Number.isFinite(value)) refuse("text", `holds ${value}`);
    if (typeof value !== "string" || value[0] !== "\0") return value;
    const whole = BigInt(value.slice(1)), number = Number(whole);
    return Number.isSafeInteger(number) ? number : whole;
  });
}

/** Refuse a plan that no step can be drawn by. */
function checkPlan(plan) {
  const within = (x, least, most) => Number.isInteger(x) && x >= least && x <= most;
  const { method, seed, names, shapes, zeros, perturbations, units, inputs } = plan ?? {};
  const laws = {
    "method is sampled or units": () => method === "sampled" || method === "units",
    "seed lies below 2^64": () => BigInt(seed) >= 0n && BigInt(seed) >> 64n === 0n,
    "names are distinct": () => names.length > 0 && new Set(names).size === names.length,
    "each name has a shape": () => shapes.length === names.length,
    "a shape's sides are at least 1": () => shapes.every((s) => s.every((n) => within(n, 1, WORD))),
    "there are at most 2^28 weights": () => shapes.map(product).reduce((a, b) => a + b) <= 2 ** 28,
    "zeros lie in [0, 2^32]": () => within(zeros, 0, WORD),
    "a step has codes": () => method !== "sampled" || within(perturbations, 1, WORD - 1),
    "units and inputs lie within the shapes": () => method === "sampled"
      || (units.length === names.length && inputs.length === names.length
        && shapes.every(([nOut, nIn, ...rest], l) => within(nOut, 1, 2 ** 20) && !rest.length
          && within(nIn, 1, 2 ** 24) && within(units[l], 0, nOut) && within(inputs[l], 0, nIn))),
  };
  for (const [law, holds] of Object.entries(laws)) {
    let kept = false;
    try { kept = holds(); } catch { /* a field is missing, or of another kind */ }
    if (!kept) throw new LogError(`the header's plan breaks: ${law}`, 14);
  }
}

/** Whether a sector of 512 bytes that holds bytes start to stop is all zeros, from start on. */
function hasHole(data, start, stop) {
  for (let sector = start - (start % 512); sector < stop; sector += 512)
    if (data.subarray(Math.max(start, sector), sector + 512).every((byte) => byte === 0)) return true;
  return false;
}

/** {header, records, tornAt}: all that is good in a file. Damage is a LogError. */
export function readLog(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const magic = [0x89, 0x4d, 0x42, 0x4c, 0x0d, 0x0a, 0x1a, 0x0a];
  if (magic.some((byte, i) => i < data.length && data[i] !== byte)) throw new LogError("no log", 0);
  if (data.length < 14) throw new LogError("the header is cut", data.length);
  if (view.getUint16(8, true) !== 1) throw new LogError("the version is not 1", 8);
  const start = 14 + view.getUint32(10, true);
  if (start > 14 + 2 ** 20) throw new LogError("the header is longer than 2^20 bytes", 10);
  if (data.length < start + 4) throw new LogError("the header is cut", data.length);
  let crc = crc32(data.subarray(0, start));
  if (crc !== view.getUint32(start, true)) throw new LogError("the header is damaged", 14);
  let header;
  try {
    header = parseJSON(new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(14, start)));
  } catch (error) {
    throw new LogError(`the header is no JSON: ${error.message}`, 14);
  }
  checkPlan(header?.plan);
  const records = [];
  let at = start + 4;
  while (at < data.length) {
    if (data.length - at < 7) return { header, records, tornAt: at };
    const steps = data[at], stop = at + 7 + view.getUint32(at + 1, true) + 8; // the crc's offset
    if ((crc32(data.subarray(at, at + 5), crc) & 0xffff) !== view.getUint16(at + 5, true)) {
      if (hasHole(data, at, at + 7)) return { header, records, tornAt: at };
      throw new LogError("a record's head is damaged", at);
    }
    if (stop + 4 > data.length) return { header, records, tornAt: at };
    const after = crc32(data.subarray(at, stop), crc);
    if (after !== view.getUint32(stop, true)) {
      const hole = data.length - at <= 65536 && hasHole(data, at, stop + 4);
      if (stop + 4 === data.length || hole) return { header, records, tornAt: at };
      throw new LogError("a record is damaged", at);
    }
    if (steps < 1 || steps > 32) throw new LogError(`a record of ${steps} steps`, at);
    const payload = data.subarray(at + 7, stop - 8), digest = data.subarray(stop - 8, stop);
    records.push({ offset: at, steps, payload, digest });
    crc = after;
    at = stop + 4;
  }
  return { header, records, tornAt: null };
}

/** Codes off a payload, bits from the highest of a byte to the lowest. */
export class BitReader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  bit() {
    const byte = this.at >> 3;
    if (byte >= this.bytes.length) throw new RangeError("the codes go past the payload's end");
    return (this.bytes[byte] >> (7 - (this.at++ & 7))) & 1;
  }

  number(count) {
    let x = 0;
    for (let i = 0; i < count; i++) x = 2 * x + this.bit(); // no shift: it may have over 31 bits
    return x;
  }

  gamma() {
    let n = 0;
    while (this.bit() === 0) n++;
    return 2 ** n + this.number(n);
  }

  uniform(size) {
    if (size === 1) return 0;
    let bits = 1;
    while (2 ** bits < size) bits++;
    const short = 2 ** bits - size, x = this.number(bits - 1);
    return x < short ? x : 2 * x + this.bit() - short;
  }

  subset(count, size) {
    const positions = [];
    let start = 0;
    for (let k = count; k > 0; k--) {
      const room = size - start - k + 1;
      const m = k === 1 ? room : Math.max(1, Math.floor((7 * room + 5 * k) / (10 * k)));
      const most = Math.floor((room - 1) / m);
      let q = 0;
      while (q < most && this.bit() === 0) q++;
      positions.push(start + q * m + this.uniform(Math.min(m, room - q * m)));
      start = positions.at(-1) + 1;
    }
    return positions;
  }

  /** Refuse a payload that goes on: fewer than eight bits are left, all zero. */
  close() {
    const left = 8 * this.bytes.length - this.at;
    if (left > 7 || this.number(left)) throw new RangeError("bits follow the last code");
  }
}

// --------------------------------------------------------------------------------- the replay

/** Steps of a record: {numerator, codes}, or {positions, signs} of each layer. */
export function unpackSteps(plan, payload, count) {
  const steps = [];
  if (plan.method === "sampled") {
    if (payload.length < 4) throw new RangeError("a payload without a numerator");
    const numerator = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
    const bits = new BitReader(payload.subarray(4));
    const code = () => (bits.bit() ? 1 - 2 * bits.bit() : 0);
    for (let s = 0; s < count; s++)
      steps.push({ numerator, codes: Array.from({ length: plan.perturbations }, code) });
    bits.close();
    return steps;
  }
  const bits = new BitReader(payload);
  const ranges = plan.shapes.map(() => [bits.gamma() - 1, bits.gamma()]);
  for (let s = 0; s < count; s++) {
    const positions = [], signs = [];
    ranges.forEach(([least, span], layer) => {
      const moves = least + bits.uniform(span), size = plan.units[layer] * plan.inputs[layer];
      if (moves > size) throw new RangeError(`${moves} moves among ${size} candidates`);
      positions.push(bits.subset(moves, size));
      signs.push(Array.from({ length: moves }, () => 1 - 2 * bits.bit()));
    });
    steps.push({ positions, signs });
  }
  bits.close();
  return steps;
}

/** All initial weights, layer after layer. */
export function initialWeights(plan) {
  const weights = new Int8Array(plan.shapes.map(product).reduce((a, b) => a + b));
  let start = 0;
  plan.shapes.map(product).forEach((size, layer) => {
    weights.set(initialCodes(plan.seed, size, BigInt(plan.zeros), layer), start);
    start += size;
  });
  return weights;
}

/** Moves of a step as a map from weight to sum, drawn by `seed` and `number`. */
export function movesOf(plan, seed, number, step) {
  const moves = new Map();
  const add = (position, move) => moves.set(position, (moves.get(position) ?? 0) + move);
  const sizes = plan.shapes.map(product);
  if (plan.method === "sampled") {
    const size = sizes.reduce((a, b) => a + b);
    step.codes.forEach((code, i) => {
      if (code === 0) return;
      const { positions, signs } = sparseNoise(seed, number, i, size, BigInt(step.numerator));
      positions.forEach((position, m) => add(position, -code * signs[m]));
    });
    return moves;
  }
  let start = 0;
  plan.shapes.forEach(([nOut, nIn], layer) => {
    const wanted = plan.inputs[layer], columns = new Map();
    const units = drawUnits(seed, number, layer, nOut, plan.units[layer]);
    step.positions[layer].forEach((candidate, m) => {
      const unit = units[Math.floor(candidate / wanted)];
      if (!columns.has(unit)) columns.set(unit, drawInputs(seed, number, layer, unit, nIn, wanted));
      add(start + unit * nIn + columns.get(unit)[candidate % wanted], step.signs[layer][m]);
    });
    start += sizes[layer];
  });
  return moves;
}

export const digestOf = (weights) => sha256(new Uint8Array(weights.buffer, weights.byteOffset, weights.length));

/**
 * {header, weights, history, steps, tornAt}: the weights after the last record, all digests checked.
 *
 * With `keep`, `history` has them before the first step and after each.
 */
export function replay(data, { keep = false } = {}) {
  const { header, records, tornAt } = readLog(data), { plan } = header;
  const weights = initialWeights(plan), history = keep ? [weights.slice()] : [];
  const drawnBy = (number) => {
    for (const [seed, first, count] of header.segments ?? []) {
      if (number < count) return [seed, first + number];
      number -= count;
    }
    return null;
  };
  let number = 0;
  for (const { offset, steps, payload, digest } of records) {
    let unpacked;
    try {
      unpacked = unpackSteps(plan, payload, steps);
    } catch (error) {
      throw new LogError(`a record cannot be read: ${error.message}`, offset);
    }
    for (const step of unpacked) {
      const [seed, drawnAs] = drawnBy(number) ?? [plan.seed, number];
      for (const [position, move] of movesOf(plan, seed, drawnAs, step))
        weights[position] = Math.max(-1, Math.min(1, weights[position] + move)); // once, at the end
      number++;
      if (keep) history.push(weights.slice());
    }
    if (hex(digestOf(weights).subarray(0, 8)) !== hex(digest))
      throw new LogError("the weights after a record have another digest", offset);
  }
  return { header, weights, history, steps: number, tornAt };
}
