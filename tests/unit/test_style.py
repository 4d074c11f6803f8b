"""House style that a linter does not know, checked on every file of the project."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "models", "dataflows")

FUNCTION_LINES_MAX = 70
"""Origin: TigerBeetle's TIGER_STYLE; a function one sees whole."""

LINE_LENGTH_MAX = 100

FILE_BYTES_MAX = 2_000_000
"""Nothing larger belongs in a repository of source. Chosen."""

LONG_FUNCTIONS: dict[str, str] = {
    "features/windows.py::run_ring": "names sixteen arrays it borrows; a helper would count them"
}
"""`path::function` -> why it is longer than FUNCTION_LINES_MAX and better so."""


@cache
def project_files() -> tuple[Path, ...]:
    """Files that git tracks or would track, that exist."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = done.stdout.splitlines()
    if done.returncode != 0:  # a copy without its repository: the folders we know
        folders = (*PACKAGES, "tests", "docs", "deploy", "feature_repo", ".ci")
        found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
        return tuple(p for p in [*found, *ROOT.glob("*.*")] if "__pycache__" not in p.parts)
    return tuple(sorted(p for name in names if (p := ROOT / name).is_file()))


def python_files(*folders: str) -> list[Path]:
    """Python files, of some folders or of all."""
    return [
        p
        for p in project_files()
        if p.suffix == ".py" and (not folders or p.relative_to(ROOT).parts[0] in folders)
    ]


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name(path: Path) -> str:
    """The path as the project sees it."""
    return str(path.relative_to(ROOT))


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Qualified name and node of every function, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child  # type: ignore[misc]
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from functions(child, f"{prefix}{child.name}." if inner else prefix)


def exported(module: ast.Module) -> list[str] | None:
    """The names in `__all__`, None where there is no `__all__`."""
    for node in module.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            value = node.value  # type: ignore[union-attr]
            return [ast.literal_eval(e) for e in value.elts]  # type: ignore[union-attr]
    return None


def defined(module: ast.Module) -> dict[str, ast.stmt]:
    """Names bound at the top of a module, also below `if` and `try`, with their statements."""
    found: dict[str, ast.stmt] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n for target in targets for n in ast.walk(target))
            found |= {n.id: node for n in names if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(a.asname or a.name): node for a in node.names}
    return found


def test_every_module_opens_with_a_docstring() -> None:
    bare = [name(p) for p in python_files() if tree(p).body and not ast.get_docstring(tree(p))]
    assert bare == []


def test_every_module_of_the_packages_says_what_it_exports() -> None:
    silent = []
    for path in python_files(*PACKAGES):
        code = [n for n in tree(path).body if not isinstance(n, ast.Expr)]
        if code and exported(tree(path)) is None:
            silent.append(name(path))
    assert silent == []


def test_every_exported_name_exists_and_is_documented() -> None:
    wrong = []
    for path in python_files(*PACKAGES):
        found = defined(tree(path))
        for export in exported(tree(path)) or []:
            node = found.get(export)
            if node is None and "__getattr__" not in found:
                wrong.append(f"{name(path)}: __all__ names {export!r}, which is not there")
            is_code = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_code and not ast.get_docstring(node):  # type: ignore[arg-type]
                wrong.append(f"{name(path)}: {export} has no docstring")
    assert wrong == []


def test_functions_can_be_seen_whole() -> None:
    long = {}
    for path in python_files():
        for qualified, node in functions(tree(path)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                long[f"{name(path)}::{qualified}"] = lines
    unexplained = {k: v for k, v in long.items() if k not in LONG_FUNCTIONS}
    assert unexplained == {}, "cut them, or say in LONG_FUNCTIONS why they are better long"
    stale = [k for k in LONG_FUNCTIONS if k not in long]
    assert stale == [], "these are short or gone; take them off the list"


def test_lines_fit_the_page() -> None:
    wide = [
        f"{name(p)}:{i}"
        for p in python_files()
        for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LINE_LENGTH_MAX
    ]
    assert wide == []


def test_no_path_of_one_machine_stands_in_the_project() -> None:
    roots = ("work", "home/[a-z]", "root", "Users", "farm")
    machine = re.compile(rf"(?<![\w.~*-])/({'|'.join(roots)})(/|\b[^:])")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{name(path)}:{i}: {line.strip()[:80]}"
            for i, line in enumerate(text.splitlines(), 1)
            if machine.search(line)
        ]
    assert found == []


def test_constraints_name_versions_and_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+( ; .+)?", line)]
    assert odd == []
    assert not (ROOT / "uv.lock").exists(), "uv.lock names the host of the registry"


def test_nothing_pure_reads_a_clock_or_prints() -> None:
    """`features` and `models` are functions of their input; time comes in with the events."""
    clocks = {"time", "time_ns", "now", "utcnow", "today"}
    wrong = []
    for path in python_files("features", "models"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            f = node.func
            if isinstance(f, ast.Name) and f.id == "print":
                wrong.append(f"{name(path)}:{node.lineno}: print")
            owner = f.value if isinstance(f, ast.Attribute) else None
            if (
                isinstance(f, ast.Attribute)
                and f.attr in clocks
                and isinstance(owner, ast.Name)
                and owner.id in ("time", "datetime", "date")
            ):
                wrong.append(f"{name(path)}:{node.lineno}: {owner.id}.{f.attr}()")
    assert wrong == []


def test_input_is_never_checked_by_assert() -> None:
    """`python -O` takes asserts out, and an AssertionError says no cure."""
    found = [
        f"{name(p)}:{node.lineno}"
        for p in python_files(*PACKAGES)
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_names_of_tests_are_sentences() -> None:
    words_min = 3
    short = [
        f"{name(p)}::{qualified}"
        for p in python_files("tests")
        for qualified, node in functions(tree(p))
        if node.name.startswith("test_") and len(node.name.split("_")) - 1 < words_min
    ]
    assert short == []


def test_only_service_and_bench_tests_may_sleep() -> None:
    sleeping = [
        f"{name(p)}:{node.lineno}"
        for p in python_files("tests")
        if p.relative_to(ROOT).parts[1] not in ("service", "bench")
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
    ]
    assert sleeping == []


def test_folders_of_tests_are_packages() -> None:
    folders = {p.parent for p in python_files("tests")}
    assert [name(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_no_large_file_is_part_of_the_project() -> None:
    large = [name(p) for p in project_files() if p.stat().st_size > FILE_BYTES_MAX]
    assert large == []
