/**
 * What `site_check.py` asks of a page that has settled; each check returns a sentence for each fault.
 *
 *     siteLook.page(width, scheme)   layout, formulas, pictures, contrast: {faults, formulas, height}
 *     siteLook.focus()               every kind of control, focused as by the keyboard: [fault, ...]
 */
globalThis.siteLook = (() => {
  const LEAST = 4.5; // contrast of text with what is behind it (WCAG 2, level AA)
  const EDGE = 3; // of the mark of the focus
  const name = (e) => `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") || ""}">`;
  const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true });
  const ancestors = function* (e) { for (; e; e = e.parentElement) yield e; };

  // ------------------------------------------------------------------------------------ colours

  /** [red, green, blue, alpha] of a computed colour; red, green and blue up to 255. */
  function parse(text) {
    const [r = 0, g = 0, b = 0, a = 1] = (text.match(/-?[\d.]+(?:e-?\d+)?/g) ?? []).map(Number);
    const most = text.startsWith("color(") ? 255 : 1;
    return [most * r, most * g, most * b, a];
  }

  const over = (top, below, alpha = top[3]) => [0, 1, 2].map((i) => alpha * top[i] + (1 - alpha) * below[i]);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => rgb.reduce((sum, v, i) => sum + [0.2126, 0.7152, 0.0722][i] * linear(v / 255), 0);

  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  /** What lies behind the text of an element: its background over that of those around it. */
  function backdrop(element) {
    const layers = [];
    for (const e of ancestors(element)) {
      layers.unshift(parse(getComputedStyle(e).backgroundColor));
      if (layers[0][3] === 1) break;
    }
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    return layers.reduce((below, layer) => over(layer, below), dark ? [18, 18, 18] : [255, 255, 255]);
  }

  /** Each colour of text on each background, told once, with the words that it was met at. */
  function* faintText() {
    const pairs = new Set(), done = new Set();
    const judge = function* (e, colour, behind, words) {
      const alpha = [...ancestors(e)].reduce((product, a) => product * getComputedStyle(a).opacity, colour[3]);
      const drawn = over(colour, behind, alpha), ratio = contrast(drawn, behind), pair = `${drawn} ${behind}`;
      if (ratio >= LEAST || pairs.has(pair)) return;
      pairs.add(pair);
      yield `contrast ${ratio.toFixed(2)} of "${words.trim().slice(0, 40)}" in ${name(e)}: `
        + `rgb(${drawn.map(Math.round)}) on rgb(${behind.map(Math.round)})`;
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const e = texts.currentNode.parentElement, words = texts.currentNode.data;
      if (!words.trim() || done.has(e) || e.closest("script, style, noscript, option, .katex-mathml") || !seen(e)) continue;
      done.add(e);
      const range = document.createRange();
      range.selectNodeContents(texts.currentNode);
      const box = range.getBoundingClientRect();
      if (box.width <= 1 || box.height <= 1) continue;
      const style = getComputedStyle(e), drawing = e.closest("svg");
      let behind = backdrop(e);
      const tile = e.previousElementSibling;
      if (drawing && tile?.matches("rect")) {
        const fill = getComputedStyle(tile);
        if (fill.fill !== "none") behind = over(parse(fill.fill), behind, parse(fill.fill)[3] * fill.fillOpacity);
      }
      yield* judge(e, parse(drawing ? style.fill : style.color), behind, words);
    }
    for (const e of document.querySelectorAll("input[placeholder], textarea[placeholder]"))
      if (seen(e) && !e.value) yield* judge(e, parse(getComputedStyle(e, "::placeholder").color), backdrop(e), e.placeholder);
  }

  // ------------------------------------------------------------------------------------- layout

  function* wideThings(width) {
    const scroll = document.documentElement.scrollWidth;
    if (scroll > width) yield `the page is ${scroll} pixels wide in a window of ${width}`;
    const clips = (element) => {
      for (const e of ancestors(element)) {
        if (e === document.body) return false;
        const style = getComputedStyle(e);
        if (style.overflowX !== "visible" || style.position === "fixed") return true;
      }
      return false;
    };
    for (const e of document.querySelectorAll(".md-content *")) {
      const box = e.getBoundingClientRect();
      if (box.width && box.right > width + 1 && !clips(e)) {
        yield `${name(e)} ends at ${Math.round(box.right)} of ${width} pixels`;
        return;
      }
    }
  }

  function* badFormulas() {
    for (const e of document.querySelectorAll(".katex-error")) yield `KaTeX refused: ${e.textContent} (${e.title})`;
    for (const e of document.querySelectorAll(".arithmatex"))
      if (!e.querySelector(".katex")) yield `a formula was not drawn: ${e.textContent}`;
    for (const e of document.querySelectorAll(".katex-html")) yield* clippedFormula(e);
    const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (words.nextNode()) {
      if (words.currentNode.parentElement.closest("code, pre, script, style, .katex, .arithmatex")) continue;
      const raw = words.currentNode.data.match(/\\[()\[\]]|\$[^$]*\$|\\[a-z]+\{|\$\$/);
      if (raw) yield `raw formula in the text: ${raw[0]}`;
    }
  }

  /** A formula may be wider than its box only where a box around it scrolls. */
  function* clippedFormula(formula) {
    const parts = [...formula.querySelectorAll(".base")].map((e) => e.getBoundingClientRect()).filter((box) => box.width);
    const left = Math.min(...parts.map((box) => box.left)), right = Math.max(...parts.map((box) => box.right));
    let fault = null;
    for (const e of ancestors(formula.parentElement)) {
      const style = getComputedStyle(e), box = e.getBoundingClientRect();
      if (style.display === "inline") continue;
      if (["auto", "scroll"].includes(style.overflowX)) {
        const cut = e.scrollHeight - e.clientHeight;
        if (style.overflowY === "hidden" && cut > 3) yield `${cut} pixels of a formula's height are cut: ${formula.textContent}`;
        return;
      }
      if (left < box.left - 1 || right > box.right + 1) fault ??= `a formula is wider than its box ${name(e)}: ${formula.textContent}`;
      if (style.overflowX !== "visible" && fault) break;
    }
    if (fault) yield fault;
  }

  // ------------------------------------------------------------------------------------ pictures

  function* badPictures() {
    for (const e of document.images) {
      if (!e.complete || !e.naturalWidth) yield `an image was not drawn: ${e.src}`;
      const text = e.getAttribute("alt")?.trim(), file = e.src.split("/").at(-1);
      if (text === undefined) yield `an image without alt text: ${file}`;
      else if (e.closest(".md-content") && (!text || /^figure \d+$/i.test(text) || text === file))
        yield `an image whose alt text says nothing, "${text}": ${file}`;
    }
    for (const e of document.querySelectorAll("[role=img]"))
      if (!e.ariaLabel && !e.querySelector("title") && seen(e)) yield `a drawing without a name: ${name(e)}`;
  }

  /** Pictures that glare: bright ones on a dark page. */
  function* glaringPictures() {
    for (const e of document.querySelectorAll("img")) {
      if (!e.naturalWidth || e.getBoundingClientRect().width < 100 || !seen(e)) continue;
      const page = backdrop(e.parentElement), style = getComputedStyle(e), side = 32;
      if (luminance(page) > 0.2) continue;
      const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
      const context = canvas.getContext("2d");
      context.fillStyle = `rgb(${page})`;
      context.fillRect(0, 0, side, side);
      context.filter = style.filter;
      context.fillStyle = style.backgroundColor;
      context.fillRect(0, 0, side, side);
      context.drawImage(e, 0, 0, side, side);
      const { data } = context.getImageData(0, 0, side, side);
      let light = 0;
      for (let i = 0; i < data.length; i += 4) light += luminance([data[i], data[i + 1], data[i + 2]]) / side ** 2;
      if (light > 0.3) yield `a picture glares on the dark page: ${e.src.split("/").at(-1)}`;
    }
  }

  // --------------------------------------------------------------------------------------- focus

  const CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex='-1'])";

  /** What shows the focus at an element: an outline, or another background, border or shadow. */
  function marks(e) {
    const style = getComputedStyle(e), { outlineStyle, outlineWidth, outlineColor } = style;
    const behind = backdrop(e.parentElement ?? e), colour = parse(outlineColor);
    const drawn = outlineStyle !== "none" && parseFloat(outlineWidth) > 0 && colour[3] > 0
      && (outlineStyle === "auto" || contrast(over(colour, behind), behind) >= EDGE);
    return { drawn, rest: [backdrop(e), style.boxShadow, style.borderColor, style.borderWidth].join() };
  }

  /** One or two controls of each kind are focused; the browser must have seen a key before. */
  function focus() {
    document.activeElement.blur?.();
    const faults = [], kinds = new Map(), scroll = [scrollX, scrollY];
    for (const e of document.querySelectorAll(CONTROLS)) {
      const box = e.getBoundingClientRect();
      if (e.disabled || !e.checkVisibility({ visibilityProperty: true }) || !box.width || !box.height) continue;
      const kind = name(e) + (e.closest("nav, header, footer, main, aside")?.tagName ?? "");
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      if (kinds.get(kind) > 2) continue;
      document.activeElement.blur?.();
      const around = [...ancestors(e)].slice(0, 4), before = around.map(marks);
      e.focus();
      if (document.activeElement !== e) continue; // hidden by a panel that is closed
      const shown = around.some((a, i) => {
        const after = marks(a);
        return (after.drawn && !before[i].drawn) || after.rest !== before[i].rest;
      });
      if (!shown) faults.push(`the focus is not seen at ${name(e)} "${e.textContent.trim().slice(0, 30)}"`);
      const at = e.getBoundingClientRect();
      if (!(seen(e) || around.some((a) => a.matches("label") && seen(a))) || at.right <= 0 || at.left >= innerWidth)
        faults.push(`the focus is at what is not seen: ${name(e)} "${e.textContent.trim().slice(0, 30)}"`);
    }
    document.activeElement.blur?.();
    scrollTo(...scroll);
    return faults;
  }

  return {
    focus,
    async page(width, scheme) {
      await document.fonts.ready;
      if (window.innerWidth !== width || document.documentElement.clientWidth !== width)
        throw new Error(`the window is ${window.innerWidth} pixels wide`);
      const still = document.createElement("style");
      still.textContent = "*, ::before, ::after { transition: none !important; animation: none !important; }";
      document.head.append(still);
      await new Promise((go) => { setTimeout(go, 100); });
      const { dataset } = document.body; // the theme asks the system only as a page begins
      if (dataset.mdColorScheme) dataset.mdColorScheme = scheme === "dark" ? "slate" : "default";
      await new Promise((go) => { requestAnimationFrame(go); });
      const faults = [...faintText()];
      if (scheme === "light") faults.push(...wideThings(width), ...badFormulas(), ...badPictures());
      else faults.push(...glaringPictures());
      const formulas = document.querySelectorAll(".arithmatex .katex").length;
      return { faults, formulas, height: document.documentElement.scrollHeight };
    },
  };
})();
