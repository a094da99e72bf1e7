"""The rooms of the source: no file imports itself over others, and every module says what it is for."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"


def _modules() -> dict[str, ast.Module]:
    named = {}
    for path in sorted((SOURCES / "portend").rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return named


def _imports(tree: ast.Module, names: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & names) | ({node.module} if inner - names else set())
    return found & names


def test_no_file_imports_itself_over_others() -> None:
    """Imports inside functions and for types count too: a circle of files cannot be read from one end."""
    modules = _modules()
    imported = {name: _imports(tree, set(modules)) - {name} for name, tree in modules.items()}
    assert sum(map(len, imported.values())) > 500
    TopologicalSorter(imported).prepare()  # CycleError names the files of a circle


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in _modules().items() if not ast.get_docstring(tree)] == []


def test_the_service_is_made_of_parts() -> None:
    """Each is short enough to be read at once, and none knows the agent that joins them."""
    modules = _modules()
    service = {name: tree for name, tree in modules.items() if name.startswith("portend.service.")}
    assert len(service) > 20
    long = {
        f"{name}.{node.name}": lines
        for name, tree in service.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 250
    }
    assert long == {}
    users = {name for name, tree in modules.items() if "portend.service.agent" in _imports(tree, set(modules))}
    assert users == {"portend.cli.service"}
