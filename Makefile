# Two commands matter: `make lab` shows a three-node pod network working, `make test` proves the project.
.PHONY: setup lab test qemu lint bench clean
PY := .venv/bin/python
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo --preserve-env=CI")

setup:
	@tools/setup.sh

lab: setup
	@$(ROOT) .venv/bin/pycnictl lab demo --nodes 3

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

test: lint
	$(ROOT) tools/test.sh

qemu: setup
	$(ROOT) tools/qemu.sh

bench: setup
	$(ROOT) $(PY) -m pytest bench

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks bench/report.*
