"""The Python API as pages, from docstrings: modules that a program of one's own imports.

A public name of them without a docstring fails the build.
"""

from __future__ import annotations

from pathlib import Path

from attribute_docs import Member, read_module
from openings import opening

SECTIONS = {
    "worlds": (
        "Worlds: load, step, plan",
        (
            "pipeline/inference/load_world.py",
            "models/world.py",
            "models/world_parts.py",
            "models/world_env.py",
            "models/layers/sampling.py",
            "models/planning/planner.py",
            "models/planning/best_of_n.py",
        ),
    ),
    "data": (
        "Data: shards, clips, actions",
        (
            "data/shards/episode_dataset.py",
            "data/clips.py",
            "data/batch.py",
            "data/actions.py",
            "data/arrays/episode_writer.py",
            "data/ranges.py",
        ),
    ),
    "methods": (
        "Methods: the contracts",
        (
            "models/method.py",
            "models/registry.py:Entry DataSpec build_tokenizer default_config describe",
            "models/tokenizers/tokenizer.py",
            "models/dynamics/dynamics.py",
            "models/controllers/controller.py",
        ),
    ),
    "client": (
        "Client of the service",
        (
            "pipeline/client/sync_client.py",
            "pipeline/client/async_client.py",
            "pipeline/client/answers.py:Encoded Predicted RolledOut Planned Health Spec",
            "pipeline/client/calls.py:Retries",
            "pipeline/client/errors.py:ServiceError Unreachable TimedOut Busy Unauthorized "
            "SpecMismatch NotAvailable BadRequest BadAnswer",
            "pipeline/client/perception.py",
        ),
    ),
    "operations": ("Operations with kernels", ("kernels/__init__.py",)),
}
"""Pages: their title, and the files on each, `FILE` or `FILE:NAME NAME` for some of its names."""
OPENINGS = {
    "worlds": ("python -m pydoc models.world", "futures-strip.svg",
               "Three imagined futures from one start, under three sequences of actions"),
    "data": ("python preprocess.py check checkpoints/pusht-goals", "shards-strip.svg",
             "Six frames of an episode with the action that leads on from each"),
    "methods": ("python -m pydoc models.method", "roles.svg",
                "Frames, latents, states and actions flow between the three roles"),
    "client": ("python serve.py --run checkpoints/pusht-goals", "service.svg",
               "An image is encoded, an action predicts the next numbers, and these are decoded"),
    "operations": ("python -m bench kernels --quick", "masks.svg",
                   "Three attention masks: causal, by frames, and of a limited context"),
}  # fmt: skip
"""The command, the picture and its alt text at the head of each page."""


def python_pages(root: Path) -> dict[str, str]:
    """Page to Markdown.  ValueError names all that is undocumented."""
    modules = {file: _read(root, file) for _, files in SECTIONS.values() for file in files}
    inherited = _docs_of_methods(modules)
    missing = sorted(
        f"{file}: {name}"
        for file, (doc, members) in modules.items()
        for name in [*([] if doc else ["the file"]), *undocumented(members, inherited)]
    )
    if missing:
        raise ValueError("undocumented public names: " + "; ".join(missing))
    return {
        f"reference/python/{name}.md": _page(
            title, [(f, *modules[f]) for f in files], inherited, OPENINGS[name]
        )
        for name, (title, files) in SECTIONS.items()
    }


def _read(root: Path, file: str) -> tuple[str, list[Member]]:
    path, _, chosen = file.partition(":")
    doc, members = read_module(root / path)
    if gone := set(chosen.split()) - {member.name for member in members}:
        raise ValueError(f"{path} has no {', '.join(sorted(gone))}; mend SECTIONS")
    return doc, [member for member in members if not chosen or member.name in chosen.split()]


def _docs_of_methods(modules: dict[str, tuple[str, list[Member]]]) -> dict[str, str]:
    """Documentation of methods by name, for those that override one."""
    return {
        member.name: member.doc
        for _, members in modules.values()
        for owner in members
        for member in owner.members
        if member.doc
    }


def undocumented(members: list[Member], inherited: dict[str, str]) -> list[str]:
    """Names of classes and functions without a docstring, of methods also in what they override."""
    found = []
    for member in members:
        if member.kind in ("class", "function") and not member.doc:
            found.append(member.name)
        for inner in member.members:
            if inner.kind == "function" and not (inner.doc or inherited.get(inner.name)):
                found.append(f"{member.name}.{inner.name}")
    return found


def _page(
    title: str,
    modules: list[tuple[str, str, list[Member]]],
    inherited: dict[str, str],
    opens: tuple[str, str, str],
) -> str:
    command, picture, alt = opens
    lines = [f"# {title}", *opening(command, f"../../images/{picture}", alt)]
    for file, doc, members in modules:
        module = (
            file.partition(":")[0].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        )
        lines += [f"## `{module}`", "", _text(doc), ""]
        for member in members:
            lines += _entry(member, inherited)
    return "\n".join(lines)


def _entry(member: Member, inherited: dict[str, str]) -> list[str]:
    if member.kind == "constant":
        return [f"`{member.signature}`", "", member.doc, ""] if member.doc else []
    kind = "class " if member.kind == "class" else ""
    bases = f"\n    # of {', '.join(member.bases)}" if member.bases else ""
    lines = [f"### {member.name}", "", f"```python\n{kind}{member.signature}{bases}\n```", ""]
    lines += [_text(member.doc), ""]
    fields = [inner for inner in member.members if inner.kind == "field"]
    if fields:
        lines += ["| Field | |", "|---|---|"]
        lines += [f"| `{_cell(f.signature)}` | {_cell(f.doc)} |" for f in fields]
        lines.append("")
    for method in (inner for inner in member.members if inner.kind == "function"):
        doc = method.doc or inherited.get(method.name, "")
        lines += [f"#### {member.name}.{method.name}", "",
                  f"```python\n{method.signature}\n```", "", _text(doc), ""]  # fmt: skip
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(doc: str) -> str:
    """A docstring as Markdown: aligned columns and code keep their lines, angles stay angles."""
    out: list[str] = []
    for block in doc.split("\n\n"):
        lines = block.split("\n")
        aligned = any("   " in line.strip() for line in lines)
        if aligned or (len(lines) > 1 and all(x.startswith("    ") for x in lines if x.strip())):
            out.append("```text\n" + block + "\n```")
        else:
            out.append(block.replace("<", "&lt;").replace("*", "\\*"))
    return "\n\n".join(out)
