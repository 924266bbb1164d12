// The page "Captions": range selection with Shift-click, rows of operations, a warning for unsaved text, a reload when a task ends.
"use strict";
(() => {
  const form = document.getElementById("edit");
  if (form) {
    const boxes = [...form.querySelectorAll("input[name=image]")];
    const all = document.getElementById("all");
    const shown = document.getElementById("selected");
    let last = null;

    const count = () => {
      const number = boxes.filter((box) => box.checked).length;
      shown.textContent = String(number);
      if (all) {
        all.checked = number === boxes.length;
        all.indeterminate = number > 0 && number < boxes.length;
      }
    };
    form.addEventListener("click", (event) => {
      const box = event.target;
      if (!(box instanceof HTMLInputElement) || box.name !== "image") return;
      if (event.shiftKey && last !== null) {
        const [from, to] = [boxes.indexOf(last), boxes.indexOf(box)].sort((a, b) => a - b);
        for (const one of boxes.slice(from, to + 1)) one.checked = box.checked;
      }
      last = box;
      count();
    });
    form.addEventListener("change", count);
    if (all) {
      all.addEventListener("change", () => {
        for (const box of boxes) box.checked = all.checked;
        count();
      });
    }
    count();

    const rows = document.getElementById("operations");
    const less = document.getElementById("one-less");
    const first = rows.firstElementChild.cloneNode(true);
    const number = () => {
      less.hidden = rows.children.length < 2;
      [...rows.children].forEach((row, n) => row.setAttribute("aria-label", `Operation ${n + 1}`));
    };
    document.getElementById("one-more").addEventListener("click", () => {
      const row = first.cloneNode(true);
      rows.append(row);
      number();
      row.querySelector("select").focus();
    });
    less.addEventListener("click", () => {
      rows.lastElementChild.remove();
      number();
    });
    number();

    // A preview shows the form as submitted: any later change of the form removes it.
    const preview = document.getElementById("preview");
    const waiting = document.getElementById("waiting");
    form.addEventListener("submit", () => {
      preview.replaceChildren();
      waiting.textContent = "Reading the captions …";
    });
    new MutationObserver(() => {
      if (preview.childNodes.length) waiting.textContent = "";
    }).observe(preview, { childList: true });
    form.addEventListener("input", (event) => {
      if (!preview.contains(event.target)) preview.replaceChildren();
    });
    document.addEventListener("htmx:error", () => { waiting.textContent = ""; });
  }

  // What was typed outlives a task that failed: it is put back into the form, still not saved.
  const text = document.querySelector(".alone textarea");
  if (text) {
    const key = `${text.form.action}?${text.form.elements.image.value}`;
    const ended = document.querySelector("#task-shown .task:not([hx-get]) .state");
    const typed = sessionStorage.getItem(key);
    if (ended !== null) {
      if (typed !== null && !ended.classList.contains("done") && typed !== text.value) {
        text.value = typed;
        document.getElementById("not-saved").hidden = false;
      }
      sessionStorage.removeItem(key);
    }
    let isSaving = false;
    text.form.addEventListener("submit", () => {
      isSaving = true;
      sessionStorage.setItem(key, text.value);
    });
    addEventListener("pageshow", () => { isSaving = false; });
    addEventListener("beforeunload", (event) => {
      if (!isSaving && text.value !== text.defaultValue) event.preventDefault();
    });
  }

  // When a task has ended, reload the page once, to show what the task has written.
  const place = document.getElementById("task-shown");
  const isAtWork = () => place.querySelector(".task[hx-get]") !== null;
  if (place && isAtWork()) {
    const watch = new MutationObserver(() => {
      if (isAtWork()) return;
      watch.disconnect();
      location.reload();
    });
    watch.observe(place, { subtree: true, childList: true, attributes: true });
  }
})();
