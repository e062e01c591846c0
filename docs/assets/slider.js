// The slider of chapter 0: a threshold makes trits of floats. Elements of class "trit-slider" get one.

// What a threshold, in units of gamma = mean |w|, makes of weights: trits, the scale that suits them
// best (the mean magnitude of those kept), and what that comes to.
function ternarise(weights, threshold) {
  const size = (w) => Math.abs(w);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const gamma = sum(weights.map(size)) / weights.length;
  const trits = weights.map((w) => (size(w) > threshold * gamma ? Math.sign(w) : 0));
  const kept = weights.filter((_, i) => trits[i]).map(size);
  const scale = kept.length ? sum(kept) / kept.length : 0;
  const zeros = 1 - kept.length / weights.length;
  const times = (p, q) => (p > 0 ? -p * Math.log2(q) : 0);
  const bits = times(zeros, zeros) + times(1 - zeros, (1 - zeros) / 2);
  const lost = sum(weights.map((w, i) => (w - scale * trits[i]) ** 2));
  return { trits, scale, zeros, bits, error: Math.sqrt(lost / sum(weights.map((w) => w * w))) };
}

// Weights that follow a normal distribution nearly: sums of twelve draws of a small generator.
function drawWeights(count) {
  let state = 1;
  const draw = () => (state = (state * 16807) % 2147483647) / 2147483647;
  return Array.from({ length: count }, () => {
    let total = -6;
    for (let i = 0; i < 12; i++) total += draw();
    return total;
  });
}

function makeSlider(place, number) {
  const columns = 16, rows = 8, cell = 20;
  const weights = drawWeights(columns * rows);
  const svg = (label) =>
    `<svg viewBox="0 0 ${columns * cell} ${rows * cell}" role="img" aria-label="${label}">` +
    weights.map((_, i) => {
      const x = (i % columns) * cell, y = Math.floor(i / columns) * cell;
      return `<rect x="${x + 1}" y="${y + 1}" width="${cell - 2}" height="${cell - 2}"/>` +
        `<text x="${x + cell / 2}" y="${y + cell / 2 + 4}"></text>`;
    }).join("") + "</svg>";
  place.innerHTML = `
    <label for="trit-threshold-${number}">Threshold, in units of γ, the mean magnitude:
      <strong class="trit-value"></strong></label>
    <input id="trit-threshold-${number}" type="range" min="0" max="2.5" step="0.05" value="0.5">
    <div class="trit-panels"><figure>${svg("128 floats")}<figcaption>floats</figcaption></figure>
    <figure>${svg("")}<figcaption>trits</figcaption></figure></div>
    <p role="status"></p>
    <button type="button">Back to absmean's threshold, 0.5</button>`;
  const input = place.querySelector("input");
  const [floats, drawn] = place.querySelectorAll("svg");
  const paint = (picture, values, words) => {
    const cells = picture.querySelectorAll("rect"), texts = picture.querySelectorAll("text");
    values.forEach((value, i) => {
      cells[i].setAttribute("class", value > 0 ? "plus" : value < 0 ? "minus" : "zero");
      cells[i].style.fillOpacity = Math.min(1, Math.abs(value)) || 1;
      texts[i].textContent = words ? words(value) : "";
    });
  };
  const show = () => {
    const threshold = Number(input.value);
    const { trits, scale, zeros, bits, error } = ternarise(weights, threshold);
    const percent = (share) => `${Math.round(100 * share)}%`;
    const words = `${percent(zeros)} zeros; ${bits.toFixed(2)} bits per weight; ` +
      `scale ${scale.toFixed(2)}; relative error ${percent(error)}`;
    paint(drawn, trits, (trit) => ({ "-1": "−", 0: "0", 1: "+" })[trit]);
    drawn.setAttribute("aria-label", `128 trits: ${percent(zeros)} are zeros`);
    place.querySelector(".trit-value").textContent = threshold.toFixed(2);
    place.querySelector("[role=status]").textContent = words;
    input.setAttribute("aria-valuetext", `${threshold.toFixed(2)}: ${words}`);
  };
  paint(floats, weights.map((w) => w / 2.5));
  input.addEventListener("input", show);
  place.querySelector("button").addEventListener("click", () => {
    input.value = 0.5;
    show();
  });
  show();
}

if (typeof document === "undefined") module.exports = { ternarise, drawWeights };
else
  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".trit-slider").forEach(makeSlider);
  });
