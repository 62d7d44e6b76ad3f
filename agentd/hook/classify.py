"""Which class of call a command is, and which tool, from its words. A table: the first rule that matches decides.

The names are those of an intent (``call_class``); what calls of a class really use, the daemon learns.
"""

from __future__ import annotations

from typing import Final

from agentd.hook import shell

# What stands before the command that matters. The number: how many words follow that are the wrapper's own.
_WRAPPERS: Final[dict[str, int]] = {
    "sudo": 0,
    "env": 0,
    "nice": 0,
    "nohup": 0,
    "time": 0,
    "command": 0,
    "exec": 0,
    "stdbuf": 0,
    "ionice": 0,
    "setsid": 0,
    "timeout": 1,
    "npx": 0,
    "bunx": 0,
    "pnpx": 0,
    "uvx": 0,
    "xvfb-run": 0,
}
# Two words that run what comes third.
_RUNNERS: Final = frozenset(
    {
        ("uv", "run"),
        ("poetry", "run"),
        ("pdm", "run"),
        ("hatch", "run"),
        ("pipenv", "run"),
        ("rye", "run"),
        ("bundle", "exec"),
        ("npm", "exec"),
        ("pnpm", "exec"),
        ("yarn", "exec"),
        ("pnpm", "dlx"),
        ("yarn", "dlx"),
        ("conda", "run"),
        ("coverage", "run"),
    }
)
_PYTHON: Final = ("python", "python3", "pypy", "pypy3")

# (class, programs, first arguments that make it so; "": any, "-": none). In order: the first that matches decides.
RULES: Final[tuple[tuple[str, frozenset[str], frozenset[str]], ...]] = tuple(
    (call_class, frozenset(programs.split()), frozenset(arguments.split()))
    for call_class, programs, arguments in (
        ("test", "pytest py.test nosetests tox nox unittest jest vitest mocha ava karma cypress playwright rspec", ""),
        ("test", "phpunit ctest bats behave pest gotestsum cargo-nextest", ""),
        ("test", "npm pnpm yarn bun deno cargo go gradle gradlew mvn mvnw dotnet mix make just rake", "test"),
        ("test", "swift zig bazel sbt", "test"),
        ("test", "npm pnpm yarn bun make just cargo", "t check tests nextest bench e2e unit"),
        ("lint", "ruff flake8 pylint mypy pyright black isort eslint prettier biome tsc golangci-lint clippy", ""),
        ("lint", "rubocop shellcheck clang-tidy clang-format hadolint pre-commit lint-imports stylelint", ""),
        ("lint", "cargo go npm pnpm yarn bun make", "clippy fmt vet lint format typecheck"),
        ("install", "pip pip3 uv pipx poetry pdm conda mamba", "install sync add update upgrade download lock"),
        ("install", "npm pnpm yarn bun", "install i ci add update upgrade"),
        ("install", "apt apt-get dnf yum apk pacman brew gem bundle composer", "install update upgrade add require"),
        ("install", "cargo go rustup gradle", "install get add fetch toolchain"),
        ("install", "yarn", "-"),
        ("serve", "npm pnpm yarn bun next vite rails", "start dev serve preview server"),
        ("build", "make cmake ninja meson gcc g++ cc c++ clang clang++ ld rustc javac kotlinc scalac tsup esbuild", ""),
        ("build", "webpack rollup vite turbo nx bazel buck2 gradle gradlew mvn mvnw ant sbt xcodebuild msbuild", ""),
        ("build", "cargo go npm pnpm yarn bun dotnet mix swift zig docker podman next", "build b compile package"),
        ("container", "docker podman nerdctl docker-compose kubectl helm minikube kind", ""),
        ("git", "git gh glab hg svn jj", ""),
        ("search", "grep egrep fgrep rg ag ack find fd fdfind locate ast-grep sg tree", ""),
        ("network", "curl wget http https aria2c rsync scp sftp ssh ping dig nc", ""),
        ("archive", "tar zip unzip gzip gunzip xz zstd 7z bzip2", ""),
        ("database", "psql mysql sqlite3 mongosh redis-cli duckdb pg_dump pg_restore", ""),
        ("serve", "uvicorn gunicorn hypercorn flask nodemon serve http-server", ""),
        ("script", "python python3 pypy pypy3 node deno bun ruby perl php bash sh zsh java Rscript julia lua npm", ""),
        ("file", "cat ls head tail less more wc sed awk cut sort uniq tr cp mv rm mkdir rmdir touch chmod chown", ""),
        ("file", "ln stat file du df diff patch tee xargs echo printf pwd which basename dirname realpath jq yq", ""),
        ("file", "test [ true false", ""),
    )
)
# Of several commands in one line the heaviest says what the call is.
_ORDER: Final = ("test", "build", "install", "lint", "container", "serve", "script", "database", "network", "archive")


def classify(command: str) -> tuple[str, str]:
    """Class and tool of a shell command; ("", tool) where no rule knows it, ("", "") where nothing can be made out."""
    found = shell.pieces(command)
    texts = [piece.text for piece in found] if found else shell.rough_pieces(command)
    seen = [_classify_one(shell.words(text)) for text in texts if not shell.is_stateful(text)]
    seen = [one for one in seen if one[1]]
    if not seen:
        return "", ""
    # min keeps the first of equals: of "grep | sort | head" that is grep
    return min(seen, key=lambda one: _ORDER.index(one[0]) if one[0] in _ORDER else len(_ORDER))


def _classify_one(words: list[str]) -> tuple[str, str]:
    program, arguments = unwrap(words)
    if program == "eval":
        return classify(" ".join(arguments))
    if not program:
        return "", ""
    # the first word that is no option ("make -j4 test"), or the option itself where there is no other
    plain = next((word for word in arguments if not word.startswith("-")), "")
    # "npm run test:unit" is "npm test"
    if plain in {"run", "run-script"} and program in {"npm", "pnpm", "yarn", "bun", "deno"}:
        plain = next((word for word in arguments[arguments.index(plain) + 1 :] if not word.startswith("-")), "")
        plain = plain.partition(":")[0]
    for call_class, programs, firsts in RULES:
        if program in programs and (not firsts or (plain or "-") in firsts):
            return call_class, program
    return "", program


def unwrap(words: list[str]) -> tuple[str, list[str]]:
    """The program that does the work, without its path, and its arguments."""
    at = 0
    while at < len(words):
        word = words[at]
        name = word.rpartition("/")[2]
        following = words[at + 1] if at + 1 < len(words) else ""
        if shell.is_assignment(word):
            at += 1
        elif name in _WRAPPERS:
            at = _past_options(words, at + 1) + _WRAPPERS[name]
        elif (name, following) in _RUNNERS:
            at = _past_options(words, at + 2)
        elif (name, following) == ("uv", "pip"):
            at += 1
        elif _is_python(name) and following == "-m" and at + 2 < len(words):
            return words[at + 2].partition(".")[0], words[at + 3 :]
        else:
            return ("python3" if _is_python(name) else name), words[at + 1 :]
    return "", []


def _past_options(words: list[str], at: int) -> int:
    while at < len(words) and words[at].startswith("-"):
        at += 1
    return at


def _is_python(name: str) -> bool:
    """python3.11, too."""
    return name in _PYTHON or (name.startswith(("python2.", "python3.")) and name[8:].isdigit())
