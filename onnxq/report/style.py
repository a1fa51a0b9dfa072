"""The style sheet of the HTML report: light, dark and print."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b2330; --soft: #5d6878; --line: #dfe3e9;
  --float: #93a0b4; --candidate: #0f7b8a; --other: #b7791f; --good: #1a7f4b; --bad: #c0322b;
  --good-wash: #e6f4ec; --bad-wash: #fbeae9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1a2029; --ink: #e6eaf0; --soft: #98a4b5; --line: #2d3643;
    --float: #6b7a92; --candidate: #35b5c6; --other: #dba646; --good: #4cc38a; --bad: #ff7b72;
    --good-wash: #15301f; --bad-wash: #3a1b1a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 48px; }
header { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center; }
header > div { flex: 1 1 420px; min-width: 0; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
p { margin: 4px 0 0; }
.soft, figcaption { color: var(--soft); }
.small { font-size: 13px; }
.verdict {
  padding: 6px 16px; border-radius: 999px; font-weight: 600; white-space: nowrap;
  color: var(--soft); background: var(--card); border: 1px solid var(--line);
}
.verdict.good { color: var(--good); background: var(--good-wash); border-color: var(--good); }
.verdict.bad { color: var(--bad); background: var(--bad-wash); border-color: var(--bad); }
.headline {
  display: grid; gap: 14px; margin: 24px 0 14px;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr));
}
.headline div, section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
}
.headline dt { color: var(--soft); font-size: 13px; }
.headline dd { margin: 0; }
.headline .figure { font-size: 28px; font-weight: 650; line-height: 1.3; }
section { margin-top: 14px; break-inside: avoid; }
section.long { break-inside: auto; }
.pair { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); }
.pair section { margin-top: 0; min-width: 0; }
.pair { margin-top: 14px; }
figure { margin: 0; }
figcaption { font-size: 13px; margin-top: 8px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: 6px 14px 6px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-size: 13px; font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 150px; }
td.fixed { white-space: nowrap; }
td.bar { width: 22%; min-width: 110px; padding-top: 12px; }
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); }
strong.good, strong.bad { font-weight: 600; }
svg { display: block; width: 100%; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
svg text.strong { fill: var(--ink); font-weight: 600; }
svg line { stroke: var(--line); }
.f-float { fill: var(--float); } .f-candidate { fill: var(--candidate); }
.f-other { fill: var(--other); } .f-bad { fill: var(--bad); }
svg line.zero { stroke: var(--soft); }
svg line.interval { stroke: var(--candidate); stroke-width: 3; stroke-linecap: round; }
svg line.bound { stroke: var(--bad); stroke-dasharray: 4 3; }
.strip { height: 10px; border-radius: 3px; }
.key { display: inline-flex; align-items: center; gap: 6px; margin-right: 16px; }
.key svg { width: 11px; height: 11px; }
details > summary { cursor: pointer; color: var(--soft); }
details[open] > summary { margin-bottom: 6px; }
@media (max-width: 480px) { .pair { grid-template-columns: 1fr; } }
@media print {
  :root {
    color-scheme: light;
    --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #4a4f57; --line: #c9ced6;
    --float: #93a0b4; --candidate: #0f7b8a; --other: #b7791f; --good: #1a7f4b; --bad: #c0322b;
    --good-wash: #ffffff; --bad-wash: #ffffff;
  }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 20px; }
  .headline { grid-template-columns: repeat(4, 1fr); }
  .headline .figure { font-size: 20px; }
  .headline div, section { padding: 10px 12px; border-radius: 4px; }
  .pair { grid-template-columns: 1fr 1fr; }
  th, td { padding: 3px 8px 3px 0; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  @page { margin: 15mm; }
}
"""
