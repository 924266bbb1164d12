"""`impasto new`: the example settings, also as packed in a wheel."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from impasto.cli.new import new
from impasto.errors import ConfigError

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (CHECKOUT / "configs").glob("*.toml"))


def test_all_examples_are_listed_with_what_they_are_for():
    output = CliRunner().invoke(new).output
    assert [line.split()[0] for line in output.splitlines()] == EXAMPLES
    assert all(len(line.split()) > 5 for line in output.splitlines())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_written_and_can_be_read(name, tmp_path):
    file = tmp_path / "my settings.toml"
    result = CliRunner().invoke(new, [name, str(file)])
    assert result.exit_code == 0
    verb = "dataset plan" if name == "dataset" else "train"
    assert f"{verb} '{file}'" in result.output.replace("\n", "").replace('"', "'")
    copied = tomllib.loads(file.read_text(encoding="utf-8"))
    assert copied == tomllib.loads((CHECKOUT / "configs" / f"{name}.toml").read_text("utf-8"))


def test_nothing_is_replaced_and_a_misspelt_name_gets_the_nearest(tmp_path):
    file = tmp_path / "taken.toml"
    file.write_text("mine")
    taken = CliRunner().invoke(new, ["style-12gb", str(file)])
    assert isinstance(taken.exception, ConfigError)
    assert file.read_text() == "mine"
    unknown = CliRunner().invoke(new, ["styl-12gb"])
    assert "Did you mean style-12gb?" in str(unknown.exception)


def test_the_wheel_carries_them_and_says_that_it_is_typed():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "impasto/examples"}
    assert (CHECKOUT / "src" / "impasto" / "py.typed").is_file()


def test_every_dependency_is_bounded_above_by_what_was_not_tested():
    """The pinned versions are within the bounds, and the bounds end soon after."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    for requirement in project["dependencies"]:
        name, _, bounds = requirement.partition(">=")
        low, _, high = bounds.partition(",<")
        pinned = [int(part) for part in pins[name].split(".")[:3]]
        assert [int(part) for part in low.split(".")] <= pinned, requirement
        assert pinned < [int(part) for part in high.split(".")], requirement
