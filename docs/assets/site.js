// Formulas: arithmatex leaves \(...\) and \[...\] in elements of class "arithmatex"; KaTeX draws them.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
      ],
    });
    // A comma or a full stop stays on the line of the short formula that it follows.
    const next = element.nextSibling;
    const mark = next?.nodeType === Node.TEXT_NODE && next.data.match(/^[,.;:!?)]+/)?.[0];
    if (mark && element.getBoundingClientRect().width < 160) {
      const together = document.createElement("span");
      together.style.whiteSpace = "nowrap";
      element.replaceWith(together);
      together.append(element, mark);
      next.data = next.data.slice(mark.length);
    }
  }
});
