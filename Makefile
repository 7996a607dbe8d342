# make demo    install, then Push-T end to end on the CPU: episodes, training, video, report
# make test    install, then run the tests; make test-fast runs one of each file
# make dreamer ENV=CartPole-v1    install, then rounds of collecting, training the world, and the
#     controller in it; the report draws the return against the steps. ROUNDS and COLLECT say how
#     often, and how many steps a round; PRESET="pusht debug" tries it with another recipe, and
#     ENV_KWARGS="is_slippery=false" is given to the environment
#
# make demo DEMOS=PATH RUN=runs/human
#     the same on human demonstrations (a zarr folder, zip or npz), with 3 perturbed copies of each;
#     PERTURB=0 uses the demonstrations themselves
# make demo DEMOS=PATH PERTURB=12 PRESET="keypoints cpu30" RUN=runs/goals    half an hour on 2 cores
# make demo DEMOS=PATH PERTURB=16 PRESET=keypoints RUN=runs/pusht            full size, on a GPU
#
# make task DEMOS=PATH    an hour on 2 cores: from human demonstrations to the table of the Push-T task
#     (docs/concepts/task.md): a world from nothing, what the task costs, the policies, 500 episodes of each.
#     EPISODES=100 plays fewer, PERTURB=K makes other copies than 12
# make task DEMOS=PATH PERTURB=0 PRESET="keypoints debug" EPISODES=2 RUN=runs/try    tries it
#
# make docs    install, then build the site strictly, in build/site
# make docs-play    the page of the committed world that the site then carries; it needs npm
#
# A second call resumes an interrupted demo, task or loop; each stage that is finished says so.

RUN ?= runs/demo
PRESET ?= keypoints cpu
DEMOS ?=
PERTURB ?= $(if $(DEMOS),3)
CHECKPOINT := checkpoints/pusht-goals
PYTHON := .venv/bin/python
# uv installs the same packages in a fraction of the time, where it is there. Bytecode is made of
# what is imported, when it is: to make it of all takes a third of the time.
PIP_INSTALL := $(if $(shell command -v uv),uv pip install --python $(PYTHON),\
  $(PYTHON) -m pip install --no-compile)
# Where the environment asks for none beside the sources, bytecode is kept in .venv: without any, each
# process would compile the sources of PyTorch anew, for four seconds.
ifdef PYTHONDONTWRITEBYTECODE
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(or $(PYTHONPYCACHEPREFIX),$(CURDIR)/.venv/bytecode)
endif

INSTALLED := .venv/installed
TESTABLE := .venv/installed-test
DOCUMENTABLE := .venv/installed-docs

# A run remembers its presets. A PRESET on the command line goes to every stage all the same.
GIVEN := $(if $(filter file,$(origin PRESET)),,--preset $(PRESET))
STAGE := --run $(RUN) $(GIVEN)
FIRST := --run $(RUN) $(or $(GIVEN),$(if $(wildcard $(RUN)/run.json),,--preset $(PRESET)))

# The loop has a recipe and a folder of its own, where none is given.
ENV ?= CartPole-v1
ENV_KWARGS ?=
ROUNDS ?= 5
COLLECT ?= 2000
LOOP_PRESET := $(if $(filter file,$(origin PRESET)),dreamer loop,$(PRESET))
LOOP_RUN := $(if $(filter file,$(origin RUN)),runs/$(notdir $(ENV)),$(RUN))
# A recipe whose world is trained jointly has no tokenizer.
LOOP_STAGES := $(if $(filter dreamer,$(LOOP_PRESET)),,train_tokenizer) train_dynamics train_controller

# So has the task. The cost reads states for the imitator, whose student learns from its best chunks.
TASK_PRESET := $(if $(filter file,$(origin PRESET)),keypoints cpu30,$(PRESET))
# Of the size's steps two thirds are enough for the 20 that are looked ahead.
TASK_STEPS := $(if $(filter file,$(origin PRESET)),--train.steps 3600 --train.eval-every 1800)
TASK_RUN := $(if $(filter file,$(origin RUN)),runs/task,$(RUN))
TASK_PERTURB := $(if $(filter file,$(origin PERTURB)),12,$(PERTURB))
TASK_METHODS := task_cost canonical_policy distilled_policy
TASK_POLICIES := best_of_n distilled_policy canonical_policy random
EPISODES ?= 500

.PHONY: demo task dreamer test test-fast docs docs-play install install-test
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(MAKE) --no-print-directory -j2 $(CHECKPOINT)/play/goal.made $(CHECKPOINT)/play/task.made
	$(PYTHON) preprocess.py pusht $(FIRST) $(if $(DEMOS),--demos $(DEMOS)) \
	  $(if $(PERTURB),--perturb $(PERTURB))
	$(PYTHON) train_tokenizer.py $(STAGE)
	$(PYTHON) train_dynamics.py $(STAGE)
	$(PYTHON) train_controller.py $(STAGE)
	@$(MAKE) --no-print-directory $(RUN)/play/rollout.mp4 $(RUN)/report/index.html
	@echo
	@echo "goal    $(CHECKPOINT)/play/rollout.gif: a goal reached in the world that comes along"
	@echo "task    $(CHECKPOINT)/play/task/rollout.gif: the Push-T task, solved by choosing in that world"
	@echo "video   $(RUN)/play/rollout.gif and rollout.mp4: the simulator next to the model rollout"
	@echo "report  $(RUN)/report/index.html, with its metrics in $(RUN)/report/metrics.json"

task: $(INSTALLED)
	@[ -n "$(DEMOS)" ] || { echo "error: make task needs human demonstrations, and DEMOS is empty;" \
	  "give DEMOS=PATH, a zarr folder, zip or npz (docs/reference/preprocess.md)" >&2; exit 1; }
	$(PYTHON) preprocess.py pusht --run $(TASK_RUN) --preset $(TASK_PRESET) --demos $(DEMOS) \
	  --perturb $(TASK_PERTURB)
	$(PYTHON) train_tokenizer.py --run $(TASK_RUN)
	$(PYTHON) train_dynamics.py --run $(TASK_RUN) $(TASK_STEPS)
	$(PYTHON) train_controller.py --run $(TASK_RUN) --methods $(TASK_METHODS) \
	  --distilled-policy.expert.proposer canonical_policy
	$(PYTHON) evaluate.py --run $(TASK_RUN) --protocol task --policies $(TASK_POLICIES) \
	  --task-episodes $(EPISODES)
	@echo
	@echo "report  $(TASK_RUN)/report/index.html: the table of the task, and a film of 12 episodes"

# Round 0 is collected at random, each later one by the controller of the round before. Stages go on
# from their checkpoints as the shards grow; rounds that are recorded train nothing again.
dreamer: $(INSTALLED)
	$(PYTHON) preprocess.py gym --run $(LOOP_RUN) --preset $(LOOP_PRESET) --env $(ENV) \
	  $(if $(ENV_KWARGS),--env-kwargs $(ENV_KWARGS)) \
	  --steps $(COLLECT) --round 0
	@first=$$($(PYTHON) -m pipeline.recording.next_round $(LOOP_RUN)) || exit; \
	for round in $$(seq $$first $(ROUNDS)); do \
	  for stage in $(LOOP_STAGES); do \
	    echo "dreamer: round $$round of $(ROUNDS), $$stage"; \
	    $(PYTHON) $$stage.py --run $(LOOP_RUN) || exit; \
	  done; \
	  $(PYTHON) preprocess.py gym --run $(LOOP_RUN) --policy $(LOOP_RUN) --steps $(COLLECT) \
	    --round $$round || exit; \
	done
	$(PYTHON) evaluate.py --run $(LOOP_RUN)
	@echo "report  $(LOOP_RUN)/report/index.html: the return against the steps"

# A goal is reached in the world that comes with the project. Watch it while the demo trains.
# Two films are made at a time, on a thread each, without bars that would overwrite each other.
BESIDE := OMP_NUM_THREADS=1 TQDM_DISABLE=1
$(CHECKPOINT)/play/goal.made: $(CHECKPOINT)/dynamics/best.pt
	$(BESIDE) $(PYTHON) play.py --run $(CHECKPOINT) --headless --compare-simulator --actions policy_prior \
	  --goal-offset 25 --episode 1 --frame 40 --steps 25
	@touch $@

# The task is solved there: chunks are chosen in the world, and carried out in the simulator.
$(CHECKPOINT)/play/task.made: $(CHECKPOINT)/controller/canonical_policy/best.pt
	$(BESIDE) $(PYTHON) play.py --run $(CHECKPOINT) --headless --observe-simulator --goal task \
	  --actions best_of_n --episode 1 --steps 300 --out $(CHECKPOINT)/play/task
	@touch $@

# Video and report are made again when a stage has found a better checkpoint.
BEST := $(wildcard $(RUN)/*/best.pt $(RUN)/controller/*/best.pt)
$(RUN)/play/rollout.mp4: $(BEST)
	$(PYTHON) play.py $(STAGE) --headless --compare-simulator
$(RUN)/report/index.html: $(BEST)
	$(PYTHON) evaluate.py $(STAGE)

# Four processes at most, and whole files on each: tests of a file share their fixtures.
# A window is watched in real time, which other tests beside it would spoil.
test: $(TESTABLE)
	$(PYTHON) -m pytest tests/test_window.py
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile --ignore tests/test_window.py

# One test of each file that is not marked slow: an answer while one waits.
test-fast: $(TESTABLE)
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --fast --ignore tests/test_window.py

# Strict: a broken link, a page outside of the nav and an undocumented public name end it.
docs: $(DOCUMENTABLE)
	$(PYTHON) docs/make/build_site.py

docs-play: $(DOCUMENTABLE)
	@$(PIP_INSTALL) --quiet --requirement requirements-web.txt
	[ -e node_modules/onnxruntime-web ] || \
	  npm install --no-save --no-audit --no-fund --ignore-scripts onnxruntime-web@1.30.0
	$(PYTHON) -m pipeline.export web --run $(CHECKPOINT) --out build/play

install: $(INSTALLED)
install-test: $(TESTABLE)

$(INSTALLED): requirements.txt requirements-serve.txt
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
	@$(PIP_INSTALL) --quiet --requirement requirements.txt
	@$(PYTHON) -c 'import cv2' 2>/dev/null || \
	  echo "note: OpenCV lacks a system library, which preprocess.py vpt needs; on Debian and Ubuntu:" \
	    "apt-get install libgl1 libglib2.0-0" >&2
	@touch $@

$(DOCUMENTABLE): $(INSTALLED) requirements-docs.txt
	@$(PIP_INSTALL) --quiet --requirement requirements-docs.txt
	@touch $@

$(TESTABLE): $(INSTALLED) requirements-test.txt
	@$(PIP_INSTALL) --quiet --requirement requirements-test.txt
	@touch $@
