"""`python docs/make_settings.py`: the table of settings in docs/serving.md, from the settings themselves."""

from pathlib import Path

from server.settings import ServerSettings

PAGE = Path(__file__).parent / "serving.md"
BEGIN, END = "<!-- settings -->", "<!-- end of settings -->"


def settings_table() -> str:
    """A row for each setting: its variable, its default, what it is."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in ServerSettings.model_fields.items():
        if field.default_factory is not None:
            default = "by the cores there are"
        elif field.is_required():
            default = "required"
        else:
            default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `LCT_{name.upper()}` | {default} | {field.description or ''} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """`page` with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
