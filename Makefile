# Short names for what the scripts do. Every one of them sets up what it needs (scripts/setup).
.PHONY: setup check test demo format lock clean

setup:
	@scripts/setup

check: # static checks and the tests that need no root: a minute
	@scripts/test --quick

test: # everything
	@scripts/test

demo:
	@scripts/demo

format:
	@scripts/setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lock:
	@scripts/lock

clean: # what set-up and the tools made; .venv, too
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	rm -f bpf/objects/*.o agentd/launcher/corral-exec agentd/launcher/corral-replay
