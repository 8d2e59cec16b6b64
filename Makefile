# Everything that is done to procnet by hand. `make` says what there is.
#
# Each target makes the machine ready by itself (tools/setup.sh: packages of Debian or Ubuntu, then
# a virtual environment), says what it installs, and installs nothing the second time.

SHELL := /bin/bash
PYTHON := .venv/bin/python
JUNIT := build/junit
# Capturing needs root. Whoever is root already needs no sudo; compiled files of root's would stand
# in the way of everyone else.
SUDO := $(shell [ "$$(id -u)" = 0 ] || { command -v sudo >/dev/null && \
	echo sudo -E env PYTHONDONTWRITEBYTECODE=1; } || \
	echo "echo 'This needs root, and there is no sudo.' >&2; false")
BENCHMARKS := engines count_program owner_hooks
PYTEST := -m pytest -p no:cacheprovider
SECONDS ?= 10

.DEFAULT_GOAL := help
.PHONY: help run test lint test-unit test-privileged test-vm test-pcap-ct fuzz bench bench-parts \
	accuracy clean ready-run ready-test ready-fuzz ready-bench ready-vm ready-pcap-ct

help:  ## say what there is
	@echo 'procnet: which process does every byte on the network belong to?'
	@echo
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' \
		2>/dev/null || sed -n 's/^\([a-z-]*\):.*  ## /  make \1  /p' $(MAKEFILE_LIST)

run: ready-run  ## set up this machine and show who talks (ten seconds of it without a terminal)
	@$(SUDO) .venv/bin/procnet top

test: lint test-unit test-privileged  ## check all that this machine's own kernel can show

lint: ready-test  ## ruff, and mypy --strict on the package
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test-unit: ready-test  ## tests that need no root: units, contracts, the rules of the house
	$(PYTHON) $(PYTEST) -m 'not privileged and not vm' --junit-xml=$(JUNIT)/unit.xml

test-privileged: ready-test  ## tests in network namespaces of their own
	$(SUDO) $(PYTHON) $(PYTEST) -m 'privileged and not vm' --junit-xml=$(JUNIT)/privileged.xml

test-vm: ready-vm  ## tests on other kernels, in two virtual machines at once (20 minutes)
	$(SUDO) $(PYTHON) $(PYTEST) -m vm --numprocesses=2 --dist=worksteal --junit-xml=$(JUNIT)/vm.xml

test-pcap-ct: ready-pcap-ct  ## units and captures on a newer Python, with pcap-ct for pypcap
	$(SUDO) .venv-pcap-ct/bin/python $(PYTEST) -m 'not vm' --junit-xml=$(JUNIT)/pcap-ct.xml \
		tests/unit tests/privileged/test_capture.py tests/privileged/test_report.py

fuzz: ready-fuzz  ## look for input that breaks something, SECONDS=10 for each kind of it
	$(PYTHON) -m tests.fuzz.run --seconds $(SECONDS)

# $(call measure,NAMES): one fails where it measured nothing; the others are run all the same.
measure = mkdir -p build/benchmarks; failed=; for each in $(1); do echo "== $$each"; \
	$(SUDO) unshare --net sh -c "ip link set lo up && exec $(PYTHON) -m benchmarks.$$each" || \
	failed="$$failed $$each"; done; [ -z "$$failed" ] || { echo "FAILED:$$failed"; exit 1; }

bench: ready-bench  ## measure what counting costs, against nethogs and tcpdump (12 minutes)
	@$(call measure,$(BENCHMARKS))
	@$(PYTHON) -m benchmarks.plot build/benchmarks/engines.json build/benchmarks/engines.png

bench-parts: ready-test  ## measure the parts: the other files of benchmarks/ (churn and soak by hand)
	@$(call measure,$(filter-out $(BENCHMARKS) accuracy churn plot soak,$(basename $(notdir $(wildcard benchmarks/*.py)))))

accuracy: ready-bench  ## whose is every byte, by each engine and rung, and by nethogs? (5 minutes)
	$(SUDO) $(PYTHON) -m benchmarks.accuracy

clean:  ## remove what was built, the virtual environments too
	rm -rf build dist *.egg-info .venv .venv-pcap-ct .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

ready-run ready-test ready-fuzz ready-bench ready-vm ready-pcap-ct:
	@tools/setup.sh $(@:ready-%=%)
