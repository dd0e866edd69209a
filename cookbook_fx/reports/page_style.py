"""How a run's page looks: its template and its style sheet."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2329; --soft: #5c6670; --line: #e3e1dc;
   --bk-major-label-text-color: var(--soft);
  --bk-axis-line-color: var(--line);
  --bk-major-tick-line-color: var(--line);
  --bk-grid-line-color: var(--line);
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa4ad; --line: #32383e }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 1.25rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 0.95rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem }
h3 { font-size: .9rem; margin: 0; font-weight: 600; overflow-wrap: anywhere }
p { margin: .35rem 0 }
.soft, small { color: var(--soft) }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem; margin: .75rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .45rem .8rem; min-width: 7.5rem; flex: 0 1 auto }
.tile b { display: block; font-size: 1.2rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums }
.tile small { display: block; line-height: 1.3 }
.grid { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .7rem .7rem .3rem; min-width: 0 }
.legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; min-height: 1.3rem; margin: .1rem 0 .2rem;
  font-size: .8rem; color: var(--soft) }
.legend span, .runs label { display: inline-flex; align-items: center; gap: .35rem; overflow-wrap: anywhere }
.swatch { width: .9rem; height: .25rem; border-radius: .1rem; flex: none; background: var(--color) }
.swatch.points { width: .5rem; height: .5rem; border-radius: 50% }
.runs { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; position: sticky; top: 0; z-index: 5;
  background: var(--paper); padding: .5rem 0; border-bottom: 1px solid var(--line) }
.runs .swatch { height: .7rem; border-radius: .2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
td:first-child { overflow-wrap: normal }
th { font-weight: 600; white-space: nowrap }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.sections { columns: 19rem; column-gap: .75rem; margin-top: .75rem }
.sections .card { break-inside: avoid; margin-bottom: .75rem; overflow-x: auto }
.sections table { width: 100% }
.sections td:last-child { text-align: right; padding-right: 0 }
.sections tr:last-child td { border-bottom: 0 }
td:first-child, th:first-child { min-width: 9rem }
svg.spark { width: 6rem; height: 1.2rem; display: block }
svg.spark polyline { fill: none; stroke: #4c8dd6; stroke-width: 1.5; vector-effect: non-scaling-stroke }
details { margin: .5rem 0 }
summary { cursor: pointer; color: var(--soft) }
summary h2 { display: inline }
pre { overflow: auto; max-height: 32rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .7rem; font-size: .8rem }
.columns { display: flex; align-items: flex-start; gap: .75rem; overflow-x: auto; scroll-snap-type: x proximity;
  padding-bottom: .5rem }
.column { flex: 0 0 min(21rem, 86vw); scroll-snap-align: start }
.column section { margin-top: .6rem }
.column pre.weighted { margin: .2rem 0; max-height: 16rem; padding: .5rem; font-size: .8rem }
.column .prompt { display: flex; flex-direction: column-reverse; max-height: 9rem; overflow: auto;
  margin-top: .4rem; border: 1px solid var(--line); border-radius: .6rem }
.column .prompt pre.weighted { max-height: none; margin: 0; border: 0; overflow: visible;
  color: var(--soft) }
.choose { border: 0; padding: 0; margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem;
  font-size: .85rem }
.choose legend { float: left; padding: 0 .75rem 0 0; color: var(--soft) }
.key { font-size: .8rem; color: var(--soft) }
.bk-tooltip-color-block { display: none }
@media not (any-pointer: fine) { .by-mouse { display: none } }
@media print { .runs { position: static } pre { max-height: none } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{% macro chart(figure) %}
<div class="card">
<h3>{{ figure.chart.title }}</h3>
<div class="legend">
{% for swatch in figure.chart.legend %}
<span><i class="swatch{{ ' points' if swatch.is_held_out }}" style="--color: {{ swatch.color }}"></i>{{ swatch.label }}</span>
{% endfor %}
{{ figure.chart.note }}
</div>
{{ figure.place }}
</div>
{% endmacro %}
{% macro tiles(run) %}
<div class="tiles">
{% for tile in run.tiles %}
<div class="tile"><small>{{ tile.label }}</small><b>{{ tile.value }}</b><small>{{ tile.more }}</small></div>
{% endfor %}
</div>
{% for remark in run.story.remarks %}
<p class="soft">{{ remark }}</p>
{% endfor %}
{% endmacro %}
<header>
<h1>{{ title }}</h1>
{% if runs | length == 1 %}
<p class="soft">{{ runs[0].story.state }}</p>
{{ tiles(runs[0]) }}
{% endif %}
</header>
{% if runs | length > 1 %}
<div class="runs">
{% for run in runs %}
<label><input type="checkbox" checked data-run="{{ run.story.name }}"><i class="swatch" style="--color: {{ run.color }}"></i>{{ run.story.name }}</label>
{% endfor %}
</div>
{% for run in runs %}
<h3 style="margin-top: 1rem">{{ run.story.name }} <span class="soft">{{ run.story.state }}</span></h3>
{{ tiles(run) }}
{% endfor %}
{% endif %}
<h2>Curves</h2>
{% if not figures %}
<p class="soft">Nothing was measured yet.</p>
{% endif %}
{% if figures %}
<p class="key by-mouse">Drag over a chart to look closer; double-click to see all of it again.</p>
{% endif %}
<div class="grid">
{% for figure in figures %}
{{ chart(figure) }}
{% endfor %}
{% if runs | length == 1 %}
{% for figure in runs[0].figures %}
{{ chart(figure) }}
{% endfor %}
{% endif %}
</div>
{% for run in runs %}
{% set several = runs | length > 1 %}
{% set number = loop.index %}
{% if several and run.figures %}
<h2>{{ run.story.name }}</h2>
<div class="grid">
{% for figure in run.figures %}
{{ chart(figure) }}
{% endfor %}
</div>
{% endif %}
{% if run.story.samples %}
<h2>Samples{{ ' of ' ~ run.story.name if several }}</h2>
<div class="samples">
{% if run.colorings %}
<fieldset class="choose"><legend>Colors show</legend>
{% for coloring in run.colorings %}
<label><input type="radio" name="coloring-{{ number }}" value="{{ coloring }}" {{ 'checked' if loop.first }}> {{ coloring }}</label>
{% endfor %}
</fieldset>
{% endif %}
<p class="key">By log-probability: the redder, the less likely the token was when it was sampled. By advantage or weight: green is
reinforced, red is discouraged. Yellow is what was only read.</p>
<div class="columns">
{% for column in run.story.samples %}
<div class="card column">
<h3>{{ column.title }}</h3>
{% if column.prompt %}
<div class="prompt">{{ column.prompt }}</div>
{% endif %}
{% for sample in column.samples %}
<section>
<small>{{ sample.heading }}</small>
{% for coloring, text in sample.colored.items() %}
<div data-coloring="{{ coloring }}" {{ 'hidden' if not loop.first }}>{{ text }}</div>
{% endfor %}
{% if sample.note %}
<small>{{ sample.note }}</small>
{% endif %}
</section>
{% endfor %}
</div>
{% endfor %}
</div>
</div>
{% endif %}
{% endfor %}
<h2>Configuration</h2>
{% if differing %}
<div class="scroll">
<table>
<tr><th>differs</th>{% for run in runs %}<th>{{ run.story.name }}</th>{% endfor %}</tr>
{% for setting in differing %}
<tr><td>{{ setting.name }}</td>{% for value in setting.values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</div>
{% endif %}
<div class="sections">
{% for section in sections %}
<div class="card">
{% if section.name %}
<h3>{{ section.name }}</h3>
{% endif %}
<table>
{% for setting in section.settings %}
<tr><td>{{ setting.name }}</td><td>{{ setting.values[0] }}</td></tr>
{% endfor %}
</table>
</div>
{% else %}
<p class="soft">{{ 'All of it differs.' if differing else 'None was recorded.' }}</p>
{% endfor %}
</div>
{% for run in runs %}
<h2>Code and environment{{ ' of ' ~ run.story.name if runs | length > 1 }}</h2>
{% if run.start %}
{% set code = run.start.code %}
<div class="scroll">
<table>
<tr><td>started</td><td>{{ run.start.at }}{{ ', continued ' ~ (run.story.starts | length - 1) ~ ' times with other code or versions' if run.story.starts | length > 1 }}</td></tr>
<tr><td>command</td><td><code>{{ run.start.command | join(' ') }}</code></td></tr>
<tr><td>directory</td><td>{{ run.start.directory }}</td></tr>
{% if code.unknown %}
<tr><td>code</td><td>not known: {{ code.unknown }}</td></tr>
{% else %}
<tr><td>commit</td><td><code>{{ code.commit or 'none yet' }}</code></td></tr>
<tr><td>branch</td><td>{{ code.branch or 'none' }}</td></tr>
<tr><td>changes</td><td>{{ (code.changes | length) ~ ' paths differ from the commit' if code.changes else 'none' }}{{ '; not recorded: ' ~ code.left_out if code.left_out }}</td></tr>
{% endif %}
<tr><td>Python</td><td>{{ run.start.python }}</td></tr>
<tr><td>platform</td><td>{{ run.start.platform }}</td></tr>
{% for name, version in run.packages %}
<tr><td>{{ name }}</td><td>{{ version }}</td></tr>
{% endfor %}
</table>
</div>
{% if code.changes %}
<details><summary>Changed paths</summary><pre>{{ code.changes | join('\n') }}</pre></details>
{% endif %}
{% if run.diff %}
<details><summary>What they differ in</summary><pre>{{ run.diff }}{{ '\n... and ' ~ run.diff_left_out ~ ' more characters' if run.diff_left_out }}</pre></details>
{% endif %}
{% else %}
<p class="soft">None was recorded.</p>
{% endif %}
{% endfor %}
{% for run in runs %}
<details><summary><h2>All measurements{{ ' of ' ~ run.story.name if runs | length > 1 }}</h2></summary>
<div class="scroll">
<table>
<tr><th>name</th><th></th><th>first</th><th>last</th><th>least</th><th>greatest</th></tr>
{% for one in run.measurements %}
<tr><td>{{ one.name }}</td><td>{% if one.sparkline %}<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true"><polyline points="{{ one.sparkline }}"/></svg>{% endif %}</td><td class="number">{{ one.first }}</td><td class="number">{{ one.last }}</td><td class="number">{{ one.least }}</td><td class="number">{{ one.greatest }}</td></tr>
{% endfor %}
</table>
</div>
</details>
{% endfor %}
{% if script %}
<script>{{ bokeh }}</script>
<script>{{ script }}</script>
{% endif %}
<script>
for (const part of document.querySelectorAll(".samples")) {
  part.addEventListener("change", (event) => {
    for (const sample of part.querySelectorAll("section")) {
      const texts = [...sample.querySelectorAll("[data-coloring]")];
      const chosen = texts.find((text) => text.dataset.coloring === event.target.value) ?? texts[0];
      for (const text of texts) text.hidden = text !== chosen;
    }
  });
}
for (const box of document.querySelectorAll("[data-run]")) {
  box.addEventListener("change", () => {
    for (const document_ of Bokeh.documents) {
      for (const model of document_.all_models) {
        if (model.type === "GlyphRenderer" && model.name === box.dataset.run) {
          model.visible = box.checked;
        }
      }
    }
  });
}
function repaint() {
  for (const view of Bokeh.index.roots) view.invalidate_layout?.();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(repaint));
let dragged;
function dragBy(pointer) {
  const zooms = pointer !== "touch";
  if (!window.Bokeh || zooms === dragged || !Bokeh.documents.length) return;
  dragged = zooms;
  for (const document_ of Bokeh.documents) {
    for (const model of document_.all_models) {
      if (model.type === "Toolbar") {
        model.active_drag = zooms ? model.tools.find((tool) => tool.type === "BoxZoomTool") : null;
      }
    }
  }
}
for (const moment of ["pointerover", "pointerdown"]) {
  addEventListener(moment, (event) => dragBy(event.pointerType), { capture: true });
}
</script>
</body>
</html>
"""
