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
  const packed = await fetch(`data:;base64,${$(`file-${name}`).textContent.trim()}`); // decoded elsewhere
  const stream = packed.body.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let worker = null;
const waiting = new Map();
let calls = 0;

function startWorker() {
  worker = new Worker(globalThis.playground.worker);
  worker.onmessage = ({ data: { id, result, error, progress } }) => {
    const call = waiting.get(id);
    if (progress !== undefined) call.progress(progress);
    else {
      waiting.delete(id);
      if (error === undefined) call.done(result);
      else call.failed(new Error(error));
    }
  };
  worker.onerror = (event) => { event.preventDefault(); restart(`the engine failed: ${event.message}`); };
}

/** Ask the worker. */
function ask(call, args = {}, progress = () => {}) {
  return new Promise((done, failed) => {
    waiting.set(++calls, { done, failed, progress });
    worker.postMessage({ id: calls, call, args });
  });
}

/** Ask for the newest alone: while one call is under way, only the last of the others is kept. */
function latest(call, place, show) {
  let busy = false, next = null;
  const send = async (args) => {
    if (busy) { next = args; return; }
    busy = true;
    try {
      show(await ask(call, args), args);
    } catch (error) {
      say(place, sentence(error.message));
    }
    busy = false;
    if (next !== null) { const args = next; next = null; send(args); }
  };
  return send;
}

/** A worker that does not answer is replaced: what was under way ends, and the log comes back. */
async function restart(why) {
  worker.terminate();
  const ended = [...waiting.values()];
  waiting.clear();
  startWorker();
  const taught = teach();
  for (const call of ended) call.failed(new Error(why));
  await taught;
  await open(shown?.log ?? shippedLog, shown?.name ?? "the shipped log");
}

/** End the calls of some names that are under way, by force if need be; how many there were. */
async function stop(...names) {
  const timer = setTimeout(() => restart("it was stopped"), 2000);
  const count = await ask("stop", { names }).catch(() => 1);
  clearTimeout(timer);
  return count;
}

const tell = (id, text) => { $(id).textContent = text; };
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
const saying = new Map();

/** Show a text. A screen reader says it, too, once it has stood for a moment. */
function say(id, text) {
  tell(id, text);
  clearTimeout(saying.get(id));
  if (text) saying.set(id, setTimeout(() => {
    $("said").append(make("p", {}, text));
    while ($("said").children.length > 3) $("said").firstChild.remove();
  }, 600));
}

/** A whole number that a field has, as text: so none is too large to be exact. */
function whole(name, text, least, most) {
  if (!/^\d+$/.test(text) || BigInt(text) < BigInt(least) || BigInt(text) > BigInt(most))
    throw new Error(`${name} must be a whole number from ${least} to ${most}, got ${text || "nothing"}.`);
  return text;
}

const number = (...law) => Number(whole(...law));
const seedOf = (text) => whole("The seed", text, 0, 2n ** 64n - 1n);

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
    part("text", { x: 588, y: 153, "text-anchor": "end" }, `step ${last}`),
    part("polyline", { points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
  ];
  if (marked !== undefined) parts.push(part("line", { x1: x(marked), x2: x(marked), y1: 10, y2: 146 }));
  svg.replaceChildren(...parts);
}

// ------------------------------------------------------------------------------------------ replay

let shown = null; // what the worker said of the log
const first = (name) => name.replace(/^the /, "The "); // where a sentence begins
let shippedLog = null;

/** Replay a log and show it; what goes wrong is said, and what was shown stays. */
async function open(log, name) {
  say("replay-status", `Replaying ${name}.`);
  try {
    const result = await ask("open", { log }, (share) => { $("replay-progress").value = share; });
    shown = { ...result, name, log };
  } catch (error) {
    $("replay-progress").value = shown ? 1 : 0;
    say("replay-status", `${first(name)} was not replayed: ${error.message}${shown ? `. Shown is still ${shown.name}.` : ""}`);
    return;
  }
  const { header, steps, tornAt, milliseconds, digest, sizes } = shown;
  const torn = tornAt === null ? "" : ` Its last bytes, from ${tornAt} on, are torn and were not read.`;
  $("replay-progress").value = 1;
  say("replay-status", `${first(name)}: ${steps} steps in ${Math.round(milliseconds)} ms, every digest right.${torn}`);
  tell("seed", header.plan.seed);
  tell("steps", steps);
  tell("digest", digest);
  tell("expected", log === shippedLog ? globalThis.playground.digest : "a log of your own: minibit replay tells");
  const most = sizes.float32;
  const row = (label, size) => [label, size / most, bytes(size)];
  drawBars($("sizes"), [
    row("this log", sizes.log), row("net moves alone", sizes.compact),
    row("five trits per byte", sizes.trits), row("float32", most),
  ]);
  off = [];
  for (const input of [$("time"), $("watched")]) input.max = input === $("time") ? steps : header.plan.shapes[0][0] - 1;
  $("time").value = steps;
  $("edit").elements.to.value = Math.min(steps, 100);
  $("edit").elements.layer.max = header.plan.shapes.length;
  curve = [];
  showStep();
  predictNow();
  await measure();
}

/** Accuracy at the end, then along the training: ends first, then the middle of every gap. */
async function measure() {
  const own = shown, { steps } = own, wanted = new Set([steps, 0]);
  for (const parts of [2, 4, 8, 16, 32]) for (let i = 1; i < parts; i++) wanted.add(Math.round((i * steps) / parts));
  tell("accuracy", "counting");
  for (const step of wanted) {
    let share;
    while (waiting.size) await new Promise((go) => setTimeout(go, 50)); // what the reader asked for comes first
    if (own !== shown) return;
    try {
      share = await ask("accuracy", { step });
    } catch (error) {
      if (own === shown) tell("accuracy", curve.length ? $("accuracy").textContent : sentence(error.message));
      return;
    }
    if (own !== shown) return;
    if (step === steps) {
      const own = shown.header.data?.name === "playground" ? ", with those that it was trained on" : "";
      tell("accuracy", `${percent(share)} of ${digits}${own}`);
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

/** 28 x 28 pixels of lines of this radius, each as dark as the nearest line makes it. */
function paint(lines, radius = 1.1) {
  const ink = new Float64Array(784), reach = radius + 0.5;
  const from = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - reach)), to = (a, b) => Math.min(27, Math.ceil(Math.max(a, b) + reach));
  for (const line of lines)
    line.forEach(([x1, y1], i) => {
      const [x0, y0] = line[Math.max(0, i - 1)], dx = x1 - x0, dy = y1 - y0;
      for (let row = from(y0, y1); row <= to(y0, y1); row++)
        for (let column = from(x0, x1); column <= to(x0, x1); column++) {
          const x = column + 0.5 - x0, y = row + 0.5 - y0; // the pixel's middle
          const along = dx || dy ? Math.max(0, Math.min(1, (x * dx + y * dy) / (dx * dx + dy * dy))) : 0;
          const dark = Math.min(1, reach - Math.hypot(x - along * dx, y - along * dy));
          ink[28 * row + column] = Math.max(ink[28 * row + column], dark);
        }
    });
  return Uint8Array.from(ink, (dark) => Math.round(255 * dark));
}

/** The strokes as MNIST has digits: fitted into 20 x 20, their centre of mass in the middle of 28 x 28. */
function rasterise() {
  const points = strokes.flat();
  if (!points.length) return new Uint8Array(784);
  const edge = (axis, most) => points.reduce((best, p) => most(best, p[axis]), points[0][axis]);
  const [low, high] = [Math.min, Math.max].map((most) => [edge(0, most), edge(1, most)]);
  const scale = 18 / Math.max(high[0] - low[0], high[1] - low[1], 0.15);
  const shifted = (shift) => paint(strokes.map((line) => line.map((p) => p.map(
    (v, axis) => (v - (low[axis] + high[axis]) / 2) * scale + 14 + shift[axis]))));
  const first = shifted([0, 0]), mass = first.reduce((a, b) => a + b, 0) || 1;
  const centre = [0, 1].map((axis) => first.reduce((sum, v, i) => sum + v * (axis ? Math.floor(i / 28) : i % 28), 0) / mass);
  return shifted(centre.map((c) => 13.5 - c));
}

function drawBoard(pen) {
  const context = $("board").getContext("2d");
  context.clearRect(0, 0, 280, 280);
  if (!strokes.length && pixels.some(Boolean)) { // a test image
    context.imageSmoothingEnabled = false;
    context.drawImage($("seen"), 0, 0, 280, 280);
  }
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
  drawSeen();
  predictNow();
}

function drawSeen() {
  const paper = rgb("--panel"), dark = rgb("--ink");
  drawPixels($("seen"), 784, (i) => paper.map((p, c) => Math.round(p + ((dark[c] - p) * pixels[i]) / 255)));
}

let said = null; // probabilities of the pixels as they are now

/** What is shown: for tests, and for the curious at the console. */
export const state = () => ({ pixels: [...pixels], probabilities: said, shown });

const predict = latest("predict", "answer", ({ probabilities, answer, units }, asked) => {
  if (asked.pixels !== pixels || asked.off !== off) return; // another drawing is there by now
  said = probabilities;
  drawBars($("probabilities"), probabilities.map((p, digit) => [String(digit), p, percent(p)]), answer);
  const without = off.length ? `, without ${off.length} unit${off.length > 1 ? "s" : ""}` : "";
  say("answer", `It is a ${answer}: ${percent(probabilities[answer])}${without}.`);
  showUnits(units, answer);
});

function predictNow() {
  said = null;
  if (!shown) return;
  if (!pixels.some(Boolean)) {
    say("answer", "Nothing is drawn yet.");
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
  const hint = $("board-hint").textContent;
  let pen = null, down = false, finger = null, due = false;
  const at = (event) => {
    const box = board.getBoundingClientRect(), inside = (v) => Math.max(0, Math.min(1, v));
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  };
  const changed = () => { // as often as the screen shows it
    said = null;
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      see(rasterise());
      drawBoard(document.activeElement === board ? pen : null);
    });
  };
  board.onpointerdown = (event) => {
    if (finger !== null || event.button !== 0) return;
    finger = event.pointerId;
    board.setPointerCapture(finger);
    pen = null;
    down = false;
    strokes.push([at(event)]);
    tell("board-hint", hint);
    changed();
  };
  board.onpointermove = (event) => {
    if (event.pointerId !== finger) return;
    const line = strokes.at(-1), [x, y] = at(event), [x0, y0] = line?.at(-1) ?? [];
    if (!line) strokes.push([[x, y]]); // it was cleared meanwhile
    else if (Math.hypot(x - x0, y - y0) > 0.004) line.push([x, y]);
    else return;
    changed();
  };
  board.onlostpointercapture = () => { finger = null; };
  board.onkeydown = (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    pen ??= [0.5, 0.3];
    if (event.key === " ") {
      down = !down;
      if (down) strokes.push([[...pen]]);
      say("board-hint", down ? "The pen is down." : "The pen is up.");
    } else if (event.key === "Delete" || event.key === "Backspace") {
      strokes.length = 0;
      down = false;
      say("board-hint", "The board is clear.");
    } else if (moves[event.key]) {
      pen = pen.map((v, axis) => Math.max(0.05, Math.min(0.95, v + 0.04 * moves[event.key][axis])));
      if (down) strokes.at(-1).push([...pen]);
    } else return;
    event.preventDefault();
    changed();
  };
  board.onfocus = () => drawBoard(pen);
  board.onblur = () => { down = false; drawBoard(); };
  $("clear").onclick = () => {
    strokes.length = 0;
    down = false;
    tell("board-hint", hint);
    changed();
  };
  let image = 0;
  $("sample").onclick = () => {
    strokes.length = 0;
    see(images.subarray(784 * image, 784 * (image + 1)));
    drawBoard();
    say("board-hint", `Test image ${image}, which is a ${labels[image]}. ${hint}`);
    image = (image + 1) % digits;
  };
}

// -------------------------------------------------------------------------------------------- time

let curve = []; // [step, accuracy]

const drawCurve = () => drawLine($("curve"), curve, {
  last: shown.steps, low: 0, high: 1, marked: Number($("time").value), unit: (v) => percent(v, 0),
});
const predictThen = latest("predict", "then", ({ probabilities, answer }, { step }) =>
  say("then", `After step ${step} the image above is a ${answer}: ${percent(probabilities[answer])}.`));
const showUnit = latest("unit", "then", (weights) => drawWeights($("then-unit"), weights));
const countAt = latest("accuracy", "then", (share, { step }) => {
  if (Number($("time").value) === step) tellStep(`${step} of ${shown.steps}: ${percent(share)}`);
});

function tellStep(text) {
  tell("step", text);
  $("time").setAttribute("aria-valuetext", text);
}

function showStep() {
  if (!shown) return;
  const step = Number($("time").value), unit = Number($("watched").value), units = shown.header.plan.shapes[0][0];
  tellStep(`${step} of ${shown.steps}`);
  drawCurve();
  if (Number.isInteger(unit) && unit >= 0 && unit < units) showUnit({ unit, step });
  else say("then", `The first layer has units 0 to ${units - 1}.`);
  countAt({ step });
  if (pixels.some(Boolean)) predictThen({ pixels, step });
}

function setUpTime() {
  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    tell("play", "Play");
    $("play").setAttribute("aria-pressed", "false");
  };
  $("time").oninput = () => { pause(); showStep(); };
  $("watched").oninput = showStep;
  $("play").onclick = () => {
    if (timer !== null || !shown) return pause();
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches; // then larger, slower steps
    const time = $("time"), most = Number(time.max), hop = Math.max(1, Math.ceil(most / (calm ? 8 : 100)));
    if (Number(time.value) === most) time.value = 0;
    tell("play", "Pause");
    $("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      time.value = Math.min(most, Number(time.value) + hop);
      showStep();
      if (Number(time.value) === most) pause();
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
  show.onclick = () => { open(log, title); $("replay-title").focus(); };
}

/** Run a form's call. Its button stops it meanwhile; what goes wrong is said beside it. */
function onSubmit(name, status, call) {
  const form = $(name), button = form.querySelector("button"), label = button.textContent;
  form.noValidate = true; // what is wrong is said in the page
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (form.dataset.busy) {
      if (performance.now() - Number(form.dataset.busy) > 400) stop(name); // no double click
      return;
    }
    form.dataset.busy = performance.now();
    button.textContent = "Stop";
    try {
      await call(Object.fromEntries(new FormData(form)));
    } catch (error) {
      say(status, sentence(error.message));
    }
    button.textContent = label;
    delete form.dataset.busy;
  };
}

async function edit({ kind, from, to, layer, seed }) {
  say("edited", "Editing.");
  $("edited-link").hidden = $("edited-file").hidden = $("edited-show").hidden = true;
  const args = {
    kind, from: number("The first step", from, 0, 1e9), to: number("The last step", to, 0, 1e9),
    layer: number("The layer", layer, 1, 1e6) - 1, seed: seedOf(seed),
  };
  const result = await ask("edit", args);
  const more = kind === "layer" ? `, layer ${layer}` : kind === "shuffle" ? `, seed ${seed}` : "";
  say("edited", `Right before: ${percent(result.before)}. After: ${percent(result.after)}. ${bytes(result.bytes.length)}, SHA-256 ${result.digest}.`);
  offer("edited", result.bytes, `the edited log (${kind}, steps ${from} to ${to}${more})`);
  $("edited-link").href = `#edit=${[kind, from, to, layer, seed].join(",")}`;
  $("edited-link").hidden = false;
}

/** Show the fields that the chosen kind of edit needs. */
function showEditFields() {
  const { kind, layer, seed } = $("edit").elements;
  layer.parentElement.hidden = kind.value !== "layer";
  seed.parentElement.hidden = kind.value !== "shuffle";
}

/** An edit that the page's address names is made at once. */
function editFromAddress() {
  const [, text] = /^#edit=(.*)$/.exec(location.hash.replaceAll("%2C", ",")) ?? [], form = $("edit"), fields = form.elements;
  if (text === undefined) return;
  $("edit-title").focus();
  const [kind, ...numbers] = text.split(",");
  const known = [...fields.kind.options].some((option) => option.value === kind);
  if (!known || numbers.length !== 4 || !numbers.every((one) => /^\d{1,20}$/.test(one)))
    return say("edited", `The address names no edit, "${location.hash.slice(0, 60)}". One is #edit=mask,0,100,1,0.`);
  if (form.dataset.busy) return say("edited", "An edit is under way.");
  fields.kind.value = kind;
  ["from", "to", "layer", "seed"].forEach((name, i) => { fields[name].value = numbers[i]; });
  showEditFields();
  form.requestSubmit();
}

const own = { pixels: [], labels: [] }; // digits of the reader's, to train on

async function train({ method, seed: text, steps: count, on }) {
  const seed = seedOf(text), steps = number("The steps", count, 1, 2000);
  $("trained-file").hidden = $("trained-show").hidden = true;
  if (on === "own" && !own.labels.length) throw new Error("Keep a digit of your own first: draw it, and say what it is.");
  const data = on === "own" ? { pixels: Uint8Array.from(own.pixels.flatMap((p) => [...p])), labels: Uint8Array.from(own.labels) } : {};
  const losses = [];
  const result = await ask("train", { ...data, method, seed, steps }, ({ step, loss, accuracy, bytes: size }) => {
    losses.push([step, loss]);
    drawLine($("losses"), losses, { last: steps, low: 0, high: Math.max(...losses.map(([, v]) => v)), unit: (v) => v.toFixed(2) });
    tell("trained", `Step ${step + 1}: loss ${loss.toFixed(3)}, ${percent(accuracy)} of the batch right, a log of ${bytes(size)}.`);
  });
  const held = result.held === undefined ? " Draw another digit, and show the log above to try it." : ` ${percent(result.held)} of the 100 images that it never saw are right.`;
  say("trained", `${result.steps} steps, a log of ${bytes(result.bytes.length)}.${held} SHA-256 ${result.digest}.`);
  offer("trained", result.bytes, "the log that was trained here");
}

async function write({ prompt, seed, temperature, count }) {
  const args = { prompt, seed: seedOf(seed), temperature: Number(temperature), count: number("The characters", count, 1, 2000) };
  if (temperature === "" || !(args.temperature >= 0 && args.temperature <= 5))
    throw new Error(`The temperature must lie from 0 to 5, got ${temperature || "nothing"}.`);
  tell("text", prompt);
  tell("speed", "Reading the prompt.");
  const { text } = await ask("write", args, ({ character, next, perSecond }) => {
    $("text").append(character);
    tell("speed", `${Math.round(perSecond)} characters per second`);
    const drawn = next.findIndex(([other]) => other === character);
    const name = (c) => (c === "\n" ? "line end" : c === " " ? "space" : c);
    drawBars($("next"), next.map(([c, share]) => [name(c), share, percent(share)]), drawn);
  });
  say("speed", `${text.length} characters written, ${$("speed").textContent}.`);
}

function setUpForms() {
  onSubmit("edit", "edited", edit);
  onSubmit("train", "trained", train);
  onSubmit("write", "speed", write);
  $("edit").elements.kind.onchange = showEditFields;
  showEditFields();
  $("keep").onclick = () => {
    const label = $("label").value;
    if (!pixels.some(Boolean)) return say("kept", "Draw a digit first.");
    if (!/^\d$/.test(label)) return say("kept", "A digit is 0 to 9.");
    own.pixels.push(pixels.slice());
    own.labels.push(Number(label));
    $("train").elements.on.value = "own";
    say("kept", `${own.labels.length} kept: ${own.labels.join(" ")}.`);
  };
  $("forget").onclick = () => {
    own.pixels.length = own.labels.length = 0;
    $("train").elements.on.value = "shipped";
    say("kept", "No digit is kept.");
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
    ["absmean, ternary", `gamma ${gamma.toFixed(4)}, ${zeros} of ${n} zero`, error(Float32Array.from(codes, (c) => c * gamma)), `2 bits: ${hexed(pack2(codes))}; five per byte: ${hexed(packBase3(codes))}`],
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
    const words = area.value.split(/[\s,;[\]()]+/).filter(Boolean), numbers = words.map(Number);
    const bad = words.find((_, i) => !(Math.abs(numbers[i]) <= 1e30));
    if (bad !== undefined) return say("weights-said", `"${bad.slice(0, 20)}" is no number that a float32 holds.`);
    if (!words.length) return say("weights-said", "Write a number at least.");
    weights = numbers.slice(0, 256);
    chosenBar = Math.min(chosenBar, weights.length - 1);
    $("k").max = weights.length;
    tell("k-is", $("k").value);
    say("weights-said", words.length > 256 ? `The first 256 of ${words.length} numbers are taken.` : "");
    showQuantised();
  };
  const put = (i, w) => {
    weights[i] = w;
    say("weights-said", `Weight ${i + 1} of ${weights.length} is ${+w.toFixed(3)}.`);
    area.value = weights.map((v) => +v.toFixed(3)).join(" ");
    showQuantised();
  };
  const drag = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const box = canvas.getBoundingClientRect(), most = Math.max(...weights.map(Math.abs), 0.1);
    const i = Math.floor(((event.clientX - box.left) / box.width) * weights.length);
    if (i >= 0 && i < weights.length) put(i, most * Math.max(-1, Math.min(1, 1 - (2 * (event.clientY - box.top)) / box.height)));
  };
  canvas.onpointerdown = (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    drag(event);
  };
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
  const take = async (files) => {
    const [file] = files ?? [];
    if (!file) return say("replay-status", "What was dropped is no file.");
    if (file.size > 16e6) return say("replay-status", `${file.name} has ${file.size} bytes; this page takes logs up to 16 MB.`);
    await open(file, file.name); // the worker reads it
  };
  $("file").onchange = async () => { await take($("file").files); $("file").value = ""; };
  $("shipped").onclick = () => open(shippedLog, "the shipped log");
  $("stop").onclick = async () => {
    if (!await stop("open", "accuracy")) say("replay-status", "Nothing is being replayed.");
  };
  const mark = (on) => document.body.classList.toggle("dropping", on);
  addEventListener("dragover", (event) => { event.preventDefault(); mark(true); });
  addEventListener("dragleave", () => mark(false));
  addEventListener("drop", (event) => { event.preventDefault(); mark(false); take(event.dataTransfer.files); });
}

let lessons = null; // what a worker is taught as it begins: test images and the language model

const teach = () => Promise.all([ask("digits", lessons.digits), ask("language", lessons.language)]);

async function begin() {
  setUpReplay();
  setUpBoard();
  setUpTime();
  setUpForms();
  setUpWeights();
  matchMedia("(prefers-color-scheme: dark)").onchange = () => {
    drawSeen();
    drawBoard();
    predictNow();
    showQuantised();
    showStep();
  };
  const [log, test, config, model, characters] = await Promise.all(
    ["small.steps", "digits", "config.json", "model.safetensors", "characters"].map(carried));
  digits = test.length / 785;
  [labels, images] = [test.subarray(0, digits), test.subarray(digits)];
  lessons = { digits: { bytes: test }, language: { config, weights: model, characters } };
  shippedLog = log;
  startWorker();
  await teach();
  for (const button of document.querySelectorAll("button[disabled]")) button.disabled = false;
  $("sample").click(); // something to see, until the reader draws
  await open(log, "the shipped log");
}

addEventListener("hashchange", editFromAddress);
begin().then(editFromAddress, (error) => say("replay-status", `The playground could not begin: ${error.message}`));
