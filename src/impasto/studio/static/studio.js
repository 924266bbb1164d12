// Shared by all pages: while the studio does not answer, the page says so.
"use strict";
document.addEventListener("input", event => { // typing a seed turns the random seed off
  const random = event.target.id === "seed" && document.getElementById("random_seed");
  if (random) random.checked = false;
});
(() => { // a double click sends once: the second request would only be refused
  let last = null;
  document.addEventListener("click", event => {
    const button = event.target.closest?.("button");
    if (!button || !(button.type === "submit" || button.hasAttribute("hx-post"))) return;
    if (event.detail > 1 && button === last) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
    last = button;
  }, true);
})();
(() => {
  const WORDS = "The studio does not answer. Is it still running? Runs and tasks continue without it. If it has been restarted, open the address that it printed.";
  const place = document.getElementById("asked");
  if (!place) return;
  document.addEventListener("htmx:error", () => { place.textContent = WORDS; });
  document.addEventListener("htmx:after:swap", () => { if (place.textContent === WORDS) place.textContent = ""; });
})();
