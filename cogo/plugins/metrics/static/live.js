// Keeps a page fresh: every five seconds, while it is looked at and not paused, the parts marked
// data-live are replaced by those of a new copy of the page. Without this script the page still
// shows everything; it then has to be loaded again by hand.
"use strict";

const EVERY_MS = 5000;
const toggle = document.querySelector("#live");
let paused = localStorage.getItem("cogo.paused") === "yes";

function show() {
  toggle.hidden = false;
  toggle.setAttribute("aria-pressed", String(!paused));
  toggle.dataset.state = paused ? "paused" : "on";
  toggle.querySelector("span").textContent = paused ? "Paused" : "Live";
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) throw new Error(String(answer.status));
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    // What somebody is reading with the keyboard or has selected stays until they move on.
    const inUse = part.contains(document.activeElement) || !getSelection().isCollapsed;
    if (other && !inUse && other.innerHTML !== part.innerHTML) part.innerHTML = other.innerHTML;
  }
}

async function turn() {
  if (!paused && !document.hidden) {
    try {
      await refresh();
      toggle.dataset.state = paused ? "paused" : "on";
    } catch {
      toggle.dataset.state = "lost";
    }
  }
  setTimeout(turn, EVERY_MS);
}

if (toggle) {
  toggle.addEventListener("click", () => {
    paused = !paused;
    localStorage.setItem("cogo.paused", paused ? "yes" : "no");
    show();
  });
  show();
  setTimeout(turn, EVERY_MS);
}
