# make demo: from an empty folder to generated text on two CPU cores. make test: the test suite. Both install into .venv first.
PYTHON ?= python3
BIN = .venv/bin/

.PHONY: demo test results clean

demo: out/demo/ckpt.pt
	@echo "== 4/4 sampling 32 texts in 32 steps: by MDLM's ancestral sampling for comparison, then by posterior remasking"
	$(BIN)python sampler.py --steps 32 --num_samples 32 --path mdlm --report out/demo/mdlm.json --show 0
	$(BIN)python sampler.py --steps 32 --num_samples 32 --out out/demo/samples.jsonl --report out/demo/posterior.json
	@echo "== now try: $(BIN)python sampler.py --steps 32 --watch # the text taking shape"

test: .venv/tested
	$(BIN)ruff check .
	$(BIN)python -m pytest -q tests

# Train in steps that end: an interrupted demo goes on where its last checkpoint stands, a finished one is left alone.
.PHONY: out/demo/ckpt.pt
out/demo/ckpt.pt: data/pydocs/meta.json
	@echo "== 3/4 training the demo model into out/demo (about five minutes on two cores)"
	$(BIN)python train.py --preset demo $(if $(wildcard out/demo/ckpt.pt),--resume)

data/pydocs/meta.json: .venv/installed
	@test -f $@ || { echo "== 2/4 building the corpus from this Python's own documentation into data/pydocs"; $(BIN)python prepare_owt.py --dataset pydocs; }

.venv/installed: requirements.txt
	@echo "== 1/4 installing the pinned requirements into .venv"
	$(PYTHON) -m venv .venv
	$(BIN)python -m pip install --quiet --progress-bar off --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/tested: .venv/installed requirements-test.txt
	$(BIN)python -m pip install --quiet --progress-bar off --disable-pip-version-check -r requirements-test.txt
	@touch $@

# The numbers in README.md: the samples of the demo's checkpoint, reported into results/.
results: out/demo/ckpt.pt
	$(BIN)python sampler.py --steps 32 --num_samples 256 --path mdlm --report results/demo_mdlm.json --show 0
	$(BIN)python sampler.py --steps 32 --num_samples 256 --report results/demo_posterior.json --show 0

clean:
	rm -rf .venv out data
