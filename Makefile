# The front door: `make demo` and `make test` work alone, on a fresh Debian machine.

JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60

.PHONY: build demo grpo test test-openapi test-torch bench bench-engine bench-convert bench-serving bench-update bench-faults soak-updates accuracy format check asan tsan fuzz packages test-packages check-packages clean

build: packages
	@cmake --preset release >build.log 2>&1 || { cat build.log; rm -f build.log; exit 1; }
	@rm -f build.log
	cmake --build --preset release -j $(JOBS)

# The whole story on a real trained model: plan, convert, serve, evaluate, update while it serves.
demo: build
	python3 scripts/demo.py

# Reinforcement learning against live servers; PyTorch comes from PyPI into out/grpo-venv, once.
grpo: build
	test -x out/grpo-venv/bin/python || python3 -m venv out/grpo-venv
	out/grpo-venv/bin/pip install --quiet --requirement examples/grpo_abacus/requirements.txt
	out/grpo-venv/bin/python examples/grpo_abacus/run.py $(GRPO_FLAGS)

test: build test-packages
	ctest --test-dir build --output-on-failure -j $(JOBS)

# Schemathesis, from PyPI into a folder that is thrown away, tries docs/openapi.json on a server.
test-openapi: build
	python3 scripts/run_schemathesis.py

# The Python package with PyTorch, from PyPI into out/torch-venv: gigabytes where only the build with
# CUDA can be had.
test-torch: build
	python3 scripts/run_torch_tests.py

bench: build
	python3 bench/run.py

# Kernels and the engine under a rollout's load, beside the bars they are held to.
bench-engine: build
	python3 bench/engine/run.py

# The converter against a copy of the same files, and the quantizers against read bandwidth.
bench-convert: build
	python3 bench/convert/run.py

# Latencies, CPU share of the HTTP layer and memory of a server under load.
bench-serving: build
	python3 bench/serving/run.py

# What an update of live weights costs: seconds, pause, decode beside it, memory.
bench-update: build
	python3 bench/update/run.py

# A fault at every message of every transport of an update.
bench-faults: build
	python3 bench/update/faults.py build/octavo --output out/update-faults.json

# Warm is cold: 1,000 updates in every format, over every transport, under traffic.
soak-updates: build
	python3 bench/soak/updates.py build/octavo --output out/soak-updates.json

# Accuracy and divergence of every format on the trained models.
accuracy: build
	python3 bench/accuracy/run.py

format: check-packages
	git ls-files '*.cc' '*.h' | xargs clang-format-19 -i

# Everything that a reviewer would otherwise have to look for.
check: check-packages
	python3 scripts/check_layers.py
	git ls-files '*.cc' '*.h' | xargs clang-format-19 --dry-run -Werror
	cmake --preset tidy >/dev/null
	cmake --build --preset tidy -j $(JOBS)

asan tsan: packages
	cmake --preset $@ >/dev/null
	cmake --build --preset $@ -j $(JOBS)
	ctest --test-dir build-$@ --output-on-failure

fuzz: check-packages
	cmake --preset fuzz >/dev/null
	cmake --build --preset fuzz -j $(JOBS)
	python3 scripts/run_fuzzers.py --build build-fuzz --seconds $(FUZZ_SECONDS)

packages:
	@scripts/bootstrap.sh build

test-packages:
	@scripts/bootstrap.sh test

check-packages:
	@scripts/bootstrap.sh check

clean:
	rm -rf build build-* out
