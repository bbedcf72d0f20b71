// Everything works without this file. With it: dialogs instead of pages, keys, copying, and what is live keeps itself so.
document.documentElement.classList.add("js");

const dialog = document.getElementById("dialog");
const help = document.getElementById("help");
const said = document.getElementById("said");
const listing = { address: location.href, title: document.title };
const LIVE_MILLISECONDS = 500;
const MAX_LIVE_FAILURES = 5;

const say = (text) => { if (said) said.textContent = text; };

// A part of a page, as nodes. Parsed as a document of its own: nothing in it runs, and our policy holds for it.
async function part(address, why = "1") {
  const answer = await fetch(address, { headers: { "Grantbook-Fragment": why }, credentials: "same-origin" });
  if (answer.redirected && new URL(answer.url).pathname === "/console/sign-in") { location.assign(address); return null; }
  const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
  const content = parsed.querySelector("main") ?? parsed.body;
  return { ok: answer.ok, nodes: [...content.childNodes], title: parsed.querySelector("h1, h2")?.textContent ?? "" };
}

async function open(address, { push = true } = {}) {
  say("Loading");
  let found;
  try { found = await part(address); } catch { location.assign(address); return; }
  if (!found) return;
  const close = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Close" });
  close.addEventListener("click", () => dialog.close());
  const bar = Object.assign(document.createElement("p"), { className: "actions" });
  bar.append(close);
  dialog.replaceChildren(...found.nodes, bar);
  const heading = dialog.querySelector("h1, h2");
  if (heading) heading.id = "dialog-title";
  if (push) history.pushState({ dialog: address }, "", address);
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector("[autofocus]") ?? heading ?? dialog).focus?.();
  dialog.scrollTop = 0;
  say("");
  live(dialog);
}

dialog?.addEventListener("close", () => {
  dialog.replaceChildren();
  if (location.href !== listing.address) history.pushState({}, "", listing.address);
});
dialog?.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

addEventListener("popstate", (event) => {
  if (event.state?.dialog) open(event.state.dialog, { push: false });
  else if (dialog?.open) { listing.address = location.href; dialog.close(); }
  else if (location.href !== listing.address) location.reload();
});

document.addEventListener("click", (event) => {
  const copied = event.target.closest("[data-copy]");
  if (copied) {
    navigator.clipboard.writeText(copied.dataset.copy).then(() => say("Copied"), () => say("The browser refused to copy"));
    return;
  }
  const link = event.target.closest("a[data-dialog], dialog a[data-part]");
  if (link && event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    open(link.href);
    return;
  }
  const row = event.target.closest("[data-rows] tbody tr");
  if (row && !event.target.closest("a, button, input, label, summary") && !getSelection()?.toString()) row.querySelector("a[data-dialog]")?.click();
});

// Forms that look something up inside a dialog stay in it.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.closest("dialog") && form.method === "get" && form.hasAttribute("data-part")) {
    event.preventDefault();
    open(`${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`);
  } else if (form.method === "post") {
    // Twice is harmless, but looks as if something was wrong.
    setTimeout(() => form.querySelectorAll("button[type=submit]").forEach((each) => { each.disabled = true; }));
  }
});
addEventListener("pageshow", () => document.querySelectorAll("button:disabled").forEach((each) => { each.disabled = false; }));

// What says data-live="/address" is fetched again until it does not say so any more.
function live(within) {
  for (const element of within.querySelectorAll("[data-live]")) keep(element, 0);
}
function keep(element, failures) {
  setTimeout(async () => {
    if (!element.isConnected) return;
    try {
      const found = await part(element.dataset.live, "live");
      if (!found) return;
      const fresh = found.nodes.find((each) => each.id === element.id || each.querySelector?.(`#${CSS.escape(element.id)}`));
      const next = fresh?.id === element.id ? fresh : fresh?.querySelector(`#${CSS.escape(element.id)}`);
      if (!found.ok || !next) throw new Error("not there");
      // What is replaced whole is not read out; a region that stays is. Only what is new is worth it.
      const news = next.querySelector("[data-said]")?.textContent;
      if (news && news !== element.querySelector("[data-said]")?.textContent) say(news);
      element.replaceWith(next);
      if (next.dataset.live) keep(next, 0);
    } catch {
      if (failures < MAX_LIVE_FAILURES) keep(element, failures + 1);
      else say("This is not updated any more: reload the page");
    }
  }, (Number(element.dataset.every) || LIVE_MILLISECONDS) * (failures + 1));
}

// Selecting several.
const bulk = document.getElementById("bulk");
function count() {
  const boxes = [...bulk.querySelectorAll("input[name=select]")];
  const chosen = boxes.filter((each) => each.checked).length;
  const shown = bulk.querySelector("[data-selected]");
  if (shown) shown.textContent = chosen ? `${chosen} of ${boxes.length} on this page selected` : "Select clients to act on several at once.";
  const all = bulk.querySelector("[data-all]");
  if (all) { all.checked = chosen === boxes.length; all.indeterminate = chosen > 0 && chosen < boxes.length; }
}
bulk?.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) bulk.querySelectorAll("input[name=select]").forEach((each) => { each.checked = event.target.checked; });
  count();
});
if (bulk) addEventListener("pageshow", count);

// Keys.
const rows = () => [...document.querySelectorAll("[data-rows] tbody tr")];
function move(step) {
  const all = rows();
  if (!all.length) return;
  const now = all.findIndex((each) => each.contains(document.activeElement));
  const next = all[Math.min(all.length - 1, Math.max(0, now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step))];
  (next.querySelector("a[href]") ?? next.querySelector("input, button"))?.focus();
  next.scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea, [contenteditable]")) return;
  if (document.querySelector("dialog[open]")) return;
  const key = event.key;
  if (key === "/") document.querySelector("[data-search]")?.focus();
  else if (key === "?" && help) help.showModal();
  else if (key === "ArrowDown" || key === "j") move(1);
  else if (key === "ArrowUp" || key === "k") move(-1);
  else if (key === "n" || key === "p") document.querySelector(`[data-key=${key}]`)?.click();
  else if (key === "x") { const box = document.activeElement?.closest("tr")?.querySelector("input[name=select]"); if (!box) return; box.click(); }
  else return;
  event.preventDefault();
});

live(document);
