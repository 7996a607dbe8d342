# make demo    install, then Push-T end to end on the CPU: shards, three trainings, film, report
# make test    install, then the test suite
#
# make demo DEMOS=PATH RUN=runs/human    the same on human demonstrations (zarr folder, zip or npz),
#                                        each replayed three times; REPLAYS=0 for as they are
# make demo DEMOS=PATH REPLAYS=12 PRESET="pusht goals hour" RUN=runs/goals    half an hour on 2 cores
# make demo DEMOS=PATH REPLAYS=16 PRESET="pusht goals" RUN=runs/pusht    at full size, on a GPU
# A second call goes on from where the first was interrupted, or says that all is done.

RUN ?= runs/demo
PRESET ?= pusht goals cpu
DEMOS ?=
REPLAYS ?= $(if $(DEMOS),3)
GIVEN := checkpoints/pusht-goals
PYTHON := .venv/bin/python
INSTALLED := .venv/installed
STAGE := --preset $(PRESET) --run $(RUN)

.PHONY: demo test install
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(MAKE) --no-print-directory $(GIVEN)/play/film.gif
	$(PYTHON) -m data.preprocess pusht $(STAGE) $(if $(DEMOS),--demos $(DEMOS)) \
	  $(if $(REPLAYS),--replays $(REPLAYS))
	$(PYTHON) train_tokenizer.py $(STAGE)
	$(PYTHON) train_dynamics.py $(STAGE)
	$(PYTHON) train_controller.py $(STAGE)
	@$(MAKE) --no-print-directory $(RUN)/play/film.mp4 $(RUN)/report/index.html
	@echo
	@echo "film    $(RUN)/play/film.gif and film.mp4: the truth beside what the world imagines"
	@echo "report  $(RUN)/report/index.html, and its figures in $(RUN)/report/metrics.json"

# A goal reached in the world that comes with the project, to look at while another is made.
$(GIVEN)/play/film.gif: $(GIVEN)/dynamics/best.pt
	$(PYTHON) play.py --run $(GIVEN) --headless --beside-simulator --actions guided \
	  --goal-steps 50 --episode 2 --frame 12 --steps 50

# Film and report are made anew only when a stage beneath them has found a better checkpoint.
BEST := $(wildcard $(RUN)/*/best.pt $(RUN)/controller/*/best.pt)
$(RUN)/play/film.mp4: $(BEST)
	$(PYTHON) play.py $(STAGE) --headless --beside-simulator
$(RUN)/report/index.html: $(BEST)
	$(PYTHON) evaluate.py $(STAGE)

# Up to four cores, whole files on each: what the tests of a file share is made once.
test: $(INSTALLED)
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

install: $(INSTALLED)

$(INSTALLED): requirements.txt
	@python=; for candidate in python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or later is needed, and $$(python3 --version 2>&1 || true) is what" \
	    "python3 is here; install python3.11 and run make again" >&2; exit 1; fi; \
	[ -x $(PYTHON) ] || $$python -m venv .venv || { \
	  echo "error: $$python cannot make a virtual environment; on Debian and Ubuntu:" \
	    "apt-get install python3-venv" >&2; exit 1; }
	@echo "installing requirements.txt into .venv; this takes a minute or a few"
	@$(PYTHON) -m pip install --quiet --requirement requirements.txt
	@$(PYTHON) -c 'import cv2' || { \
	  echo "error: OpenCV lacks a system library (named above); on Debian and Ubuntu:" \
	    "apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@
