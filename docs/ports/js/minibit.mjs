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
export const [NOISE, INITIAL, BATCH, UNITS, INPUTS, SHIFTS, LEVELS, TOKENS] = [0, 1, 2, 3, 4, 5, 6, 7];
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
  const width = 2 ** bits;
  integer("size", size, 0, WORD * width); // a counter holds 2^32 blocks
  const total = Math.ceil(size / width);
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

/** Two planes of bits, of the ones and of the minus ones, eight codes a byte, the first lowest. */
export function packBitplanes(codes) {
  checkCodes(codes);
  const half = Math.ceil(codes.length / 8), planes = new Uint8Array(2 * half);
  codes.forEach((code, i) => { if (code) planes[(code < 0 ? half : 0) + (i >> 3)] |= 1 << (i & 7); });
  return planes;
}

export function unpackBitplanes(planes, count) {
  const half = Math.ceil(integer("count", count, 0, 4 * WORD) / 8);
  checkLength(planes, 2 * half);
  const both = planes.findIndex((byte, i) => i < half && byte & planes[i + half]);
  if (both >= 0) refuse("packed", `marks a code of byte ${both} as both 1 and -1`);
  const bit = (plane, i) => (planes[plane + (i >> 3)] >> (i & 7)) & 1;
  return Int8Array.from({ length: count }, (_, i) => bit(0, i) - bit(half, i));
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

/** The 16 bits of a number in half precision, by way of float32, ties to even. */
function halfBits(x) {
  const size = f32(x);
  const exponent = Math.max(-14, (new Uint32Array(Float32Array.of(size).buffer)[0] >>> 23) - 127);
  const bits = (exponent + 14) * 1024 + rint(size / 2 ** (exponent - 10)); // a carry is right, too
  if (!(x >= 0 && bits < 0x7c00 && (bits || !x))) refuse("scale", `must fit half precision, got ${x}`);
  return bits;
}

/** The number of 16 bits in half precision: a scale, so neither negative nor infinite. */
function halfNumber(bits) {
  if (bits > 0x7c00 - 1 && bits !== 0x8000) refuse("packed", `holds the scale of bits ${bits}`);
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (bits === 0x8000) return -0;
  return exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
}

const GGML = 256; // weights of a row that share a block, and its scale
const FIVES = [[0, 0, 32, 5], [160, 32, 16, 5], [240, 48, 4, 4]]; // code, byte, bytes, codes a byte

/** Where the codes of a TQ1_0 block lie: calls `visit(byte, codes of the byte, its digits' powers)`. */
function tq1(visit) {
  for (const [code, byte, width, count] of FIVES)
    for (let j = 0; j < width; j++)
      visit(byte + j, Array.from({ length: count }, (_, n) => [code + n * width + j, 3 ** (4 - n)]));
}

/** ggml's blocks: `bytes` of codes that `pack` fills in, then the scale; 0 where all codes are. */
function toBlocks(codes, nIn, scale, bytes, pack) {
  checkCodes(codes);
  if (nIn % GGML) refuse("codes", `must have rows of a multiple of ${GGML}, got ${nIn}`);
  const packed = new Uint8Array((codes.length / GGML) * (bytes + 2));
  for (let block = 0; block < codes.length / GGML; block++) {
    const part = codes.subarray(block * GGML, (block + 1) * GGML);
    const out = packed.subarray(block * (bytes + 2), (block + 1) * (bytes + 2));
    const bits = halfBits(typeof scale === "number" ? scale : scale[block]);
    pack(part, out);
    if (part.some((code) => code)) [out[bytes], out[bytes + 1]] = [bits & 255, bits >> 8];
  }
  return packed;
}

/** {codes, scales} of ggml's blocks: `unpack` fills the codes of one in. */
function fromBlocks(packed, bytes, unpack) {
  if (packed.length % (bytes + 2)) refuse("packed", `must be blocks of ${bytes + 2} bytes`);
  const blocks = packed.length / (bytes + 2), scales = new Float32Array(blocks);
  const codes = new Int8Array(blocks * GGML);
  for (let block = 0; block < blocks; block++) {
    const part = packed.subarray(block * (bytes + 2), (block + 1) * (bytes + 2));
    scales[block] = halfNumber(part[bytes] | (part[bytes + 1] << 8));
    unpack(part, codes.subarray(block * GGML, (block + 1) * GGML));
  }
  return { codes, scales };
}

/** ggml's TQ1_0, 54 bytes a block: five digits as a binary fraction, ceil(256 v / 243). */
export const toTQ1 = (codes, nIn, scale = 1) => toBlocks(codes, nIn, scale, 52, (part, out) =>
  tq1((byte, digits) => {
    const v = digits.reduce((sum, [code, power]) => sum + (part[code] + 1) * power, 0);
    out[byte] = Math.ceil((256 * v) / 243);
  }));

export const fromTQ1 = (packed) => fromBlocks(packed, 52, (part, codes) =>
  tq1((byte, digits) => {
    let v = (part[byte] * 243) >> 8;
    v -= v % digits.at(-1)[1]; // four digits only in the last bytes
    if (Math.ceil((256 * v) / 243) !== part[byte]) refuse("packed", `holds no TQ1_0 byte at ${byte}`);
    for (const [code, power] of digits) codes[code] = (Math.floor(v / power) % 3) - 1;
  }));

/** ggml's TQ2_0, 66 bytes a block: of each 128 codes, four that are 32 apart share a byte. */
export const toTQ2 = (codes, nIn, scale = 1) => toBlocks(codes, nIn, scale, 64, (part, out) =>
  part.forEach((code, i) => { out[32 * (i >> 7) + (i & 31)] |= (code + 1) << (2 * ((i >> 5) & 3)); }));

export const fromTQ2 = (packed) => fromBlocks(packed, 64, (part, codes) => {
  checkTwos(part.subarray(0, 64));
  codes.forEach((_, i) => {
    codes[i] = ((part[32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3) - 1;
  });
});

/** The distance of the four codes that share a byte of I2_S, which has three layouts. */
function i2Distance(nOut, nIn, layout) {
  const distance = { x86: 32, arm: 16, rows: nIn }[layout];
  if (distance === undefined) refuse("layout", `must be x86, arm or rows, got ${layout}`);
  const fits = layout === "rows" ? nOut % 4 === 0 : nIn % (4 * distance) === 0;
  if (!fits) refuse("codes", `of ${nOut} x ${nIn} do not fit the layout ${layout}`);
  return distance;
}

/** [byte, shift] of code i: the first of the four is in the highest bits. */
const i2Place = (i, distance) => {
  const group = Math.floor(i / (4 * distance)), inside = i % (4 * distance);
  return [group * distance + (inside % distance), 6 - 2 * Math.floor(inside / distance)];
};

/** bitnet.cpp's I2_S: two bits a code, then 32 bytes that begin with one float32 scale. */
export function toI2S(codes, nOut, nIn, scale = 1, layout = "x86") {
  const distance = i2Distance(nOut, nIn, layout), size = (nOut * nIn) / 4, one = f32(scale);
  if (!(one >= 0 && one < Infinity && (one || !scale))) refuse("scale", `must be >= 0, got ${scale}`);
  const packed = new Uint8Array(size + 32);
  checkCodes(codes).forEach((code, i) => {
    const [byte, shift] = i2Place(i, distance);
    packed[byte] |= (code + 1) << shift;
  });
  new DataView(packed.buffer).setFloat32(size, one, true);
  return packed;
}

export function fromI2S(packed, nOut, nIn, layout = "x86") {
  const distance = i2Distance(nOut, nIn, layout), size = (nOut * nIn) / 4;
  checkLength(packed, size + 32);
  checkTwos(packed.subarray(0, size));
  const scale = new DataView(packed.buffer, packed.byteOffset).getFloat32(size, true);
  if (!(scale >= 0 && scale < Infinity)) refuse("packed", `holds the scale ${scale}`);
  const code = (_, i) => {
    const [byte, shift] = i2Place(i, distance);
    return ((packed[byte] >> shift) & 3) - 1;
  };
  return { codes: Int8Array.from({ length: nOut * nIn }, code), scale };
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

/** {codes, beta}: the sign of w - mean w, -1 at the mean itself, and beta = mean |w|: BitNet b1. */
export function binaryQuantize(w) {
  const weights = finite("w", w);
  if (!weights.length) refuse("w", "must not be empty");
  const mean = (size) => f32(weights.reduce((sum, x) => sum + size(x), 0) / weights.length);
  const centre = mean((x) => x);
  return { codes: Int8Array.from(weights, (x) => (x > centre ? 1 : -1)), beta: mean(Math.abs) };
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

/** floor((1 - sparsity) n), of the decimal number that prints the share, or of its text. */
export function topkCount(n, sparsity) {
  const [, digits, fraction = "", power = "0"] = /^(\d+)\.?(\d*)(?:[eE]([+-]?\d+))?$/.exec(String(sparsity))
    ?? refuse("sparsity", `must be a decimal number, got ${sparsity}`);
  const places = BigInt(Math.max(0, fraction.length - Number(power))), one = 10n ** places;
  const share = BigInt(digits + fraction) * 10n ** BigInt(Math.max(0, Number(power) - fraction.length));
  const k = Number(((one - share) * BigInt(integer("n", n, 1, WORD))) / one);
  if (share >= one || k < 1) refuse("sparsity", `must keep at least one of ${n}, got ${sparsity}`);
  return k;
}

/** Keep what a mask marks, +0 elsewhere; with `rescale` a row is divided by its length. */
function kept(x, mask, width, rescale) {
  const y = floats(x, x.length).map((_, i) => (mask[i] ? x[i] : 0));
  if (!rescale) return y;
  for (let start = 0; start < y.length; start += width) {
    const row = y.subarray(start, start + width);
    const length = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) + 1e-12);
    row.forEach((v, i) => { row[i] = v / length; });
  }
  return y;
}

/** Keep the k largest magnitudes of each row. */
export const topkSparsify = (x, width, k, rescale = false) => kept(x, topkMask(x, width, k), width, rescale);

/** Keep the n largest magnitudes of every m neighbours; a row is rescaled as a whole. */
export const blockTopkSparsify = (x, width, n, m, rescale = false) =>
  kept(x, blockTopkMask(x, width, n, m), width, rescale);

/** {codes, scale} of the k largest entries, chosen by x and not by its codes. */
export const topkQuantize = (x, width, k) => absmaxQuantize(topkSparsify(finite("x", x), width, k), width);

// ------------------------------------------------------------------------------ layers, the MLP

/** An array like x to write into: integers become float32. */
const floats = (x, length) => new (x instanceof Float64Array ? Float64Array : Float32Array)(length);

/** y = x W^T for rows x of nIn and ternary W (nOut, nIn), as additions alone. */
export function ternaryLinear(x, w, nOut, nIn) {
  if (x.length % nIn) refuse("x", `must have rows of ${nIn}, got ${x.length} entries`);
  const y = floats(x, Math.floor(x.length / nIn) * nOut);
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
  if (x.length % nIn) refuse("x", `must have rows of ${nIn}, got ${x.length} entries`);
  const y = new Int32Array(Math.floor(x.length / nIn) * nOut);
  for (let token = 0, out = 0; out < y.length; token += nIn)
    for (let start = 0; start < nOut * nIn; start += nIn, out++) {
      let sum = 0;
      for (let i = 0; i < nIn; i++) sum = (sum + x[token + i] * w[start + i]) | 0;
      y[out] = sum;
    }
  return y;
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

/** logsumexp(z) - z[label] of each row. */
export function crossEntropy(logits, labels, width) {
  if (labels.length * width !== logits.length) refuse("labels", `must be one per row of ${width}`);
  return Float64Array.from(labels, (label, row) => {
    integer("labels", Number(label), 0, width - 1);
    const z = Array.from(logits.subarray(row * width, (row + 1) * width));
    const most = z.reduce((a, b) => Math.max(a, b));
    return most - z[Number(label)] + Math.log(z.reduce((sum, v) => sum + Math.exp(v - most), 0));
  });
}

/** What an int8 layer hands on: codes / scale, in float32 whatever the precision of x. */
function rounded(x, width) {
  const { codes, scale } = absmaxQuantize(x, width);
  return floats(x, x.length).map((_, i) => f32(codes[i] / scale[Math.floor(i / width)]));
}

/**
 * Logits of the ternary MLP. `layers` are {codes, nOut, nIn}, first to last.
 *
 * h <- relu(layer_norm(h W^T)); with int8 activations all hidden layers but the last round what the
 * norm returns, before relu: a scale from what relu lets through would be another one. `watch` is
 * given what a hidden layer hands on, and its number; it may change it.
 */
export function mlp(layers, x, { logitScale = 1, eps = 1e-5, activations = "float", watch = null } = {}) {
  if (activations !== "float" && activations !== "int8") refuse("activations", `got ${activations}`);
  let h = x;
  layers.forEach(({ codes, nOut, nIn }, layer) => {
    h = ternaryLinear(h, codes, nOut, nIn);
    if (layer === layers.length - 1) return;
    h = layerNorm(h, nOut, eps);
    if (activations === "int8" && layer < layers.length - 2) h = rounded(h, nOut);
    h = relu(h);
    watch?.(h, layer);
  });
  return h.map((v) => logitScale * v);
}

/** Weights laid end to end as the layers of `mlp`, which share their memory. */
export function layersOf({ shapes }, weights) {
  let start = 0;
  return shapes.map(([nOut, nIn]) => {
    const codes = weights.subarray(start, (start += nOut * nIn));
    return { codes, nOut, nIn };
  });
}

/** The MLP of a replayed log, as a function from pixels (rows of n_in) to logits. */
export function modelOf({ recipe, data, plan }, weights) {
  const layers = layersOf(plan, weights);
  const input = (pixel) => f32(f32(pixel) * f32(data.input_scale)) + f32(data.input_offset);
  const options = { logitScale: recipe.logit_scale, activations: recipe.activations ?? "float" };
  return (pixels) => mlp(layers, Float32Array.from(pixels, input), options);
}

// --------------------------------------------------------- the small language model, and sampling

/** {name: {data, shape}} of a safetensors file; tensors of other types than F32 are bytes. */
export function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  const tensors = Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
    const data = bytes.slice(start + from, start + to); // a copy, which is aligned
    return [name, { data: dtype === "F32" ? new Float32Array(data.buffer) : data, shape }];
  });
  return Object.fromEntries(tensors);
}

/**
 * {config, params, characters} of a model directory: config.json parsed, the tensors of
 * model.safetensors, and the text that its characters come from. A projection is packed by `toHF`;
 * its scale is 1 / gamma for the linear class bitlinear, and gamma for autobitlinear.
 */
export function languageModel(published, tensors, text) {
  const heads = published.num_attention_heads;
  const config = {
    layers: published.num_hidden_layers, heads, kvHeads: published.num_key_value_heads,
    maxPositions: published.max_position_embeddings, rmsEps: published.rms_norm_eps,
    ropeTheta: published.rope_parameters.rope_theta,
  };
  const inverse = published.quantization_config.linear_class === "bitlinear";
  const params = {};
  for (const [name, { data, shape: [rows, nIn] }] of Object.entries(tensors)) {
    const short = name.replace(/^model\./, "").replace(/\.weight$/, "");
    if (short.endsWith("_scale")) continue;
    if (!short.endsWith("_proj")) {
      params[short] = data;
      continue;
    }
    const scale = tensors[`${name}_scale`].data[0];
    const gamma = inverse ? f32(1 / scale) : scale;
    params[short] = { codes: fromHF(data, 4 * rows, nIn), nOut: 4 * rows, nIn, gamma };
  }
  return { config, params, characters: [...new Set(text)].sort() };
}

/** y = x W^T, with W float {weights, nOut, nIn} or ternary {codes, nOut, nIn, gamma}. */
function project(x, { weights, codes, nOut, nIn, gamma }) {
  if (codes) return ternaryMatmul(x, codes, nOut, nIn, gamma);
  const y = new Float32Array(nOut);
  for (let unit = 0; unit < nOut; unit++) {
    let sum = 0;
    for (let i = 0; i < nIn; i++) sum += x[i] * weights[unit * nIn + i];
    y[unit] = sum;
  }
  return y;
}

/** gain x / sqrt(mean x^2 + eps), with the root's inverse rounded first, as inference does. */
function scaled(x, gain, eps) {
  const square = f32(x.reduce((sum, v) => sum + v * v, 0));
  const inverse = f32(1 / Math.sqrt(f32(f32(square / x.length) + f32(eps))));
  return x.map((v, i) => f32(v * inverse) * gain[i]);
}

/** Turn the pairs (i, i + half) of every head by the angle position theta^(-2 i / width). */
function rotate(x, width, position, theta) {
  const half = width / 2;
  for (let i = 0; i < half; i++) {
    const angle = f32(position * f32(1 / f32(f32(theta) ** f32((2 * i) / width))));
    const cos = f32(Math.cos(angle)), sin = f32(Math.sin(angle));
    for (let at = i; at < x.length; at += width) {
      const a = x[at], b = x[at + half];
      x[at] = f32(a * cos) - f32(b * sin);
      x[at + half] = f32(b * cos) + f32(a * sin);
    }
  }
  return x;
}

/** Query heads on the keys and values so far; with fewer of those, neighbouring heads share one. */
function attention(q, keys, values, heads, kvHeads) {
  const width = q.length / heads, out = new Float32Array(q.length);
  for (let head = 0; head < heads; head++) {
    const own = head * width, shared = Math.floor(head / (heads / kvHeads)) * width;
    const scores = keys.map((k) => {
      let sum = 0;
      for (let i = 0; i < width; i++) sum += q[own + i] * k[shared + i];
      return sum / Math.sqrt(width);
    });
    const p = softmax(Float64Array.from(scores), scores.length);
    for (let i = 0; i < width; i++) {
      let sum = 0;
      for (let s = 0; s < values.length; s++) sum += p[s] * values[s][shared + i];
      out[own + i] = sum;
    }
  }
  return out;
}

/** An empty cache: keys and values of every layer. */
export const emptyCache = ({ layers }) => Array.from({ length: layers }, () => ({ keys: [], values: [] }));

/** Logits of the token that follows `token`, whose keys and values go into the cache. */
export function nextLogits({ config, params }, token, cache) {
  const { heads, kvHeads, rmsEps, ropeTheta } = config;
  const hidden = params.norm.length, width = hidden / heads, position = cache[0].keys.length;
  let x = params.embed_tokens.slice(token * hidden, (token + 1) * hidden);
  cache.forEach(({ keys, values }, layer) => {
    const weights = (name) => params[`layers.${layer}.${name}`];
    const norm = (v, name) => (weights(name) ? scaled(v, weights(name), rmsEps) : v); // sub-norms may be missing
    const h = norm(x, "input_layernorm");
    const [q, k, v] = ["q", "k", "v"].map((name) => project(h, weights(`self_attn.${name}_proj`)));
    keys.push(rotate(k, width, position, ropeTheta));
    values.push(v);
    const mixed = attention(rotate(q, width, position, ropeTheta), keys, values, heads, kvHeads);
    const o = project(norm(mixed, "self_attn.attn_sub_norm"), weights("self_attn.o_proj"));
    x = x.map((value, i) => value + o[i]);
    const m = norm(x, "post_attention_layernorm");
    const [gate, up] = ["gate", "up"].map((name) => project(m, weights(`mlp.${name}_proj`)));
    const unit = squaredRelu(gate).map((value, i) => value * up[i]);
    const down = project(norm(unit, "mlp.ffn_sub_norm"), weights("mlp.down_proj"));
    x = x.map((value, i) => value + down[i]);
  });
  const z = scaled(x, params.norm, rmsEps), head = params.lm_head ?? params.embed_tokens;
  return project(z, { weights: head, nOut: head.length / hidden, nIn: hidden });
}

/** exp(z - max z) over its sum, along rows of `width`: probabilities. */
export function softmax(z, width) {
  const p = floats(z, z.length);
  for (let start = 0; start < z.length; start += width) {
    const row = Array.from(z.subarray(start, start + width));
    const most = row.reduce((a, b) => Math.max(a, b));
    const e = row.map((v) => Math.exp(v - most)), sum = e.reduce((a, b) => a + b);
    e.forEach((v, i) => { p[start + i] = v / sum; });
  }
  return p;
}

/** A token from its logits and one number in [0, 1): see `minibit.transformer.sample`. */
export function sample(logits, uniform, { temperature = 1, topK = null, topP = null } = {}) {
  if (!(temperature >= 0 && temperature < Infinity)) refuse("temperature", `got ${temperature}`);
  if (topK !== null) integer("top_k", topK, 1, Infinity);
  if (topP !== null && !(topP > 0 && topP <= 1)) refuse("top_p", `must lie in (0, 1], got ${topP}`);
  if (!(uniform >= 0 && uniform < 1)) refuse("uniform", `must lie in [0, 1), got ${uniform}`);
  const z = Array.from(logits);
  const order = z.map((_, i) => i).sort((i, j) => (z[i] > z[j] ? -1 : z[i] < z[j] ? 1 : i - j));
  const best = order[0];
  if (z.some(Number.isNaN) || !Number.isFinite(z[best])) refuse("logits", "must have a finite maximum");
  if (temperature === 0) return best;
  const p = z.map((v) => Math.exp((v - z[best]) / temperature));
  const keep = (count) => order.slice(count).forEach((i) => { p[i] = 0; });
  const total = () => order.reduce((sum, i) => sum + p[i], 0); // the largest first
  if (topK !== null) keep(topK);
  if (topP !== null && topP < 1) {
    const wanted = topP * total();
    let sum = 0, count = 0;
    while (count < order.length && (count === 0 || sum < wanted)) sum += p[order[count++]];
    keep(count);
  }
  const bound = uniform * p.reduce((a, b) => a + b); // in the order of the vocabulary
  let running = 0;
  return p.findIndex((v) => (running += v) > bound);
}

/**
 * Go on with a text, character by character: what `minibit generate` writes after its prompt.
 *
 * Token t of the text is drawn with number 0 of the stream of domain TOKENS, step t. A text that
 * fills all positions goes on from its last half; so does a longer prompt. `watch` is given the
 * logits of each token before it is drawn.
 */
export function* generate(model, prompt, count, how = {}) {
  const { temperature = 0.8, topK = null, topP = null, seed = 0n, watch = null } = how;
  const { config, characters } = model, half = Math.max(1, config.maxPositions >> 1);
  const text = [...(prompt || "\n")].map((character) => {
    const token = characters.indexOf(character);
    return token < 0 ? refuse("prompt", `has ${JSON.stringify(character)}, which is no token`) : token;
  });
  let unread = text.slice(-half), cache = emptyCache(config);
  for (let made = 0; made < count; made++) {
    if (cache[0].keys.length + unread.length === config.maxPositions) {
      cache = emptyCache(config);
      unread = text.slice(-half);
    }
    let logits;
    for (const token of unread) logits = nextLogits(model, token, cache);
    watch?.(logits);
    const [draw] = uniform(seed, 1, { domain: TOKENS, step: text.length });
    const token = sample(logits, draw, { temperature, topK, topP });
    text.push(token);
    unread = [token];
    yield characters[token];
  }
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
  if (magic.some((byte, i) => i < data.length && data[i] !== byte)) throw new LogError("it does not begin as a step log does", 0);
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

/** Add a step's moves to the weights; each weight is clamped once, at the end. */
export function applyMoves(weights, moves) {
  for (const [position, move] of moves)
    weights[position] = Math.max(-1, Math.min(1, weights[position] + move));
}

/** Which seed and number step `number` of a log is drawn by. */
export function drawnBy({ plan, segments = [] }, number) {
  let left = number;
  for (const [seed, first, count] of segments) {
    if (left < count) return [seed, first + left];
    left -= count;
  }
  return [plan.seed, number];
}

/**
 * Step after step of a log that `readLog` has read: yields {number, weights, moves, end}.
 *
 * `weights` are those after the step, in one array that the next step changes; `moves` maps a weight
 * to the sum of its moves; `end` tells that a record ends here, whose digest the weights then have.
 */
export function* replaySteps({ header, records }) {
  const { plan } = header, weights = initialWeights(plan);
  let number = 0;
  for (const { offset, steps, payload, digest } of records) {
    let unpacked;
    try {
      unpacked = unpackSteps(plan, payload, steps);
    } catch (error) {
      throw new LogError(`a record cannot be read: ${error.message}`, offset);
    }
    for (const [place, step] of unpacked.entries()) {
      const moves = movesOf(plan, ...drawnBy(header, number), step), end = place + 1 === steps;
      applyMoves(weights, moves);
      if (end && hex(digestOf(weights).subarray(0, 8)) !== hex(digest))
        throw new LogError("the weights after a record have another digest", offset);
      yield { number: number++, weights, moves, end };
    }
  }
}

/**
 * {header, weights, history, steps, tornAt}: the weights after the last record, all digests checked.
 *
 * With `keep`, `history` has them before the first step and after each.
 */
export function replay(data, { keep = false } = {}) {
  const log = readLog(data), { header, tornAt } = log;
  let weights = initialWeights(header.plan), steps = 0;
  const history = keep ? [weights] : [];
  for (const step of replaySteps(log)) {
    ({ weights } = step);
    steps++;
    if (keep) history.push(weights.slice());
  }
  return { header, weights, history, steps, tornAt };
}
