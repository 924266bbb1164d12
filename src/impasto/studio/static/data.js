// The pages of datasets: why a thumbnail is missing, files that are dropped or chosen, and what they change.
"use strict";
(() => {
  async function explain(image) {
    const note = document.createElement("span");
    if (image.closest(".strip")) { // one of a few of a dataset, where there is no room for words
      note.className = "no-image";
      return image.replaceWith(note);
    }
    note.className = "no-thumbnail";
    note.textContent = "no thumbnail";
    const address = image.src;
    image.replaceWith(note);
    try {
      const answer = await fetch(address);
      const kind = answer.headers.get("content-type") ?? "";
      if (!answer.ok && kind.startsWith("text/plain")) note.textContent = await answer.text();
    } catch { /* the studio has ended */ }
  }

  const isThumbnail = (node) => node instanceof HTMLImageElement && node.closest(".thumb, .strip");
  addEventListener("error", (event) => { if (isThumbnail(event.target)) explain(event.target); }, true);
  for (const image of document.querySelectorAll(".thumb img, .strip img")) { // those that failed before
    if (image.complete && image.currentSrc && !image.naturalWidth) explain(image);
  }

  const form = document.getElementById("upload");
  if (!form) return;

  // What the folder has now is shown in place of what it had, beside what became of the files that were sent.
  const PARTS = ["facts", "filters", "found", "unused", "compared", "buckets", "reading"];
  const READINGS = 3; // of a folder that changes all the time
  let readings = 0;
  const reading = document.getElementById("reading");

  async function showNow() {
    let now;
    try {
      const answer = await fetch(location.href);
      if (!answer.ok) return;
      now = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch { return; /* the studio has ended */ }
    for (const id of PARTS) {
      const old = document.getElementById(id), part = now.getElementById(id);
      if (!old || !part) continue;
      if (id === "filters" && old.querySelector("[open]")) continue; // somebody is about to choose
      if (id === "reading" && readings > READINGS) continue;
      old.replaceChildren(...part.childNodes);
      window.htmx.process(old);
    }
    for (const field of document.querySelectorAll(".read [type=number]")) { // those that nobody has filled in
      if (!field.value) field.value = now.querySelector(`.read [name=${field.name}]`).value;
    }
  }
  new MutationObserver(() => {
    if (!reading.querySelector("[data-read]")) return;
    readings += 1;
    showNow();
  }).observe(reading, { childList: true, subtree: true });
  const input = document.getElementById("files"), list = document.getElementById("uploaded");
  const bar = document.getElementById("upload-progress"), status = document.getElementById("upload-status");
  let busy = false;

  function add(name, words, kind) {
    const item = document.createElement("li"), title = document.createElement("b");
    item.className = kind;
    title.textContent = name;
    item.append(title, `: ${words}`);
    list.append(item);
  }

  async function send(file) {
    const body = new FormData();
    body.append("files", file, file.name);
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "HX-Request": "true" } });
      const text = await answer.text();
      if (answer.ok) {
        const part = document.createElement("template");
        part.innerHTML = text; // made by the server's template, which escapes
        const taken = part.content.querySelector(".taken") !== null;
        list.append(part.content);
        return taken;
      }
      const part = new DOMParser().parseFromString(text, "text/html"); // what was refused, as a page says it
      add(file.name, part.body.textContent.trim(), "refused");
    } catch {
      add(file.name, "not sent: the file cannot be read, or the studio does not answer", "refused");
    }
    return false;
  }

  async function sendAll(files) {
    if (busy || !files.length) return;
    busy = true;
    list.replaceChildren();
    bar.hidden = false;
    bar.max = files.length;
    let taken = 0;
    for (const [number, file] of files.entries()) {
      bar.value = number;
      status.textContent = `${number} of ${files.length} files sent`;
      if (await send(file)) taken += 1;
    }
    bar.hidden = true;
    status.textContent = `${taken} of ${files.length} files added. `;
    if (taken) {
      const link = document.createElement("a");
      link.href = `${location.pathname}#found`;
      link.textContent = "Go to the images";
      status.append(link);
      readings = 0;
      await showNow();
    }
    input.value = "";
    busy = false;
  }

  form.addEventListener("submit", (event) => {
    if (!input.files.length) return;
    event.preventDefault();
    sendAll([...input.files]);
  });
  for (const kind of ["dragenter", "dragover"]) {
    form.addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
  }
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    sendAll([...event.dataTransfer.files]);
  });
})();
