# Two commands do everything on a fresh Debian 12 (root or sudo): `make run` and `make test`.
.PHONY: help run build test test-full bench bench-kernels fuzz tidy clean

help:
	@echo "make run        install packages, build, serve the built-in model on http://127.0.0.1:8080 (ARGS=... adds flags)"
	@echo "make build      build/release/bin/bantam"
	@echo "make test       everything that CI runs; test-full: whole matrices, and mutants"
	@echo "make bench      speed of the built-in model (ARGS=\"-m FILE\" for another)"
	@echo "make bench-kernels  speed of the kernels of the tables (ARGS=\"--isa avx512 --type q1_0\")"

run: build
	build/release/bin/bantam serve $(ARGS)

build:
	scripts/install_deps.sh run
	cmake --preset release -DBUILD_TESTING=OFF
	cmake --build build/release -j 2

test:
	scripts/test.sh

test-full:
	scripts/test.sh --full

bench: build
	build/release/bin/bantam bench $(ARGS)

bench-kernels: build
	cmake --build build/release -j 2 --target kernels_bench
	build/release/bin/kernels_bench $(ARGS)

fuzz:
	scripts/install_deps.sh test
	scripts/test.sh fuzz

tidy:
	python3 tools/tidy.py

clean:
	rm -rf build
