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
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --soft: #9aa3ac; --paper: #15181b;
  --card: #1d2125; --line: #32373d; --accent: #56b4e9; --warn: #2d2616; --edge: #e69f00; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1.2rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .7rem; }
.law { font: 1.45rem/1.5 Georgia, "DejaVu Serif", serif; background: var(--card);
  border: 1px solid var(--line); border-left: 4px solid var(--accent); border-radius: 6px;
  padding: .8rem 1.2rem; overflow-x: auto; white-space: nowrap; }
.law sup { font-size: .65em; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1rem 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .55rem .8rem; }
.facts b { display: block; font-size: 1.05rem; } .facts sup { font-size: .7em; }
.facts span, figcaption, footer { color: var(--soft); font-size: .83rem; }
aside { background: var(--warn); border-left: 4px solid var(--edge); border-radius: 6px;
  padding: .7rem 1.1rem; }
aside ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2rem;
  align-items: start; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .28rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
.two th, .two td { padding-right: .25rem; }
th { color: var(--soft); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(2, 1fr); gap: 1.2rem; align-items: start; }
@media (max-width: 44rem) { .figures { grid-template-columns: 1fr; } }
figure { margin: 0; } figure[data-name="size_data"] { grid-column: 1 / -1; }
figure svg { width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; box-sizing: border-box; padding: .5rem; }
figure[data-name="heatmap"] svg { max-height: 22rem; }
.scroll { max-height: 30rem; overflow: auto; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); }
.scroll th { position: sticky; top: 0; background: var(--card); }
#runs td:first-child { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .8rem; }
#runs tr.held td:first-child::after { content: " held out"; color: #d55e00; }
#runs tr.on { background: color-mix(in srgb, var(--accent) 22%, transparent); }
svg .on { stroke: #d55e00 !important; stroke-width: 3 !important; }
#tip { position: fixed; pointer-events: none; background: #1d2126; color: #fff; border-radius: 4px;
  padding: .3rem .55rem; font-size: .8rem; white-space: pre; display: none; z-index: 9; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem;
  overflow-x: auto; font-size: .85rem; }
footer { margin-top: 1.2rem; }
</style>
</head>
<body>
<main>
<h1>{{TITLE}}</h1>
<div class="law">{{LAW}}</div>
<div class="facts">{{FACTS}}</div>
{{WARNINGS}}
<div class="two">
<section><h2>Parameters</h2>{{PARAMETERS}}</section>
<section><h2>Error on runs it has not seen</h2><div style="overflow-x:auto">{{HOLDOUT}}</div></section>
</div>
<h2>Figures</h2>
<div class="figures">{{FIGURES}}</div>
<h2>Runs</h2>
<div class="scroll">{{RUNS}}</div>
<h2>Made by</h2>
<pre>{{COMMAND}}</pre>
<footer>{{SOURCE}}</footer>
</main>
<div id="tip"></div>
<script>
// Matplotlib draws one <use> per run, in the order of the table: hovering either lights both.
const tip = document.getElementById("tip"), marks = [];
const head = [...document.querySelectorAll("#runs th")].map(cell => cell.textContent);
for (const group of document.querySelectorAll('g[id*="-runs"]'))
  group.querySelectorAll("use").forEach((use, i) => (marks[i] ??= []).push(use));
document.querySelectorAll("#runs tbody tr").forEach((row, i) => {
  const light = on => [row, ...(marks[i] ?? [])].forEach(x => x.classList.toggle("on", on));
  const text = [...row.cells].map((cell, k) => head[k] + "  " + cell.textContent).join("\n");
  row.onmouseenter = () => light(true);
  row.onmouseleave = () => light(false);
  for (const use of marks[i] ?? []) {
    use.onmouseenter = () => { light(true); tip.textContent = text; tip.style.display = "block"; };
    use.onmousemove = e => {
      tip.style.left = Math.min(e.clientX + 14, innerWidth - 190) + "px";
      tip.style.top = Math.min(e.clientY + 14, innerHeight - 240) + "px";
    };
    use.onmouseleave = () => { light(false); tip.style.display = "none"; };
    use.onclick = () => row.scrollIntoView({ block: "center" });
  }
});
</script>
</body>
</html>
"""
