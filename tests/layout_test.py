"""Imports point one way: commands, studies, training, networks and data, lars."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

LEVELS = (
    ("experiments.checks", "lars"),
    ("configs",),
    ("experiments.data", "experiments.networks", "experiments.results"),
    ("experiments.training",),
    ("experiments.cli",),
    ("experiments.speed", "experiments.studies"),
    ("experiments",),  # the commands
)
"""What stands in a line may import from itself and from the lines above it."""

OPTIMIZER = {"jax", "jaxlib", "numpy", "optax", "lars"}
"""What the optimizer imports, besides the standard library."""


def level_of(module):
    """The number of the line that a module stands in, and its name there."""
    places = [(i, name) for i, line in enumerate(LEVELS) for name in line]
    return max(
        (place for place in places if f"{module}.".startswith(f"{place[1]}.")),
        key=lambda place: len(place[1]),
    )


def imports():
    """Pairs of a module of ours and one that it imports."""
    for file in sorted(ROOT.glob("*/**/*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ("configs", "experiments", "lars"):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    path = ROOT / deeper.replace(".", "/")
                    is_module = path.is_dir() or path.with_suffix(".py").exists()
                    yield name, deeper if is_module else node.module


def test_imports_point_one_way():
    found = [
        (name, other)
        for name, other in imports()
        if other.split(".")[0] in ("configs", "experiments", "lars")
    ]
    assert len(found) > 100
    for name, other in found:
        (mine, place), (its, its_place) = level_of(name), level_of(other)
        allowed = its < mine or place == its_place
        assert allowed, f"{name} imports {other}, which is above it or beside it"


def test_the_optimizer_imports_jax_and_optax_alone():
    import sys

    for name, other in imports():
        if name.split(".")[0] == "lars":
            top = other.split(".")[0]
            assert top in OPTIMIZER or top in sys.stdlib_module_names, (name, other)
