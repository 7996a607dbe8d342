"""Read what a Python file documents, without importing it: classes, functions, fields.

The sentence under a field is its documentation, as everywhere in this project.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Member:
    """A class, function, field or constant of a file."""

    name: str
    kind: str
    """class, function, field or constant."""
    signature: str
    doc: str
    bases: tuple[str, ...] = ()
    members: list[Member] = field(default_factory=list)


def read_module(path: Path) -> tuple[str, list[Member]]:
    """The docstring of a file, and its public members in their order."""
    source = path.read_text()
    tree = ast.parse(source)
    return ast.get_docstring(tree) or "", list(_members(tree.body, "constant", source.split("\n")))


def _members(body: list[ast.stmt], kind: str, lines: list[str]) -> Iterator[Member]:
    for position, node in enumerate(body):
        following = body[position + 1] if position + 1 < len(body) else None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield _class(node, lines)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            if not {"overload", "setter"} & _decorators(node):
                yield Member(node.name, "function", _signature(node), _function_doc(node, lines))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if name.startswith("_"):
                continue
            value = f" = {ast.unparse(node.value)}" if node.value else ""
            rest = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :]
            signature = f"{name}: {ast.unparse(node.annotation)}{value}"
            yield Member(name, kind, signature, _below(following) or rest.strip(" #"))


def _function_doc(node: Function, lines: list[str]) -> str:
    """The docstring, or of a line or two that need none the comment behind the signature."""
    last = node.body[0].lineno - 2  # the line before the body
    behind = lines[last].partition("  # ")[2] if last >= node.lineno - 1 else ""
    return ast.get_docstring(node) or (f"{behind[0].upper()}{behind[1:]}." if behind else "")


def _class(node: ast.ClassDef, lines: list[str]) -> Member:
    members = list(_members(node.body, "field", lines))
    init = next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)
    made = _arguments(init) if init else ""
    call = next((n for n in node.body if isinstance(n, Function) and n.name == "__call__"), None)
    doc = ast.get_docstring(node) or (ast.get_docstring(call) if call else "") or ""
    if init and (more := ast.get_docstring(init)):
        doc = f"{doc}\n\n{more}".strip()
    bases = tuple(ast.unparse(base) for base in node.bases)
    return Member(node.name, "class", f"{node.name}{made}", doc, bases, members)


def _decorators(node: Function) -> set[str]:
    return {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}


def _signature(node: Function) -> str:
    if {"property", "cached_property"} & _decorators(node):
        return node.name + (f": {ast.unparse(node.returns)}" if node.returns else "")
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{start}{node.name}{_arguments(node)}{returns}"


def _arguments(node: Function) -> str:
    """The arguments in parentheses, without self and cls."""
    arguments = ast.arguments(**{f: getattr(node.args, f) for f in ast.arguments._fields})
    arguments.args = [a for a in arguments.args if a.arg not in ("self", "cls")]
    return f"({ast.unparse(arguments)})"


def _below(node: ast.stmt | None) -> str:
    """The string under a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        value = node.value.value
        if isinstance(value, str):
            return " ".join(value.split())
    return ""


def field_docs(path: Path, class_name: str) -> dict[str, str]:
    """The sentences under the fields of a class."""
    _, members = read_module(path)
    found = next(m for m in members if m.name == class_name)
    return {member.name: member.doc for member in found.members if member.kind == "field"}
