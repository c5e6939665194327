"""`babylon-rl settings`: each setting, its value and where it came from; and the template that lists them."""

import json

import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import JsonOption, console, errors
from babylon_rl.settings import get_settings, old_name_notes, told_settings

app = typer.Typer(help="What is set, and by what; `settings template` prints env.template.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print each setting, its value, and where that came from: default, environment, or a file. Secrets stay unsaid."""
    if context.invoked_subcommand is not None:
        return
    found = told_settings(get_settings())
    if as_json:
        print(json.dumps({one.name: {"value": one.value, "origin": one.origin} for one in found}))
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    section = ""
    for one in found:
        if section not in ("", one.section):
            table.add_section()
        section = one.section
        table.add_row(one.name, one.value, one.origin, style=None if one.origin != "default" else "dim")
    console.print(table, markup=False)
    for note in old_name_notes():
        errors.print(note, soft_wrap=True, markup=False)


@app.command("template")
def print_template() -> None:
    """Print env.template: every setting with what it does and its default."""
    from babylon_rl.settings.template import template

    print(template(), end="")
