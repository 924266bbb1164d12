// The pages of datasets: the reason for a missing thumbnail, uploads of dropped or chosen files, and the update of the page after them.
"use strict";
(() => {
  async function explain(image) {
    const note = document.createElement("span");
    if (image.closest(".strip")) { // in the list of datasets there is no room for a reason
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
  for (const image of document.querySelectorAll(".thumb img, .strip img")) { // those that failed before this script ran
    if (image.complete && image.currentSrc && !image.naturalWidth) explain(image);
  }

  const form = document.getElementById("upload");
  if (!form) return;

  // Parts of the page that are replaced with the current state of the folder after an upload; the results per file stay.
  const PARTS = ["facts", "filters", "found", "unused", "compared", "buckets", "reading"];
  const READINGS = 3; // at most, for a folder that keeps changing
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
      if (id === "filters" && old.querySelector("[open]")) continue; // the user is about to choose a filter
      if (id === "reading" && readings > READINGS) continue;
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      old.replaceChildren(...part.childNodes);
      window.htmx.process(old);
      if (focused) { // keep the keyboard focus where it was
        [...old.querySelectorAll(focused.tagName)].find(e => e.outerHTML === focused.outerHTML)?.focus();
      }
    }
    for (const field of document.querySelectorAll(".read [type=number]")) { // those that the user has left empty
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
    list.prepend(item); // refused files are listed first
  }

  // Files of a folder: images and captions that are not hidden, each with the name under which it is uploaded.
  // Where files in two folders have the same name, all but the first get their folder's name as a prefix: a
  // caption must not become the caption of another image.
  const folder = document.getElementById("folder"), endings = folder.dataset.endings.split(" ");

  function named(found) { // [{file, folder}] -> [{file, name}]
    const kept = found.filter(({ file, folder: inside }) =>
      endings.some((ending) => file.name.toLowerCase().endsWith(ending)) &&
      ![...inside.split("/"), file.name].some((part) => part.startsWith(".")));
    kept.sort((a, b) => Boolean(a.folder) - Boolean(b.folder)); // files outside a folder keep their names
    const first = new Map(); // name without extension -> the folder that keeps it
    const stem = (name) => name.replace(/\.[^.]*$/, "").toLowerCase();
    for (const { file, folder: inside } of kept) if (!first.has(stem(file.name))) first.set(stem(file.name), inside);
    return kept.map(({ file, folder: inside }) => ({
      file, name: first.get(stem(file.name)) === inside ? file.name : `${inside.replaceAll("/", " ")} ${file.name}`,
    }));
  }

  const inFolder = (file) => ({ file, folder: file.webkitRelativePath.split("/").slice(0, -1).join("/") });

  const entriesOf = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
  const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

  async function walk(entry, found, unread) {
    const inside = entry.fullPath.split("/").slice(1, -1).join("/");
    try {
      if (entry.isFile) return found.push({ file: await fileOf(entry), folder: inside });
      const reader = entry.createReader();
      for (;;) { // a reader gives a hundred at a time
        const some = await entriesOf(reader);
        if (!some.length) return;
        for (const one of some.sort((a, b) => a.name < b.name ? -1 : 1)) await walk(one, found, unread);
      }
    } catch { unread.push(entry.name); }
  }

  async function dropped(transfer) { // the entries must be read before the first await
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.some((entry) => entry.isDirectory)) {
      return sendAll([...transfer.files].map((file) => ({ file, name: file.name })));
    }
    if (busy) return;
    const found = [], unread = [];
    status.textContent = "Reading the folders …";
    for (const entry of entries) await walk(entry, found, unread);
    sendAll(named(found), unread, found.length);
  }

  class DiskError extends Error {} // the dataset folder cannot be written, so no further file is sent

  async function send(file, name) {
    const body = new FormData();
    body.append("files", file, name);
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "HX-Request": "true" } });
      const text = await answer.text();
      const part = document.createElement("template");
      part.innerHTML = text; // made by the server's template, which escapes
      if (part.content.querySelector("li")) {
        const taken = part.content.querySelector(".taken") !== null;
        if (taken) list.append(part.content);
        else list.prepend(part.content);
        if (answer.status >= 500) throw new DiskError();
        return taken;
      }
      const said = new DOMParser().parseFromString(text, "text/html"); // the error page with the reason for the refusal
      add(name, said.body.textContent.trim(), "refused");
      if (answer.status >= 500) throw new DiskError();
    } catch (error) {
      if (error instanceof DiskError) throw error;
      add(name, "not sent: the file cannot be read, or the studio does not answer", "refused");
    }
    return false;
  }

  // files: [{file, name}]; unread: names of entries that could not be read; of: the number of files in the folder
  async function sendAll(files, unread = [], of = files.length) {
    if (busy) return;
    list.replaceChildren();
    for (const name of unread) add(name, "cannot be read", "refused");
    const others = of - files.length;
    if (!files.length) {
      status.textContent = of ? "There is no image or caption in this folder." : "There is no file in this folder.";
      return;
    }
    busy = true;
    bar.hidden = false;
    bar.max = files.length;
    let taken = 0, stopped = 0;
    for (const [number, { file, name }] of files.entries()) {
      bar.value = number;
      status.textContent = `${number} of ${files.length} files sent`;
      try {
        if (await send(file, name)) taken += 1;
      } catch { // the disk is full: report it once only
        stopped = files.length - number - 1;
        break;
      }
    }
    bar.hidden = true;
    const refused = files.length - taken - stopped;
    status.textContent = `${taken} of ${files.length} files added. `;
    if (refused) status.textContent += `${refused} ${refused === 1 ? "was" : "were"} refused, for the reasons below. `;
    if (stopped) status.textContent += `${stopped} were not sent, since the dataset cannot be written. `;
    if (others) status.textContent += `${others} were left out, since they are neither images nor captions. `;
    if (taken) {
      const link = document.createElement("a");
      link.href = `${location.pathname}#found`;
      link.textContent = "Go to the images";
      status.append(link);
      readings = 0;
      await showNow();
    }
    input.value = folder.value = "";
    busy = false;
    form.scrollIntoView({ block: "nearest" }); // the gallery above it has grown
  }

  form.addEventListener("submit", (event) => {
    if (!input.files.length && !folder.files.length) return;
    event.preventDefault();
    const found = [...folder.files].map(inFolder).sort((a, b) => a.file.webkitRelativePath < b.file.webkitRelativePath ? -1 : 1);
    const alone = [...input.files].map((file) => ({ file, folder: "" }));
    if (!found.length) return sendAll(alone.map(({ file }) => ({ file, name: file.name })));
    sendAll(named([...alone, ...found]), [], alone.length + found.length);
  });
  for (const field of [input, folder]) {
    field.addEventListener("change", () => {
      list.replaceChildren(); // the results of an earlier upload
      const number = input.files.length + folder.files.length;
      status.textContent = number ? `${number} file${number === 1 ? "" : "s"} chosen. Press Add them.` : "";
    });
  }
  if ("webkitdirectory" in folder) {
    document.querySelector(".from-folder").hidden = false;
  }
  for (const kind of ["dragenter", "dragover"]) {
    form.addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
  }
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    dropped(event.dataTransfer);
  });
})();
