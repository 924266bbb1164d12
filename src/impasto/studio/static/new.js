// The form of a new run: shows each error at its field, hides the settings of other kinds, finds settings, copies text.
"use strict";
(() => {
  const form = document.getElementById("settings");
  const panel = document.getElementById("panel");
  if (!form || !panel) return;
  const fields = [...form.querySelectorAll("[data-path]")];
  const controlOf = (field) => field.querySelector("input, select, textarea");

  const showFaults = () => {
    const faults = new Map();
    for (const item of panel.querySelectorAll(".faults [data-path]"))
      faults.set(item.dataset.path, item.querySelector("span").textContent);
    for (const field of fields) {
      const words = faults.get(field.dataset.path) || "";
      field.querySelector(".fault").textContent = words;
      const control = controlOf(field);
      if (words) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  };

  const isOfKind = (field) => {
    if (!field.dataset.kinds) return true;
    const chosen = form.querySelector(`[data-kind-of="${field.dataset.section}"]`);
    const kind = (chosen && chosen.value) || (chosen && chosen.dataset.usual) || "";
    return field.dataset.kinds.split(" ").includes(kind);
  };

  const find = document.getElementById("find");
  const found = document.getElementById("found");
  // "--max_train_steps", "max train steps" and "Max-Train-Steps" are one name.
  const plain = (text) => text.toLowerCase().replace(/[-_\s]+/g, " ").trim();
  const showFound = () => {
    const words = plain(find.value);
    const above = [];
    let below = 0;
    for (const field of fields) {
      const isInSection = field.closest("details.section") !== null;
      const isMeant = !words || plain(field.textContent).includes(words);
      field.hidden = !(isOfKind(field) && (isMeant || !isInSection));
      if (!isMeant || field.hidden) continue;
      if (isInSection) below += 1;
      else above.push(field);
    }
    tellFound(words, above, below);
    for (const section of form.querySelectorAll("details.section")) {
      const shown = section.querySelector("[data-path]:not([hidden])") !== null;
      section.hidden = !shown && words !== "";
      if (words && shown) section.open = true;
    }
  };

  // The usual settings are never hidden by a search: matches among them are shown as links.
  const tellFound = (words, above, below) => {
    found.replaceChildren();
    if (!words) return;
    found.append(above.length ? "Among the usual settings: " : below ? "" : "No setting has this text in its name or description.");
    above.slice(0, 8).forEach((field, number) => {
      const link = document.createElement("a");
      link.href = `#${controlOf(field).id}`;
      link.textContent = field.dataset.title;
      found.append(number ? ", " : "", link);
    });
  };

  // A link to a field opens the section that contains it.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#f-"]');
    if (!link) return;
    const control = document.getElementById(link.getAttribute("href").slice(1));
    if (!control) return;
    event.preventDefault();
    const section = control.closest("details");
    if (section) section.open = true;
    control.closest("[data-path]").hidden = false;
    control.focus();
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const said = button.parentElement.querySelector(".copied");
    try {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      said.textContent = "Copied.";
    } catch {
      said.textContent = "The browser does not let this page copy: select the text and copy it.";
    }
  });

  find.addEventListener("input", (event) => {
    event.stopPropagation(); // the search box is not a setting
    showFound();
  });
  find.addEventListener("change", (event) => event.stopPropagation());
  form.addEventListener("change", showFound);
  form.addEventListener("submit", (event) => event.preventDefault());
  new MutationObserver(showFaults).observe(panel, { childList: true, subtree: true, characterData: true });
  showFound();
  showFaults();
})();
