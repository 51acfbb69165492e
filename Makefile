# `make` alone says what there is. Every target does the set-up that it needs (scripts/setup.sh).
SHELL := /bin/bash
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check static wheel bench volumes scale rates kills guest image clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Debian packages and .venv; quick when everything is there
	@scripts/setup.sh

demo: setup ## claims, quotas and restarts with real containers, in under a minute (KEEP=1 leaves it running)
	@$(PY) demo/demo.py

test: setup ## all tests, and a look for anything they left behind (ARGS="-k ledger" for some of them)
	@scripts/test.sh $(ARGS)

check: static wheel test ## all that CI runs

static: setup ## formatting, lint, types, arrows between the packages
	@scripts/static.sh

wheel: setup ## build the wheel and try it in a fresh environment
	@scripts/wheel.sh

bench: setup ## fusevol beside a bare directory, bindfs and passthrough_hp: table, promises, build/bench/latest.json and .png (BENCH=quick)
	@scripts/bench-tools.sh
	@$(PY) -m tests.bench

volumes: setup ## a thousand volumes mounted at once: what each costs, and that the last costs no more than the first
	@FUSEVOL_VOLUMES=1000 scripts/test.sh -s -o faulthandler_timeout=600 tests/stress/test_volumes.py

scale: setup ## a thousand claims and five hundred Pods applied at once: how long, what the agent needs for it
	@FUSEVOL_CLAIMS=1000 scripts/test.sh -s -o faulthandler_timeout=600 tests/stress/test_scale.py

rates: setup ## 200 claims at once on each kind of pool, and clones of 10 GiB: how fast, and how much space they take
	@FUSEVOL_CLAIMS_AT_ONCE=200 FUSEVOL_CLONE_SIZE=10Gi scripts/test.sh -s -o faulthandler_timeout=600 tests/stress/test_rates.py

kills: setup ## 200 kills of servers, keeper and agent under load, 40 upgrades: what was felt (KILLS=n UPGRADES=n)
	@FUSEVOL_KILLS=$(or $(KILLS),200) FUSEVOL_UPGRADES=$(or $(UPGRADES),40) scripts/test.sh -s -o faulthandler_timeout=3600 \
		tests/faults/test_three_kills.py tests/faults/test_upgrade.py

guest: setup ## run tests on another kernel, in qemu (KERNEL=6.1 ARGS="tests/pools -q", or CMD="bash -c '...'")
	@$(PY) -m tests.support.guest $(or $(KERNEL),6.12) -- $(or $(CMD),$(PY) -m pytest -p no:cacheprovider $(ARGS))

image: ## the agent's container image (BASE=... for another base image)
	podman build --tag fusevol:dev $(if $(BASE),--build-arg BASE=$(BASE)) .

clean: ## remove what the other targets made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
