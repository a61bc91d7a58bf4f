"""The tables and the page of scripts/demo.py, from its results. Pure functions."""

import html as markup

ROLES = [
    ("attention.q", "q"),
    ("attention.k", "k"),
    ("attention.v", "v"),
    ("attention.o", "o"),
    ("mlp.gate", "gate"),
    ("mlp.up", "up"),
    ("mlp.down", "down"),
]
COLORS = {"bf16": "#c9ced6", "fp8": "#2f6fde"}
VERSION_COLORS = ["#c9ced6", "#2f6fde", "#12a150", "#d97706"]


def escape(text):
    return markup.escape(str(text))


def linear_rows(tensors):
    """Layer -> role -> row, of the linear layers."""
    layers = {}
    for row in tensors:
        if row["layer"] is not None and row["role"] in dict(ROLES):
            layers.setdefault(row["layer"], {})[row["role"]] = row
    return dict(sorted(layers.items()))


def plan_text(tensors):
    """One line a layer, for the terminal."""
    layers = linear_rows(tensors)
    lines = ["    layer  " + " ".join(f"{short:<5}" for _, short in ROLES)]
    for layer, row in layers.items():
        cells = [row[role]["format"] if role in row else "-" for role, _ in ROLES]
        lines.append(f"    {layer:>5}  " + " ".join(f"{cell:<5}" for cell in cells))
    count = sum(row["format"] != "bf16" for row in tensors)
    lines.append(f"    {count} of {len(tensors)} weights are fp8; norms and embedding stay bf16")
    return "\n".join(lines)


# --- The final table -----------------------------------------------------------------------------


def eval_cells(row):
    return [
        row["name"],
        f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}",
        f"{row['invalid']:.3f}",
        f"{row['output_tok_per_s']:,.0f}",
        f"{row['bytes']:,}",
    ]


EVAL_HEADER = ["weights", "accuracy", "invalid", "token/s", "bytes"]


def push_cells(push):
    return [
        ("update time", f"{push['seconds']:.2f} s"),
        ("generation paused", f"{push['pause_ms']:.1f} ms"),
        ("bytes sent (BF16)", f"{push['bytes']:,}"),
        ("requests in flight", f"{push['in_flight']}"),
        ("retracted", f"{push['retracted']}"),
        ("lost", f"{push['lost']}"),
        ("complete replies", f"{push['complete']} of {push['requests']}"),
        ("with both versions", f"{push['both_versions']}"),
    ]


def table_text(results):
    """The one table at the end of the demo."""
    rows = [EVAL_HEADER] + [eval_cells(row) for row in results["evals"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(EVAL_HEADER))]
    lines = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        cells = [f"{first[0]:<{first[1]}}"] + [f"{cell:>{width}}" for cell, width in rest]
        lines.append("  " + "  ".join(cells))
    lines.insert(1, "  " + "  ".join("-" * width for width in widths))
    lines.append("")
    for name, value in push_cells(results["push"]):
        lines.append(f"  {name:<{widths[0]}}  {value}")
    return "\n".join(lines) + "\n"


# --- Pictures ------------------------------------------------------------------------------------


def precision_svg(tensors):
    """Layers down, weights across; a cell's tooltip gives the rule and the reason."""
    cell_w, cell_h, left, top = 64, 26, 92, 28
    layers = linear_rows(tensors)
    others = [row for row in tensors if row["layer"] is None]
    width = left + cell_w * len(ROLES) + 8
    height = top + cell_h * (len(layers) + len(others)) + 10
    parts = [svg_open(width, height, "Precision of every linear layer")]
    for i, (_, short) in enumerate(ROLES):
        parts.append(svg_text(left + cell_w * i + cell_w / 2, top - 10, short, "middle"))
    y = top
    for row in [r for r in others if r["role"] == "embedding"]:
        parts.append(wide_cell(row, left, y, cell_w * len(ROLES), cell_h))
        y += cell_h
    for layer, row in layers.items():
        parts.append(svg_text(left - 10, y + cell_h / 2 + 4, f"layer {layer}", "end"))
        for i, (role, _) in enumerate(ROLES):
            if role in row:
                parts.append(svg_cell(row[role], left + cell_w * i, y, cell_w, cell_h))
        y += cell_h
    for row in [r for r in others if r["role"] != "embedding"]:
        parts.append(wide_cell(row, left, y, cell_w * len(ROLES), cell_h))
        y += cell_h
    return "".join(parts) + "</svg>"


def wide_cell(row, x, y, width, height):
    label = {"embedding": "embedding", "lm_head": "head"}.get(row["role"], "final norm")
    return svg_text(x - 10, y + height / 2 + 4, label, "end") + svg_cell(row, x, y, width, height)


def svg_cell(row, x, y, width, height):
    fmt = row["format"]
    ink = "#fff" if fmt == "fp8" else "#333"
    tip = f"{row['name']}\n{fmt}: {row['reason']} [{row['rule']}]"
    return (
        f'<g><title>{escape(tip)}</title><rect x="{x + 1}" y="{y + 1}" width="{width - 2}" '
        f'height="{height - 2}" rx="3" fill="{COLORS.get(fmt, "#999")}"/>'
        + svg_text(x + width / 2, y + height / 2 + 4, fmt, "middle", ink)
        + "</g>"
    )


def flight_svg(push):
    """One line a request: its tokens, coloured by the weight version that each was drawn with."""
    width, left, line, top = 640, 8, 5, 4
    spans = push["spans"]
    longest = max((sum(s["tokens"] for s in row) for row in spans), default=0) or 1
    scale = (width - 2 * left) / longest
    height = top + line * len(spans) + 24
    parts = [svg_open(width, height, "Tokens of each request by weight version")]
    for i, row in enumerate(spans):
        x = float(left)
        for span in row:
            color = VERSION_COLORS[min(int(span["version"]), 3)]
            w = span["tokens"] * scale
            tip = f"request {i}: {span['tokens']} tokens of version {span['version']}"
            parts.append(
                f'<rect x="{x:.1f}" y="{top + line * i}" width="{w:.1f}" height="{line - 1}" '
                f'fill="{color}"><title>{escape(tip)}</title></rect>'
            )
            x += w
    y = top + line * len(spans) + 16
    parts.append(svg_text(left, y, "token 0", "start"))
    parts.append(svg_text(width - left, y, f"token {longest:,}", "end"))
    return "".join(parts) + "</svg>"


def accuracy_svg(evals):
    """A bar for each evaluation, with one standard error."""
    left, bar, gap, width, top = 190, 22, 10, 640, 4
    height = top + (bar + gap) * len(evals) + 18
    span = width - left - 70
    parts = [svg_open(width, height, "Accuracy of each evaluation")]
    for i, row in enumerate(evals):
        y = top + (bar + gap) * i
        end = left + span * row["accuracy"]
        error = span * row["standard_error"]
        color = COLORS["bf16"] if row["name"].startswith("BF16") else COLORS["fp8"]
        parts.append(svg_text(left - 10, y + bar / 2 + 4, row["name"], "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="{bar}" rx="3" '
            f'fill="{color}"/><line x1="{end - error:.1f}" x2="{end + error:.1f}" '
            f'y1="{y + bar / 2}" y2="{y + bar / 2}" stroke="#111" stroke-width="2"/>'
        )
        parts.append(svg_text(end + error + 8, y + bar / 2 + 4, f"{row['accuracy']:.3f}", "start"))
    return "".join(parts) + "</svg>"


def svg_open(width, height, title):
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    )


def svg_text(x, y, text, anchor, color="#333"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
        f'font-size="12">{escape(text)}</text>'
    )


# --- The page ------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto;
       max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p, .note { color: #475467; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e4e7ec; text-align: right; }
th { font-weight: 600; }
th:first-child, td:first-child, table.left td, table.left th { text-align: left; }
table.left td:nth-child(n+2) { overflow-wrap: anywhere; }
table.left td.ok, table.left td.bad { overflow-wrap: normal; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
code { background: #f2f4f7; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }
.ok { color: #067647; font-weight: 600; } .bad { color: #b42318; font-weight: 600; }
.key { display: inline-block; width: .9rem; height: .9rem; border-radius: 3px; margin: 0 .3rem
       -.1rem .8rem; }
.key:first-child { margin-left: 0; }
svg { max-width: 100%; height: auto; font-family: system-ui, sans-serif; }
"""


def row_html(cells, tag="td"):
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def checks_html(checks):
    rows = []
    for check in checks:
        mark = '<td class="ok">held</td>' if check["held"] else '<td class="bad">FAILED</td>'
        cells = [check["what"], check["expected"], check["actual"]]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + mark + "</tr>")
    head = row_html(["check", "expected", "actual", ""], "th")
    return f'<table class="left">{head}{"".join(rows)}</table>'


def key_html(entries):
    return "".join(
        f'<span class="key" style="background:{color}"></span>{escape(label)}'
        for label, color in entries
    )


def table_html(header, rows):
    body = "".join(row_html(row) for row in rows)
    return f"<table>{row_html(header, 'th')}{body}</table>"


def precision_html(results):
    tensors = results["plan"]["tensors"]
    low = sum(row["format"] != "bf16" for row in tensors)
    ratio = results["bytes_fp8"] / results["bytes_bf16"]
    keys = key_html([("FP8, 128×128 blocks", COLORS["fp8"]), ("BF16", COLORS["bf16"])])
    return f"""
<h2>Which layer has which precision</h2>
{precision_svg(tensors)}
<p class="note">{keys}. Policy <code>{escape(results["policy"])}</code>: {low} of {len(tensors)}
weights in FP8, norms always in BF16; {ratio:.0%} of the bytes. Point at a cell for the rule that
decided it. Hash of the table: <code>{escape(results["plan"]["hash"])}</code></p>
"""


def push_html(push):
    labels = ["tokens of the early weights (version 0)", "tokens of the pushed weights (version 1)"]
    keys = key_html(zip(labels, VERSION_COLORS[:2], strict=True))
    rows = "".join(row_html(cells) for cells in push_cells(push))
    return f"""
<h2>New weights while requests run</h2>
{flight_svg(push)}
<p class="note">{keys}. One line a request. At the swap each was retracted: its cache was dropped
and recomputed under the new weights, its tokens were kept, and every token knows its version.</p>
<table class="left">{rows}</table>
"""


def verdict_html(checks):
    if all(check["held"] for check in checks):
        return f'<span class="ok">all {len(checks)} checks held</span>'
    return '<span class="bad">a check did not hold</span>'


def html(results):
    """The whole page; nothing is loaded from anywhere."""
    evals = results["evals"]
    steps = [[row["title"], f"{row['seconds']:.1f} s"] for row in results["steps"]]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Octavo: the demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body>
<h1>Octavo: the main job, end to end</h1>
<p>A BF16 checkpoint became a mixed FP8/BF16 one, was served, kept its accuracy, and took new
weights while {results["push"]["requests"]} requests were in flight:
{verdict_html(results["checks"])}, {results["seconds"]:.0f} s.</p>

<h2>Accuracy</h2>
{accuracy_svg(evals)}
{table_html(EVAL_HEADER, [eval_cells(row) for row in evals])}
<p class="note">{evals[0]["questions"]:,} problems, 0 shots, greedy; ± is one standard error. Bytes
are those of the weights as stored. token/s is output tokens per second of the whole evaluation over
HTTP.</p>
{precision_html(results)}
{push_html(results["push"])}
<h2>Proof</h2>
<p>Digest of the live weights after the push: <code>{escape(results["digest_live"])}</code><br>
Digest of the offline conversion: <code>{escape(results["digest_fp8"])}</code></p>
{checks_html(results["checks"])}

<h2>Time</h2>
{table_html(["step", "time"], steps)}
</body></html>
"""
