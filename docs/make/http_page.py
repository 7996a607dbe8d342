"""The HTTP API of `serve.py` as a page, from its OpenAPI description."""

from __future__ import annotations

import json
from typing import Any

from openings import opening


def http_page() -> dict[str, str]:
    """Page to Markdown.  ValueError names all that is not described."""
    described = openapi()
    if missing := undescribed(described):
        raise ValueError("undescribed in the HTTP API: " + "; ".join(missing))
    lines = [
        "# HTTP API",
        *opening(
            "python serve.py --run checkpoints/pusht-goals",
            "../images/service.svg",
            "An image is encoded, an action predicts the next numbers, and these are decoded",
        ),
        "Routes of `serve.py`, from its OpenAPI description, which it serves at `/openapi.json`. "
        "[Serve a run](../tutorial/serve.md) shows how they are used.",
        "",
        described["info"]["description"],
        "",
    ]
    for route, methods in described["paths"].items():
        for method, operation in methods.items():
            lines += _operation(f"{method.upper()} {route}", operation)
    lines += ["## Messages", ""]
    for name, schema in described["components"]["schemas"].items():
        if schema.get("properties") and not name.startswith(("HTTP", "Validation")):
            lines += _schema(name, schema)
    return {"reference/http.md": "\n".join(lines)}


def openapi() -> dict[str, Any]:
    """The description of the service, without any run."""
    from pipeline.serve.guard import Guard
    from pipeline.serve.service import Service
    from pipeline.serve.service_app import make_service_app
    from pipeline.serve.service_config import ServiceConfig

    guard = make_service_app(Service(NoWorker(), ServiceConfig()))  # type: ignore[arg-type]
    assert isinstance(guard, Guard)
    return guard.app.openapi()  # type: ignore[attr-defined]


def undescribed(described: dict[str, Any]) -> list[str]:
    """Routes and fields of messages that say nothing of themselves."""
    routes = [
        f"{method.upper()} {route}"
        for route, methods in described["paths"].items()
        for method, operation in methods.items()
        if not operation.get("description")
    ]
    fields = [
        f"{name}.{field}"
        for name, schema in described["components"]["schemas"].items()
        for field, value in schema.get("properties", {}).items()
        if not name.startswith(("HTTP", "Validation")) and not value.get("description")
    ]
    return routes + fields


class NoWorker:
    """In the place of a worker that nobody asks."""


def _operation(title: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"## `{title}`", "", operation.get("description", operation.get("summary", "")), ""]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if name := _name(body.get("schema", {})):
        lines += [f"Asked: [{name}](#{name.lower()}).", ""]
    lines += ["| Status | |", "|---|---|"]
    for status, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        name = _name(schema)
        shown = f"[{name}](#{name.lower()})" if name else ""
        lines.append(f"| {status} | {_cell(answer['description'])} {shown} |")
    return [*lines, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    lines = [f"### {name}", "", _cell(schema.get("description", "")), ""]
    lines += ["| Field | Type | |", "|---|---|---|"]
    for field, value in schema["properties"].items():
        need = "" if field in required else " Optional."
        lines.append(
            f"| `{field}` | {_type(value)} | {_cell(value.get('description', ''))}{need} |"
        )
    if examples := schema.get("examples") or ([schema["example"]] if "example" in schema else []):
        lines += ["", "```json", json.dumps(examples[0], indent=1)[:600], "```"]
    return [*lines, ""]


def _name(schema: dict[str, Any]) -> str:
    return schema.get("$ref", "").rpartition("/")[2]


def _type(value: dict[str, Any]) -> str:
    if name := _name(value):
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(_type(option) for option in value["anyOf"])
    if value.get("type") == "array":
        return f"array of {_type(value.get('items', {}))}"
    return str(value.get("type", "any"))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
