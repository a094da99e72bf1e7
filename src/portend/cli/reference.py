"""The reference of every key of every YAML file, made from the forms by which they are read: docs/yaml.md."""

from __future__ import annotations

from portend.io.forms import TOPOLOGY, Form
from portend.planner.stated import PROBLEM
from portend.workflows.experiments import EXPERIMENT, REFINEMENT
from portend.workflows.validate import CAMPAIGN

__all__ = ["FORMS", "yaml_reference"]

FORMS = (TOPOLOGY, PROBLEM, EXPERIMENT, REFINEMENT, CAMPAIGN)

_HEAD = """\
# YAML files

Every key of every YAML file that Portend reads. `portend reference --out docs/yaml.md` writes this page from the
code that reads the files.

An unknown key is refused, with the one that was probably meant. So is a key that is written twice. Quantities have
a unit:

| Quantity | Example | Units |
|---|---|---|
| time | `20 ms` | ns, us, µs, ms, s, min |
| bandwidth | `10 Mbit/s` | bit/s, kbit/s, Mbit/s, Gbit/s; B/s, kB/s, MB/s, GB/s |
| size | `1500 B` | B, kB, MB, GB; KiB, MiB, GiB |
| power | `5 W` | mW, W, kW |
| price | `0.10 USD/h` | USD/h |
| share | `0.25` or `25%` | none, or % |

Other files: traces of bandwidth are text ([testbed.md](testbed.md)), plans are JSON
([planner.md](planner.md#the-plans-file)). What `portend whatif` sweeps is an option ([whatif.md](whatif.md)).
"""


def yaml_reference() -> str:
    """Return the page."""
    parts, told = [_HEAD], set[str]()
    for form in FORMS:
        parts += _section(form, "##", told)
    return "\n".join(parts)


def _section(form: Form, level: str, told: set[str]) -> list[str]:
    """The section of a form and of those within it, each once."""
    told.add(form.title)
    title = form.title if level == "##" else f"`{form.title}`"
    lines = [f"{level} {title}\n", f"{form.says}\n", "| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    lines += [f"| `{key.name}` | {key.words} | {form.default(key)} | {key.says} |" for key in form.keys]
    parts = ["\n".join(lines) + "\n"]
    for key in form.keys:
        if key.form is not None and key.form.title not in told:
            parts += _section(key.form, "###", told)
    return parts
