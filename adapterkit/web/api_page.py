"""The page /docs: the interface's schema for a reader, with nothing loaded from elsewhere."""

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid #8886; border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; }
tr { border-bottom: 1px solid #8884; }
.method { font-weight: 700; }
"""

_EXAMPLE = """curl -F image=@heart.png -F format=png -o heart_mask.png {address}api/v1/segment
curl -F image=@heart.png -F 'prompts=[{{"points": [{{"x": 120, "y": 80}}]}}]' \\
    {address}api/v1/segment
curl -H 'Authorization: Bearer TOKEN' {address}api/v1/adapters   # of a server with --token"""


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """What programs can ask, made of /openapi.json."""
    schema = request.app.openapi()
    parts = [
        f"<h1>{escape(schema['info']['title'])}</h1>",
        f"<p>{escape(schema['info'].get('summary', ''))} "
        f"{escape(schema['info'].get('description', ''))}</p>",
        '<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>',
        f"<pre>{escape(_EXAMPLE.format(address=request.base_url))}</pre>",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation, schema))
    parts.append("<h2>Objects</h2>")
    for name, each in schema.get("components", {}).get("schemas", {}).items():
        if not name.startswith(("Body_", "HTTPValidationError", "ValidationError")):
            parts.append(_object(name, each))
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>adapterkit: interface'
        f'</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _operation(path: str, method: str, operation: Any, schema: Any) -> str:
    parts = [
        f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        f"<p>{escape(operation.get('description', ''))}</p>",
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
    if body:
        reference = body["schema"].get("$ref", "").rpartition("/")[2]
        parts.append(_fields(schema["components"]["schemas"].get(reference, {})))
    rows = "".join(
        f"<tr><td>{escape(code)}</td><td>{escape(answer.get('description', ''))}</td>"
        f"<td><code>{escape(', '.join(answer.get('content', {})))}</code></td></tr>"
        for code, answer in operation["responses"].items()
    )
    return "".join([*parts, f"<table><tr><th>status<th>answer<th>as</tr>{rows}</table>"])


def _object(name: str, each: Any) -> str:
    values = each.get("enum")
    inside = f"<p><code>{escape(json.dumps(values))}</code></p>" if values else _fields(each)
    said = escape(each.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{said}</p>{inside}'


def _fields(each: Any) -> str:
    required = each.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(value)}</td>"
        f"<td>{'required' if name in required else ''}</td>"
        f"<td>{escape(value.get('description', ''))}</td></tr>"
        for name, value in each.get("properties", {}).items()
    )
    return f"<table><tr><th>name<th>type<th><th></tr>{rows}</table>"


def _type(value: Any) -> str:
    if "$ref" in value:
        name = escape(value["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in value or "allOf" in value:
        return " or ".join(_type(each) for each in value.get("anyOf") or value["allOf"])
    if value.get("type") == "array":
        inside = value.get("items") or (value.get("prefixItems") or [{}])[0]
        return f"list of {_type(inside)}"
    kind = "file" if value.get("format") == "binary" or "contentMediaType" in value else ""
    return escape(kind or str(value.get("type", "any")))
