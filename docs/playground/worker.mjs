/**
 * The playground's engine: everything that takes time, away from the page.
 *
 * A message is {id, call, args}; it is answered by {id, result} or {id, error}, and on the way by
 * {id, progress}. Long calls pause now and then to let others in; "stop" ends those of some names.
 */

import {
  digestOf, drawnBy, generate, hex, initialWeights, languageModel, layersOf, mlp, readLog, readSafetensors,
  replaySteps, softmax, uniform, unpackSteps,
} from "../ports/js/minibit.mjs";
import { LogWriter, Training, compact } from "../ports/js/training.mjs";

const MOST_BYTES = 16e6, MOST_WEIGHTS = 4e6, MOST_STEPS = 1e5, MOST_MOVES = 2e7; // of logs that a page takes
const SIDE = 28, PIXELS = SIDE * SIDE; // of an image
const f32 = Math.fround;

let run = null; // the log that is shown
let digits = null; // {pixels, labels} of the shipped test images
let writer = null; // the language model
const running = new Set(); // {call, stopped} of the calls under way

/** Let other calls in; a call that was stopped meanwhile ends. */
async function pause(own) {
  await new Promise((go) => setTimeout(go));
  if (own.stopped) throw new RangeError("it was stopped");
}

/** A log with the way of its weights, so that any step is near. */
class Run {
  constructor(bytes) {
    if (bytes.length > MOST_BYTES)
      throw new RangeError(`the file has ${bytes.length} bytes; this page takes logs up to ${MOST_BYTES}`);
    const { header, records, tornAt } = readLog(bytes), { plan } = header;
    const size = plan.shapes.reduce((sum, [nOut, nIn]) => sum + nOut * nIn, 0);
    if (size > MOST_WEIGHTS)
      throw new RangeError(`the model has ${size} weights; this page takes up to ${MOST_WEIGHTS}`);
    const count = records.reduce((sum, { steps }) => sum + steps, 0);
    if (count > MOST_STEPS) throw new RangeError(`the log has ${count} steps; this page takes up to ${MOST_STEPS}`);
    if (!plan.shapes.every((shape) => shape.length === 2))
      throw new RangeError("its layers are no matrices, so it is no log of a network that this page can show");
    Object.assign(this, { header, plan, records, tornAt, size, count });
    this.changes = []; // {positions, moves} of each step, clamped
  }

  /** Replay all records, each digest checked. */
  async replay(own, progress) {
    const weights = initialWeights(this.plan);
    let paused = performance.now(), moved = 0;
    for (const { weights: after, moves } of replaySteps(this)) {
      const positions = Int32Array.from(moves.keys());
      this.changes.push({ positions, moves: Int8Array.from(positions, (p) => after[p] - weights[p]) });
      positions.forEach((p) => { weights[p] = after[p]; });
      moved += positions.length;
      if (moved > MOST_MOVES) throw new RangeError(`its steps move more than ${MOST_MOVES} weights, too many for this page`);
      if (performance.now() - paused < 100) continue;
      progress(this.changes.length / this.count);
      await pause(own);
      paused = performance.now();
    }
    this.weights = weights;
    this.at = this.count;
  }

  /** What each step kept. */
  get steps() {
    return this.records.flatMap(({ payload, steps }) => unpackSteps(this.plan, payload, steps));
  }

  /** Go to the weights after so many steps. */
  go(to) {
    const step = Math.max(0, Math.min(this.count, to));
    while (this.at > step) {
      const { positions, moves } = this.changes[--this.at];
      positions.forEach((p, m) => { this.weights[p] -= moves[m]; });
    }
    while (this.at < step) {
      const { positions, moves } = this.changes[this.at++];
      positions.forEach((p, m) => { this.weights[p] += moves[m]; });
    }
    return this.weights;
  }

  /** Logits of rows of pixels after a step. `off` are units of the first hidden layer to silence. */
  logits(pixels, step, off = [], watch = () => {}) {
    const { recipe, data } = this.header;
    if (!recipe || !data) throw new RangeError("this log does not say which model its weights belong to");
    const inputs = this.plan.shapes[0][1];
    if (inputs !== PIXELS) throw new RangeError(`this log's model takes ${inputs} numbers, no image of ${SIDE} x ${SIDE}`);
    const x = Float32Array.from(pixels, (p) => f32(f32(p) * f32(data.input_scale)) + f32(data.input_offset));
    const silence = (h, layer) => {
      watch(h, layer);
      const width = this.plan.shapes[0][0];
      if (layer === 0) for (const unit of off) for (let at = unit; at < h.length; at += width) h[at] = 0;
    };
    return mlp(layersOf(this.plan, this.go(step)), x, {
      logitScale: recipe.logit_scale, activations: recipe.activations ?? "float", watch: silence,
    });
  }
}

/** The share of images that a run names right after a step, counted in parts. */
async function correct(own, of, step, { pixels, labels }) {
  let right = 0;
  const some = 50, width = of.plan.shapes.at(-1)[0];
  for (let first = 0; first < labels.length; first += some) {
    const logits = of.logits(pixels.subarray(PIXELS * first, PIXELS * (first + some)), step);
    for (let i = 0; i < logits.length / width; i++) {
      const row = logits.subarray(i * width, (i + 1) * width);
      right += row.indexOf(Math.max(...row)) === labels[first + i];
    }
    await pause(own);
  }
  return right / labels.length;
}

/** Steps `from` to `to` of a log, edited: a new log's bytes. */
function edited({ kind, from, to, layer, seed }) {
  if (!run) throw new RangeError("there is no log to edit yet");
  const { plan, header, steps } = run, first = from, stop = Math.min(steps.length, to);
  if (first >= to) throw new RangeError(`no step lies from ${from} up to ${to}: the first number must be the smaller`);
  if (first >= steps.length) throw new RangeError(`the log has ${steps.length} steps, counted from 0; got ${from}`);
  if (kind === "layer" && plan.method !== "units")
    throw new RangeError("a step of method sampled moves all layers at once: no layer can be left out");
  if (kind === "layer" && layer >= plan.shapes.length)
    throw new RangeError(`the model has layers 1 to ${plan.shapes.length}, got ${layer + 1}`);
  const nothing = (step, l) => ({
    positions: step.positions.map((q, i) => (l === undefined || l === i ? [] : q)),
    signs: step.signs.map((s, i) => (l === undefined || l === i ? [] : s)),
  });
  const edits = {
    mask: (step) => (step.codes ? { ...step, codes: step.codes.map(() => 0) } : nothing(step)),
    negate: (step) => (step.codes
      ? { ...step, codes: step.codes.map((code) => 0 - code) }
      : { ...step, signs: step.signs.map((signs) => signs.map((sign) => -sign)) }),
    layer: (step) => nothing(step, layer),
    shuffle: (step) => step,
  };
  if (!edits[kind]) throw new RangeError(`an edit is ${Object.keys(edits).join(", ")}; got ${kind}`);
  const order = steps.map((_, number) => number);
  if (kind === "shuffle") { // Fisher and Yates, by the numbers of a seed
    const u = uniform(BigInt(seed), stop - first);
    for (let i = stop - 1; i > first; i--) {
      const j = first + Math.floor(u[i - first] * (i - first + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
  }
  const segments = [];
  for (const number of order) { // each step keeps the seed and the number that it was drawn by
    const [by, as] = drawnBy(header, number), last = segments.at(-1);
    if (last && last[0] === by && last[1] + last[2] === as) last[2]++;
    else segments.push([by, as, 1]);
  }
  const edit = { edit: kind, steps: [[first, stop]], source: hex(digestOf(run.go(run.count))) };
  if (kind === "layer") edit.layer = layer;
  const changed = { ...header, edits: [...(header.edits ?? []), edit] };
  if (header.segments || kind === "shuffle") changed.segments = segments;
  const log = new LogWriter(changed);
  for (const [at, number] of order.entries()) {
    const step = steps[number];
    log.append(at >= first && at < stop ? edits[kind](step) : step);
  }
  return log.bytes();
}

/** The bytes of a file. */
async function read(file) {
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new RangeError("it cannot be read: a folder, or a file that has changed");
  }
}

const calls = {
  /** Take the shipped images: labels, then pixels. */
  digits({ bytes }) {
    const count = bytes.length / (PIXELS + 1);
    digits = { labels: bytes.subarray(0, count), pixels: bytes.subarray(count) };
    return { count };
  },

  /** Replay a log, a file or its bytes, and show it from now on. */
  async open({ log }, progress, own) {
    for (const other of running) if (other !== own && other.call === "open") other.stopped = true;
    const bytes = log instanceof Blob ? await read(log) : log;
    if (own.stopped) throw new RangeError("it was stopped");
    const began = performance.now(), next = new Run(bytes);
    await next.replay(own, progress);
    run = next;
    const { header, plan, size } = run;
    return {
      header, steps: run.count, tornAt: run.tornAt, milliseconds: performance.now() - began,
      digest: hex(digestOf(run.weights)),
      sizes: {
        log: bytes.length, compact: compact(plan, run.weights).length, trits: Math.ceil(size / 5), float32: 4 * size,
      },
    };
  },

  /** Probabilities of one image, and the units of the first layer that count most for its answer. */
  predict({ pixels, step, off = [], most = 0 }) {
    let hidden = null;
    const logits = run.logits(pixels, step, off, (h, layer) => { if (layer === 0) hidden ??= h.slice(); });
    const p = Array.from(softmax(logits, logits.length)), answer = p.indexOf(Math.max(...p));
    const [width, nIn] = run.plan.shapes[0], units = [];
    if (most && hidden && run.plan.shapes.length > 1) {
      const on = Array.from(hidden.keys()).filter((unit) => hidden[unit] > 0 || off.includes(unit));
      for (const unit of on) {
        const without = off.includes(unit) ? off.filter((u) => u !== unit) : [...off, unit];
        const other = run.logits(pixels, step, without), sign = off.includes(unit) ? -1 : 1;
        units.push({ unit, gain: sign * (logits[answer] - other[answer]), off: off.includes(unit) });
      }
      units.sort((a, b) => b.off - a.off || Math.abs(b.gain) - Math.abs(a.gain) || a.unit - b.unit).splice(most);
      for (const one of units) one.weights = run.weights.slice(one.unit * nIn, (one.unit + 1) * nIn);
    }
    return { probabilities: p, answer, units, width };
  },

  /** Weights into a unit of the first layer after a step. */
  unit({ unit, step }) {
    const [, nIn] = run.plan.shapes[0];
    return run.go(step).slice(unit * nIn, (unit + 1) * nIn);
  },

  /** Share of the shipped images that are named right after a step. */
  accuracy({ step }, _, own) {
    return correct(own, run, step, digits);
  },

  /** An edited copy of the log: its bytes, and accuracy before and after. */
  async edit(args, progress, own) {
    const source = run, bytes = edited(args), other = new Run(bytes);
    await other.replay(own, progress);
    const before = await correct(own, source, source.count, digits);
    const after = await correct(own, other, other.count, digits);
    return { bytes, before, after, digest: hex(digestOf(other.weights)), steps: other.count };
  },

  /** Train on the first 400 shipped images, or on others; told of every step. Stopped, it keeps its steps. */
  async train({ pixels, labels, ...options }, progress, own) {
    const kept = labels === undefined ? 400 : 0, part = (from, to = digits.labels.length) => ({
      pixels: digits.pixels.slice(PIXELS * from, PIXELS * to), labels: digits.labels.slice(from, to),
    });
    const training = new Training(kept ? part(0, kept) : { pixels, labels }, { ...options, seed: BigInt(options.seed) });
    for (let step = 0; step < options.steps && !own.stopped; step++) {
      const { loss, accuracy } = training.step();
      progress({ step, loss, accuracy, bytes: training.log.length });
      await new Promise((go) => setTimeout(go));
    }
    own.stopped = false;
    const bytes = training.log.bytes(), done = new Run(bytes);
    await done.replay(own, () => {});
    const result = { bytes, steps: done.count, digest: hex(digestOf(done.weights)) };
    if (kept) result.held = await correct(own, done, done.count, part(kept));
    return result;
  },

  /** Take the language model. */
  language({ config, weights, characters }) {
    const text = new TextDecoder();
    writer = languageModel(JSON.parse(text.decode(config)), readSafetensors(weights), text.decode(characters));
    return { characters: writer.characters };
  },

  /** Write text, a character at a time, each with the likeliest of those it was drawn from. */
  async write({ prompt, count, seed, temperature }, progress, own) {
    if (!writer) throw new RangeError("the language model is not read yet");
    const start = performance.now();
    let text = "", next = [];
    const watch = (logits) => {
      const p = softmax(logits.map((z) => z / (temperature || 1)), logits.length);
      next = Array.from(p, (share, token) => [writer.characters[token], share])
        .sort((a, b) => b[1] - a[1]).slice(0, 8);
    };
    for (const character of generate(writer, prompt, count, { seed: BigInt(seed), temperature, watch })) {
      text += character;
      progress({ character, next, perSecond: (1e3 * text.length) / (performance.now() - start) });
      await new Promise((go) => setTimeout(go));
      if (own.stopped) break;
    }
    return { text };
  },

  /** End the calls of some names that are under way; returns how many there were. */
  stop({ names }) {
    const those = [...running].filter(({ call }) => names.includes(call));
    for (const other of those) other.stopped = true;
    return those.length;
  },
};

self.onmessage = async ({ data: { id, call, args } }) => {
  const own = { call, stopped: false };
  running.add(own);
  try {
    const result = await calls[call](args, (progress) => self.postMessage({ id, progress }), own);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
  running.delete(own);
};
