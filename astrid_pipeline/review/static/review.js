// The vetting page: keys, verdicts, and the next panels fetched before they are asked for. No library.
"use strict";
(() => {
  const CLASSES_BOGUS_FROM = 7; // 7-9 name artefacts
  const STRETCHES = ["asinh", "linear", "zscale"];
  const AHEAD = 3;
  const main = document.getElementById("review"), panel = document.getElementById("panel");
  const body = document.getElementById("rows"), toast = document.getElementById("toast");
  const cache = new Map();       // id -> promise of the panel's HTML, its stamps loaded
  const mine = JSON.parse(sessionStorage.getItem("astrid-mine") || "[]"); // [label id, source id] in order
  const look = Object.assign({ invert: false, blink: false, zoom: 1, stretch: 0 }, JSON.parse(localStorage.getItem("astrid-look") || "{}"));
  look.blink = false;
  let at = -1, shown = null;

  const rows = () => [...body.querySelectorAll("tr[data-id]")];
  const token = () => crypto.randomUUID ? crypto.randomUUID() : [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  function say(text, bad) {
    const line = document.createElement("div");
    line.textContent = text;
    if (bad) line.className = "bad";
    toast.append(line);
    setTimeout(() => line.remove(), bad ? 8000 : 2500);
  }
  const stampUrl = (id) => `/api/v1/detections/${id}/stamp.png` + (look.stretch ? `?stretch=${STRETCHES[look.stretch]}` : "");

  async function fetchPanel(id) {
    const answer = await fetch(`/review/panel/${id}`);
    if (answer.status === 401) { location.href = "/sign-in"; throw new Error("signed out"); }
    if (!answer.ok) throw new Error(`panel ${id}: ${answer.status}`);
    const html = await answer.text();
    const image = new Image();
    image.src = stampUrl(id);
    await image.decode().catch(() => {}); // a source without stamps has a panel that says so
    return html;
  }
  function get(id) {
    if (!cache.has(id)) {
      const promise = fetchPanel(id);
      promise.catch(() => cache.delete(id));
      cache.set(id, promise);
      if (cache.size > 40) cache.delete(cache.keys().next().value);
    }
    return cache.get(id);
  }
  function paint() {
    const quad = panel.querySelector(".quad");
    if (!quad) return;
    quad.classList.toggle("invert", look.invert);
    quad.classList.toggle("blinking", look.blink);
    for (const z of [2, 3]) quad.classList.toggle("zoom" + z, look.zoom === z);
    const url = stampUrl(shown);
    for (const image of quad.querySelectorAll("img")) if (image.getAttribute("src") !== url) image.src = url;
    localStorage.setItem("astrid-look", JSON.stringify(look));
  }
  async function show(id) {
    const started = performance.now();
    shown = id;
    let html;
    try { html = await get(id); } catch (error) { say(error.message, true); return; }
    if (shown !== id) return;
    panel.innerHTML = html;
    panel.scrollTop = 0;
    paint();
    panel.dataset.shown = id;
    panel.dataset.milliseconds = (performance.now() - started).toFixed(1);
  }
  async function go(index) {
    let all = rows();
    if (index >= all.length) { if (await more()) all = rows(); else { say("the end of this queue"); return; } }
    if (index < 0 || !all.length) return;
    at = Math.min(index, all.length - 1);
    for (const row of body.querySelectorAll("tr.on")) row.classList.remove("on");
    all[at].classList.add("on");
    all[at].scrollIntoView({ block: "nearest" });
    await show(all[at].dataset.id);
    for (let k = 1; k <= AHEAD; k++) if (all[at + k]) get(all[at + k].dataset.id).catch(() => {});
    if (at + AHEAD >= all.length) more();
  }
  let loading = null;
  function more() {
    const row = body.querySelector("tr.more");
    if (!row) return Promise.resolve(false);
    loading = loading || (async () => {
      const answer = await fetch("/review/rows?" + row.dataset.more);
      if (!answer.ok) return false;
      row.insertAdjacentHTML("afterend", await answer.text());
      row.remove();
      return true;
    })().finally(() => { loading = null; });
    return loading;
  }

  // Verdicts wait here until the server has said that it keeps them, also over a reload.
  const outbox = JSON.parse(localStorage.getItem("astrid-outbox") || "[]");
  let sending = false, told = false;
  const keepOutbox = () => localStorage.setItem("astrid-outbox", JSON.stringify(outbox));
  async function send() {
    if (sending) return;
    sending = true;
    while (outbox.length) {
      const next = outbox[0];
      let answer;
      try {
        answer = await fetch(next.url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(next.data) });
      } catch { answer = null; }
      if (!answer || answer.status >= 500 || answer.status === 429) {
        if (!told) say(`${outbox.length} not saved yet: the server does not answer; trying again`, true);
        told = true;
        await new Promise((resolve) => setTimeout(resolve, 1500));
        continue;
      }
      if (told) { say("saved"); told = false; }
      outbox.shift();
      keepOutbox();
      if (answer.ok) settled(await answer.json(), next);
      else {
        const problem = await answer.json().catch(() => ({}));
        say(problem.title || `not saved (${answer.status})`, true);
      }
    }
    sending = false;
  }
  function settled(label, sent) {
    cache.delete(String(label.source_id));
    const row = body.querySelector(`tr[data-id="${label.source_id}"]`);
    if (row) {
      const was = row.dataset.state !== "unseen", now = label.state !== "unseen";
      row.dataset.state = label.state;
      if (was !== now) count(now ? 1 : -1);
    }
    if (label.verdict) { mine.push([label.id, label.source_id]); if (label.injected) say(`that was a known ${label.truth === "bogus" ? "artefact" : "transient"}, put in to measure: ${label.verdict === (label.truth || "real") ? "right" : "it was " + (label.truth || "real")}`); }
    sessionStorage.setItem("astrid-mine", JSON.stringify(mine.slice(-200)));
    if (sent.then === "show") { const index = rows().findIndex((r) => r.dataset.id === String(label.source_id)); if (index >= 0) go(index); else show(String(label.source_id)); }
  }
  function count(step) {
    const done = document.getElementById("done"), bar = document.getElementById("bar");
    done.textContent = String(Number(done.textContent) + step);
    bar.value += step;
  }
  function verdict(value, className) {
    if (!shown) return;
    const note = panel.querySelector("#note"), sure = panel.querySelector("#confidence");
    const data = { verdict: value, token: token() };
    if (className) data.class_name = className;
    if (note && note.value.trim()) data.note = note.value.trim();
    if (sure && sure.value) data.confidence = Number(sure.value);
    outbox.push({ url: `/api/v1/detections/${shown}/labels`, data });
    keepOutbox();
    send();
    say(className ? `${value}: ${className}` : value);
    go(at + 1);
  }
  async function undo() {
    while (sending) await new Promise((resolve) => setTimeout(resolve, 30));
    const last = mine.pop();
    if (!last) { say("nothing of this session to take back"); return; }
    sessionStorage.setItem("astrid-mine", JSON.stringify(mine));
    outbox.push({ url: `/api/v1/labels/${last[0]}/undo`, data: { token: token() }, then: "show" });
    keepOutbox();
    say("taken back");
    send();
  }
  function nthClass(n) {
    const button = panel.querySelector(`[data-class="${n}"]`);
    if (button) verdict(n >= CLASSES_BOGUS_FROM ? "bogus" : "real", button.lastChild.textContent.trim());
  }
  async function copy(id) {
    const button = panel.querySelector(id);
    if (!button) return;
    try { await navigator.clipboard.writeText(button.dataset.copy); say("copied " + button.dataset.copy); }
    catch { const range = document.createRange(); range.selectNodeContents(button); getSelection().removeAllRanges(); getSelection().addRange(range); say("selected: Ctrl-C copies"); }
  }
  const help = document.getElementById("help");
  const KEYS = {
    j: () => go(at + 1), k: () => go(at - 1), ArrowDown: () => go(at + 1), ArrowUp: () => go(at - 1),
    r: () => verdict("real"), b: () => verdict("bogus"), u: () => verdict("unsure"), z: undo,
    i: () => { look.invert = !look.invert; paint(); }, " ": () => { look.blink = !look.blink; paint(); },
    s: () => { look.stretch = (look.stretch + 1) % STRETCHES.length; paint(); say("stretch " + STRETCHES[look.stretch]); },
    "+": () => { look.zoom = Math.min(3, look.zoom + 1); paint(); }, "=": () => KEYS["+"](), "-": () => { look.zoom = Math.max(1, look.zoom - 1); paint(); },
    n: () => panel.querySelector("#note")?.focus(), c: () => copy("#degrees"), x: () => copy("#sexagesimal"),
    t: () => { const query = new URLSearchParams(main.dataset.query); query.set("sort", query.get("sort") === "worth" ? "score" : "worth"); query.set("descending", "true"); location.search = query; },
    q: () => main.classList.toggle("wide"), "?": () => (help.open ? help.close() : help.showModal()),
  };
  for (let n = 1; n <= 9; n++) KEYS[String(n)] = () => nthClass(n);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, textarea, select, dialog");
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    if (document.activeElement instanceof HTMLButtonElement) document.activeElement.blur();
    act();
  });
  document.addEventListener("click", (event) => {
    const target = event.target;
    const one = target.closest("[data-verdict],[data-undo],[data-class],[data-copy],[data-source],[data-sort],[data-forget],#save,tr.more,#rows tr[data-id]");
    if (!one) return;
    if (one.dataset.verdict) verdict(one.dataset.verdict);
    else if ("undo" in one.dataset) undo();
    else if (one.dataset.class) nthClass(Number(one.dataset.class));
    else if (one.dataset.copy) copy("#" + one.id);
    else if (one.dataset.source) show(one.dataset.source);
    else if (one.dataset.sort) { const query = new URLSearchParams(main.dataset.query); query.set("descending", String(!(query.get("sort") === one.dataset.sort && /true/i.test(query.get("descending"))))); query.set("sort", one.dataset.sort); location.search = query; }
    else if (one.dataset.forget) forget(one);
    else if (one.id === "save") save();
    else if (one.classList.contains("more")) more();
    else go(rows().indexOf(one));
  });
  async function forget(button) {
    const answer = await fetch("/api/v1/filters/" + encodeURIComponent(button.dataset.forget), { method: "DELETE" });
    if (answer.ok) button.parentElement.remove();
    else say("not forgotten", true);
  }
  async function save() {
    const name = prompt("name of this filter");
    if (!name) return;
    // As the form stands, shown or not.
    const query = Object.fromEntries([...new FormData(document.querySelector("#filters form"))].filter(([, value]) => value !== ""));
    const answer = await fetch("/api/v1/filters/" + encodeURIComponent(name), { method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(query) });
    say(answer.ok ? "saved as " + name : "not saved: use letters, digits, . _ -", !answer.ok);
  }
  window.addEventListener("beforeunload", (event) => { if (outbox.length) event.preventDefault(); });
  // What others do shows as it happens.
  const live = new EventSource("/api/v1/events");
  live.addEventListener("label", (event) => {
    const label = JSON.parse(event.data);
    const row = body.querySelector(`tr[data-id="${label.source_id}"]`);
    if (row && row.dataset.state !== label.state) { count((label.state !== "unseen") - (row.dataset.state !== "unseen")); row.dataset.state = label.state; cache.delete(String(label.source_id)); }
  });
  live.addEventListener("silent", (event) => say(`what happens is not shown: ${JSON.parse(event.data).what}`, true));
  live.addEventListener("night", (event) => { const night = JSON.parse(event.data); say(`${night.field} ${night.night} was made: ${night.detections ?? "its"} detections`); });
  send();
  go(0);
})();
