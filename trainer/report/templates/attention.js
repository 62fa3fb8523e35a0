"use strict";
// Shows the attention of one layer and head, or a mean, in pictures that the page already holds (mean over all).
// The choice is kept in the address, as #row=2&layer=1&head=3, so that a view can be linked.
(() => {
  const rows = JSON.parse(document.getElementById("attention-data").textContent).rows.map((row) => ({
    ...row,
    weights: unpack(row.weights),
    strip: row.strip && unpack(row.strip),
  }));
  const controls = document.getElementById("attention-controls");
  const [rowChoice, layerChoice, headChoice] = ["row", "layer", "head"].map((n) => document.getElementById(`choose-${n}`));
  const article = (number) => document.getElementById(`attention-${number}`);

  // Bytes are 255 times the root of a weight.
  function unpack(text) {
    return Float32Array.from(atob(text), (byte) => (byte.charCodeAt(0) / 255) ** 2);
  }

  // Mean over the chosen layers and heads of `size` numbers each; 0 means all.
  function mean(values, row, size, layer, head) {
    const sum = new Float32Array(size);
    let parts = 0;
    for (let l = 0; l < row.layers; l += 1) {
      for (let h = 0; h < row.heads; h += 1) {
        if ((layer && layer !== l + 1) || (head && head !== h + 1)) continue;
        const start = (l * row.heads + h) * size;
        for (let i = 0; i < size; i += 1) sum[i] += values[start + i];
        parts += 1;
      }
    }
    return sum.map((value) => value / parts);
  }

  function options(select, count, all, one) {
    select.replaceChildren(...Array.from({ length: count + 1 }, (_, i) => new Option(i ? `${one} ${i}` : all, String(i))));
  }

  function show() {
    const [number, layer, head] = [rowChoice, layerChoice, headChoice].map((select) => Number(select.value));
    const row = rows[number - 1];
    const place = article(number);
    rows.forEach((_, i) => { article(i + 1).hidden = i + 1 !== number; });
    row.shown = mean(row.weights, row, row.tokens.length * row.keys.length, layer, head);
    const largest = Math.max(...row.shown, 1e-9);
    place.querySelectorAll(".cells rect").forEach((cell, i) => {
      cell.setAttribute("fill-opacity", (row.shown[i] / largest).toPrecision(2));
    });
    const name = `${layer ? `Layer ${layer}` : "Mean over all layers"}, ${head ? `head ${head}` : "mean over all heads"}`;
    place.querySelector(".view").textContent = layer || head ? name : "Mean over all layers and heads";
    place.querySelector(".readout").textContent = `The strongest cell is ${largest.toFixed(2)}. Point at a cell, or use the arrow keys in the matrix, to read it.`;
    if (row.strip) {
      const strip = mean(row.strip, row, row.strip.length / row.layers / row.heads, layer, head);
      const top = Math.max(...strip, 1e-9);
      place.querySelectorAll(".attention-strip span").forEach((piece, i) => {
        piece.className = `l${Math.round((10 * strip[i]) / top)}`;
      });
    }
  }

  // One cell: its frame and its weight in words.
  function read(number, t, s) {
    const row = rows[number - 1];
    const svg = document.getElementById(`matrix-${number}`);
    const cell = svg.querySelectorAll(".cells rect")[t * row.keys.length + s];
    const cursor = svg.querySelector(".cursor");
    for (const side of ["x", "y"]) cursor.setAttribute(side, cell.getAttribute(side));
    row.at = [t, s];
    article(number).querySelector(".readout").textContent =
      `“${row.tokens[t]}” looks at “${row.keys[s]}” with weight ${row.shown[t * row.keys.length + s].toFixed(3)}`;
    return cell;
  }

  function listen(row, number) {
    const svg = document.getElementById(`matrix-${number}`);
    const cells = [...svg.querySelectorAll(".cells rect")];
    svg.addEventListener("pointerover", (event) => {
      const index = cells.indexOf(event.target);
      if (index >= 0) read(number, Math.floor(index / row.keys.length), index % row.keys.length);
    });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [t, s] = row.at ? [row.at[0] + move[0], row.at[1] + move[1]] : [0, 0];
      const inside = (value, length) => Math.min(length - 1, Math.max(0, value));
      read(number, inside(t, row.tokens.length), inside(s, row.keys.length)).scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  }

  // From the address to the choices; false if the address names none.
  function follow() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    let found = false;
    for (const [name, select] of [["row", rowChoice], ["layer", layerChoice], ["head", headChoice]]) {
      const value = wanted.get(name);
      if (value !== null && [...select.options].some((option) => option.value === value)) {
        select.value = value;
        found = true;
      }
    }
    return found;
  }

  options(layerChoice, rows[0].layers, "all (mean)", "layer");
  options(headChoice, rows[0].heads, "all (mean)", "head");
  rows.forEach((row, i) => listen(row, i + 1));
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", () => {
    show();
    history.replaceState(null, "", `#row=${rowChoice.value}&layer=${layerChoice.value}&head=${headChoice.value}`);
  });
  window.addEventListener("hashchange", () => { if (follow()) show(); });
  const linked = follow();
  show();
  if (linked) document.getElementById("attention").scrollIntoView();
})();
