// The page of a run: curves that grow, the log, and the slider of the samples.
"use strict";
(() => {
  const live = document.getElementById("live");
  const run = live.dataset.run;
  const { colour, HEIGHT, HUES, labelOf, valueOf, widthOf } = charts;
  const CHARTS = [
    { title: "Loss", names: ["loss", "validation_loss"] },
    { title: "Held-out and training images", names: ["validation_loss", "training_sample_loss"] },
    { title: "Loss by noise level", match: /^loss_t/ },
    { title: "Kernel distance of previews to real images", names: ["preview_kernel_distance"] },
    { title: "Similarity of previews to the image of the same caption", names: ["preview_similarity"] },
    { title: "Learning rate", match: /^(lr|lr_.*|d_lr)$/ },
    { title: "Gradient norm", names: ["grad_norm"] },
    { title: "Images per second", names: ["images_per_s"] },
    { title: "Memory, MiB", names: ["memory_mib"] },
    { title: "Waiting for data", names: ["data_wait"] },
  ];
  const curves = {}; // name -> [steps, values]
  const shown = []; // {chart, names, plot}
  const late = []; // records that arrived since the last request for the file
  let fault = ""; // the reason why the charts do not show the whole file

  const namesOf = (chart) => Object.keys(curves)
    .filter((name) => chart.names ? chart.names.includes(name) : chart.match.test(name))
    .sort((a, b) => (chart.names ? chart.names.indexOf(a) - chart.names.indexOf(b) : a.localeCompare(b, "en", { numeric: true })));

  const dataOf = (names) => uPlot.join(names.map((name) => curves[name]));

  function draw() {
    const place = document.getElementById("curves");
    for (const { plot, box } of shown.splice(0)) { plot.destroy(); box.remove(); }
    const boxes = [];
    for (const chart of CHARTS) { // all boxes first: the width of one depends on how many there are
      const names = namesOf(chart);
      if (!names.length) continue;
      const box = charts.box(chart.title);
      place.append(box);
      boxes.push([chart, names, box]);
    }
    for (const [chart, names, box] of boxes) shown.push({ names, box, plot: plotIn(box, chart, names) });
    const note = document.getElementById("curves-note");
    note.textContent = fault || (shown.length ? "" : "No metrics yet.");
    note.hidden = !note.textContent;
  }

  function plotIn(box, chart, names) {
    box.setAttribute("role", "img");
    return new uPlot({
      ...charts.frame(widthOf(box)),
      hooks: { setScale: [(plot, key) => { if (key === "x") describe(box, chart.title, names, plot); }] },
      series: [{ label: "step" }, ...names.map((name, n) => ({
        label: labelOf(name), stroke: colour(HUES[n % HUES.length]), width: 1.5, spanGaps: true,
        points: { show: /^(validation_loss|preview_)/.test(name) || curves[name][0].length < 30, size: 5 },
        value: valueOf,
      }))],
    }, dataOf(names), box);
  }

  function describe(box, title, names, { scales: { x } }) {
    box.setAttribute("aria-label", `${title}, steps ${x.min} to ${x.max}: ${names.map((name) => `${labelOf(name)} ${lastOf(name)}`).join(", ")}`);
  }

  const lastOf = (name) => { const values = curves[name][1]; return values.length ? `ends at ${+values[values.length - 1].toPrecision(4)}` : "has no value"; };

  async function read(exact) {
    late.length = 0; // the file contains them
    const answer = await fetch(`/runs/${run}/curves${exact ? "?exact=1" : ""}`); // as the page's head preloads it
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const isExact = answer.headers.get("x-curves") === "exact";
    const found = await answer.json();
    for (const name of Object.keys(curves)) delete curves[name];
    Object.assign(curves, found);
    fault = "";
    draw();
    if (late.length) add(late); // records that arrived while the file was being read
    performance.mark(isExact ? "curves-exact" : "curves-sketched");
    return isExact;
  }

  // one read after another, so that the last has every record; an error is shown above the existing curves
  let reading = Promise.resolve();
  function readNext(exact) {
    reading = reading.then(() => read(exact)).catch((error) => {
      fault = `The metrics could not be read${shown.length ? " exactly" : ""}: ${error.message}.`;
      draw();
      return true; // no second try at once
    });
    return reading;
  }

  // whether a chart is zoomed in; called before records are added, since a plot may share the arrays
  const isZoomed = ({ scales, data }) => {
    const { min, max } = scales.x, steps = data[0];
    return min != null && (min > steps[0] || max < steps[steps.length - 1]); // null: not drawn yet
  };

  function add(records) {
    let isNew = false;
    const zoomed = shown.map(({ plot }) => isZoomed(plot));
    for (const { step, values } of records) {
      for (const [name, value] of Object.entries(values)) {
        if (!(name in curves)) { curves[name] = [[], []]; isNew = true; }
        const [steps, kept] = curves[name];
        while (steps.length && steps[steps.length - 1] >= step) { steps.pop(); kept.pop(); } // repeated after a resume
        steps.push(step);
        kept.push(value);
      }
    }
    if (isNew || !shown.length) return draw();
    shown.forEach(({ names, plot }, n) => {
      plot.setData(dataOf(names), !zoomed[n]);
      if (zoomed[n]) plot.redraw();
    });
  }

  const refresh = (id) => document.getElementById(id).dispatchEvent(new Event("refresh"));

  live.addEventListener("metrics", (event) => {
    const records = JSON.parse(event.detail.data);
    late.push(...records);
    if (late.length > 5000) late.splice(0, late.length - 5000);
    add(records);
    if (records.some(({ values }) => "validation_loss" in values)) refresh("learning");
  });
  live.addEventListener("gap", () => readNext(true)); // records were missed, for example after an hour of sleep

  const lost = document.getElementById("lost");
  live.addEventListener("htmx:sse:error", () => { lost.hidden = false; });
  live.addEventListener("htmx:sse:after:connection", () => { lost.hidden = true; });

  live.addEventListener("lines", (event) => {
    const log = document.getElementById("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    for (const line of JSON.parse(event.detail.data)) {
      const item = document.createElement("li");
      const time = document.createElement("time");
      item.className = /^[a-z]+$/.test(line.kind) ? line.kind : "";
      time.textContent = line.time;
      item.append(time, ` ${line.text}`);
      log.append(item);
    }
    while (log.children.length > 1000) log.firstChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  });

  // show new samples at once, unless the user is viewing older ones
  live.addEventListener("samples", () => {
    const step = document.getElementById("step");
    if (!step || step.value === step.max) return refresh("samples");
    document.getElementById("new-samples").hidden = false;
  });
  document.querySelector("#new-samples button").addEventListener("click", () => {
    document.getElementById("new-samples").hidden = true;
    refresh("samples");
  });

  document.getElementById("samples").addEventListener("input", ({ target }) => {
    const chosen = target.dataset.steps.split(",")[Number(target.value)];
    document.getElementById("step-shown").textContent = chosen;
    target.setAttribute("aria-valuetext", `step ${chosen}`);
    for (const image of document.querySelectorAll(".samples .shown")) {
      image.src = `/runs/${run}/samples/${chosen}/${image.dataset.file}`;
      image.alt = image.alt.replace(/at step .*$/, `at step ${chosen}`);
    }
  });
  document.getElementById("samples").addEventListener("error", ({ target }) => { // prompts may have changed meanwhile
    if (target.matches?.(".shown")) target.alt += ": not drawn";
  }, true);

  const log = document.getElementById("log");
  log.scrollTop = log.scrollHeight;

  const resize = () => { for (const { plot, box } of shown) plot.setSize({ width: widthOf(box), height: HEIGHT }); };
  charts.follow(resize, draw);

  readNext(false).then((isExact) => isExact || readNext(true));
})();
