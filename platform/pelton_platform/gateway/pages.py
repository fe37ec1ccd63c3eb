"""The page of a container, as HTML, JSON and text."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 3rem auto; max-width: 60rem; padding: 0 1rem }
body { color: #1c1e21 }
h1 { font-size: 1.4rem } table { border-collapse: collapse; width: 100% } a { color: #0b57d0 }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e3e5e8 }
.status { padding: .1rem .6rem; border-radius: 1rem; background: #e3e5e8; font-size: .9rem }
.running { background: #d3f3df } .crash-loop, .refused { background: #fbd9d7 }
.starting { background: #fdf0cd }
@media (prefers-color-scheme: dark) { body { background: #15171a; color: #e6e8ea } a { color: #8ab4f8 }
th, td { border-color: #33373c } .status { color: #1c1e21 } }
"""


def as_json(name: str, state: Mapping[str, Any], scaling: Mapping[str, Any], web_path: str) -> dict[str, Any]:
    """Return what is known of a container as plain data.

    Args:
        name: Its name.
        state: What the deployer made of it.
        scaling: The last decision on its instances.
        web_path: Where its program answers, "" where it has no port.
    """
    return {
        "name": name,
        "status": state["status"],
        "version": state["version"],
        "wanted": state["wanted"],
        "reason": state["reason"],
        "notes": list(state["notes"]),
        "instances": [dict(one) for one in state["instances"]],
        "scaling": dict(scaling),
        "path": web_path,
    }


def as_text(data: Mapping[str, Any]) -> str:
    """Return it as lines for people."""
    ready = sum(one["state"] == "ready" for one in data["instances"])
    lines = [f"{data['name']}: {data['status']}, version {data['version']}, {ready}/{data['wanted']} ready"]
    lines += [f"  {data['reason']}"] if data["reason"] else []
    lines += [f"  {note}" for note in data["notes"]]
    for one in data["instances"]:
        port = f" port {one['port']}" if one["port"] else ""
        lines.append(f"  {one['instance']}: {one['state']}, pid {one['pid']}{port} {one['reason']}".rstrip())
    if data["scaling"].get("reason"):
        lines.append(f"  instances: {data['scaling']['reason']}")
    if data["path"]:
        lines.append(f"  answers at {data['path']}")
    return "\n".join(lines) + "\n"


def as_html(data: Mapping[str, Any]) -> str:
    """Return it as a page that renews itself."""
    name, status = escape(data["name"]), escape(data["status"])
    rows = "".join(
        f"<tr><td>{escape(one['instance'])}</td><td>{escape(one['state'])}</td><td>{one['version']}</td>"
        f"<td>{one['pid']}</td><td>{one['port'] or ''}</td><td>{one['cpu']:.2f}</td>"
        f"<td>{one['memory'] / 2**20:.0f} MiB</td><td>{escape(one['reason'])}</td></tr>"
        for one in data["instances"]
    )
    table = (
        "<table><tr><th>instance</th><th>state</th><th>version</th><th>pid</th><th>port</th><th>CPU</th>"
        f"<th>memory</th><th></th></tr>{rows}</table>"
        if rows
        else "<p>No instance runs.</p>"
    )
    said = [data["reason"], *data["notes"], data["scaling"].get("reason", "")]
    words = "".join(f"<p>{escape(text)}</p>" for text in said if text)
    link = f'<p><a href="{escape(data["path"])}">open</a></p>' if data["path"] else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: {status}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{name} <span class="status {status}">{status}</span></h1>'
        f"<p>Version {data['version']}, {data['wanted']} instances wanted.</p>{link}{words}{table}"
        "</body></html>"
    )
