/**
 * noise_step in JavaScript: a training step forwards only, and the log that it leaves.
 *
 * A step draws what it may move, measures by forward tangents how the loss would answer, keeps the
 * best moves, and forgets everything else. No derivative goes backwards through a weight matrix.
 * The formulas are those of `minibit.noise_step`; sums are doubles, so a step may choose otherwise
 * than minibit's where two scores nearly tie. What was chosen is in the log, and replays bit for bit.
 */

import {
  BATCH, LEVELS, applyMoves, crc32, digestOf, drawUnits, drawnBy, hex, initialWeights, integers,
  layerNorm, layersOf, movesOf, numeratorOf, sha256, sparseNoise, uniform,
} from "./minibit.mjs";

// --------------------------------------------------------------------------- codes of the steps

/** Bits into bytes, from the highest of a byte to the lowest; the last byte is filled with zeros. */
export class BitWriter {
  constructor() {
    this.bytes = [];
    this.left = 0; // free bits of the last byte
  }

  bit(bit) {
    if (this.left === 0) {
      this.bytes.push(0);
      this.left = 8;
    }
    this.left--;
    if (bit) this.bytes[this.bytes.length - 1] |= 1 << this.left;
  }

  number(x, count) {
    for (let i = count - 1; i >= 0; i--) this.bit(Math.floor(x / 2 ** i) % 2);
  }

  gamma(x) {
    const bits = x.toString(2).length;
    this.number(0, bits - 1);
    this.number(x, bits);
  }

  uniform(x, size) {
    if (size === 1) return;
    const bits = (size - 1).toString(2).length, short = 2 ** bits - size;
    if (x < short) this.number(x, bits - 1);
    else this.number(x + short, bits);
  }

  subset(positions, size) {
    let start = 0;
    positions.forEach((position, i) => {
      const k = positions.length - i, room = size - start - k + 1, gap = position - start;
      const m = k === 1 ? room : Math.max(1, Math.floor((7 * room + 5 * k) / (10 * k)));
      const q = Math.floor(gap / m);
      for (let zero = 0; zero < q; zero++) this.bit(0);
      if (q < Math.floor((room - 1) / m)) this.bit(1);
      this.uniform(gap - q * m, Math.min(m, room - q * m));
      start = position + 1;
    });
  }

  signs(signs) {
    for (const sign of signs) this.bit(sign < 0);
  }
}

/** The payload of a record; the steps of one record of method sampled share their numerator. */
export function packSteps(plan, steps) {
  const bits = new BitWriter();
  if (plan.method === "sampled") {
    for (const { codes } of steps)
      for (const code of codes) {
        bits.bit(code !== 0);
        if (code !== 0) bits.bit(code < 0);
      }
    const head = new Uint8Array(4);
    new DataView(head.buffer).setUint32(0, steps[0].numerator, true);
    return Uint8Array.of(...head, ...bits.bytes);
  }
  const ranges = plan.shapes.map((_, layer) => {
    const counts = steps.map((step) => step.positions[layer].length);
    const least = Math.min(...counts), span = Math.max(...counts) - least + 1;
    bits.gamma(least + 1);
    bits.gamma(span);
    return { least, span };
  });
  for (const { positions, signs } of steps)
    ranges.forEach(({ least, span }, layer) => {
      bits.uniform(positions[layer].length - least, span);
      bits.subset(positions[layer], plan.units[layer] * plan.inputs[layer]);
      bits.signs(signs[layer]);
    });
  return Uint8Array.from(bits.bytes);
}

/** The compact form of a model: its net moves from the initial weights of its plan. */
export function compact(plan, weights) {
  const bits = new BitWriter(), initial = initialWeights(plan);
  const subset = (chosen) => {
    const positions = chosen.flatMap((yes, i) => (yes ? [i] : []));
    bits.gamma(positions.length + 1);
    bits.subset(positions, chosen.length);
  };
  let start = 0;
  for (const [nOut, nIn] of plan.shapes) {
    const pairs = [];
    for (const stop = start + nOut * nIn; start < stop; start++) pairs.push([initial[start], weights[start]]);
    const zeros = pairs.filter(([before]) => before === 0), others = pairs.filter(([before]) => before);
    subset(zeros.map(([, after]) => after !== 0));
    bits.signs(zeros.flatMap(([, after]) => (after ? [after] : [])));
    const changed = others.filter(([before, after]) => before !== after);
    subset(others.map(([before, after]) => before !== after));
    subset(changed.map(([, after]) => after !== 0));
  }
  return Uint8Array.of(...bits.bytes, ...digestOf(weights).subarray(0, 8));
}

// -------------------------------------------------------------------------------- the log's bytes

const STEPS_PER_RECORD = 32;

/** JSON as logs have it: keys sorted, ASCII, BigInts as the numbers that they are. */
function canonical(value) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value !== null && typeof value === "object") {
    const fields = Object.keys(value).sort().map((key) => `${canonical(key)}:${canonical(value[key])}`);
    return `{${fields.join(",")}}`;
  }
  const escape = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(/[^ -~]/g, escape);
}

/** A log in memory, which grows by records of up to 32 steps. */
export class LogWriter {
  constructor(header) {
    this.header = header;
    this.plan = header.plan;
    this.weights = initialWeights(this.plan);
    this.steps = 0;
    const text = new TextEncoder().encode(canonical(header)), start = new Uint8Array(18 + text.length);
    start.set([0x89, 0x4d, 0x42, 0x4c, 0x0d, 0x0a, 0x1a, 0x0a, 1]);
    const view = new DataView(start.buffer);
    view.setUint32(10, text.length, true);
    start.set(text, 14);
    this.crc = crc32(start.subarray(0, 14 + text.length));
    view.setUint32(14 + text.length, this.crc, true);
    this.parts = [start];
    this.waiting = []; // steps that the next record will have
  }

  /** Bytes of the file so far. */
  get length() {
    const open = this.waiting.length ? 19 + packSteps(this.plan, this.waiting).length : 0;
    return this.parts.reduce((sum, part) => sum + part.length, open);
  }

  /** Add a step, drawn by its place in the log, and take it. */
  append(step) {
    const numerator = this.waiting[0]?.numerator ?? step.numerator; // one for all of a record
    if (this.waiting.length === STEPS_PER_RECORD || numerator !== step.numerator) this.#record();
    const [seed, number] = drawnBy(this.header, this.steps++);
    applyMoves(this.weights, movesOf(this.plan, seed, number, step));
    this.waiting.push(step);
  }

  #record() {
    const payload = packSteps(this.plan, this.waiting), end = 7 + payload.length + 8;
    const record = new Uint8Array(end + 4), view = new DataView(record.buffer);
    record[0] = this.waiting.length;
    view.setUint32(1, payload.length, true);
    view.setUint16(5, crc32(record.subarray(0, 5), this.crc) & 0xffff, true);
    record.set(payload, 7);
    record.set(digestOf(this.weights).subarray(0, 8), 7 + payload.length);
    this.crc = crc32(record.subarray(0, end), this.crc);
    view.setUint32(end, this.crc, true);
    this.parts.push(record);
    this.waiting = [];
  }

  /** All bytes of the file. */
  bytes() {
    if (this.waiting.length) this.#record();
    const bytes = new Uint8Array(this.length);
    let at = 0;
    for (const part of this.parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }
}

// ------------------------------------------------------------------------- what a step measures

/**
 * One sample's way through the network: what every unit gets, and how the loss answers a bump.
 *
 * With z the pre-activations of a hidden layer, z_hat = r (z - mean z), m where z_hat is above 0,
 * and F the loss tangent of a tangent u of z:
 *
 *     F_l(u) = r_l [F_(l+1)(W_(l+1) (m_l u)) - mean(u) A_l - mean(z_hat_l u) B_l]
 *     A_l = F_(l+1)(W_(l+1) m_l),   B_l = F_(l+1)(W_(l+1) h_l),   F(u) = g . u at the logits
 */
export class Sample {
  constructor(layers, x, label, { logitScale, eps = 1e-5 }) {
    this.layers = layers;
    this.inputs = [x]; // of every layer
    this.hidden = []; // {zHat, mask, r, a, b} of every hidden layer
    const top = layers.length - 1;
    let z = multiply(layers[0], x);
    for (let layer = 0; layer < top; layer++) {
      const zHat = layerNorm(z, z.length, eps), mean = z.reduce((a, b) => a + b, 0) / z.length;
      const variance = z.reduce((sum, v) => sum + (v - mean) ** 2, 0) / z.length;
      const h = zHat.map((v) => Math.max(v, 0)), mask = zHat.map((v) => (v > 0 ? 1 : 0));
      this.hidden.push({ zHat, mask, r: 1 / Math.sqrt(variance + eps), a: 0, b: 0 });
      this.inputs.push(h);
      z = multiply(layers[layer + 1], h);
    }
    const most = Math.max(...z), e = z.map((v) => Math.exp(logitScale * (v - most)));
    const sum = e.reduce((a, b) => a + b, 0);
    this.p = e.map((v) => v / sum);
    this.hardness = this.p.reduce((rest, v, c) => (c === label ? rest : rest + v), 0);
    this.loss = Math.log(sum) - logitScale * (z[label] - most);
    this.correct = z.indexOf(most) === label;
    this.g = this.p.map((v, c) => logitScale * (c === label ? -this.hardness : v));
    for (let layer = top - 1; layer >= 0; layer--) {
      const own = this.hidden[layer], next = layers[layer + 1];
      own.a = this.follow(layer + 1, multiply(next, own.mask));
      own.b = this.follow(layer + 1, multiply(next, this.inputs[layer + 1]));
    }
  }

  /** F_layer(u): how the loss answers tangents u of a layer's pre-activations. */
  follow(layer, u) {
    let sum = 0, along = 0;
    if (layer === this.layers.length - 1) {
      for (let i = 0; i < u.length; i++) sum += u[i] * this.g[i];
      return sum;
    }
    const { zHat, mask, r, a, b } = this.hidden[layer], on = new Float64Array(u.length);
    for (let i = 0; i < u.length; i++) {
      sum += u[i];
      along += zHat[i] * u[i];
      on[i] = mask[i] * u[i];
    }
    const through = this.follow(layer + 1, multiply(this.layers[layer + 1], on));
    return r * (through - (sum * a + along * b) / u.length);
  }

  /** t_j: F of a bump in one unit alone. */
  tangent(layer, unit) {
    if (layer === this.layers.length - 1) return this.g[unit];
    const { codes, nOut, nIn } = this.layers[layer + 1], { zHat, mask, r, a, b } = this.hidden[layer];
    let through = 0;
    if (mask[unit]) {
      const column = new Float64Array(nOut);
      for (let o = 0; o < nOut; o++) column[o] = codes[o * nIn + unit];
      through = this.follow(layer + 1, column);
    }
    return r * (through - (a + zHat[unit] * b) / mask.length);
  }
}

/** W h for one sample, in doubles. */
function multiply({ codes, nOut, nIn }, h) {
  const z = new Float64Array(nOut);
  for (let o = 0, at = 0; o < nOut; o++) {
    let sum = 0;
    for (let i = 0; i < nIn; i++) sum += codes[at++] * h[i];
    z[o] = sum;
  }
  return z;
}

/** Alignments that overflowed tell nothing, and count as 0. */
const finite = (alignments) => Array.from(alignments, (a) => (Number.isFinite(a) ? a : 0));

/** |sum a| / sqrt(sum a^2); 0 where no sample has an alignment. */
const tScore = (a, squares) => (squares > 0 ? Math.abs(a) / Math.sqrt(squares) : 0);

/** {positions, signs} of the `count` best legal moves of a layer; of equal scores the lowest wins. */
export function keepMoves(alignments, squares, weights, count) {
  const a = finite(alignments), signs = a.map((v) => -Math.sign(v));
  const legal = (q) => Math.abs(weights[q] + signs[q]) <= 1; // else the clamp would cancel it
  const scores = a.map((v, q) => (legal(q) ? tScore(v, squares[q]) : 0));
  const best = scores.map((_, q) => q).filter((q) => scores[q] > 0)
    .sort((p, q) => scores[q] - scores[p] || p - q).slice(0, Math.max(0, count));
  const positions = best.sort((p, q) => p - q);
  return { positions, signs: positions.map((q) => signs[q]) };
}

/** Terns of a step of method sampled: the sign where the score, "t" or "absolute", reaches the median. */
export function keepTerns(alignments, squares, score = "t") {
  const a = finite(alignments), scores = a.map((v, i) => (score === "t" ? tScore(v, squares[i]) : Math.abs(v)));
  const sorted = scores.toSorted((p, q) => p - q), half = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  return a.map((v, i) => (scores[i] >= median ? Math.sign(v) : 0));
}

// ------------------------------------------------------------------------------------- a run

/** start (end / start)^(t / (steps - 1)): a schedule that runs geometrically. */
const geometric = ([start, end], steps, step) =>
  start * (end / start) ** (Math.min(step, steps - 1) / Math.max(1, steps - 1));

/** SHA-256 of an array of bytes as an IDX file of this shape. */
function idxDigest(bytes, shape) {
  const head = new Uint8Array(4 + 4 * shape.length), view = new DataView(head.buffer);
  head.set([0, 0, 8, shape.length]);
  shape.forEach((side, i) => view.setUint32(4 + 4 * i, side));
  const file = new Uint8Array(head.length + bytes.length);
  file.set(head);
  file.set(bytes, head.length);
  return sha256(file);
}

/** Train an MLP with float activations on bytes, forwards only, one step at a time. */
export class Training {
  /**
   * @param data {pixels, labels} bytes to train on, rows of widths[0]
   * @param options method "units" or "sampled", seed, steps, batch, widths, ...
   */
  constructor(data, options) {
    const defaults = {
      method: "units", seed: 0n, steps: 300, batch: 200, widths: [784, 96, 96, 10], zeros: 0.7,
      logitScale: 0.12, threshold: 0.1, units: 16, rate: [0.006, 0.001],
      perturbations: 64, density: [4e-4, 6e-5],
    };
    const o = { ...defaults, ...options };
    this.data = data;
    this.options = o;
    const shapes = o.widths.slice(1).map((nOut, i) => [nOut, o.widths[i]]), sampled = o.method === "sampled";
    const plan = {
      method: o.method, seed: o.seed, names: shapes.map((_, i) => `w${i + 1}`), shapes,
      zeros: numeratorOf("zeros", o.zeros), perturbations: sampled ? o.perturbations : 0,
      units: sampled ? [] : shapes.map(([nOut]) => Math.min(o.units, nOut)),
      inputs: sampled ? [] : shapes.map(([, nIn]) => nIn),
    };
    const mean = 255 * 0.1307, deviation = 255 * 0.3081, n = data.labels.length;
    const digests = [idxDigest(data.pixels, [n, 28, 28]), idxDigest(data.labels, [n])];
    this.log = new LogWriter({
      plan,
      recipe: {
        preset: "playground", method: o.method, steps: o.steps, batch: [o.batch, o.batch], widths: o.widths,
        logit_scale: o.logitScale, zeros: o.zeros, activations: "float", threshold: o.threshold,
        perturbations: o.perturbations, density: o.density, rate: o.rate, shifts: 1, easy_share: 1,
        units: shapes.map(([nOut]) => Math.min(o.units, nOut)), score: "t",
      },
      data: {
        name: "playground", split: "final", input_scale: 1 / deviation, input_offset: -mean / deviation,
        digest: hex(sha256(Uint8Array.of(...digests[0], ...digests[1], ...digests[0], ...digests[1]))),
      },
    });
    this.input = (pixel) => (pixel - mean) / deviation;
  }

  /** Take one step: {loss, accuracy} of its batch before it. */
  step() {
    const { log, options: o, data } = this, { plan } = log, number = log.steps;
    const layers = layersOf(plan, log.weights), [, nIn] = plan.shapes[0];
    const drawn = Array.from(integers(plan.seed, data.labels.length, o.batch, { domain: BATCH, step: number }), Number);
    const sums = plan.method === "sampled" ? new Directions(this, number) : new Units(plan, number);
    let loss = 0, correct = 0;
    for (const index of drawn) {
      const x = Float64Array.from(data.pixels.subarray(index * nIn, (index + 1) * nIn), this.input);
      const sample = new Sample(layers, x, data.labels[index], o);
      loss += sample.loss / drawn.length;
      correct += sample.correct / drawn.length;
      if (sample.hardness > o.threshold) sums.add(sample);
    }
    log.append(sums.keep(layers, geometric(o.rate, o.steps, number)));
    return { loss, accuracy: correct };
  }
}

/** Alignments of all weights into the drawn units, summed over samples. */
class Units {
  constructor(plan, number) {
    this.plan = plan;
    this.number = number;
    this.layers = plan.shapes.map(([nOut, nIn], layer) => ({
      drawn: drawUnits(plan.seed, number, layer, nOut, plan.units[layer]),
      a: new Float64Array(plan.units[layer] * nIn),
      squares: new Float64Array(plan.units[layer] * nIn),
    }));
  }

  add(sample) {
    this.layers.forEach(({ drawn, a, squares }, layer) => {
      const h = sample.inputs[layer];
      drawn.forEach((unit, row) => {
        const t = sample.tangent(layer, unit);
        if (t === 0) return;
        for (let i = 0, at = row * h.length; i < h.length; i++, at++) {
          const own = t * h[i];
          a[at] += own;
          squares[at] += own * own;
        }
      });
    });
  }

  /** Of N candidates of a layer, floor(rate N + u) move, with a lot u of the step and layer. */
  keep(layers, rate) {
    const { seed } = this.plan, lots = uniform(seed, layers.length, { domain: LEVELS, step: this.number });
    const kept = this.layers.map(({ drawn, a, squares }, layer) => {
      const { codes, nIn } = layers[layer], weights = new Int8Array(a.length);
      drawn.forEach((unit, row) => weights.set(codes.subarray(unit * nIn, (unit + 1) * nIn), row * nIn));
      return keepMoves(a, squares, weights, Math.floor(rate * a.length + lots[layer]));
    });
    return { positions: kept.map(({ positions }) => positions), signs: kept.map(({ signs }) => signs) };
  }
}

/** Alignments of the drawn perturbations, summed over samples. */
class Directions {
  constructor({ log: { plan }, options: o }, number) {
    this.numerator = numeratorOf("density", geometric(o.density, o.steps, number - (number % STEPS_PER_RECORD)));
    const size = plan.shapes.reduce((sum, [nOut, nIn]) => sum + nOut * nIn, 0), starts = [0];
    for (const [nOut, nIn] of plan.shapes) starts.push(starts.at(-1) + nOut * nIn);
    this.units = new Map(); // unit of all layers -> [layer, unit]
    this.entries = Array.from({ length: plan.perturbations }, (_, i) => {
      const { positions, signs } = sparseNoise(plan.seed, number, i, size, BigInt(this.numerator));
      return positions.map((position, m) => {
        const layer = starts.findIndex((start) => position < start) - 1, nIn = plan.shapes[layer][1];
        const unit = Math.floor((position - starts[layer]) / nIn), key = `${layer}/${unit}`;
        this.units.set(key, [layer, unit]);
        return { key, layer, input: (position - starts[layer]) % nIn, sign: signs[m] };
      });
    });
    this.a = new Float64Array(plan.perturbations);
    this.squares = new Float64Array(plan.perturbations);
  }

  add(sample) {
    const t = new Map();
    for (const [key, [layer, unit]] of this.units) t.set(key, sample.tangent(layer, unit));
    this.entries.forEach((entries, i) => {
      let own = 0;
      for (const { key, layer, input, sign } of entries) own += sign * t.get(key) * sample.inputs[layer][input];
      this.a[i] += own;
      this.squares[i] += own * own;
    });
  }

  keep() {
    return { numerator: this.numerator, codes: keepTerns(this.a, this.squares) };
  }
}
