# The journal. `make serve` and `make test` set up all they need, the first time and after a change of a lock.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
SOURCES := app tests alembic bench
SETUP := pyproject.toml deploy/setup.sh deploy/locks/pip.txt
# The development environment holds all of the serving one.
SERVING := .venv/serve.stamp
DEVELOPING := .venv/develop.stamp
TOOLS := .venv-tools/stamp
BENCHMARKING := .venv-bench/stamp

# Further arguments: `make serve ARGS="--port 9000"`, `make test ARGS="-k recovery"`.
ARGS :=

FUZZ_S := 300

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: serve
serve: $(SERVING) ## Run the service with its embedded PostgreSQL (JOURNAL_* variables or ARGS set it up)
	@exec $(BIN)/journal serve $(ARGS)

.PHONY: test
test: lint typecheck ## Check style and types, then run all tests
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: unit
unit: $(DEVELOPING) ## Run the fast tests alone
	@$(BIN)/pytest tests/unit $(ARGS)

.PHONY: lint
lint: $(DEVELOPING) ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: typecheck
typecheck: $(DEVELOPING) ## Check types
	@$(BIN)/mypy --num-workers 2 $(SOURCES)

.PHONY: format
format: $(DEVELOPING) ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: lint-docker
lint-docker: $(TOOLS) ## Check the Dockerfile
	@.venv-tools/bin/hadolint Dockerfile

.PHONY: fuzz
fuzz: $(DEVELOPING) ## Fuzz each decoder for FUZZ_S seconds (default 300); findings and corpus go to .fuzz/
	@for target in request record log checkpoint tokens; do \
		mkdir -p .fuzz/$$target && $(BIN)/python -m tests.attack.fuzzing $$target .fuzz/$$target \
			-max_total_time=$(FUZZ_S) -max_len=65536 -timeout=10 -artifact_prefix=.fuzz/ || exit 1; \
	done

.PHONY: audit
audit: $(DEVELOPING) ## Look for known vulnerabilities in the locks (says so when it can't, offline)
	@$(BIN)/python deploy/audit.py $(MAKE) $(TOOLS)

.PHONY: sbom
sbom: $(TOOLS) ## Write dist/journal.cdx.json, the CycloneDX bill of materials of the image's lock
	@mkdir -p dist
	@.venv-tools/bin/python -W ignore .venv-tools/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file dist/journal.cdx.json deploy/locks/image.txt

.PHONY: image
image: ## Build the container image (needs Docker)
	@docker build --tag journal .

.PHONY: test-large
test-large: $(DEVELOPING) ## Run what takes too long for every change: recovery of a log of 1 GiB
	@TEST_LARGE=1 $(BIN)/pytest tests/crash/test_recovery_memory.py $(ARGS)

.PHONY: crash-syscalls
crash-syscalls: $(DEVELOPING) ## Kill the service at every system call on its data, and fail calls with every error, one run each
	@CRASH_SYSCALLS=1 $(BIN)/pytest tests/crash/test_syscall_kills.py tests/crash/test_syscall_errors.py $(ARGS)

.PHONY: crash-states
crash-states: $(DEVELOPING) ## Recover 200,000 crash states (CRASH_STATES=N; CRASH_SEED=N repeats a run)
	@CRASH_STATES=$${CRASH_STATES:-200000} $(BIN)/pytest -s --log-level=CRITICAL tests/crash/test_crash_states.py $(ARGS)

.PHONY: bench
bench: $(BENCHMARKING) ## Measure everything side by side; fails when a ratio falls short (minutes)
	@.venv-bench/bin/python -m bench $(ARGS)

.PHONY: bench-attacks
bench-attacks: $(DEVELOPING) ## Measure what honest clients notice of attacks; fails at twice their quiet p99
	@$(BIN)/python -m bench.attacks $(ARGS)

.PHONY: bench-quick
bench-quick: $(BENCHMARKING) ## Measure every ratio in less than a minute
	@.venv-bench/bin/python -m bench --quick $(ARGS)

.PHONY: bench-endurance
bench-endurance: $(BENCHMARKING) ## Measure the journal before and after 10 million entries (minutes)
	@.venv-bench/bin/python -m bench.endurance --output bench/results/endurance.json $(ARGS)

.PHONY: bench-faults
bench-faults: $(DEVELOPING) ## Measure what clients notice of a Postgres that hangs (2 minutes)
	@$(BIN)/python -m bench.postgres_hung $(ARGS)

.PHONY: bench-proofs
bench-proofs: $(DEVELOPING) ## Measure inclusion proofs in a log of a million commands (2 minutes)
	@$(BIN)/python -m bench.proofs $(ARGS)

.PHONY: soak
soak: $(DEVELOPING) ## Kill every process at random under mixed load for ten minutes (SOAK_SECONDS)
	@SOAK_SECONDS=$${SOAK_SECONDS:-600} $(BIN)/pytest -s tests/crash/test_soak.py $(ARGS)

.PHONY: lock
lock: $(DEVELOPING) $(TOOLS) ## Resolve deploy/locks again (UPGRADE=1 for newer versions)
	@UPGRADE=$(UPGRADE) sh deploy/lock.sh

.PHONY: clean
clean: ## Remove environments and caches; data is kept
	@rm -rf .venv .venv-tools .venv-bench bench/.servers .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

$(SERVING): deploy/locks/serve.txt $(SETUP)
	@sh deploy/setup.sh serve
	@touch $@

$(DEVELOPING): deploy/locks/develop.txt deploy/locks/serve.txt $(SETUP)
	@sh deploy/setup.sh develop
	@touch $@ $(SERVING)

$(BENCHMARKING): deploy/locks/bench.txt bench/setup.sh $(SETUP)
	@sh deploy/setup.sh bench
	@sh bench/setup.sh
	@touch $@

$(TOOLS): deploy/locks/tools.txt $(SETUP)
	@sh deploy/setup.sh tools
	@touch $@
