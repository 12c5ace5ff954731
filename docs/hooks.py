"""Makes links from the pages to the rest of the repository work in the built site.

The pages link to files as a code host shows them, such as `../README.md` or
`../experiments/results/NAME/summary.json`. MkDocs knows only the folder docs/. The hooks therefore
bring in the linked files and rewrite the links. A link to a file that does not exist stays as it
is, and `mkdocs build --strict` refuses it.
"""

import pathlib
import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
PAGES = "docs"
RESULTS = "experiments/results"
LOG = "log/index.md"
OUTSIDE = {  # files of the repository, and the pages of the site that they become
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}
EXPERIMENT_PAGE = re.compile(r"experiments/(\w+)/README\.md")

BLOCK = r"^ *(`{3,}|~{3,}).*?^ *\1 *$"
CODE_BLOCK = re.compile(BLOCK, re.MULTILINE | re.DOTALL)
CODE = re.compile(BLOCK + r"|`[^`\n]+`", re.MULTILINE | re.DOTALL)
CODE_IN_ROW = re.compile(r"(?<=[ |])`[^`\n]*\\\|[^`\n]*`(?=[^\n]*\|$)", re.MULTILINE)
LINK = re.compile(
    r"(?P<before>\]\(\s*<?|^ {0,3}\[[^\]]+\]:\s+<?|\b(?:src|href)=\")"
    r"(?P<target>[^\s)>\"#]+)(?P<anchor>#[^\s)>\"]*)?",
    re.MULTILINE,
)
LIST_AFTER_TEXT = re.compile(r"^(?P<text>(?![ \t>|#]|[-*+] |\d+\. ).+\n)(?=[-*] |\d+\. )", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the results, the pages outside docs/, and every other file that a page links to."""
    for path in sorted((ROOT / RESULTS).glob("**/*.json")):
        _add(files, config, path.relative_to(ROOT).as_posix())
    pending = [*OUTSIDE, *_experiment_pages()]
    pending += [f"{PAGES}/{page.src_uri}" for page in files.documentation_pages()]
    scanned = set()
    while pending:
        source = pending.pop()
        if source in scanned or not (ROOT / source).is_file():
            continue
        scanned.add(source)
        _add(files, config, source)
        if source.endswith(".md"):
            pending += [_path(source, target) for target in _targets((ROOT / source).read_text())]
    if files.get_file_from_path(LOG) is None:
        files.append(File.generated(config, LOG, content=_list_of_the_log()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page, and evens out differences between a code host and MkDocs.

    A code host needs no empty line before a list, and a backslash before a bar in the code of a
    table. MkDocs needs the line, and would show the backslash.
    """
    here = page.file.src_uri
    source = next((path for path in _sources(files) if _site_path(path) == here), f"{PAGES}/{here}")

    def rewrite(target: str) -> str:
        path = _path(source, target)
        if (ROOT / path).is_file():
            return posixpath.relpath(_site_path(path), posixpath.dirname(here) or ".")
        return target

    if source == "LICENSE":
        return f"# License\n\n```text\n{markdown}\n```\n"
    markdown = CODE_IN_ROW.sub(
        lambda code: code[0].replace(r"\|", "|"), _replace_links(markdown, rewrite)
    )
    return _outside(CODE_BLOCK, markdown, lambda text: LIST_AFTER_TEXT.sub(r"\g<text>\n", text))


def _list_of_the_log() -> str:
    """Returns a page that lists the pages of the log with their titles, newest first."""
    lines = ["# Log", ""]
    for path in sorted((ROOT / PAGES / "log").glob("*.md"), reverse=True):
        title = re.search(r"^# (.+)$", path.read_text(), re.MULTILINE)
        lines.append(f"- [{title[1] if title else path.stem}]({path.name})")
    return "\n".join(lines) + "\n"


def _sources(files: Files) -> list[str]:
    """Returns the paths, within the repository, of the pages that are outside docs/."""
    candidates = [*OUTSIDE, *_experiment_pages()]
    return [path for path in candidates if files.get_file_from_path(_site_path(path))]


def _experiment_pages() -> list[str]:
    """Returns the paths of the READMEs of the experiments."""
    return sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").glob("*/README.md")
    )


def _site_path(path: str) -> str:
    """Returns where the site keeps a file of the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if page := EXPERIMENT_PAGE.fullmatch(path):
        return f"experiments/{page[1]}.md"
    for folder, replacement in ((f"{PAGES}/", ""), (f"{RESULTS}/", "results/")):
        if path.startswith(folder):
            return replacement + path.removeprefix(folder)
    return f"repository/{path}"


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    """Puts a file of the repository into the site, unless it is there."""
    uri = _site_path(path)
    if files.get_file_from_path(uri) is None:
        files.append(
            File.generated(
                config,
                uri,
                abs_src_path=str(ROOT / path),
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )


def _path(source: str, target: str) -> str:
    """Returns the path within the repository that a link in `source` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(target)))


def _outside(pattern: re.Pattern, markdown: str, change: Callable[[str], str]) -> str:
    """Applies `change` to the parts of a page that do not match the pattern."""
    parts, end = [], 0
    for code in pattern.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _targets(markdown: str) -> list[str]:
    """Returns the targets of the links to other files, without their anchors."""
    targets: list[str] = []

    def remember(target: str) -> str:
        targets.append(target)
        return target

    _replace_links(markdown, remember)
    return targets


def _replace_links(markdown: str, replace: Callable[[str], str]) -> str:
    """Gives each link to another file the target that `replace` returns. Code stays as it is."""

    def replaced(link: re.Match) -> str:
        target = link["target"]
        if ":" not in target and not target.startswith("/"):
            target = replace(target)
        return link["before"] + target + (link["anchor"] or "")

    return _outside(CODE, markdown, lambda text: LINK.sub(replaced, text))
