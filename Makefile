# make demo: from an empty folder to generated text on two CPU cores. make test: the test suite. Both install into .venv first.
PYTHON ?= python3
BIN = .venv/bin/

.PHONY: demo test results evaluate reproduce ablations bench bench_gpu clean FORCE
# An interrupted training or file of texts is gone on with: make shall not delete it.
.PRECIOUS: out/judge/ckpt.pt out/mdlm/ckpt.pt out/eval/posterior-%.jsonl out/eval/remdm-%.jsonl out/eval/mdlm-%.jsonl

demo: out/demo/ckpt.pt
	@echo "== 4/4 sampling 32 texts in 32 steps: by MDLM's ancestral sampling for comparison, then by posterior remasking"
	$(BIN)python sampler.py --steps 32 --num_samples 32 --path mdlm --report out/demo/mdlm.json --show 0
	$(BIN)python sampler.py --steps 32 --num_samples 32 --out out/demo/samples.jsonl --report out/demo/posterior.json
	@echo "== now try: $(BIN)python sampler.py --steps 32 --watch # the text taking shape"

test: .venv/tested
	$(BIN)ruff check .
	$(BIN)python -m pytest -q -n 2 --dist loadfile tests

# Train in steps that end: an interrupted demo goes on where its last checkpoint stands, a finished one is left alone.
.PHONY: out/demo/ckpt.pt
out/demo/ckpt.pt: data/pydocs/meta.json
	@echo "== 3/4 training the demo model into out/demo (five to fourteen minutes on two cores)"
	$(BIN)python train.py --preset demo $(if $(wildcard out/demo/ckpt.pt),--resume)

data/pydocs/meta.json: .venv/installed
	@test -f $@ || { echo "== 2/4 building the corpus from this Python's own documentation into data/pydocs"; $(BIN)python prepare_owt.py --dataset pydocs; }

.venv/installed: requirements.txt
	@echo "== 1/4 installing the pinned requirements into .venv"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make demo PYTHON=python3.12, say')"
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

# README's evaluation: a judge and an MDLM of the demo's size (five minutes each), 15 sets of samples, the frontier, the four analyses.
# After another training, rm -r out/eval: the sampler does not mix texts of two checkpoints.
TEMPERATURES = 0.7 0.85 1.0 1.15 1.6
evaluate: out/judge/ckpt.pt out/mdlm/ckpt.pt $(foreach t,$(TEMPERATURES),$(foreach who,posterior remdm mdlm,out/eval/$(who)-$(t).jsonl))
	$(BIN)python eval_mauve.py $(filter %.jsonl,$^) --data pydocs --judge out/judge/ckpt.pt --frontier results/frontier.png --out results/frontier.json
	$(BIN)python analyze.py correction --ckpt out/demo/ckpt.pt out/mdlm/ckpt.pt --out results/correction
	$(BIN)python analyze.py calibration --ckpt out/demo/ckpt.pt out/mdlm/ckpt.pt --out results/calibration
	$(BIN)python analyze.py bounds --ckpt out/demo/ckpt.pt out/mdlm/ckpt.pt out/judge/ckpt.pt --out results/bounds
	$(BIN)python analyze.py invariance --out results/invariance

out/judge/ckpt.pt: .venv/tested data/pydocs/meta.json FORCE
	$(BIN)python train.py --preset demo --objective ar --seed 1 --out_dir out/judge $(if $(wildcard $@),--resume)

out/mdlm/ckpt.pt: .venv/tested data/pydocs/meta.json FORCE
	$(BIN)python train.py --preset demo --objective mdlm --lr 1e-3 --out_dir out/mdlm $(if $(wildcard $@),--resume)

SWEEP = --steps 32 --num_samples 500 --batch_size 100 --top_p 1 --show 0
out/eval/posterior-%.jsonl: out/demo/ckpt.pt FORCE
	$(BIN)python sampler.py --path posterior --temperature $* --out $@ $(SWEEP)
out/eval/remdm-%.jsonl: out/demo/ckpt.pt FORCE
	$(BIN)python sampler.py --path remdm --temperature $* --out $@ $(SWEEP)
out/eval/mdlm-%.jsonl: out/mdlm/ckpt.pt FORCE
	$(BIN)python sampler.py --ckpt out/mdlm/ckpt.pt --path remdm --temperature $* --out $@ $(SWEEP)

# The paper's claim: an MDLM for each of three seeds, the paths that decide it, at the rates and settings of results/claim_spread_tuning.json,
# and, for DSL, a sphere of D dimensions; of 32, whatever D, with LONG=1 and ALL=1, as those were run. SEEDS="3 4 5" asks three other
# trainings, under names of their own, as any others do.
# On two cores that are fast in bfloat16 the answer to T = 64 stands after 111 minutes, that to T = 256 after 162. On English prose where TEXT
# names some (.txt, .md or .jsonl, also .gz or .xz), else on pydocs.
# With LONG=1, in three and a half hours by estimate, at these settings, T to 64, four times the fine-tuning, MDLM's at twice its rate. With
# FROM_SCRATCH=1, which wins over that, in four by estimate, at these settings, MDLM, the control and DSL from scratch. With ALL=1, which
# wins over both, in six by estimate, six seeds of one MDLM, rates and settings chosen anew, every path; and ablations, what that hangs on.
# TEXTS=1020, in four and a half by estimate, draws that many in each cell up to T = 128, not 384 (768 with ALL=1), for errors by texts 0.6
# times as large (0.9); a run that has ended draws what it lacks. Interrupted, they go on.
D = 128
SEEDS = 0 1 2
NAMED = $(subst $(eval) ,_,$(strip $(SEEDS)))
AGAIN = $(if $(ALL)$(filter 0_1_2,$(NAMED)),,$(if $(filter 3_4_5,$(NAMED)),_again,_seeds_$(NAMED)))
TEXT ?= $(wildcard ../shared/data/english.txt.xz)
CORPUS := $(if $(TEXT),english,pydocs)
KIND = $(if $(ALL),,$(if $(FROM_SCRATCH),_scratch_D$(D),$(if $(LONG),_long,_D$(D))))
CLAIM = results/claim$(if $(TEXT),,_pydocs)$(KIND)$(AGAIN)
FOLDER = out/$(if $(ALL),reproduce,$(if $(FROM_SCRATCH),scratch$(D:128=),$(if $(LONG),long,each$(D:128=)))$(AGAIN))$(if $(TEXT),,_pydocs)
COMPARED = $(foreach who,dsl masked mdlm_more,$(foreach seed,$(if $(ALL),0 1 2 3 4 5,$(SEEDS)),$(FOLDER)/$(who)-$(seed)/ckpt.pt))
FLAGS =
FLAGS_D$(D) = --mdlm_per_seed $(SETTLED) soft  # one more of the --paths
FLAGS_long = --mdlm_per_seed --fine_tune_steps 8000 --rates 1e-3 2e-3 8e-3 --calls 4 8 16 32 64 $(SETTLED)
FLAGS_scratch_D$(D) = --from_scratch $(SETTLED)
ASKED = --data $(CORPUS) --out_dir $(FOLDER) --results $(CLAIM) --d_embed $(if $(findstring _D,$(KIND)),$(D),32) $(FLAGS$(KIND)) $(if $(TEXTS),--texts $(TEXTS))
SOONER = --calls 4 8 16 32 64  # first: what takes half of the sampling, T = 128 and more, adds to the same files at the end
SETTLED = --seeds $(SEEDS) --tuning results/claim_spread_tuning.json --paths remdm recorded random mend mend-recorded
reproduce: .venv/tested data/$(CORPUS)/meta.json
	$(BIN)python reproduce.py $(SOONER) $(ASKED)
	$(BIN)python analyze.py correction --ckpt $(COMPARED) --out $(CLAIM)_correction
	$(BIN)python analyze.py calibration --ckpt $(COMPARED) --out $(CLAIM)_calibration
	$(BIN)python reproduce.py $(ASKED)

ablations: ALL = 1  # of its prerequisite too
ablations: reproduce
	$(BIN)python ablate.py --data $(CORPUS) --claim $(CLAIM) --out_dir $(FOLDER)

data/english/meta.json: .venv/installed FORCE
	@grep -qsF '"source": "$(TEXT)"' $@ || $(BIN)python prepare_owt.py --text $(TEXT) --name english

# Every benchmark, some 20 minutes on two cores; on a GPU, of the shapes and variants that matter there: make bench_gpu.
BENCH ?= results/bench
TRAIN ?= --batch_size 4 --repeats 3
SAMPLE ?= --repeats 15 --vs dtype=float32
WHOLE ?= --repeats 5
bench: .venv/tested
	$(BIN)python bench.py sample $(SAMPLE) --profile --out $(BENCH)_sample.json
	$(BIN)python bench.py sample --whole $(WHOLE) --out $(BENCH)_sample_whole.json
	$(BIN)python bench.py train $(TRAIN) --profile --out $(BENCH)_train.json
	$(BIN)python bench.py train --preset demo --repeats 21 --vs dtype=float32 dtype=bfloat16 compile --out $(BENCH)_train_demo.json
	$(BIN)python bench.py sample --preset demo --whole --batch_size 64 --repeats 15 --vs compile 'compile --static' --out $(BENCH)_static.json
	$(BIN)python bench.py train --preset demo --repeats 15 --vs attention=flash_attention attention=math --out $(BENCH)_attention.json
	$(BIN)python bench.py head --batch_size 8 --repeats 3 --out $(BENCH)_head.json
	$(BIN)python bench.py prepare --repeats 3 --vs copies=40 --out $(BENCH)_prepare.json

bench_gpu:
	$(MAKE) bench BENCH=results/gpu_bench SAMPLE="--batch_size 64" WHOLE="--batch_size 64 --vs compile 'compile --static'" \
	    TRAIN="--batch_size 32 --vs compile attention=flash_attention attention=cudnn_attention"

clean:
	rm -rf .venv out data
