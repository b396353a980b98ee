"""One HTML file from the collected runs: style, script and data inside, no address outside.

The data is JSON, gzipped and in base64: rollouts are untrusted text, and base64 has no character that could end a
script element. The page inserts text as text, never as markup.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.files import write_text

HERE = Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main id="page"><p id="waiting">Unpacking the runs…</p></main>
<script type="text/plain" id="data">{data}</script>
<script>
{script}
</script>
</body>
</html>
"""


def write_page(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the report of the runs to `path`, whole or not at all."""
    content = {"made": f"{datetime.now():%Y-%m-%d %H:%M}", "runs": list(runs)}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    packed = gzip.compress(text.encode(errors="backslashreplace"), mtime=0)  # tests may hold bytes that are no UTF-8
    title = "Report: " + ", ".join(run["name"] for run in runs)
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("charts.js", "report.js")]
    write_text(
        path,
        PAGE.format(
            title=html.escape(title),
            style=(HERE / "report.css").read_text(encoding="utf-8"),
            data=base64.b64encode(packed).decode(),
            script="\n".join(scripts),
        ),
    )
