"""How a logtree's page looks, besides what it has in common with a run's page."""

LOGTREE_STYLE = """
body { max-width: 64rem }
section.scope { border-left: 2px solid var(--line); padding-left: .8rem; margin: .9rem 0 }
section.scope > :is(h2, h3, h4, h5, h6) { margin: 0 0 .3rem; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere }
section.scope > h2 { font-size: 1.15rem }
details.scope { border-left: 2px solid var(--line); padding-left: .8rem; margin: .6rem 0 }
summary { overflow-wrap: anywhere }
.attributes { font-size: .8rem; color: var(--soft); font-weight: 400 }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: .5rem 0; overflow-x: auto }
figcaption { font-size: .8rem; color: var(--soft) }
td { white-space: pre-wrap }
.turn { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .4rem .7rem; margin: .4rem 0 }
.turn > small:first-child { font-weight: 600 }
.turn pre.weighted { margin: .2rem 0 }
pre.code { white-space: pre-wrap; overflow-wrap: anywhere }
"""

LOGTREE_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ tree.title | visible }}</title>
<style>{{ style }}</style>
</head>
<body>
{% macro attributes(found) %}
{% if found %}
<span class="attributes">{% for name, value in found.items() %}{{ name | string | visible }} {{ value | cell | visible }}{{ ' · ' if not loop.last }}{% endfor %}</span>
{% endif %}
{% endmacro %}
{% macro leaf(kind, node) %}
{% if kind == 'Text' %}
<p class="text">{{ node.text | visible }}</p>
{% elif kind == 'Header' %}
<h3>{{ node.text | visible }}</h3>
{% elif kind == 'Code' %}
<pre class="code">{{ node | highlighted }}</pre>
{% elif kind == 'Html' %}
<div>{{ node.markup }}</div>
{% elif kind == 'Colored' %}
{{ node.markup }}
{% elif kind == 'Details' %}
<details><summary>{{ node.summary | visible }}</summary><p class="text">{{ node.text | visible }}</p></details>
{% elif kind == 'Table' %}
<figure>
{% if node.caption %}
<figcaption>{{ node.caption | visible }}</figcaption>
{% endif %}
<table>
{% if node.columns %}
<tr>{% for column in node.columns %}<th>{{ column | visible }}</th>{% endfor %}</tr>
{% endif %}
{% for row in node.rows %}
<tr>{% for value in row %}<td{{ ' class=number' if value is numeric }}>{{ value | cell | visible }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</figure>
{% elif kind == 'Conversation' %}
{% for turn in node.turns %}
<div class="turn"><small>{{ turn.role | visible }}{{ ' · ' ~ (turn.note | visible) if turn.note }}</small>
{% for part in turn.content %}
{{ leaf(part | kind, part) }}
{% endfor %}
</div>
{% endfor %}
{% endif %}
{% endmacro %}
<header>
<h1>{{ tree.title | visible }}</h1>
<p class="soft">{{ started_at }} {{ attributes(tree.attributes) }}</p>
</header>
{% for event in events %}
{% if event.kind == 'begin' and event.node.is_folded %}
<details class="scope"><summary>{{ event.node.title | visible }} {{ attributes(event.node.attributes) }}</summary>
{% elif event.kind == 'begin' %}
<section class="scope">
{% if event.node.title or event.node.attributes %}
<h{{ event.level }}>{{ event.node.title | visible }} {{ attributes(event.node.attributes) }}</h{{ event.level }}>
{% endif %}
{% elif event.kind == 'end' %}
</{{ 'details' if event.node.is_folded else 'section' }}>
{% else %}
{{ leaf(event.kind, event.node) }}
{% endif %}
{% endfor %}
</body>
</html>
"""
