"""The house rules that a linter does not know: where modules, imports and packages may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "serve_app"
TOP_LEVEL = {"__init__.py", "__main__.py", "app.py", "cli.py", "errors.py"}
MAX_LOCAL_IMPORTS = 15
TORCH = {"torch", "transformers"}


def modules() -> Iterator[tuple[str, ast.Module, list[str]]]:
    """Yield the path below the package, the syntax tree and the lines of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(text), text.splitlines()


def local_imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports inside functions, in order."""
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = {
        node
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(found, key=lambda node: node.lineno)


def imported(node: ast.AST) -> set[str]:
    """Return the packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {(node.module or "").split(".")[0]}
    return set()


def test_every_module_has_a_room() -> None:
    """Nothing is at the top level but the entry points, the version and the errors."""
    assert {path.name for path in PACKAGE.glob("*.py")} == TOP_LEVEL


def test_an_import_inside_a_function_says_why() -> None:
    """On its line or in the comment above it; several imports in a row share one comment."""
    silent: list[str] = []
    for name, tree, lines in modules():
        explained = 0
        for node in local_imports(tree):
            above = lines[node.lineno - 2].strip().startswith("#")
            own = any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
            if above or own or explained == node.lineno - 1:
                explained = node.end_lineno or node.lineno
            else:
                silent.append(f"{name}:{node.lineno}")
    assert silent == []


def test_few_imports_are_inside_functions() -> None:
    """They hide what a module depends on."""
    found = [f"{name}:{node.lineno}" for name, tree, _ in modules() for node in local_imports(tree)]
    assert len(found) <= MAX_LOCAL_IMPORTS, found


def test_torch_is_imported_below_towers_only() -> None:
    """Everything else runs without it, or through a tower."""
    offenders = {
        name
        for name, tree, _ in modules()
        if not name.startswith("towers/") and any(TORCH & imported(n) for n in ast.walk(tree))
    }
    assert offenders == set()


def test_the_package_imports_nothing_of_the_repository() -> None:
    """`tools`, `tests` and `bench` are not installed with it."""
    offenders = {
        name
        for name, tree, _ in modules()
        if any({"tools", "tests", "bench"} & imported(n) for n in ast.walk(tree))
    }
    assert offenders == set()
