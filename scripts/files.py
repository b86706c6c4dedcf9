"""Write docs/files.md: a line per file, taken from the first sentence of each module.

    .venv/bin/python scripts/files.py

A test fails when the page no longer says what the modules say.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("config", "memory", "model", "server", "worker", "cli", "bench")


def page() -> str:
    """Return the page's text."""
    lines = ["# Files", "", "Made by `scripts/files.py` from the modules' first sentences.", ""]
    for package in PACKAGES:
        lines += [f"## {package}/", "", first_sentence(ROOT / package / "__init__.py"), ""]
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT / package)
            if path.name != "__init__.py":
                lines.append(f"* `{name}`: {first_sentence(path)}")
            elif len(name.parts) > 1:
                lines.append(f"* `{name.parent}/`: {first_sentence(path)}")
        lines.append("")
    return "\n".join(lines)


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    (ROOT / "docs" / "files.md").write_text(page())
