// The page that compares runs: one chart per value, with one curve per run, and the samples.
"use strict";
(() => {
  const { colour, HEIGHT, valueOf, widthOf } = charts;
  const CHARTS = [
    { title: "Loss", name: "loss", smooth: true },
    { title: "Validation loss", name: "validation_loss" },
    { title: "Learning rate", name: "lr" },
    { title: "Images per second", name: "images_per_s" },
    { title: "Memory, MiB", name: "memory_mib" },
  ];
  const HUES = ["--first", "--second", "--good", "--bad", "--ink", "--dim"]; // as in compare.css
  const DASHES = [[], [8, 4], [2, 4], [8, 4, 2, 4]];
  const boxes = [...document.querySelectorAll("#legend input")];
  const runs = boxes.map((box, n) => ({ address: box.dataset.run, title: box.dataset.title, box, curves: {}, n }));
  const smooth = document.getElementById("smooth");
  const note = document.getElementById("curves-note");
  const shown = []; // {chart, plot, box, of: the runs with a curve in it}

  // a running mean over a fraction of the curve; at its start, the mean of all values so far
  function smoothed([steps, values]) {
    const parts = Number(smooth.value);
    if (!parts) return [steps, values];
    const window = Math.max(1, values.length / parts);
    let mean = 0;
    return [steps, values.map((value, n) => { mean += (value - mean) / Math.min(window, n + 1); return mean; })];
  }

  const dataOf = (chart, of) => uPlot.join(of.map((run) => chart.smooth ? smoothed(run.curves[chart.name]) : run.curves[chart.name]));

  function draw() {
    const place = document.getElementById("curves");
    for (const { plot, box } of shown.splice(0)) { plot.destroy(); box.remove(); }
    const wanted = [];
    for (const chart of CHARTS) { // all boxes first: the width of one depends on how many there are
      const of = runs.filter((run) => run.curves[chart.name]?.[0].length);
      if (!of.length) continue;
      const box = charts.box(chart.title);
      place.append(box);
      wanted.push({ chart, of, box });
    }
    for (const one of wanted) shown.push({ ...one, plot: plotIn(one) });
  }

  function plotIn({ chart, of, box }) {
    box.setAttribute("role", "img");
    describe(box, chart, of);
    return new uPlot({
      ...charts.frame(widthOf(box)),
      legend: { markers: { show: true } },
      series: [{ label: "step" }, ...of.map((run) => ({
        label: run.title, stroke: colour(HUES[run.n % HUES.length]), width: 1.5, spanGaps: true, show: run.box.checked,
        dash: DASHES[Math.floor(run.n / HUES.length) % DASHES.length],
        points: { show: chart.name === "validation_loss" || run.curves[chart.name][0].length < 12, size: 5 },
        value: valueOf,
      }))],
    }, dataOf(chart, of), box);
  }

  function describe(box, chart, of) {
    const words = of.filter((run) => run.box.checked).map((run) => {
      const values = run.curves[chart.name][1];
      return `${run.title} ends at ${+values[values.length - 1].toPrecision(4)}`;
    });
    box.setAttribute("aria-label", `${chart.title}: ${words.join(", ") || "no run is shown"}`);
  }

  for (const run of runs) {
    run.box.addEventListener("change", () => {
      for (const { chart, plot, box, of } of shown) {
        const at = of.indexOf(run);
        if (at >= 0) plot.setSeries(at + 1, { show: run.box.checked });
        describe(box, chart, of);
      }
      for (const figure of document.querySelectorAll(".prompt-row figure")) {
        if (figure.dataset.run === run.address) figure.hidden = !run.box.checked;
      }
    });
  }

  smooth.addEventListener("change", () => {
    for (const { chart, plot, of } of shown) if (chart.smooth) plot.setData(dataOf(chart, of));
  });

  async function read(run, exact) {
    const answer = await fetch(`/runs/${run.address}/curves${exact ? "?exact=1" : ""}`);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    run.curves = await answer.json();
    run.isExact = answer.headers.get("x-curves") === "exact";
  }

  async function readAll() {
    const lost = new Set();
    for (const exact of [false, true]) { // first a coarse version of long files, then every line
      const wanted = runs.filter((run) => !run.isExact);
      if (!wanted.length) break;
      await Promise.all(wanted.map((run) => read(run, exact).catch((error) => lost.add(`${run.title}: ${error.message}`))));
      draw();
      note.textContent = [...lost].map((words) => `The metrics could not be read: ${words}.`).join(" ") || (shown.length ? "" : "No metrics yet.");
      note.hidden = !note.textContent;
    }
  }

  const step = document.getElementById("step");
  if (step) {
    const steps = step.dataset.steps.split(",").map(Number);
    const nearest = (of, wanted) => of.reduce((best, one) => Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best);
    step.addEventListener("input", () => {
      const chosen = steps[Number(step.value)];
      document.getElementById("step-shown").textContent = chosen;
      step.setAttribute("aria-valuetext", `step ${chosen}`);
      for (const image of document.querySelectorAll(".compared-sample")) {
        const figure = image.closest("figure");
        const at = nearest(image.dataset.steps.split(",").map(Number), chosen);
        image.src = `/runs/${figure.dataset.run}/samples/${at}/${image.dataset.file}`;
        image.alt = `${image.dataset.alt}, step ${at}`;
        figure.querySelector(".at").textContent = `step ${at}`;
      }
    });
  }

  charts.follow(() => { for (const { plot, box } of shown) plot.setSize({ width: widthOf(box), height: HEIGHT }); }, draw);
  readAll();
})();
