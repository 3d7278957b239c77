"""The repository's address stands in one place, and every link follows it."""

import re

import links
import pytest
from lessons import ROOT, lessons, notebook_of

TEXT = links.README.read_text(encoding="utf8")


def test_the_readme_has_the_links_of_the_address_in_pyproject():
    assert links.with_links(TEXT, links.address()) == TEXT


def test_with_an_address_every_lesson_opens_in_colab_and_the_first_on_binder():
    there = links.with_links(TEXT, "someone/course")
    for source in lessons():
        path = f"notebooks/{notebook_of(source).name}"
        assert f"https://colab.research.google.com/github/someone/course/blob/HEAD/{path})" in there
    first = notebook_of(lessons()[0]).name
    assert f"https://mybinder.org/v2/gh/someone/course/HEAD?urlpath=lab/tree/notebooks/{first})" in there
    assert "git clone https://github.com/someone/course.git && cd course\nmake lab" in there


def test_badges_are_pictures_of_the_repository():
    pictures = re.findall(r"!\[Open in \w+\]\(([^)]+)\)", links.with_links(TEXT, "someone/course"))
    assert len(pictures) == 2 and all((ROOT / picture).exists() for picture in pictures)


def test_the_address_can_be_changed_and_taken_back():
    once = links.with_links(TEXT, "someone/course")
    assert links.with_links(once, "someone/course") == once
    assert links.with_links(links.with_links(once, "other/name"), "someone/course") == once
    assert links.with_links(links.with_links(once, ""), "") == links.with_links(TEXT, "")


@pytest.mark.parametrize("wrong", ["course", "https://github.com/someone/course", "someone/course/tree"])
def test_an_address_that_is_no_owner_and_name_is_refused_in_a_sentence(wrong, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(f'[tool.qsal]\nrepository = "{wrong}"\n')
    monkeypatch.setattr(links, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match='must read "owner/name"'):
        links.address()
