"""The architecture: layers, light imports, no branches on names, public names."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from support.warm import running

import impasto
from impasto.config.output import SamplerName
from impasto.sampler_table import SAMPLERS

SOURCE = Path(impasto.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


LIGHT = (
    "import impasto",
    "import impasto.config.load",
    "import impasto.data.scanning.scan, impasto.data.planning.plan",
    "import impasto.data.loading.sampler, impasto.data.inspecting.health",
    "import impasto.datasets.build",
    "import impasto.sdscripts.metadata_tools, impasto.sdscripts.annotation_tools",
    "import impasto.cli.main as m; [m.impasto.get_command(None, v) for v in m.VERBS]",
)
HELP = (
    "from click.testing import CliRunner; from impasto.cli.main import impasto; "
    "assert CliRunner().invoke(impasto, ['--help']).exit_code == 0"
)


def loaded_after(*statements: str, fresh: bool) -> list[set[str]]:
    """Return the modules that a process has loaded after each of several statements."""
    shown = "print(' '.join(sys.modules))"
    program = "\n".join(["import sys", *(line for each in statements for line in (each, shown))])
    result = running.run("-c", program, fresh=fresh)
    assert result.returncode == 0, result.stderr
    return [set(line.split()) for line in result.stdout.splitlines()]


def loaded_modules(statement: str) -> set[str]:
    """Return the modules that an interpreter has loaded after a statement."""
    return loaded_after(statement, fresh=True)[0]


def test_help_and_light_parts_import_no_torch():
    """Help imports almost nothing."""
    help_, *others = loaded_after(HELP, *LIGHT, fresh=True)
    assert not help_ & {"torch", "pydantic", "numpy", "PIL", "rich"}
    heavy = {"torch", "diffusers", "transformers", "jinja2"}
    assert [part for part, found in zip(LIGHT, others, strict=True) if found & heavy] == []


def test_commands_import_networks_without_what_quantizes_them():
    """PyTorch's compiler, which quantizers import, is not loaded either: it takes a second."""
    statement = (
        "from impasto.cli.imports import leave_out_quantizers; leave_out_quantizers()\n"
        "from impasto.cli.plan_worker import load_libraries; load_libraries()"
    )
    (found,) = loaded_after(statement, fresh=False)  # a fork of a process with these imports
    assert "diffusers.models.unets.unet_2d_condition" in found
    assert not found & {"bitsandbytes", "torchao", "torch._inductor.compile_fx"}


def test_layers_hold():
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [str(program)], cwd=SOURCE.parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_no_branch_on_a_family_or_prediction_name():
    pattern = re.compile(r"(family|prediction_type|prediction|\.name)\s*==\s*[\"']")
    table = {SOURCE / "models" / "families.py"}
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if path not in table
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line) and not re.search(r"(part|os|opcode)\.name", line)
    ]
    assert found == []


def test_pickles_are_read_in_one_place_and_never_run():
    """The pickle scanner imports `pickletools` and one exception, never a function that loads."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*import pickle$|pickle\.loads?\(", text, re.MULTILINE), path
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert bool(loads) == (path.name == "pickles.py"), path
        assert all("weights_only=True" in load for load in loads), path


def test_ram_is_asked_for_in_one_place():
    """psutil does not know a container's limit, and a run that trusts it is killed."""
    asking = [f for f in SOURCE.rglob("*.py") if "virtual_memory" in f.read_text(encoding="utf-8")]
    assert asking == [SOURCE / "ram.py"]


def test_public_names():
    assert impasto.__all__ == sorted(impasto.__all__)
    for name in impasto.__all__:
        value = getattr(impasto, name)
        assert isinstance(value, str) or value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        impasto.nonsense  # noqa: B018


def rows_of_additions():
    """Return the rows of the table "To add ..., touch ..." of ARCHITECTURE.md."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## To add ..., touch ...")[2].partition("\n## ")[0]
    return [row for row in table.splitlines() if row.startswith("| ") and "`" in row]


@pytest.mark.parametrize("row", rows_of_additions(), ids=lambda row: row.split("|")[1].strip())
def test_what_architecture_names_is_there(row):
    """Every file and folder that the page names exists, and every symbol is defined in one of
    them."""
    named = re.findall(r"`([^`]+)`", row)
    files = [name for name in named if "/" in name or name.endswith(".py")]
    found = [path for name in files for path in (SOURCE / name, ROOT / name) if path.exists()]
    assert len(found) == len(files), f"{files} names a missing file"
    inside = [p for path in found for p in (path.rglob("*.py") if path.is_dir() else [path])]
    defined = EXTRAS.keys() | {
        name for path in inside if path.suffix == ".py" for name in defined_names(path)
    }
    texts = [path.read_text(encoding="utf-8") for path in found if path.is_file()]
    for symbol in set(named) - set(files):
        is_command = " " in symbol
        assert symbol in defined or (is_command and any(symbol in text for text in texts)), (
            f"{symbol} is defined in none of {files}"
        )


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def defined_names(path):
    """Return the functions, classes, assigned names and table keys that a module defines.

    Members of a class are also listed as `Class.name`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        names = _names_of(node)
        found |= names
        if isinstance(node, ast.ClassDef):
            inside = set().union(*map(_names_of, node.body))
            found |= {f"{node.name}.{name}" for name in inside}
    return found


def _names_of(node):
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.Assign(targets=targets):
            return set().union(*map(_names_of, targets))
        case ast.AnnAssign(target=target):
            return _names_of(target)
        case ast.Dict(keys=keys):
            return {key.value for key in keys if isinstance(key, ast.Constant)}
    return set()


def test_definitions_are_told_from_words(tmp_path):
    """A symbol that occurs only in a comment or a call does not count as defined."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""Of gone."""\n# gone\ngone(x.gone, "gone")\nclass A:\n    b: int\n    def c(self): ...\n'
        'D = {"e": 1}\n',
        encoding="utf-8",
    )
    assert defined_names(path) == {"A", "b", "A.b", "c", "A.c", "D", "e"}


def test_every_file_and_function_of_the_page_is_there():
    """Files are named by the end of their path, functions of a module as `module.function`."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`([^`\s*]+\.py)`", text))
    known = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("*.py")]
    for folder in ("src", "bench", "tests", "scripts"):
        known += [f"/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*.py")]
    assert not [name for name in files if not any(path.endswith(f"/{name}") for path in known)]
    modules = {path.stem: path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py")}
    named = re.findall(r"`(\w+)\.([a-z]\w+)`", text)
    assert not [
        f"{module}.{name}"
        for module, name in named
        if name != "py"
        and module in modules
        and not re.search(rf"^(?:def |class )?{name}\b", modules[module], re.MULTILINE)
    ]


def test_samplers_of_previews_are_all_that_there_are():
    assert get_args(SamplerName) == tuple(SAMPLERS)
