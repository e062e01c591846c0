/** The playground's page: what is shown, and what the reader does. The engine is in worker.mjs. */

import { absmaxQuantize, absmeanQuantize, dequantizeNF4, pack2, packBase3, quantizeNF4, topkMask } from "../ports/js/minibit.mjs";

const $ = (id) => document.getElementById(id);
const percent = (share, places = 1) => `${(100 * share).toFixed(places)}%`;
const bytes = (count) => (count < 1e4 ? `${count} bytes` : `${Math.round(count / 1e3)} KB`);
const make = (tag, fields = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

// -------------------------------------------------------------------------------- files and worker

/** A file that the page carries, as bytes. */
async function carried(name) {
  const text = atob($(`file-${name}`).textContent.trim());
  const packed = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const worker = new Worker(globalThis.playground.worker);
const waiting = new Map();
let calls = 0;

worker.onmessage = ({ data: { id, result, error, progress } }) => {
  const call = waiting.get(id);
  if (progress !== undefined) call.progress(progress);
  else {
    waiting.delete(id);
    if (error === undefined) call.done(result);
    else call.failed(new Error(error));
  }
};

/** Ask the worker. */
function ask(call, args = {}, progress = () => {}) {
  return new Promise((done, failed) => {
    waiting.set(++calls, { done, failed, progress });
    worker.postMessage({ id: calls, call, args });
  });
}

/** Ask for the newest alone: while one call is under way, only the last of the others is kept. */
function latest(call, show) {
  let busy = false, next = null;
  const send = async (args) => {
    if (busy) { next = args; return; }
    busy = true;
    try {
      show(await ask(call, args), args);
    } catch (error) {
      tell("replay-status", error.message);
    }
    busy = false;
    if (next !== null) { const args = next; next = null; send(args); }
  };
  return send;
}

const tell = (id, text) => { $(id).textContent = text; };

// ---------------------------------------------------------------------------------------- drawings

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (name) => colour(name).match(/[0-9a-f]{2}/gi).map((two) => parseInt(two, 16));

/** Rows of [label, share, text] as bars. */
function drawBars(element, rows, best = -1) {
  element.replaceChildren(...rows.flatMap(([label, share, text], i) => {
    const bar = make("span", { className: i === best ? "bar best" : "bar" });
    bar.style.width = percent(Math.max(0, Math.min(1, share)), 2);
    return [make("span", {}, label), bar, make("span", {}, text)];
  }));
}

/** A square canvas of pixels, each of a colour [r, g, b] or null. */
function drawPixels(canvas, count, at) {
  const side = Math.round(Math.sqrt(count)), context = canvas.getContext("2d");
  canvas.width = canvas.height = side;
  const image = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set(at(i) ? [...at(i), 255] : [0, 0, 0, 0], 4 * i);
  context.putImageData(image, 0, 0);
}

function drawWeights(canvas, weights) {
  const plus = rgb("--plus"), minus = rgb("--minus");
  drawPixels(canvas, weights.length, (i) => (weights[i] > 0 ? plus : weights[i] < 0 ? minus : null));
}

/** A line through points [x, y], y from `low` to `high`; `marked` is an x that a rule stands at. */
function drawLine(svg, points, { last, low, high, marked, unit }) {
  const name = "http://www.w3.org/2000/svg";
  const x = (v) => 44 + (546 * v) / Math.max(1, last), y = (v) => 145 - (130 * (v - low)) / (high - low || 1);
  const part = (tag, fields, text = "") => {
    const element = document.createElementNS(name, tag);
    for (const [key, value] of Object.entries(fields)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const parts = [
    part("text", { x: 4, y: y(high) + 4 }, unit(high)), part("text", { x: 4, y: y(low) }, unit(low)),
    part("text", { x: 588, y: 158, "text-anchor": "end" }, `step ${last}`),
    part("polyline", { points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
  ];
  if (marked !== undefined) parts.push(part("line", { x1: x(marked), x2: x(marked), y1: 10, y2: 146 }));
  svg.replaceChildren(...parts);
}

// ------------------------------------------------------------------------------------------ replay

let shown = null; // what the worker said of the log
let shippedLog = null;

/** Replay a log and show it; what goes wrong is said, and what was shown stays. */
async function open(log, name) {
  tell("replay-status", `Replaying ${name}.`);
  try {
    const result = await ask("open", { bytes: log }, (share) => { $("replay-progress").value = share; });
    shown = { ...result, name, log };
  } catch (error) {
    tell("replay-status", `${name} was not replayed: ${error.message}`);
    return false;
  }
  const { header, steps, tornAt, milliseconds, digest, sizes } = shown;
  const torn = tornAt === null ? "" : ` Its last bytes, from ${tornAt} on, are torn and were not read.`;
  tell("replay-status", `${name}: ${steps} steps in ${Math.round(milliseconds)} ms, every digest right.${torn}`);
  tell("seed", header.plan.seed);
  tell("steps", steps);
  tell("digest", digest);
  tell("expected", log === shippedLog ? globalThis.playground.digest : "a log of your own: minibit replay tells");
  const most = sizes.float32;
  const row = (label, size) => [label, size / most, bytes(size)];
  drawBars($("sizes"), [
    row("this log", sizes.log), row("net moves alone", sizes.compact),
    row("five trits a byte", sizes.trits), row("float32", most),
  ]);
  off = [];
  for (const input of [$("time"), $("watched")]) input.max = input === $("time") ? steps : header.plan.shapes[0][0] - 1;
  $("time").value = steps;
  $("edit").elements.from.max = $("edit").elements.to.max = steps;
  $("edit").elements.to.value = Math.min(steps, 100);
  $("edit").elements.layer.max = header.plan.shapes.length;
  curve = [];
  showStep();
  await measure();
  return true;
}

/** Accuracy at the end, then along the training: ends first, then the middle of every gap. */
async function measure() {
  const own = shown, { steps } = own, wanted = new Set([steps, 0]);
  for (const parts of [2, 4, 8, 16, 32]) for (let i = 1; i < parts; i++) wanted.add(Math.round((i * steps) / parts));
  tell("accuracy", "counting");
  for (const step of wanted) {
    let share;
    try {
      share = await ask("accuracy", { step });
    } catch (error) {
      tell("accuracy", error.message);
      return;
    }
    if (own !== shown) return;
    if (step === steps) {
      tell("accuracy", `${percent(share)} of ${digits}`);
      document.body.dataset.ready = "true";
    }
    curve.push([step, share]);
    curve.sort((a, b) => a[0] - b[0]);
    drawCurve();
  }
}

// ---------------------------------------------------------------------------------------- the board

const strokes = []; // of points [x, y] in [0, 1]
let off = []; // units that are switched off
let pixels = new Uint8Array(784);

/** How dark a stroke of this radius makes a pixel whose middle lies at (x, y). */
function ink(lines, x, y, radius) {
  let nearest = Infinity;
  for (const line of lines)
    line.forEach(([x1, y1], i) => {
      const [x0, y0] = line[Math.max(0, i - 1)], dx = x1 - x0, dy = y1 - y0;
      const along = dx || dy ? Math.max(0, Math.min(1, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy))) : 0;
      nearest = Math.min(nearest, Math.hypot(x - x0 - along * dx, y - y0 - along * dy));
    });
  return Math.max(0, Math.min(1, radius + 0.5 - nearest));
}

/** The strokes as MNIST has digits: fitted into 20 x 20, their centre of mass in the middle of 28 x 28. */
function rasterise() {
  const points = strokes.flat();
  if (!points.length) return new Uint8Array(784);
  const low = [0, 1].map((axis) => Math.min(...points.map((p) => p[axis])));
  const high = [0, 1].map((axis) => Math.max(...points.map((p) => p[axis])));
  const scale = 18 / Math.max(high[0] - low[0], high[1] - low[1], 0.15);
  const paint = (shift) => {
    const lines = strokes.map((line) => line.map((p) => p.map((v, axis) => (v - (low[axis] + high[axis]) / 2) * scale + 14 + shift[axis])));
    return Uint8Array.from({ length: 784 }, (_, i) => Math.round(255 * ink(lines, (i % 28) + 0.5, Math.floor(i / 28) + 0.5, 1.1)));
  };
  const first = paint([0, 0]), mass = first.reduce((a, b) => a + b, 0) || 1;
  const centre = [0, 1].map((axis) => first.reduce((sum, v, i) => sum + v * (axis ? Math.floor(i / 28) : i % 28), 0) / mass);
  return paint(centre.map((c) => 13.5 - c));
}

function drawBoard(pen) {
  const context = $("board").getContext("2d");
  context.clearRect(0, 0, 280, 280);
  Object.assign(context, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: colour("--ink") });
  for (const line of strokes) {
    context.beginPath();
    line.forEach(([x, y]) => context.lineTo(280 * x, 280 * y));
    if (line.length === 1) context.lineTo(280 * line[0][0] + 0.01, 280 * line[0][1]);
    context.stroke();
  }
  if (pen) {
    Object.assign(context, { lineWidth: 2, strokeStyle: colour("--minus") });
    context.strokeRect(280 * pen[0] - 8, 280 * pen[1] - 8, 16, 16);
  }
}

/** Show other pixels, drawn or from the test images. */
function see(image) {
  pixels = image;
  off = [];
  const paper = rgb("--panel"), dark = rgb("--ink");
  drawPixels($("seen"), 784, (i) => paper.map((p, c) => Math.round(p + ((dark[c] - p) * image[i]) / 255)));
  predictNow();
}

let said = null; // probabilities of the pixels as they are now

/** What is shown: for tests, and for the curious at the console. */
export const state = () => ({ pixels: [...pixels], probabilities: said, shown });

const predict = latest("predict", ({ probabilities, answer, units }, asked) => {
  if (asked.pixels === pixels && asked.off === off) said = probabilities;
  drawBars($("probabilities"), probabilities.map((p, digit) => [String(digit), p, percent(p)]), answer);
  const without = off.length ? `, without ${off.length} unit${off.length > 1 ? "s" : ""}` : "";
  tell("answer", `It is a ${answer}: ${percent(probabilities[answer])}${without}.`);
  showUnits(units, answer);
});

function predictNow() {
  said = null;
  if (!shown) return;
  if (!pixels.some(Boolean)) {
    tell("answer", "Nothing is drawn yet.");
    $("probabilities").replaceChildren();
    $("units").replaceChildren();
    tell("then", "");
    return;
  }
  predict({ pixels, step: shown.steps, off, most: 16 });
  predictThen({ pixels, step: Number($("time").value) });
}

/** The telling units as buttons; the one that has the focus keeps it. */
function showUnits(units, answer) {
  const focused = document.activeElement?.dataset?.unit;
  $("units").replaceChildren(...units.map(({ unit, gain, off: isOff, weights }) => {
    const canvas = make("canvas", { className: "pixels" });
    drawWeights(canvas, weights);
    const text = `unit ${unit}: ${gain >= 0 ? "+" : "-"}${Math.abs(gain).toFixed(2)}`;
    const button = make("button", { type: "button", title: `what it adds to the logit of ${answer}` }, canvas, text);
    button.setAttribute("aria-pressed", isOff);
    button.dataset.unit = unit;
    button.onclick = () => {
      off = isOff ? off.filter((other) => other !== unit) : [...off, unit];
      predictNow();
    };
    return button;
  }));
  if (focused !== undefined) $("units").querySelector(`[data-unit="${focused}"]`)?.focus();
}

function setUpBoard() {
  const board = $("board");
  let pen = null, down = false;
  const at = (event) => {
    const box = board.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const changed = () => { drawBoard(document.activeElement === board ? pen : null); see(rasterise()); };
  board.onpointerdown = (event) => {
    board.setPointerCapture(event.pointerId);
    pen = null;
    strokes.push([at(event)]);
    changed();
  };
  board.onpointermove = (event) => {
    if (!board.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(at(event));
    changed();
  };
  board.onkeydown = (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    pen ??= [0.5, 0.3];
    if (event.key === " ") {
      down = !down;
      if (down) strokes.push([[...pen]]);
      tell("board-hint", down ? "The pen is down." : "The pen is up.");
    } else if (event.key === "Delete" || event.key === "Backspace") {
      strokes.length = 0;
      down = false;
    } else if (moves[event.key]) {
      pen = pen.map((v, axis) => Math.max(0.05, Math.min(0.95, v + 0.04 * moves[event.key][axis])));
      if (down) strokes.at(-1).push([...pen]);
    } else return;
    event.preventDefault();
    changed();
  };
  board.onfocus = () => drawBoard(pen);
  board.onblur = () => { down = false; drawBoard(); };
  $("clear").onclick = () => { strokes.length = 0; down = false; changed(); };
  let image = 0;
  $("sample").onclick = () => {
    strokes.length = 0;
    drawBoard();
    see(images.subarray(784 * image, 784 * (image + 1)));
    tell("board-hint", `Test image ${image}, which is a ${labels[image]}.`);
    image = (image + 1) % digits;
  };
}

// -------------------------------------------------------------------------------------------- time

let curve = []; // [step, accuracy]

const drawCurve = () => drawLine($("curve"), curve, {
  last: shown.steps, low: 0, high: 1, marked: Number($("time").value), unit: (v) => percent(v, 0),
});
const predictThen = latest("predict", ({ probabilities, answer }, { step }) =>
  tell("then", `After step ${step} the image above is a ${answer}: ${percent(probabilities[answer])}.`));
const showUnit = latest("unit", (weights) => drawWeights($("then-unit"), weights));
const countAt = latest("accuracy", (share, { step }) => {
  if (Number($("time").value) === step) tell("step", `${step} of ${shown.steps}: ${percent(share)}`);
});

function showStep() {
  const step = Number($("time").value), unit = Number($("watched").value);
  tell("step", `${step} of ${shown.steps}`);
  drawCurve();
  if (unit >= 0 && unit < shown.header.plan.shapes[0][0]) showUnit({ unit, step });
  countAt({ step });
  if (pixels.some(Boolean)) predictThen({ pixels, step });
}

function setUpTime() {
  let timer = null;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches; // then larger, slower steps
  const stop = () => {
    clearInterval(timer);
    timer = null;
    tell("play", "Play");
    $("play").setAttribute("aria-pressed", "false");
  };
  $("time").oninput = () => { stop(); showStep(); };
  $("watched").oninput = showStep;
  $("play").onclick = () => {
    if (timer !== null) return stop();
    const time = $("time"), most = Number(time.max), hop = Math.max(1, Math.ceil(most / (calm ? 8 : 100)));
    if (Number(time.value) === most) time.value = 0;
    tell("play", "Pause");
    $("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      time.value = Math.min(most, Number(time.value) + hop);
      showStep();
      if (Number(time.value) === most) stop();
    }, calm ? 1500 : 150);
  };
}

// ---------------------------------------------------------------------------- edit, train and write

/** Offer a log for download, and to be shown above. */
function offer(name, log, title) {
  const link = $(`${name}-file`), show = $(`${name}-show`);
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([log], { type: "application/octet-stream" }));
  link.hidden = show.hidden = false;
  show.onclick = () => { open(log, title); $("replay-title").scrollIntoView(); };
}

/** Run a form's call; its button waits, and errors are said beside it. */
function onSubmit(form, status, call) {
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      await call(Object.fromEntries(new FormData(form)));
    } catch (error) {
      tell(status, error.message);
    }
    button.disabled = false;
  };
}

async function edit({ kind, from, to, layer, seed }) {
  tell("edited", "Editing.");
  const args = { kind, from: Number(from), to: Number(to), layer: Number(layer) - 1, seed };
  const result = await ask("edit", args);
  const more = kind === "layer" ? `, layer ${layer}` : kind === "shuffle" ? `, seed ${seed}` : "";
  tell("edited", `Right before: ${percent(result.before)}. After: ${percent(result.after)}. ${bytes(result.bytes.length)}, SHA-256 ${result.digest}.`);
  offer("edited", result.bytes, `the edited log (${kind}, steps ${from} to ${to}${more})`);
  $("edited-link").href = `#edit=${[kind, from, to, layer, seed].join(",")}`;
  $("edited-link").hidden = false;
}

/** An edit that the page's address names is made at once. */
async function editFromAddress() {
  const [, text] = /^#edit=(.+)$/.exec(decodeURIComponent(location.hash)) ?? [];
  if (text === undefined) return;
  const fields = $("edit").elements;
  ["kind", "from", "to", "layer", "seed"].forEach((name, i) => { fields[name].value = text.split(",")[i] ?? ""; });
  $("edit").requestSubmit();
}

const own = { pixels: [], labels: [] }; // digits of the reader's, to train on

async function train({ method, seed, steps, on }) {
  if (on === "own" && !own.labels.length) throw new Error("Keep a digit of your own first: draw it, and say what it is.");
  const data = on === "own" ? { pixels: Uint8Array.from(own.pixels.flatMap((p) => [...p])), labels: Uint8Array.from(own.labels) } : {};
  const losses = [];
  const result = await ask("train", { ...data, method, seed, steps: Number(steps) }, ({ step, loss, accuracy, bytes: size }) => {
    losses.push([step, loss]);
    drawLine($("losses"), losses, { last: Number(steps), low: 0, high: losses[0][1], unit: (v) => v.toFixed(2) });
    tell("trained", `Step ${step + 1}: loss ${loss.toFixed(3)}, ${percent(accuracy)} of the batch right, a log of ${bytes(size)}.`);
  });
  const held = result.held === undefined ? "" : ` ${percent(result.held)} of the 100 images that it never saw are right.`;
  tell("trained", `${result.steps} steps, a log of ${bytes(result.bytes.length)}.${held} SHA-256 ${result.digest}.`);
  offer("trained", result.bytes, "the log that was trained here");
}

async function write({ prompt, seed, temperature, count }) {
  tell("text", prompt);
  const args = { prompt, seed, temperature: Number(temperature), count: Number(count) };
  await ask("write", args, ({ character, next, perSecond }) => {
    $("text").append(character);
    tell("speed", `${Math.round(perSecond)} characters per second`);
    const drawn = next.findIndex(([other]) => other === character);
    const name = (c) => (c === "\n" ? "line end" : c === " " ? "space" : c);
    drawBars($("next"), next.map(([c, share]) => [name(c), share, percent(share)]), drawn);
  });
}

function setUpForms() {
  onSubmit($("edit"), "edited", edit);
  onSubmit($("train"), "trained", train);
  onSubmit($("write"), "speed", write);
  $("keep").onclick = () => {
    const label = Number($("label").value);
    if (!pixels.some(Boolean)) return tell("kept", "Draw a digit first.");
    if (!(Number.isInteger(label) && label >= 0 && label <= 9)) return tell("kept", "A digit is 0 to 9.");
    own.pixels.push(pixels.slice());
    own.labels.push(label);
    tell("kept", `${own.labels.length} kept: ${own.labels.join(" ")}.`);
  };
}

// ---------------------------------------------------------------------------------------- quantise

let weights = [];

function showQuantised() {
  const k = Math.min(Number($("k").value), weights.length), w = Float32Array.from(weights), n = w.length;
  const error = (back) => Math.sqrt(w.reduce((sum, v, i) => sum + (v - back[i]) ** 2, 0) / n);
  const hexed = (data) => Array.from(data, (b) => b.toString(16).padStart(2, "0")).join(" ");
  const { codes, gamma } = absmeanQuantize(w), int8 = absmaxQuantize(w, n), nf4 = quantizeNF4(w);
  const mask = topkMask(w, n, k), zeros = codes.filter((c) => c === 0).length;
  const rows = [
    ["absmean, ternary", `gamma ${gamma.toFixed(4)}, ${zeros} of ${n} zero`, error(Float32Array.from(codes, (c) => c * gamma)), `2 bits: ${hexed(pack2(codes))}; five a byte: ${hexed(packBase3(codes))}`],
    ["absmax, int8", `scale ${int8.scale[0].toFixed(3)}`, error(Float32Array.from(int8.codes, (c) => c / int8.scale[0])), hexed(new Uint8Array(int8.codes.buffer))],
    ["NF4", `absmax ${nf4.absmax[0].toFixed(4)}, blocks of 64`, error(dequantizeNF4(nf4, n)), hexed(nf4.packed)],
    ["top-K", `${k} of ${n} kept, the others 0`, error(w.map((v, i) => (mask[i] ? v : 0))), "floats"],
  ];
  const head = make("tr", {}, ...["Method", "What it keeps", "Root mean square error", "Bytes"].map((t) => make("th", { scope: "col" }, t)));
  $("quantised").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.map(([name, kept, e, data]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, kept), make("td", {}, e.toFixed(4)), make("td", {}, make("code", {}, data))))));
  drawWeightBars(codes);
}

function drawWeightBars(codes, chosen = chosenBar) {
  const canvas = $("bars"), context = canvas.getContext("2d"), { width, height } = canvas;
  const most = Math.max(...weights.map(Math.abs), 1e-9), side = width / weights.length;
  context.clearRect(0, 0, width, height);
  weights.forEach((w, i) => {
    context.fillStyle = colour(codes[i] > 0 ? "--plus" : codes[i] < 0 ? "--minus" : "--soft");
    const size = ((height / 2 - 6) * w) / most;
    context.fillRect(i * side + 1, height / 2 - Math.max(size, 0), side - 2, Math.max(1, Math.abs(size)));
    if (i === chosen) context.strokeRect(i * side + 0.5, 2, side - 1, height - 4);
  });
}

let chosenBar = -1;

function setUpWeights() {
  const area = $("weights"), canvas = $("bars");
  const read = () => {
    const numbers = area.value.split(/[^-+.\deE]+/).filter(Boolean).map(Number).filter(Number.isFinite).slice(0, 256);
    if (!numbers.length) return;
    weights = numbers;
    $("k").max = weights.length;
    showQuantised();
  };
  const put = (i, w) => {
    weights[i] = w;
    area.value = weights.map((v) => +v.toFixed(3)).join(" ");
    showQuantised();
  };
  const drag = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const box = canvas.getBoundingClientRect(), most = Math.max(...weights.map(Math.abs), 0.1);
    const i = Math.floor(((event.clientX - box.left) / box.width) * weights.length);
    if (i >= 0 && i < weights.length) put(i, most * Math.max(-1, Math.min(1, 1 - (2 * (event.clientY - box.top)) / box.height)));
  };
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); drag(event); };
  canvas.onpointermove = drag;
  canvas.onkeydown = (event) => {
    const most = Math.max(...weights.map(Math.abs), 0.1);
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key], lift = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (side) chosenBar = (chosenBar + side + weights.length) % weights.length;
    else if (lift && chosenBar >= 0) weights[chosenBar] = Math.max(-most, Math.min(most, weights[chosenBar] + 0.1 * lift * most));
    else return;
    event.preventDefault();
    put(Math.max(0, chosenBar), weights[Math.max(0, chosenBar)]);
  };
  area.oninput = read;
  $("k").oninput = () => { tell("k-is", $("k").value); showQuantised(); };
  area.value = "0.31 -0.72 0.05 0.44 -0.11 0.93 -0.38 0.02 0.27 -0.55 0.64 -0.08 0.17 -0.29 0.81 -0.46";
  read();
}

// ------------------------------------------------------------------------------------------- begin

let images, labels, digits = 0;

function setUpReplay() {
  const take = async (file) => {
    if (!file) return;
    if (file.size > 16e6) return tell("replay-status", `${file.name} has ${file.size} bytes; this page takes logs up to 16 MB.`);
    await open(new Uint8Array(await file.arrayBuffer()), file.name);
  };
  $("file").onchange = async () => { await take($("file").files[0]); $("file").value = ""; };
  $("shipped").onclick = () => open(shippedLog, "the shipped log");
  $("stop").onclick = () => ask("stop");
  document.body.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
  document.body.ondragleave = () => document.body.classList.remove("dropping");
  document.body.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files[0]);
  };
}

async function begin() {
  setUpReplay();
  setUpBoard();
  setUpTime();
  setUpForms();
  setUpWeights();
  matchMedia("(prefers-color-scheme: dark)").onchange = () => { drawBoard(); see(pixels); showQuantised(); showStep(); };
  const [log, test, config, model, characters] = await Promise.all(
    ["small.steps", "digits", "config.json", "model.safetensors", "characters"].map(carried));
  digits = test.length / 785;
  [labels, images] = [test.subarray(0, digits), test.subarray(digits)];
  await ask("digits", { bytes: test });
  await ask("language", { config, weights: model, characters });
  shippedLog = log;
  await open(log, "the shipped log");
}

addEventListener("hashchange", editFromAddress);
begin().then(editFromAddress, (error) => tell("replay-status", `The playground could not begin: ${error.message}`));
