# Two front doors do all the set-up on a machine that has only Python >= 3.11, pip and make:
#   make serve   the gateway with its embedded defaults        make test   lint, types, contracts, all tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
REAL   := .venv-real
ARGS   ?=

# Trust what the machine trusts, as pip does: some networks have a certificate authority of their own.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help serve test docs lint types contracts unit coverage bench micro-check chaos soak test-slow test-real format lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Holdfast needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install -q --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.gateway: $(BIN)/uv requirements/gateway.lock pyproject.toml tools/pyproject.toml
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/gateway.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . -e tools
	@touch $@

$(VENV)/.test: $(VENV)/.gateway requirements/dev.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.lock
	@touch $@

serve: $(VENV)/.gateway ## set up, then start the gateway with its embedded defaults (ARGS="--port 9000")
	$(BIN)/holdfast serve $(ARGS)

test: lint types contracts unit ## set up, then lint, types, import contracts and all tests

lint: $(VENV)/.test ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test ## mypy --strict, tests included
	$(BIN)/mypy

contracts: $(VENV)/.test ## imports go down only, names stay in their rooms, files stay short
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house

unit: $(VENV)/.test ## run the tests alone, or a part (ARGS="tests/core -q")
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage report $(if $(ARGS),--fail-under=0)

$(VENV)/.bench: $(VENV)/.gateway requirements/bench.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/bench.lock
	@touch $@

bench: $(VENV)/.bench ## set up, then measure everything in half an hour, into bench/results (ARGS="scale --quick")
	$(BIN)/python -m bench $(ARGS)

micro-check: $(VENV)/.gateway ## set up, then count instructions: fails where an operation needs more than it may
	$(BIN)/python -m bench micro --check

chaos: $(VENV)/.test ## set up, then run for 10 minutes in bad weather and check every token (ARGS="--minutes 1"; ARGS="--hostile": attackers)
	$(BIN)/python -m chaos $(ARGS)

soak: $(VENV)/.gateway ## set up, then run for 20 minutes in bad weather and watch memory (ARGS="--minutes 2")
	$(BIN)/python -m chaos.soak $(ARGS)

test-slow: $(VENV)/.test ## set up, then run the tests that take minutes of real time (not in CI)
	$(BIN)/python -m pytest -m slow $(ARGS)

# An environment of its own: it compiles llama.cpp (ten minutes and a C++ compiler, the first time only), and what
# llama-cpp-python depends on has no place beside the gateway. `clean` leaves it alone.
$(REAL)/.ready: $(BIN)/uv requirements/real.lock pyproject.toml
	@command -v "$${CXX:-c++}" >/dev/null || \
	  { echo "make test-real compiles llama.cpp and needs a C++ compiler; '$${CXX:-c++}' was not found." >&2; exit 1; }
	@test -x $(REAL)/bin/python || $(PYTHON) -m venv --without-pip $(REAL)
	@echo "Installing llama-cpp-python; where it has to be compiled, this takes about ten minutes."
	$(BIN)/uv pip install -q --python $(REAL)/bin/python --require-hashes -r requirements/real.lock
	$(BIN)/uv pip install -q --python $(REAL)/bin/python --no-deps -e . -e tools
	@touch $@

test-real: $(REAL)/.ready ## set up, then try every client against a real model server (slow the first time; not in CI)
	$(REAL)/bin/python -m tests.real

# Gateways to compare with, each in an environment of its own: what they depend on has no place beside ours.
PEERS := .peers

$(PEERS)/%/.ready: requirements/peers-%.in $(BIN)/uv
	@test -x $(PEERS)/$*/bin/python || $(PYTHON) -m venv --without-pip $(PEERS)/$*
	$(BIN)/uv pip install -q --python $(PEERS)/$*/bin/python -r $<
	@touch $@

$(PEERS)/portkey/.ready: requirements/peers-portkey/package.json
	@command -v npm >/dev/null || { echo "Portkey needs Node.js with npm (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(PEERS)/portkey && cp $< $(PEERS)/portkey/
	cd $(PEERS)/portkey && npm install --silent --no-audit --no-fund --ignore-scripts
	@touch $@

.PHONY: bench-peers
bench-peers: $(PEERS)/litellm/.ready $(PEERS)/smg/.ready $(PEERS)/portkey/.ready ## install the gateways that bench compares with (nginx, haproxy: apt-get)

docs: $(VENV)/.test ## renew the generated parts of the documents
	$(BIN)/python docs/generate.py

format: $(VENV)/.test ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(BIN)/uv ## resolve the dependencies anew into requirements/*.lock
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-annotate --no-header --extra gateway --group test pyproject.toml -o requirements/dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-annotate --no-header --extra gateway pyproject.toml -c requirements/dev.lock -o requirements/gateway.lock
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-annotate --no-header --extra gateway --group bench pyproject.toml -c requirements/dev.lock -o requirements/bench.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-annotate --no-header --extra gateway pyproject.toml requirements/real.in -c requirements/dev.lock -o requirements/real.lock

clean: ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
