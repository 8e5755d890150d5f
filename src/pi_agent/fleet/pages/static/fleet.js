// What the pages do with JavaScript, which none of them needs: suggestions, keys, and choosing all rows at once.
"use strict";

const box = document.querySelector("#search #query");
const list = document.querySelector("#suggestions");
let chosen = -1;
let asked = ""; // the text that the list is for, or will be

function show(open) {
  list.hidden = !open;
  box.setAttribute("aria-expanded", String(open));
  if (!open) { chosen = -1; box.removeAttribute("aria-activedescendant"); }
}

function mark(place) {
  const options = [...list.querySelectorAll("[role=option]")];
  if (!options.length) return;
  chosen = (place + options.length) % options.length;
  options.forEach((option, at) => option.setAttribute("aria-selected", String(at === chosen)));
  box.setAttribute("aria-activedescendant", options[chosen].id);
  options[chosen].scrollIntoView({ block: "nearest" });
}

function take(option) {
  const { start, end, text } = option.dataset;
  const rest = box.value.slice(Number(end));
  const more = text.endsWith(":") || rest.startsWith(" ") ? "" : " ";
  box.value = box.value.slice(0, Number(start)) + text + more + rest;
  const at = Number(start) + text.length + more.length;
  box.focus();
  box.setSelectionRange(at, at);
  show(false);
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

if (box && list) {
  box.addEventListener("htmx:configRequest", (event) => {
    asked = box.value;
    event.detail.parameters.cursor = String(box.selectionStart ?? box.value.length);
  });
  list.addEventListener("htmx:afterSwap", () => { chosen = -1; show(list.children.length > 0 && asked === box.value && document.activeElement === box); });
  list.addEventListener("mousedown", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) { event.preventDefault(); take(option); }
  });
  box.addEventListener("input", () => show(false)); // what is listed was for the text of before
  box.addEventListener("blur", () => show(false));
  box.addEventListener("keydown", (event) => {
    if (list.hidden) return;
    const options = list.querySelectorAll("[role=option]");
    if (event.key === "ArrowDown") { event.preventDefault(); mark(chosen + 1); }
    else if (event.key === "ArrowUp") { event.preventDefault(); mark(chosen < 0 ? -1 : chosen - 1); }
    else if (event.key === "Escape") { event.preventDefault(); show(false); }
    else if ((event.key === "Enter" && chosen >= 0) || (event.key === "Tab" && chosen >= 0)) { event.preventDefault(); take(options[chosen]); }
  });
}

const all = document.querySelector("#all");
if (all) {
  const boxes = [...document.querySelectorAll("input[name=id][type=checkbox]")];
  all.hidden = false;
  all.addEventListener("change", () => boxes.forEach((one) => { one.checked = all.checked; }));
}

const rows = [...document.querySelectorAll("table.devices tbody tr, [data-row]")];
let place = -1;

function go(to) {
  if (!rows.length) return;
  rows[place]?.classList.remove("here");
  place = Math.max(0, Math.min(rows.length - 1, to));
  rows[place].classList.add("here");
  rows[place].querySelector("a")?.focus();
  rows[place].scrollIntoView({ block: "nearest" });
}

function decide(key) {
  const within = rows[place] ?? document;
  const button = within.querySelector(`[data-key="${key}"]`);
  if (button) { button.form.querySelector("[name=reason]").focus(); return; }
  const form = document.querySelector("#chosen");
  const action = { a: "approve", r: "reject" }[key];
  if (!form || !form.elements.action) return;
  const mine = rows[place]?.querySelector("input[name=id]");
  if (mine && !form.querySelector("input[name=id]:checked")) mine.checked = true;
  if (!form.querySelector("input[name=id]:checked")) return;
  form.elements.action.value = action;
  form.requestSubmit();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog[open]")) return;
  const actions = {
    "/": () => { const query = document.querySelector("#query"); query?.focus(); query?.setSelectionRange(query.value.length, query.value.length); },
    "j": () => go(place + 1),
    "k": () => go(place - 1),
    "x": () => { const one = rows[place]?.querySelector("input[name=id]"); if (one) one.checked = !one.checked; },
    "a": () => decide("a"),
    "r": () => decide("r"),
    "?": () => document.querySelector("#keys")?.showModal(),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});

document.addEventListener("click", (event) => {
  document.querySelectorAll("details.menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
});

// The charts are counted once the page is there, and not while it is still being drawn.
addEventListener("load", () => dispatchEvent(new Event("loaded")));
