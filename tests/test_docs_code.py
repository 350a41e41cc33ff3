"""Every code block of README and docs/ runs, and every command in them exists."""

import ast
import os
import re
import subprocess
import sys

import docs_pages
import pytest
from docs_pages import PAGES, ROOT, blocks_of, make_workspace, raw_records, runnable

WITH_CODE = [page for page in PAGES if blocks_of(page)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    make_workspace(folder)
    return folder


@pytest.fixture
def empty_folder(workspace, tmp_path, monkeypatch):
    """A folder with the workspace's files, to which a page may write."""
    for path in workspace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # tiny models have odd tokens and few steps
@pytest.mark.parametrize("page", [page for page in WITH_CODE if page != "README.md"])
def test_the_blocks_of_a_page_run_as_one_program(page, empty_folder):
    """Docs named arguments that had been renamed, and no one noticed."""
    run_page(page, empty_folder)


@pytest.mark.backends
@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_the_readme_run_on_every_backend(empty_folder):
    run_page("README.md", empty_folder)


def run_page(page, folder):
    names = {"__name__": page, **raw_records()}
    for process, code in blocks_of(page):
        if process:
            run_alone(process, runnable(code, folder), folder)
        else:
            exec(compile(runnable(code, folder), page, "exec"), names)


def run_alone(variables, code, folder):
    script = folder / "block.py"
    script.write_text(code, encoding="utf-8")
    own = dict(pair.split("=", 1) for pair in variables.split())
    env = {**os.environ, "PYTHONPATH": str(ROOT), **own}
    run = subprocess.run(
        [sys.executable, script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES)
def test_every_script_and_option_of_a_command_exists(page):
    """A script that moved, or an option that was renamed, stays in the docs unseen."""
    for _, commands in [*blocks_of(page, "bash"), *blocks_of(page, "console")]:
        for command in re.sub(r"\\\n", " ", commands).splitlines():
            for script in re.findall(r"[\w/.]+\.(?:py|sh)\b", command):
                source = ROOT / script
                assert source.exists(), f"{page}: {command}"
                text = _with_imports(source)
                for option in re.findall(r" (--[a-z][\w-]*)", command.split(script)[1]):
                    assert option in text, f"{page}: {option} of {script}"


def _with_imports(source):
    """The text of a script and of the scripts beside it that it imports."""
    text = source.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:from|import) (\w+)", text, re.M):
        beside = source.parent / f"{name}.py"
        if beside.exists():
            text += beside.read_text(encoding="utf-8")
    return text


def test_a_block_of_every_kind_is_found():
    """The pattern of a block once began in the middle of the one before."""
    assert len(blocks_of("README.md")) >= 1
    assert blocks_of("README.md")[0][1].startswith("import")
    assert docs_pages.PAGES[0] == "README.md" and len(docs_pages.PAGES) > 5


def test_every_error_of_the_troubleshooting_page_is_raised_somewhere():
    """A message that was reworded could not be found in the docs any more."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert len(quoted) > 20
    sources = (ROOT / "keras_betakd").rglob("*.py")
    texts = "\n".join(text for path in sources for text in _texts(path))
    assert [text for text in quoted if text not in texts] == []


def _texts(path):
    """The strings of a file, each with `{}` in the place of values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "{}"
                for part in node.values
            )
