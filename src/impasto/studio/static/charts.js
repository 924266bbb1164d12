// Shared by the pages with curves: colours, axes, labels and the format of numbers.
"use strict";
const charts = (() => {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const HEIGHT = 220;
  const LABELS = { images_per_s: "images/s", memory_mib: "MiB", data_wait: "fraction of the time", grad_norm: "norm", validation_loss: "validation loss", training_sample_loss: "loss of training images", preview_kernel_distance: "kernel distance", preview_similarity: "similarity" };
  const WHOLE = [1, 2, 5].flatMap((n) => Array.from({ length: 9 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
  const inShort = (tick) => tick === 0 || (Math.abs(tick) >= 0.001 && Math.abs(tick) < 1e5) ? String(+tick.toPrecision(6)) : (+tick.toPrecision(3)).toExponential();
  return {
    colour,
    HEIGHT,
    HUES: ["--first", "--second", "--good", "--bad", "--dim"],
    labelOf: (name) => LABELS[name] ?? name.replace(/^loss_t(\d+)_(\d+)$/, "timesteps $1–$2").replaceAll("_", " "),
    widthOf: (place) => Math.max(240, place.clientWidth - 20),
    valueOf: (_, value) => value == null ? "–" : String(+value.toPrecision(5)),
    // a card with a heading, for a chart
    box: (title) => {
      const box = document.createElement("div");
      const head = document.createElement("h3");
      box.className = "curve";
      head.textContent = title;
      box.append(head);
      return box;
    },
    // the part that all charts over steps have in common: whole numbers on the x axis, short numbers on the y axis
    frame: (width) => {
      const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
      return {
        width, height: HEIGHT,
        scales: { x: { time: false } },
        axes: [{ ...axis, incrs: WHOLE }, { ...axis, size: 64, values: (_, ticks) => ticks.map(inShort) }],
      };
    },
    // calls `resize` when the width of the window changes, and `draw` when the colour scheme changes
    follow: (resize, draw) => {
      let waiting = 0;
      addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(resize, 100); });
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    },
  };
})();
