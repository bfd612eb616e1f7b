# SPDX-License-Identifier: BSD-3-Clause
# The front door. Everything is built by meson and ninja in $(BUILD).
BUILD ?= build
PREFIX ?= /usr/local
TIME ?= 60
DEPS = scripts/install-dependencies
MESON = /usr/bin/python3 /usr/bin/meson

.PHONY: all check stress demo shell bench fuzz docs install clean help
.DEFAULT_GOAL = all

all:                ## build everything in build/
	@$(DEPS) build
	@test -f $(BUILD)/build.ninja || $(MESON) setup $(BUILD) --prefix $(PREFIX) >/dev/null
	@ninja -C $(BUILD) --quiet

check: all          ## all tests; ends with `N passed, N failed`
	@$(DEPS) qemu guest check
	@$(BUILD)/tools/outboard qemu --print-plugin >/dev/null
	@scripts/check $(BUILD)

stress: all         ## random threads and commands: TIME=SECONDS, SEED=NUMBER
	@TIME=$(TIME) SEED=$(SEED) tests/run --build $(BUILD) 'stress/*' 'server-model/random*'

demo: all           ## a Linux guest in a stock QEMU uses a disk of another process
	@$(DEPS) qemu guest
	@guest/demo --build $(BUILD)

shell: all          ## the demo's guest, with you in it
	@$(DEPS) qemu guest
	@guest/demo --build $(BUILD) --shell

bench: all          ## measure, each thing beside its floor (docs/performance.md); COMPARE=FILE: an earlier run
	@$(DEPS) qemu guest
	@bench/run --build $(BUILD) --json $(BUILD)/bench.json --svg $(BUILD)/bench.svg \
	    $(if $(COMPARE),--compare '$(COMPARE)')

fuzz:               ## look for inputs that break something, TIME seconds (default 60)
	@$(DEPS) build check
	@scripts/build-fuzz $(BUILD)-fuzz
	@nice fuzz/run --build $(BUILD)-fuzz --time $(TIME) $(TARGET)

docs: all           ## write the tables of docs/protocol.md anew
	@$(BUILD)/docs/protocol-tables <docs/protocol.md >$(BUILD)/docs/protocol.md
	@cmp -s $(BUILD)/docs/protocol.md docs/protocol.md || cp $(BUILD)/docs/protocol.md docs/

install: all        ## install under PREFIX (default /usr/local)
	@$(if $(filter file,$(origin PREFIX)),,$(MESON) configure $(BUILD) -Dprefix=$(PREFIX) && \
	    ninja -C $(BUILD) --quiet >/dev/null &&) \
	    DESTDIR=$(DESTDIR) $(MESON) install -C $(BUILD) --no-rebuild --quiet

clean:              ## remove build/
	rm -rf $(BUILD) $(BUILD)-*

help:               ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
