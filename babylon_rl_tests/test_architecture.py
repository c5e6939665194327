"""The rules of the house, checked over the source: order of imports, light modules, docstrings, SQL."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "babylon_rl"

# The data's way; a room may import itself and those before it.
ROOMS = (
    *("errors", "settings", "code_version", "windows", "pricing", "database", "recording", "outcomes"),
    *("readiness", "scoring", "groups", "training", "serving", "market", "evaluation", "staleness", "plans"),
    *("reporting", "defs"),
    *("definitions", "materializing", "loop", "playing", "launching", "console", "bench", "desk", "commands", "cli"),
)
SHELL = ROOMS[ROOMS.index("defs") :]
HEAVY = {"art", "torch", "transformers", "litellm", "wandb", "matplotlib", "peft"}
DAGSTER = {"dagster", "dagster_pipes", "dagster_postgres"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(nodes: list[ast.AST]) -> list[tuple[int, str]]:
    """Line and full name of everything that the nodes import."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return names


def at_import(node: ast.AST) -> list[ast.AST]:
    """Nodes that run when the module is imported: no bodies of functions, nothing for type checkers only."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            found += [n for other in child.orelse for n in (other, *at_import(other))]
            continue
        found += [child, *at_import(child)]
    return found


def backward_imports(room: str, tree: ast.Module) -> list[str]:
    """Imports of rooms that come later, also inside functions and for type checkers."""
    wrong = []
    for line, name in imported(list(ast.walk(tree))):
        parts = name.split(".")
        if parts[0] != "babylon_rl" or parts[1] == "__version__":
            continue
        assert parts[1] in ROOMS, f"line {line}: {parts[1]} has no place in the order of the rooms"
        if ROOMS.index(parts[1]) > ROOMS.index(room):
            wrong.append(f"line {line}: {room} imports {name}")
    return wrong


def heavy_imports(tree: ast.Module) -> list[str]:
    return [f"line {line}: {name}" for line, name in imported(at_import(tree)) if name.split(".")[0] in HEAVY]


def dagster_imports(tree: ast.Module) -> list[str]:
    return [f"line {line}: {name}" for line, name in imported(list(ast.walk(tree))) if name.split(".")[0] in DAGSTER]


# What is said of a run by whom knows how it ended: texts, views and scores, which no trained view may hold.
JUDGES_VIEW = ("babylon_rl.scoring.judge", "babylon_rl.scoring.texts", "babylon_rl.scoring.seam")
# Of a scorer its noise is asked for, and what it calls a run without a reward.
NO_VIEW = {f"babylon_rl.scoring.seam.{name}" for name in ("Scorer", "NO_CAPITAL")}


def judges_views(tree: ast.Module) -> list[str]:
    """Imports of the judge's view, also inside functions and for type checkers."""
    return [
        f"line {line}: {name}"
        for line, name in imported(list(ast.walk(tree)))
        if any(name == one or name.startswith(f"{one}.") for one in JUDGES_VIEW) and name not in NO_VIEW
    ]


def is_text_with_values(node: ast.AST) -> bool:
    """Whether the text is put together from values: an f-string, %, str.format, or + with something not a literal."""
    match node:
        case ast.JoinedStr():
            return any(isinstance(part, ast.FormattedValue) for part in node.values)
        case ast.BinOp(op=ast.Mod(), left=left):
            return isinstance(left, ast.Constant | ast.JoinedStr)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return is_text_with_values(left) or is_text_with_values(right)
        case ast.Call(func=ast.Attribute(attr="format", value=ast.Constant())):
            return True
    return False


def built_sql(tree: ast.Module) -> list[str]:
    """Calls that hand the database a text with values in it, written there or under a name beforehand."""
    named = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_text_with_values(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        first = node.args[0]
        if node.func.attr in {"execute", "executemany", "copy", "SQL", "text"} and (
            is_text_with_values(first) or (isinstance(first, ast.Name) and first.id in named)
        ):
            wrong.append(f"line {node.lineno}: {ast.unparse(first)[:60]}")
    return wrong


def of(room: str):
    return lambda tree: backward_imports(room, tree)


def test_imports_run_one_way():
    wrong = {
        name_of(path): found
        for path in MODULES
        if room_of(path) != "__init__" and (found := backward_imports(room_of(path), tree_of(path)))
    }
    assert not wrong


def test_every_module_has_a_place_in_the_order():
    assert {room_of(path) for path in MODULES} - {"__init__"} <= set(ROOMS)


def test_heavy_libraries_are_imported_inside_functions_only():
    assert not {name_of(path): found for path in MODULES if (found := heavy_imports(tree_of(path)))}


def test_only_the_shell_knows_dagster():
    outside = [path for path in MODULES if room_of(path) not in SHELL]
    assert not {name_of(path): found for path in outside if (found := dagster_imports(tree_of(path)))}


def test_groups_and_training_know_nothing_of_the_judges_view():
    trained = [path for path in MODULES if room_of(path) in ("groups", "training")]
    assert len(trained) > 20 and not {
        name_of(path): found for path in trained if (found := judges_views(tree_of(path)))
    }


def test_every_module_says_what_belongs_in_it():
    modules = [*MODULES, *(PACKAGE.parent / "migrations").rglob("*.py")]
    assert not [path.name for path in modules if path.stat().st_size and not ast.get_docstring(tree_of(path))]


def test_sql_takes_parameters_and_is_never_put_together_from_values():
    assert not {name_of(path): found for path in MODULES if (found := built_sql(tree_of(path)))}


@pytest.mark.parametrize(
    ("rule", "broken", "kept"),
    [
        (of("scoring"), "def f():\n from babylon_rl.groups import build", "import babylon_rl.windows"),
        (of("errors"), "from babylon_rl import defs", "from babylon_rl import __version__"),
        (heavy_imports, "try:\n import torch.nn\nexcept ImportError: pass", "def f():\n import torch"),
        (heavy_imports, "class A:\n from art import x", "if TYPE_CHECKING:\n import art"),
        (dagster_imports, "def f():\n from dagster import asset", "import pandas"),
        (judges_views, "def f():\n from babylon_rl.scoring.judge import view", "import babylon_rl.scoring.features"),
        (judges_views, "from babylon_rl.scoring.seam import RunText", "from babylon_rl.scoring.seam import Scorer"),
        (built_sql, "c.execute(f'SELECT {x}')", "c.execute('SELECT %s', (f'{x}',))"),
        (built_sql, "q = 'SELECT ' + f'{x}'\nc.execute(q)", "q = 'SELECT ' + 'x'\nc.execute(q)"),
        (built_sql, "c.execute('SELECT %s' % x)", "c.execute(sql.SQL('{}').format(x))"),
        (built_sql, "sql.SQL('SELECT {}'.format(x))", "sql.SQL('SELECT {}').format(x)"),
    ],
)  # fmt: skip
def test_each_rule_catches_a_planted_breach_and_passes_its_like(rule, broken, kept):
    assert rule(ast.parse(broken))
    assert not rule(ast.parse(kept))
