// What all pages share: where no answer comes at all, the page says so until one comes.
"use strict";
(() => {
  const WORDS = "The studio does not answer. Is it still running? Runs and tasks go on without it. Where it was started anew, open the address that it printed.";
  const place = document.getElementById("asked");
  if (!place) return;
  document.addEventListener("htmx:error", () => { place.textContent = WORDS; });
  document.addEventListener("htmx:after:swap", () => { if (place.textContent === WORDS) place.textContent = ""; });
})();
