// Optional conveniences: keyboard shortcuts, "select all", a live count. The pages work without this script.
"use strict";

const isTyping = (element) =>
  element instanceof HTMLTextAreaElement ||
  element instanceof HTMLSelectElement ||
  (element instanceof HTMLInputElement && !["checkbox", "button", "submit"].includes(element.type));

const rows = () => [...document.querySelectorAll("[data-row]")];

function moveTo(step) {
  const all = rows();
  if (!all.length) return;
  const here = all.findIndex((row) => row.contains(document.activeElement));
  const next = Math.min(Math.max(here + step, 0), all.length - 1);
  all[next].querySelector("a").focus();
}

function press(target) {
  if (target instanceof HTMLElement && target.tagName === "SUMMARY") {
    const details = target.parentElement;
    details.open = true;
    const field = details.querySelector("textarea, input:not([type=hidden])");
    (field || target).focus();
  } else if (isTyping(target)) {
    target.focus();
    target.scrollIntoView({ block: "nearest" });
  } else {
    target.click();
  }
}

const here = {
  j: () => moveTo(1),
  k: () => moveTo(-1),
  o: () => document.activeElement.closest("[data-row]")?.querySelector("a").click(),
  x: () => document.activeElement.closest("[data-row]")?.querySelector("input[type=checkbox]").click(),
  q: () => location.assign("/"),
  "?": () => {
    const keys = document.getElementById("keys");
    if (!keys) return;
    keys.open = !keys.open;
    keys.scrollIntoView({ block: "nearest" });
  },
};

document.addEventListener("keydown", (event) => {
  const focused = document.activeElement;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isTyping(focused) && focused.form) {
    event.preventDefault();
    focused.form.requestSubmit();
    return;
  }
  if (event.key === "Escape" && isTyping(focused)) {
    focused.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(focused)) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (target) {
    event.preventDefault();
    press(target);
  } else if (Object.hasOwn(here, event.key)) {
    event.preventDefault();
    here[event.key]();
  }
});

document.querySelector("[data-all]")?.addEventListener("change", (event) => {
  for (const row of rows()) row.querySelector("input[type=checkbox]").checked = event.target.checked;
});

// A form must not be sent twice by a double click.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
});

const counter = document.getElementById("waiting");
async function refreshCount() {
  if (document.hidden) return;
  const answer = await fetch("/count", { headers: { Accept: "application/json" }, redirect: "error" });
  if (!answer.ok) return;
  const { waiting } = await answer.json();
  if (counter.textContent !== waiting) counter.textContent = waiting;
}
if (counter) setInterval(() => refreshCount().catch(() => {}), 5000);
