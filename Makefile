# Two commands matter: `make lab` shows a three-node pod network working, `make test` proves the project.
.PHONY: setup lab test qemu vagrant-qemu vagrant-bench lint bench bench-check bench-accept clean
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

# The hosts of vagrant/ emulated, and on a hypervisor; vagrant/README.md has the settings.
vagrant-qemu: setup
	$(ROOT) vagrant/qemu.sh --report vagrant/report

vagrant-bench:
	cd vagrant && vagrant up && ./cluster.sh up && ./cluster.sh verify && ./cluster.sh bench && ./cluster.sh report report

# QUICK=1: fewer rounds and smaller sizes.
bench: setup
	$(ROOT) env BENCH_QUICK=$(QUICK) $(PY) -m pytest bench

# The last report against the ratios in bench/accepted.json.
bench-check: setup
	$(PY) -m bench.compare --check

bench-accept: setup
	$(PY) -m bench.compare --accept

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks bench/report.json bench/report.html
