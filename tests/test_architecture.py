"""Which package may import which, and when: read from the sources, none of which runs here."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("operators", "priors", "recon")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path, *, at_load: bool) -> set[str]:
    """Absolute names of the modules that a file imports; `at_load`: only those that importing it imports."""
    package = path.relative_to(ROOT).parent.parts

    def names(statement: ast.stmt) -> Iterator[str]:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else ()
            module = ".".join((*base, *filter(None, [statement.module])))
            yield from (f"{module}.{alias.name}" for alias in statement.names)

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for child in ast.iter_child_nodes(node):
            if at_load and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if at_load and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield from walk(child)

    return {name for node in walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt) for name in names(node)}


def roots(path: Path, *, at_load: bool) -> set[str]:
    return {name.split(".")[0] for name in imports(path, at_load=at_load)}


def of(package: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(ROOT).parts[0] == package]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_package_is_looked_at() -> None:
    assert all(len(of(package)) > 3 for package in PACKAGES)


@pytest.mark.parametrize("path", of("operators"), ids=names(of("operators")))
def test_operators_know_no_other_package(path: Path) -> None:
    assert not roots(path, at_load=False) & {"recon", "priors"}


@pytest.mark.parametrize("path", of("priors"), ids=names(of("priors")))
def test_priors_know_no_other_package(path: Path) -> None:
    assert not roots(path, at_load=False) & {"recon", "operators"}


@pytest.mark.parametrize("path", of("operators") + of("priors"), ids=names(of("operators") + of("priors")))
def test_the_leaves_load_torch_and_nothing_heavier(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert roots(path, at_load=True) <= {"torch", own, *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_torchvision_is_imported_nowhere(path: Path) -> None:
    """Its wheel breaks beside a CPU build of torch."""
    assert "torchvision" not in roots(path, at_load=False)


def test_the_command_line_loads_no_torch() -> None:
    """Neither itself nor through its own package."""
    files = sorted((ROOT / "recon" / "cli").glob("*.py"))
    loaded = {name for path in files for name in imports(path, at_load=True) if not name.startswith("recon.cli.")}
    assert "typer" in loaded
    assert not any(name.split(".")[0] in {"torch", "numpy", "operators", "priors", "recon"} for name in loaded)
    code = "import sys, recon.cli; print([name for name in ('torch', 'numpy', 'h5py', 'scipy') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_the_walk_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recon" / "io" / "format.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import json\nfrom typing import TYPE_CHECKING\nfrom ..mri import MRIScan\nfrom . import arrays\n"
        "if TYPE_CHECKING:\n    import h5py\ntry:\n    import yaml\nexcept ImportError:\n    pass\n"
        "class A:\n    import csv\n    def f(self):\n        import numpy.linalg as n\n        from recon import demo\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    always = {"json", "typing.TYPE_CHECKING", "recon.mri.MRIScan", "recon.io.arrays", "yaml", "csv"}
    assert imports(path, at_load=True) == always
    assert imports(path, at_load=False) == always | {"h5py", "numpy.linalg", "recon.demo"}
