"""The report's page: HTML with {{NAME}} where report.py puts its parts. It reads no other file, local or remote."""

TEMPLATE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{TITLE}}</title>
<style>
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5c6670; --paper: #fbfaf8; --card: #fff;
  --line: #e3e0da; --accent: #0072b2; --warn: #fdf3dc; --edge: #e69f00; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --soft: #9aa3ac; --paper: #15181b;
  --card: #1d2125; --line: #32373d; --accent: #56b4e9; --warn: #2d2616; --edge: #e69f00; }
  figure svg { filter: brightness(.93); } }
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.law { font: 1.45rem/1.5 Georgia, "DejaVu Serif", serif; background: var(--card);
  border: 1px solid var(--line); border-left: 4px solid var(--accent); border-radius: 6px;
  padding: .8rem 1.2rem; overflow-x: auto; white-space: nowrap; }
.law sup { font-size: .65em; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1rem 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .55rem .8rem; }
.facts b { display: block; font-size: 1.05rem; } .facts sup { font-size: .7em; }
.facts span, figcaption, footer, .soft { color: var(--soft); font-size: .83rem; }
.soft { margin: .4rem 0; }
aside { background: var(--warn); border-left: 4px solid var(--edge); border-radius: 6px;
  padding: .7rem 1.1rem; overflow-wrap: anywhere; }
aside ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.2rem; align-items: flex-start; }
.tables > section { flex: 1 1 auto; max-width: 100%; }
.tables > section > p { width: 0; min-width: 100%; }
.tables > details { flex: 1 1 100%; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .28rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
.tables th, .tables td { padding-right: .25rem; }
th { color: var(--soft); font-weight: 600; }
summary { cursor: pointer; }
details.fold { border-top: 1px solid var(--line); padding: .5rem 0; }
details.fold > summary { font-weight: 600; }
details.copy > summary { color: var(--soft); font-size: .8rem; }
.source { position: relative; } .source pre { max-height: 15rem; overflow: auto; }
button { position: absolute; right: .5rem; top: .45rem; font: inherit; font-size: .78rem; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 4px; cursor: pointer; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.4rem; align-items: start;
  grid-auto-flow: dense; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure:is([data-name="size_data"], [data-name="residuals"], [data-name="curves"], [data-name="frontier"],
  [data-name="fan"], [data-name="clouds"]) { grid-column: 1 / -1; }
figure[data-name="clouds"] svg { max-width: 44rem; }
figure svg { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figure[data-name="heatmap"] svg { max-height: 22rem; }
figcaption { margin-top: .3rem; }
@media (max-width: 44rem) { .figures { grid-template-columns: minmax(0, 1fr); }
  figure:is([data-name="size_data"], [data-name="residuals"], [data-name="curves"], [data-name="frontier"],
    [data-name="fan"], [data-name="clouds"]) svg { min-width: 36rem; }
  .law { font-size: 1.1rem; } main { padding: 1.5rem .8rem 3rem; } }
.scroll { max-height: 30rem; overflow: auto; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); }
.scroll th { position: sticky; top: 0; background: var(--card); cursor: pointer; user-select: none; }
#runs th:first-child, #runs td:first-child { padding-left: .6rem; }
#runs th[aria-sort="ascending"]::after { content: " ▲"; } #runs th[aria-sort="descending"]::after { content: " ▼"; }
#runs td:first-child { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .8rem; }
#runs tr.held td:first-child::after { content: " held out"; color: #d55e00; }
#runs tr.on { background: color-mix(in srgb, var(--accent) 22%, transparent); }
svg .on { stroke: #d55e00 !important; stroke-width: 3 !important; }
#tip { position: fixed; pointer-events: none; background: #1d2126; color: #fff; border-radius: 4px;
  padding: .3rem .55rem; font-size: .8rem; white-space: pre; display: none; z-index: 9; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem;
  overflow-x: auto; font-size: .82rem; }
footer { margin-top: 1.2rem; overflow-wrap: anywhere; }
@media print { .scroll { max-height: none; overflow: visible; } details.copy, #tip { display: none !important; }
  main { max-width: none; padding: 0; } tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>{{TITLE}}</h1>
<div class="law">{{LAW}}</div>
<div class="facts">{{FACTS}}</div>
{{WARNINGS}}
<div class="tables">{{TABLES}}</div>
<h2>Figures</h2>
<div class="figures">{{FIGURES}}</div>
<h2>Runs</h2>
{{THINNED}}
<div class="scroll">{{RUNS}}</div>
<h2>Made by</h2>
<pre>{{COMMAND}}</pre>
<footer>{{SOURCE}}</footer>
</main>
<div id="tip"></div>
<script>
// Each group of run marks says in data-rows which row each of its <use> is: hovering either lights both.
const tip = document.getElementById("tip"), marks = {};
const table = document.getElementById("runs"), heads = [...table.tHead.rows[0].cells];
for (const group of document.querySelectorAll("g[data-rows]")) {
  const rows = group.dataset.rows.split(" ");
  group.querySelectorAll("use").forEach((use, i) => (marks["run-" + rows[i]] ??= []).push(use));
}
const light = (row, on) => [row, ...(marks[row.id] ?? [])].forEach(x => x.classList.toggle("on", on));
for (const row of table.tBodies[0].rows) {
  const text = () => [...row.cells].map((cell, k) => heads[k].textContent + "  " + cell.textContent).join("\n");
  row.onmouseenter = () => light(row, true);
  row.onmouseleave = () => light(row, false);
  for (const use of marks[row.id] ?? []) {
    use.onmouseenter = () => { light(row, true); tip.textContent = text(); tip.style.display = "block"; };
    use.onmousemove = e => {
      tip.style.left = Math.max(0, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
      tip.style.top = Math.max(0, Math.min(e.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
    };
    use.onmouseleave = () => { light(row, false); tip.style.display = "none"; };
    use.onclick = () => row.scrollIntoView({ block: "center" });
  }
}
// A column of numbers, with k, M, B, T or %, sorts by value; any other as text.
const UNITS = { k: 1e3, M: 1e6, B: 1e9, T: 1e12 }, NUMBER = /^([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([kMBT%]?)$/;
const number = text => { const m = NUMBER.exec(text); return m ? m[1] * (UNITS[m[2]] ?? 1) : NaN; };
const sort = (head, k) => {
  const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
  const keyed = [...body.rows].map(row => [row.cells[k].textContent, row]);
  const numeric = keyed.every(([text]) => text === "" || !isNaN(number(text)));
  const compare = numeric ? (a, b) => (number(a) || 0) - (number(b) || 0) : (a, b) => a.localeCompare(b);
  keyed.sort(([a], [b]) => (down ? -1 : 1) * compare(a, b));
  body.append(...keyed.map(([, row]) => row));
  heads.forEach(h => h.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
};
heads.forEach((head, k) => {
  head.onclick = () => sort(head, k);
  head.onkeydown = e => { if (e.key === "Enter") sort(head, k); };
});
for (const button of document.querySelectorAll(".source button"))
  button.onclick = () => {
    const source = button.nextElementSibling;
    getSelection().selectAllChildren(source);  // where a page may not write to the clipboard, Ctrl-C does
    navigator.clipboard?.writeText(source.textContent).catch(() => {});
  };
</script>
</body>
</html>
"""
