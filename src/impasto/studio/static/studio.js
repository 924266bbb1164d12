// What all pages share: a refusal of the server is shown where its answer would have gone.
"use strict";
document.addEventListener("htmx:response:error", (event) => {
  const place = document.getElementById("asked");
  if (place) place.textContent = `Not possible (${event.detail?.ctx?.response?.status ?? "no answer"}). Reload the page to see how the run stands.`;
});
