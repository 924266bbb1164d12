"""`impasto settings`: the meaning, type, default and an example of each setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.tree import Setting, SettingSection


@click.command()
@click.argument("key", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def settings(key: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Explain the settings of a run: all sections, the section KEY, or the one setting KEY.

    \b
    impasto settings
    impasto settings training
    impasto settings training.batch_size
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.config.tree import TOP, all_sections

    console = Console()
    if key is None:
        if as_json:
            click.echo(json_text([_section_value(section) for section in all_sections()]))
            return
        console.table({section.name or TOP: section.docs for section in all_sections()})
        console.note("\nThe settings of a section: impasto settings training")
        return
    found = _find(key, console, silent=as_json)
    if as_json:
        value = _section_value(found) if _is_section(found) else setting_value(found)
        click.echo(json_text(value))
    elif _is_section(found):
        _show_section(found, console)
    else:
        _show_setting(found, console)


def setting_value(setting: Setting) -> dict[str, Any]:
    """Return the description, type, bounds, default and example of a setting, for programs."""
    from impasto.config.tree import former_name_of

    return {
        "path": setting.path,
        "docs": setting.docs,
        "type": setting.type.text,
        "choices": list(setting.type.choices),
        "bounds": dict(setting.type.bounds),
        "can_be_off": setting.type.can_be_off,
        "required": setting.is_required,
        "default": setting.default,
        "kinds": list(setting.kinds),
        "former_name": former_name_of(setting.path) or None,
        "example": {"toml": _toml_example(setting), "set": _set_example(setting)},
    }


def _section_value(section: SettingSection) -> dict[str, Any]:
    return {
        "section": section.name,
        "docs": section.docs,
        "kinds": list(section.kinds),
        "settings": [setting_value(setting) for setting in section.settings],
    }


def _is_section(found: Any) -> bool:
    return hasattr(found, "settings")


def _find(key: str, console: Console, *, silent: bool) -> Any:
    """Find a section or setting by its name, which may be a former name.

    Raises:
        ConfigError: There is none of that name; the message suggests the nearest.
    """
    from impasto.config import elsewhere
    from impasto.config.renamed import present_path
    from impasto.config.tree import (
        TOP,
        all_sections,
        all_settings,
        nearest,
    )
    from impasto.errors import ConfigError

    present = present_path(key.strip().strip("[]"))
    if present != key and present in all_settings() and not silent:
        console.note(f"{key} is called {present} now.\n")
    sections = {section.name or TOP: section for section in all_sections()}
    found = sections.get(present) or all_settings().get(present) or _of_subsets(present)
    if found is not None:
        return found
    near = elsewhere.meant(present) or nearest(present, [*all_settings(), *sections])
    hint = f" Did you mean {near}?" if near else ""
    raise ConfigError(
        f"There is no setting {key!r}.{hint} The sections are "
        f"{', '.join(name for name in sections if name != TOP)}; impasto settings SECTION lists "
        f"the settings of a section."
    )


def _of_subsets(path: str) -> Setting | None:
    """Find a setting that only subsets have, by its path or name; None if there is none."""
    from impasto.config.tree import SUBSETS, subset_settings

    section, _, name = path.rpartition(".")
    return subset_settings().get(name) if section in ("", "dataset", SUBSETS) else None


def _show_section(section: SettingSection, console: Console) -> None:
    console.note(section.docs)
    for setting in section.settings:
        kinds = f" (of {', '.join(setting.kinds)})" if _is_of_some_kinds(section, setting) else ""
        console.heading(f"{setting.path}{kinds}")
        default = "required" if setting.is_required else f"default {setting.default_text}"
        console.note(f"  {setting.type.text}; {default}")
        console.note(f"  {setting.first_sentence}")


def _is_of_some_kinds(section: SettingSection, setting: Setting) -> bool:
    return (
        bool(section.kinds)
        and setting.kinds != section.kinds
        and len(setting.kinds) < len(section.kinds)
    )


def _show_setting(setting: Setting, console: Console) -> None:
    from impasto.config.tree import former_name_of

    console.heading(setting.path)
    console.paragraph(setting.docs)
    former = former_name_of(setting.path)
    console.note("")
    console.table(
        {
            "Type": setting.type.text,
            "Default": setting.default_text,
            **({"Kinds": ", ".join(setting.kinds)} if setting.kinds else {}),
            **({"Former name": former} if former else {}),
        }
    )
    examples = filter(None, (_toml_example(setting), _set_example(setting)))
    console.note("\n" + "\n\n".join(examples))


def _toml_example(setting: Setting) -> str:
    from impasto.config.tree import SUBSETS

    table = f"[[{SUBSETS}]]" if setting.section == SUBSETS else f"[{setting.section}]"
    head = f"{table}\n" if setting.section else ""
    return f"{head}{setting.name} = {_example_value(setting)}"


def _set_example(setting: Setting) -> str | None:
    """Return the --set option for a setting; None for a setting of subsets, which are a list."""
    from impasto.config.examples import example_of
    from impasto.config.fields import written
    from impasto.config.tree import SUBSETS
    from impasto.invocation import quoted

    if setting.section == SUBSETS:
        return None
    value = example_of(setting)
    text = written(value) if isinstance(value, str) else _example_value(setting)
    return f"--set {quoted(f'{setting.path}={text}')}"


def _example_value(setting: Setting) -> str:
    from impasto.config.examples import example_of
    from impasto.config.fields import toml_value

    return toml_value(example_of(setting))
