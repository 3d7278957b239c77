"""Write the repository's address, which stands in pyproject.toml, into the README: ``python tools/links.py``.

Without an address there is nothing to link to, and a comment in the README says how to set it.
"""

import re
import sys
import tomllib

from lessons import ROOT, lessons, notebook_of

README = ROOT / "README.md"
BEGIN, END = "<!-- links: written by tools/links.py -->", "<!-- end of links -->"
UNSET = "<!-- Binder and Colab: set `repository` under [tool.qsal] in pyproject.toml, then `python tools/links.py` -->"


def address() -> str:
    """Return "owner/name" from pyproject.toml, or "" while there is none.

    Raises
    ------
    SystemExit
        It is something else.
    """
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["tool"]["qsal"]["repository"]
    if found and not re.fullmatch(r"[\w.-]+/[\w.-]+", found):
        sys.exit(f'repository in pyproject.toml must read "owner/name"; it is {found!r}.')
    return found


def binder(repository: str, path: str) -> str:
    """Return the address that opens a file of the repository on Binder."""
    return f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{path}"


def colab(repository: str, path: str) -> str:
    """Return the address that opens a notebook of the repository in Colab."""
    return f"https://colab.research.google.com/github/{repository}/blob/HEAD/{path}"


def block(repository: str) -> str:
    """Return the README's lines with badges, and with a link to Colab for each lesson."""
    if not repository:
        return UNSET
    paths = [f"notebooks/{notebook_of(source).name}" for source in lessons()]
    badge = "[![Open in {}](notebooks/images/badges/{}.svg)]({})".format
    each = " ".join(f"[{path.split('/')[1][:2]}]({colab(repository, path)})" for path in paths)
    name = repository.split("/")[1]
    return f"""{badge("Binder", "binder", binder(repository, paths[0]))}
{badge("Colab", "colab", colab(repository, paths[0]))}

In Colab (lessons {each}) run this in a first cell of your own:

```
!git clone -q https://github.com/{repository}.git && pip install -q ./{name}
%cd {name}/notebooks
```"""


def with_links(readme: str, repository: str) -> str:
    """Return the README's text with its links, and the line that clones the repository, for this address."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    source = f"https://github.com/{repository}.git" if repository else "<address of this repository> qsal"
    folder = repository.split("/")[1] if repository else "qsal"
    clone = f"git clone {source} && cd {folder}\nmake lab"
    after = re.sub(r"git clone .* && cd \S+\nmake lab", lambda _: clone, after)
    return f"{before}{BEGIN}\n{block(repository)}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_links(README.read_text(encoding="utf8"), address()), encoding="utf8")
