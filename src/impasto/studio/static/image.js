// The page of one image: its crop, drawn over it, and its mask, painted over it.
"use strict";
(() => {
  const stage = document.getElementById("stage");
  if (!stage) return;
  const { address, query } = stage.dataset;
  const whole = { width: Number(stage.dataset.width), height: Number(stage.dataset.height) };
  const LEAST = 8;
  const box = document.getElementById("crop-box");
  const form = document.getElementById("crop");
  const fields = Object.fromEntries(["x", "y", "width", "height"].map((name) => [name, form.elements[name]]));
  const shape = document.getElementById("shape");
  const resolution = document.getElementById("resolution");
  const told = document.getElementById("bucket");
  const clamp = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));
  const tool = () => document.querySelector("[name=tool]:checked").value;

  const PART = { "hx-request": "true" }; // a refusal is one sentence then, not a page
  const sentenceOf = async (response) => (
    new DOMParser().parseFromString(await response.text(), "text/html").body.textContent.trim()
  );

  // the crop

  const read = () => Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, Math.round(Number(field.value)) || 0]));

  const fitting = (crop) => {
    const width = clamp(crop.width, LEAST, whole.width);
    const height = clamp(crop.height, LEAST, whole.height);
    return { width, height, x: clamp(crop.x, 0, whole.width - width), y: clamp(crop.y, 0, whole.height - height) };
  };

  const place = (element, left, top, width, height) => {
    Object.assign(element.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`, height: `${100 * height}%` });
  };

  const draw = () => {
    const crop = fitting(read());
    box.hidden = false;
    place(box, crop.x / whole.width, crop.y / whole.height, crop.width / whole.width, crop.height / whole.height);
  };

  const set = (crop) => {
    const next = fitting(Object.fromEntries(Object.entries(crop).map(([name, value]) => [name, Math.round(value)])));
    for (const [name, field] of Object.entries(fields)) field.value = next[name];
    draw();
    askSoon();
  };

  const showKept = ([left, top, width, height]) => {
    const [first, second] = box.querySelectorAll(".lost");
    if (width < 1) {
      place(first, 0, 0, left, 1);
      place(second, left + width, 0, Math.max(0, 1 - left - width), 1);
    } else {
      place(first, 0, 0, 1, top);
      place(second, 0, top + height, 1, Math.max(0, 1 - top - height));
    }
  };

  let waiting = 0;
  let asked = 0;
  const ask = async () => {
    const number = ++asked;
    const values = new URLSearchParams({ ...read(), resolution: resolution.value });
    let answer;
    try {
      const response = await fetch(`${address}/bucket?${values}`, { headers: PART });
      const isJson = response.headers.get("content-type")?.includes("json");
      answer = isJson ? await response.json() : { fault: await sentenceOf(response) };
    } catch {
      answer = { fault: "The studio does not answer. Is it still running?" };
    }
    if (number !== asked) return;
    told.classList.toggle("bad", Boolean(answer.fault));
    if (answer.fault) {
      told.textContent = answer.fault;
      return;
    }
    const lost = (100 * answer.cropped).toFixed(1);
    told.textContent = `Bucket ${answer.bucket}; ${lost} % of it is cropped away${answer.enlarged ? "; it is enlarged" : ""}.`;
    showKept(answer.kept);
  };
  const askSoon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(ask, 120);
  };

  const scaleOf = () => whole.width / stage.getBoundingClientRect().width;
  const pointOf = (event) => {
    const place = stage.getBoundingClientRect();
    return { x: (event.clientX - place.left) * scaleOf(), y: (event.clientY - place.top) * scaleOf() };
  };

  // The rectangle between a fixed corner and the dragged one.
  const between = (fixed, point) => {
    const right = point.x >= fixed.x;
    const down = point.y >= fixed.y;
    const most = { width: right ? whole.width - fixed.x : fixed.x, height: down ? whole.height - fixed.y : fixed.y };
    let width = clamp(Math.abs(point.x - fixed.x), LEAST, most.width);
    let height = clamp(Math.abs(point.y - fixed.y), LEAST, most.height);
    const aspect = Number(shape.value);
    if (aspect) {
      width = Math.min(Math.max(width, height * aspect), most.width, most.height * aspect);
      height = width / aspect;
    }
    return { x: right ? fixed.x : fixed.x - width, y: down ? fixed.y : fixed.y - height, width, height };
  };

  let drag = null;
  stage.addEventListener("pointerdown", (event) => {
    if (tool() !== "crop" || event.button !== 0) return;
    const crop = fitting(read());
    const start = pointOf(event);
    const corner = event.target.dataset.corner;
    if (corner) {
      const fixed = { x: corner.includes("w") ? crop.x + crop.width : crop.x, y: corner.includes("n") ? crop.y + crop.height : crop.y };
      drag = (point) => set(between(fixed, point));
    } else if (box.contains(event.target) && (crop.width < whole.width || crop.height < whole.height)) {
      drag = (point) => set({ ...crop, x: crop.x + point.x - start.x, y: crop.y + point.y - start.y });
    } else if (event.pointerType === "mouse") {
      drag = (point) => {
        if (Math.hypot(point.x - start.x, point.y - start.y) > 4 * scaleOf()) set(between(start, point));
      };
    } else return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => { if (drag) drag(pointOf(event)); });
  for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, () => { drag = null; });

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  box.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move || event.altKey || event.metaKey) return;
    event.preventDefault();
    const step = event.ctrlKey ? 1 : Math.max(1, Math.round(Math.max(whole.width, whole.height) / 100));
    const crop = fitting(read());
    if (!event.shiftKey) {
      set({ ...crop, x: crop.x + move[0] * step, y: crop.y + move[1] * step });
    } else if (Number(shape.value)) {
      const width = crop.width + (move[0] + move[1]) * step;
      set(between(crop, { x: crop.x + width, y: crop.y + width / Number(shape.value) }));
    } else {
      set({ ...crop, width: crop.width + move[0] * step, height: crop.height + move[1] * step });
    }
  });
  for (const field of Object.values(fields)) field.addEventListener("input", () => { draw(); askSoon(); });
  resolution.addEventListener("change", ask);
  shape.addEventListener("change", () => {
    const aspect = Number(shape.value);
    if (!aspect) return;
    const crop = fitting(read());
    const width = Math.min(crop.width, crop.height * aspect);
    const height = width / aspect;
    set({ x: crop.x + (crop.width - width) / 2, y: crop.y + (crop.height - height) / 2, width, height });
  });
  draw();
  ask();

  const opened = JSON.stringify(read());
  let isSavingCrop = false;
  form.addEventListener("submit", () => { isSavingCrop = true; });
  window.addEventListener("pageshow", () => { isSavingCrop = false; });
  const isCropUnsaved = () => !isSavingCrop && JSON.stringify(read()) !== opened;

  // enlarge a small image on the page, so that a crop and a mask can be drawn on it

  const LEAST_SHOWN = 640;
  const enlarged = LEAST_SHOWN / Math.max(whole.width, whole.height);
  if (enlarged > 1) {
    stage.classList.add("enlarged");
    stage.style.width = `min(100%, ${Math.round(whole.width * enlarged)}px, ${(80 * whole.width / whole.height).toFixed(1)}vh)`;
  }

  // the mask: a canvas that is opaque where an area is left out of training

  const LONGEST = 1536;
  const TINT = [196, 40, 110];
  const canvas = document.getElementById("mask");
  const part = Math.min(1, LONGEST / Math.max(whole.width, whole.height));
  canvas.width = Math.max(1, Math.round(whole.width * part));
  canvas.height = Math.max(1, Math.round(whole.height * part));
  canvas.hidden = false;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const said = document.getElementById("mask-said");
  const save = document.getElementById("save-mask");
  const undo = document.getElementById("undo");
  const brush = document.getElementById("brush");
  const before = [];
  let changes = 0; // number of changes to the mask since the page was opened
  let saved = 0; // number of changes that are saved
  let isSaving = false;

  const enable = () => { save.disabled = isSaving || changes === saved; };
  const changed = () => {
    changes += 1;
    said.textContent = "Not saved yet.";
    enable();
  };
  const remember = () => {
    before.push(pen.getImageData(0, 0, canvas.width, canvas.height));
    if (before.length > 8) before.shift();
    undo.disabled = false;
  };
  const colour = () => { pen.fillStyle = pen.strokeStyle = `rgb(${TINT.join(" ")})`; };
  const fill = (counts, crop) => {
    const scale = [crop.x, crop.y, crop.width, crop.height].map((value) => value * part);
    pen.globalCompositeOperation = "source-over";
    colour();
    if (counts) pen.clearRect(...scale);
    else pen.fillRect(...scale);
  };

  const load = () => {
    const image = new Image();
    image.addEventListener("load", () => {
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
      const data = pixels.data;
      for (let i = 0; i < data.length; i += 4) {
        const grey = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
        [data[i], data[i + 1], data[i + 2]] = TINT;
        data[i + 3] = 255 - Math.round(grey);
      }
      pen.putImageData(pixels, 0, 0);
      stage.classList.add("loaded");
    });
    image.addEventListener("error", () => { said.textContent = "The existing mask cannot be shown."; });
    image.src = `${address}/mask${query}`;
  };
  if (stage.dataset.mask) load();

  const asImage = () => {
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    const data = pixels.data;
    for (let i = 0; i < data.length; i += 4) {
      data[i] = data[i + 1] = data[i + 2] = 255 - data[i + 3];
      data[i + 3] = 255;
    }
    const flat = document.createElement("canvas");
    flat.width = canvas.width;
    flat.height = canvas.height;
    flat.getContext("2d").putImageData(pixels, 0, 0);
    return new Promise((done) => { flat.toBlob(done, "image/png"); });
  };

  let stroke = null;
  const paint = (event) => {
    const point = pointOf(event);
    const next = { x: point.x * part, y: point.y * part };
    pen.globalCompositeOperation = tool() === "paint" ? "destination-out" : "source-over";
    colour();
    pen.lineWidth = Number(brush.value) / 100 * Math.min(canvas.width, canvas.height) / 2;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(stroke.x, stroke.y);
    pen.lineTo(next.x, next.y);
    pen.stroke();
    stroke = next;
    changed();
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (tool() === "crop" || event.button !== 0) return;
    event.preventDefault();
    remember();
    canvas.setPointerCapture(event.pointerId);
    const point = pointOf(event);
    stroke = { x: point.x * part, y: point.y * part };
    paint(event);
  });
  canvas.addEventListener("pointermove", (event) => { if (stroke) paint(event); });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { stroke = null; });

  const follow = () => { stage.dataset.tool = tool(); };
  for (const choice of document.querySelectorAll("[name=tool]")) choice.addEventListener("change", follow);
  follow();

  document.getElementById("fills").addEventListener("click", (event) => {
    const { fill: what, counts } = event.target.dataset;
    if (!what) return;
    remember();
    fill(Boolean(counts), what === "all" ? { x: 0, y: 0, ...whole } : fitting(read()));
    changed();
  });
  undo.addEventListener("click", () => {
    const last = before.pop();
    undo.disabled = before.length === 0;
    if (!last) return;
    pen.putImageData(last, 0, 0);
    changed();
  });
  save.addEventListener("click", async () => {
    const number = changes;
    isSaving = true;
    enable();
    said.textContent = "Saving …";
    const content = new FormData();
    content.append("masks", form.elements.masks.value);
    content.append("mask", await asImage(), "mask.png");
    try {
      const answer = await fetch(`${address}/mask`, { method: "POST", body: content, headers: PART });
      if (answer.ok) {
        const { saved: file } = await answer.json();
        saved = number;
        said.textContent = `Saved in ${file}.${changes === saved ? "" : " Later changes are not saved yet."}`;
        const state = document.getElementById("mask-state");
        state.textContent = state.dataset.there;
        document.querySelector("[name=overwrite]").required = true;
      } else {
        said.textContent = await sentenceOf(answer);
      }
    } catch {
      said.textContent = "The studio does not answer. Is it still running?";
    }
    isSaving = false;
    enable();
  });
  window.addEventListener("beforeunload", (event) => {
    if (changes !== saved || isCropUnsaved()) event.preventDefault();
  });
})();
