// What all pages share: where no answer comes at all, the page says so.
"use strict";
document.addEventListener("htmx:error", () => {
  const place = document.getElementById("asked");
  if (place) place.textContent = "The studio does not answer. Is it still running? The runs go on without it.";
});
