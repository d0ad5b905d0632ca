"""`tools/release_check.py`: one version everywhere, and a date before it goes out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("release_check", ROOT / "tools" / "release_check.py")
assert SPEC is not None and SPEC.loader is not None
release_check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release_check)


def project(root: Path, cited: str = "1.2.0", newest: str = "1.2.0 (2026-12-01)") -> Path:
    (root / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.0"\n')
    (root / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {newest}\n\n- All.\n\n## 1.1.0 (old)\n")
    return root


def test_one_version_with_a_date(tmp_path: Path) -> None:
    assert release_check.version(project(tmp_path)) == "1.2.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cited": "1.1.0"}, "CITATION.cff has 1.1.0"),
        ({"newest": "1.3.0 (2026-12-01)"}, "CHANGELOG.md has 1.3.0"),
        ({"newest": "1.2.0 (unreleased)"}, r"give 1.2.0 its date in place of \(unreleased\)"),
    ],
)
def test_what_must_not_go_out(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(release_check.Failed, match=message):
        release_check.version(project(tmp_path, **change))


def test_the_files_of_this_project_agree_but_for_the_date() -> None:
    try:
        assert release_check.version()
    except release_check.Failed as error:
        assert "(unreleased)" in str(error)


def test_a_command_that_fails_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(release_check.Failed, match=r"(?s)ended with 1.*no such thing"):
        release_check.call("python", "-c", "raise SystemExit('no such thing')", cwd=tmp_path)
