/**
 * The JavaScript port behind `minibit conform --port "node docs/ports/js/adapter.mjs [MODULE]"`.
 *
 * One JSON line per case comes in, one goes out; what a call means is the table below. Arrays travel
 * as bit patterns: {"dtype": "float32", "shape": [2], "bits": "3f800000 80000000"}.
 */
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const path = process.argv[2] ? pathToFileURL(resolve(process.argv[2])) : new URL("./minibit.mjs", import.meta.url);
const port = await import(path), training = await import("./training.mjs");
const KINDS = {
  bool: ["Uint8", Uint8Array], int8: ["Int8", Int8Array], uint8: ["Uint8", Uint8Array],
  int32: ["Int32", Int32Array], uint32: ["Uint32", Uint32Array],
  int64: ["BigInt64", BigInt64Array], uint64: ["BigUint64", BigUint64Array],
  float32: ["Float32", Float32Array], float64: ["Float64", Float64Array],
};
class NotOffered extends Error {}

/** An array as {data, shape, dtype}; a number as itself, a whole one of 64 bits as a BigInt. */
function decode(value) {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== "object") return value;
  if (!("dtype" in value)) {
    if ("function" in value || "steps" in value) throw new NotOffered();
    if (["TernaryMatrix", "BitNetConfig"].includes(value.make)) return decode(value.args);
    if ("make" in value) throw new NotOffered();
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, decode(item)]));
  }
  const [kind, Typed] = KINDS[value.dtype] ?? (() => { throw new NotOffered(); })();
  const list = value.bits.split(" ").filter(Boolean);
  const bytes = Uint8Array.from(list.join("").match(/../g) ?? [], (two) => parseInt(two, 16));
  const view = new DataView(bytes.buffer), size = Typed.BYTES_PER_ELEMENT;
  const data = Typed.from(list, (_, i) => view[`get${kind}`](i * size));
  if (value.shape.length) return { data, shape: value.shape, dtype: value.dtype };
  return value.dtype === "bool" ? data[0] !== 0 : data[0];
}

function encode(dtype, entries, shape = [entries.length]) {
  const [kind, Typed] = KINDS[dtype], view = new DataView(new ArrayBuffer(Typed.BYTES_PER_ELEMENT));
  const bits = Array.from(entries, (entry) => {
    view[`set${kind}`](0, kind.startsWith("Big") ? BigInt(entry) : Number(entry));
    return port.hex(new Uint8Array(view.buffer));
  });
  return { dtype, shape, bits: bits.join(" ") };
}

const scalar = (dtype, value) => encode(dtype, [value], []);
const sides = (shape) => Array.from(shape.data ?? [shape].flat(), Number);
const count = (shape) => sides(shape).reduce((a, b) => a * b, 1);
const last = (x) => x.shape.at(-1) ?? 1;
const outer = (x, ...shape) => [...x.shape.slice(0, -1), ...shape];
const stream = ({ domain = 255, step = 0, lane = 0 }) => ({ domain: Number(domain), step: Number(step), lane: Number(lane) });
const share = (value) => value; // a double is a share, a BigInt its numerator
const floating = (x) => (x.dtype === "float64" ? "float64" : "float32");
const sameShape = (x, y) => [encode(floating(x), y, x.shape)];
const matrixOf = ({ codes, scale = 1 }) => {
  if (typeof scale !== "number") throw new NotOffered(); // one scale per matrix, no groups
  return [codes.data, ...codes.shape, scale];
};
const toBlocks = (pack, { codes, scale = 1 }) => {
  const [nOut, nIn] = codes.shape, blocks = Math.floor(nIn / 256);
  if (typeof scale !== "number" && String(scale.shape) !== String([nOut, blocks])) throw new NotOffered();
  const packed = pack(codes.data, nIn, scale.data ?? scale);
  return [encode("uint8", packed, [nOut, packed.length / nOut])];
};
const fromBlocks = (unpack, packed) => {
  const { codes, scales } = unpack(packed.data), rows = packed.shape[0];
  return [encode("int8", codes, [rows, codes.length / rows]), encode("float32", scales, [rows, scales.length / rows])];
};
const configOf = ({ layers, heads, kv_heads, max_positions, rope_theta = 10000, rms_eps = 1e-5 }) => ({
  layers: Number(layers), heads: Number(heads), kvHeads: Number(kv_heads),
  maxPositions: Number(max_positions), ropeTheta: rope_theta, rmsEps: rms_eps,
});
const parameter = ([name, { data, shape: [nOut, nIn] }]) => [name, name.endsWith("_proj") ? { weights: data, nOut, nIn } : data];
const layersOf = (params) => Object.keys(params).sort().map((name) => {
  const { data: codes, shape: [nOut, nIn] } = params[name];
  return { codes, nOut, nIn };
});

const CALLS = {
  philox4x32: (a) => [encode("uint32", port.philox4x32(a.counter.data, a.key.data), a.counter.shape)],
  words: (a) => [encode("uint32", port.words(a.seed, Number(a.domain), Number(a.step), Number(a.count), Number(a.lane ?? 0), Number(a.start ?? 0)))],
  uniform: (a) => [encode("float64", port.uniform(a.seed, count(a.shape), stream(a)), sides(a.shape))],
  integers: (a) => [encode("int64", port.integers(a.seed, a.high, count(a.shape), stream(a)), sides(a.shape))],
  noise_constants: (a) => {
    const { numerator, bits, table } = port.noiseConstants(share(a.density));
    return [scalar("int64", numerator), scalar("int64", bits), encode("uint64", table)];
  },
  sparse_noise: (a) => {
    const blocks = a.blocks == null ? null : sides(a.blocks);
    const { positions, signs } = port.sparseNoise(a.seed, Number(a.step), Number(a.perturbation), Number(a.size), a.density, blocks);
    return [encode("int64", positions), encode("int8", signs)];
  },
  initial_codes: (a) => [encode("int8", port.initialCodes(a.seed, count(a.shape), a.zeros, Number(a.layer ?? 0)), sides(a.shape))],
  draw_units: (a) => [encode("int64", port.drawUnits(a.seed, Number(a.step), Number(a.layer), Number(a.n_out), Number(a.count)))],
  draw_inputs: (a) => [encode("int64", port.drawInputs(a.seed, Number(a.step), Number(a.layer), Number(a.unit), Number(a.n_in), Number(a.count)))],
  StepLog: ({ file }) => {
    const { history, tornAt } = port.replay(file.data, { keep: true });
    const shape = [history.length, history[0].length];
    return [encode("int8", history.flatMap((w) => Array.from(w)), shape), scalar("int64", tornAt ?? -1)];
  },
  "StepLog.digest": ({ file, at }) => {
    const log = port.readLog(file.data), wanted = sides(at), digests = new Map();
    if (wanted.includes(0)) digests.set(0, port.hex(port.digestOf(port.initialWeights(log.header.plan))));
    for (const { number, weights } of port.replaySteps(log))
      if (wanted.includes(number + 1)) digests.set(number + 1, port.hex(port.digestOf(weights)));
    const unknown = wanted.find((step) => !digests.has(step));
    if (unknown !== undefined) throw new RangeError(`at must be steps of the log, got ${unknown}`);
    return [wanted.map((step) => digests.get(step))];
  },
  pack2: (a) => [encode("uint8", port.pack2(a.codes.data))],
  unpack2: (a) => [encode("int8", port.unpack2(a.packed.data, Number(a.count)))],
  pack_base3: (a) => [encode("uint8", port.packBase3(a.codes.data))],
  unpack_base3: (a) => [encode("int8", port.unpackBase3(a.packed.data, Number(a.count)))],
  to_hf: (a) => [encode("uint8", port.toHF(a.codes.data, ...a.codes.shape), [Math.ceil(a.codes.shape[0] / 4), a.codes.shape[1]])],
  from_hf: (a) => [encode("int8", port.fromHF(a.packed.data, Number(a.n_out), last(a.packed)), [Number(a.n_out), last(a.packed)])],
  pack_bitplanes: (a) => [encode("uint8", port.packBitplanes(a.codes.data), [2, Math.ceil(count(a.codes.shape) / 8)])],
  unpack_bitplanes: (a) => [encode("int8", port.unpackBitplanes(a.packed.data, Number(a.count)))],
  to_tq1_0: (a) => toBlocks(port.toTQ1, a),
  to_tq2_0: (a) => toBlocks(port.toTQ2, a),
  from_tq1_0: (a) => fromBlocks(port.fromTQ1, a.packed),
  from_tq2_0: (a) => fromBlocks(port.fromTQ2, a.packed),
  to_i2_s: (a) => [encode("uint8", port.toI2S(a.codes.data, ...a.codes.shape, a.scale, a.layout))],
  from_i2_s: (a) => {
    const { codes, scale } = port.fromI2S(a.packed.data, ...sides(a.shape), a.layout);
    return [encode("int8", codes, sides(a.shape)), scalar("float32", scale)];
  },
  absmean_quantize: (a) => {
    const { codes, gamma } = port.absmeanQuantize(a.w.data);
    return [encode("int8", codes, a.w.shape), scalar("float32", gamma)];
  },
  binary_quantize: (a) => {
    const { codes, beta } = port.binaryQuantize(a.w.data);
    return [encode("int8", codes, a.w.shape), scalar("float32", beta)];
  },
  absmax_quantize: (a) => {
    const { codes, scale } = port.absmaxQuantize(a.x.data, last(a.x));
    return [encode("int8", codes, a.x.shape), encode("float32", scale, outer(a.x, 1))];
  },
  quantize_nf4: ({ w, block = 64, double_quant = false }) => {
    if (double_quant) throw new NotOffered();
    const tensor = port.quantizeNF4(w.data, Number(block));
    const values = port.dequantizeNF4(tensor, w.data.length, Number(block));
    const { packed, absmax } = tensor;
    return [encode("uint8", packed), encode("float32", absmax), encode("float32", values, w.shape)];
  },
  topk_mask: (a) => [encode("bool", port.topkMask(a.x.data, last(a.x), Number(a.k)), a.x.shape)],
  block_topk_mask: (a) => [encode("bool", port.blockTopkMask(a.x.data, last(a.x), Number(a.n), Number(a.m)), a.x.shape)],
  topk_count: (a) => [scalar("int64", port.topkCount(Number(a.n), a.sparsity))],
  topk_sparsify: (a) => sameShape(a.x, port.topkSparsify(a.x.data, last(a.x), Number(a.k), a.rescale)),
  block_topk_sparsify: (a) => sameShape(a.x, port.blockTopkSparsify(a.x.data, last(a.x), Number(a.n), Number(a.m), a.rescale)),
  topk_quantize: (a) => {
    const { codes, scale } = port.topkQuantize(a.x.data, last(a.x), Number(a.k));
    return [encode("int8", codes, a.x.shape), encode("float32", scale, outer(a.x, 1))];
  },
  ternary_linear: (a) => {
    if (a.scale != null && typeof a.scale !== "number") throw new NotOffered();
    const y = port.ternaryLinear(a.x.data, a.w.data, ...a.w.shape).map((v) => v * (a.scale ?? 1));
    return [encode(floating(a.x), y, outer(a.x, a.w.shape[0]))];
  },
  ternary_matmul_int8: ({ x, matrix }) => {
    const [w, nOut, nIn] = matrixOf(matrix);
    return [encode("int32", port.ternaryMatmulInt8(x.data, w, nOut, nIn), outer(x, nOut))];
  },
  ternary_matmul: ({ x, matrix }) => {
    const [w, nOut, nIn, gamma] = matrixOf(matrix);
    return [encode("float32", port.ternaryMatmul(x.data, w, nOut, nIn, gamma), outer(x, nOut))];
  },
  layer_norm: (a) => sameShape(a.x, port.layerNorm(a.x.data, last(a.x), a.eps)),
  rms_norm: (a) => sameShape(a.x, port.rmsNorm(a.x.data, last(a.x), a.gain?.data, a.eps)),
  relu: (a) => sameShape(a.x, port.relu(a.x.data)),
  squared_relu: (a) => sameShape(a.x, port.squaredRelu(a.x.data)),
  cross_entropy: (a) => {
    const losses = port.crossEntropy(a.logits.data, a.labels.data, last(a.logits));
    if (a.reduction === "none") return [encode(floating(a.logits), losses, a.labels.shape)];
    if (!losses.length) throw new RangeError("labels must not be empty");
    return [scalar(floating(a.logits), losses.reduce((x, y) => x + y) / losses.length)];
  },
  sample: (a) => {
    const options = { temperature: a.temperature, topK: a.top_k == null ? null : Number(a.top_k), topP: a.top_p };
    return [scalar("int64", port.sample(a.logits.data, a.uniform, options))];
  },
  forward: ({ config, params, tokens }) => {
    const model = { config: configOf(config), params: Object.fromEntries(Object.entries(params).map(parameter)) };
    const [batch, length] = tokens.shape, vocabulary = params.embed_tokens.shape[0];
    const logits = Array.from({ length: batch }, (_, row) => {
      const cache = port.emptyCache(model.config);
      const text = Array.from(tokens.data.subarray(row * length, (row + 1) * length), Number);
      return text.map((token) => Array.from(port.nextLogits(model, token, cache)));
    });
    return [encode("float32", logits.flat(2), [batch, length, vocabulary])];
  },
  keep_terns: (a) => [encode("int8", training.keepTerns(a.alignments.data, a.squares.data, a.score))],
  keep_moves: (a) => {
    const { positions, signs } = training.keepMoves(a.alignments.data, a.squares.data, a.weights.data, Number(a.count));
    return [encode("int64", positions), encode("int8", signs)];
  },
  compact: ({ file, step }) => {
    const { header, history } = port.replay(file.data, { keep: true });
    return [encode("uint8", training.compact(header.plan, history.at(step == null ? -1 : Number(step))))];
  },
  digest: ({ params }) => {
    const parts = Object.values(params).map(({ data }) => Array.from(data));
    return [port.hex(port.digestOf(Int8Array.from(parts.flat())))];
  },
  mlp: (a) => {
    const options = { logitScale: a.logit_scale, eps: a.eps, activations: a.activations };
    const layers = layersOf(a.params), logits = port.mlp(layers, a.x.data, options);
    return [encode(floating(a.x), logits, outer(a.x, layers.at(-1).nOut))];
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, args } = JSON.parse(line);
  let answer;
  try {
    if (!Object.hasOwn(CALLS, call)) throw new NotOffered();
    answer = { id, out: CALLS[call](decode(args)) };
  } catch (error) {
    answer = error instanceof NotOffered ? { id, skip: true } : { id, refused: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
