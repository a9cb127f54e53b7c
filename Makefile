# What a person types. Each target says what it does and ends in one line with the result.

# Built images outlive the clone: building one takes minutes, using it none.
export SINEW_IMAGES ?= /var/cache/sinew/images
# A machine that cannot fetch the pinned toolchain may have the same one under another name; a
# version that is too old is still refused, by `rust-version` in Cargo.toml.
ifneq ($(shell cargo --version >/dev/null 2>&1 && echo found),found)
export RUSTUP_TOOLCHAIN ?= stable
endif
# The optimised binary that `demo` and `bench` run.
DEMO_BIN := target/demo/sinew
BENCHES ?= container-start exec tool-call idle-memory
SOAK_MINUTES ?= 60

.PHONY: help demo test lint soak bench

help:
	@echo 'make demo    two agent sessions in real sandboxes, one of them through a crash'
	@echo 'make test    install what tests need, then every check and every test'
	@echo 'make lint    the checks without the tests'
	@echo 'make soak    the tests over and over for SOAK_MINUTES (60), with more random cases'
	@echo 'make bench   the benchmarks (BENCHES="$(BENCHES)"), as JSON'

demo:
	@echo 'demo: packages, optimised build, then `sinew demo`; about 12 min the first time, 1 min the next'
	@scripts/setup.sh demo
	cargo build --quiet --profile demo -p sinew
	@$(DEMO_BIN) demo --images "$(SINEW_IMAGES)"

test:
	@echo 'test: packages, Python environment, image, then `cargo xtask ci`; about 25 min from clean'
	@scripts/setup.sh test
	@scripts/python-venv.sh
	@cargo xtask ci

lint:
	@cargo xtask ci --quick

soak:
	@scripts/setup.sh test
	@scripts/python-venv.sh
	@scripts/previous.sh
	@cargo xtask soak --minutes $(SOAK_MINUTES)

bench:
	@echo 'bench: packages, Python environment, optimised build, then `sinew bench`; about 3 min after that'
	@scripts/setup.sh bench
	@scripts/python-venv.sh
	cargo build --quiet --profile demo -p sinew
	@mkdir -p bench/results
	@$(DEMO_BIN) bench $(BENCHES) --json >bench/results/latest.jsonl
	@cat bench/results/latest.jsonl
	@echo 'bench: ok (kept in bench/results/latest.jsonl)'
