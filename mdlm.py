"""The masked diffusion model that DSL is fine-tuned from: an MDLM checkpoint -> our network, with the same logits.

    python mdlm.py                                             # mdlm-owt, fetched, as out/mdlm_owt/ckpt.pt: the paper's baseline
    python mdlm.py --source my.ckpt --out out/my/ckpt.pt       # one of yours; say --length and --n_head where they are not mdlm-owt's

Reads what MDLM's authors publish: .safetensors, a Lightning .ckpt, or a Hugging Face id such as kuleshov-group/mdlm-owt. train.py
--init_from reads these by itself; sampler.py and analyze.py want the checkpoint that this script writes.
"""

import os
import pickle
import types
from dataclasses import asdict, dataclass
from pathlib import Path

from config import Problem, arg, optional, parse, provenance, run
from train_config import parse_args as train_args


@dataclass(frozen=True)
class Config:
    """Which checkpoint, and what it does not say itself."""

    source: str = arg("kuleshov-group/mdlm-owt", "an MDLM checkpoint: .safetensors, .ckpt, Hugging Face id")
    out: str = arg("out/mdlm_owt/ckpt.pt", "where ours goes")
    tokenizer: str = arg("gpt2", "what its ids mean", choices=("bytes", "gpt2", "text8"))
    dataset: str = arg("owt", "name of the prepared text that analyze.py and sampler.py --report are to use")
    length: int = arg(1024, "L, tokens in a sequence")
    n_head: int = arg(12, "attention heads")

    def __post_init__(self):
        if min(self.length, self.n_head) < 1:
            raise ValueError("--length and --n_head must be at least 1")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import torch
from torch.nn import functional as F

from data import EOS, tokenizer
from model import DSL, ModelConfig, save_checkpoint


def take(state, name, *shape):
    """Remove a tensor from the state dict; Problem when it is not there or not of this shape (None: any size)."""
    if name not in state:
        raise Problem(f"the MDLM checkpoint lacks the tensor backbone.{name}: it is cut off, or of another architecture")
    tensor = state.pop(name)
    if tensor.dim() != len(shape) or any(size not in (None, found) for size, found in zip(shape, tensor.shape)):
        expected = " x ".join(str(size or "any") for size in shape)
        raise Problem(f"the MDLM checkpoint has backbone.{name} of shape {' x '.join(map(str, tensor.shape))}, not {expected}")
    return tensor


def fold_modulation(state, prefix, cond, C, parts):
    """adaLN with a constant input is `parts` constant vectors (C,): shift, scale (and gate) of each branch."""
    name = f"{prefix}.adaLN_modulation"
    return F.linear(cond, take(state, f"{name}.weight", parts * C, len(cond)), take(state, f"{name}.bias", parts * C)).chunk(parts)


def mdlm_to_dsl(state, n_head, length, d_embed, **changes):
    """An MDLM's state dict (prefix `backbone.`) -> our model, whose logits after `embed_ids` are MDLM's own but for the mask's column.

    MDLM's time conditioning is off, so its input is the constant c = SiLU(mlp(sinusoid(0))): shift and scale fold into the norms and
    the gate is ours. The mask's output row is dropped, and the view's mask slot is set so that z = 0 shows exactly MDLM's mask row.
    The unit-sphere embeddings E are new, drawn from torch's seed. Raises Problem naming tensors that are missing, left over or misshapen.
    """
    state = {k.removeprefix("backbone."): v.float() for k, v in state.items() if k.startswith("backbone.")}
    table = take(state, "vocab_embed.embedding", None, None)
    V, C = len(table) - 1, table.shape[1]
    if n_head < 1 or C % (2 * n_head):
        raise Problem(f"the MDLM checkpoint is {C} wide, which --n_head {n_head} does not divide into even parts: say how many it has")
    rotary = state.get("rotary_emb.inv_freq")
    if rotary is not None and (heads := C // (2 * len(rotary))) != n_head:
        raise Problem(f"the MDLM checkpoint has {heads} attention heads, not {n_head}: say so by --n_head")
    n_layer = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    first = take(state, "sigma_map.mlp.0.weight", None, 256)
    c = len(first)  # width of the conditioning
    cond = F.linear(torch.cat([torch.ones(128), torch.zeros(128)]), first, take(state, "sigma_map.mlp.0.bias", c))  # cos(0), sin(0)
    cond = F.silu(F.linear(F.silu(cond), take(state, "sigma_map.mlp.2.weight", c, c), take(state, "sigma_map.mlp.2.bias", c)))
    new = {}
    for i in range(n_layer):
        at = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = fold_modulation(state, at, cond, C, 6)
        theirs = {"norm1.bias": shift1, "norm1.weight": take(state, f"{at}.norm1.weight", C) * (1 + scale1), "attn_gate": gate1,
                  "norm2.bias": shift2, "norm2.weight": take(state, f"{at}.norm2.weight", C) * (1 + scale2), "mlp_gate": gate2}
        for ours, name, *size in (("qkv.weight", "attn_qkv.weight", 3 * C, C), ("attn_out.weight", "attn_out.weight", C, C),
                                  ("mlp_in.weight", "mlp.0.weight", 4 * C, C), ("mlp_in.bias", "mlp.0.bias", 4 * C),
                                  ("mlp_out.weight", "mlp.2.weight", C, 4 * C), ("mlp_out.bias", "mlp.2.bias", C)):
            theirs[ours] = take(state, f"{at}.{name}", *size)
        new |= {f"{at}.{name}": tensor for name, tensor in theirs.items()}
    shift, scale = fold_modulation(state, "output_layer", cond, C, 2)
    new |= {"norm.bias": shift, "norm.weight": take(state, "output_layer.norm_final.weight", C) * (1 + scale),
            "out.weight": take(state, "output_layer.linear.weight", V + 1, C)[:V],
            "out.bias": take(state, "output_layer.linear.bias", V + 1)[:V]}
    if left := sorted(set(state) - {"rotary_emb.inv_freq"}):
        raise Problem(f"the MDLM checkpoint has tensors that have no place here: {', '.join(left[:5])}")
    model = DSL(ModelConfig(V, length, n_layer, n_head, C, d_embed, mask_share=0.99, **changes))
    share = model.config.mask_share
    mask_slot = (table[V] - (1 - share) * table[:V].mean(0)) / share  # so that the view of z = 0 is table[V]
    new["view.value"] = torch.cat([table[:V], mask_slot[None]])
    missing = model.load_state_dict(new, strict=False).missing_keys
    assert set(missing) == {"view.raw_E", "view.beta", "view.bias"}
    return model


class _Nothing:
    """Stands for any class that a Lightning checkpoint names besides tensors: its configuration, its tokenizer."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    extend = append


class _TensorsOnly(pickle.Unpickler):
    """An unpickler that builds tensors and plain containers and runs nobody's code."""

    def find_class(self, module, name):
        safe = module == "collections" and name == "OrderedDict" or (module, name) == ("torch._utils", "_rebuild_tensor_v2")
        safe = safe or module == "torch" and name.endswith("Storage")
        return super().find_class(module, name) if safe else _Nothing


def read_mdlm(source):
    """The state dict of an MDLM checkpoint: a .safetensors file, a Lightning .ckpt (its averaged weights), or a Hugging Face id."""
    path = Path(source)
    if path.is_dir():  # a clone of the hub's repository
        path /= "model.safetensors"
    if not path.exists() and path.suffix in (".ckpt", ".safetensors", ".pt"):
        ours = path.with_name("ckpt.pt")
        raise Problem(f"{path}: there is no such file" + f", did you mean {ours}?" * (ours.is_file() and path != ours))
    if not path.exists():
        hub = optional("huggingface_hub")
        try:
            path = Path(hub.hf_hub_download(source, "model.safetensors"))
        except Exception as error:  # the hub's errors are many
            raise Problem(f"{source} is no file here and could not be fetched ({type(error).__name__}): check the name, or go "
                          "online") from None
    if path.suffix == ".safetensors":
        reader = optional("safetensors.torch")
        try:
            return reader.load_file(path)
        except Exception:
            raise Problem(f"{path} is not a whole .safetensors file: fetch it again") from None
    try:
        tensors_only = types.SimpleNamespace(__name__="tensors_only", Unpickler=_TensorsOnly)
        ckpt = torch.load(path, map_location="cpu", pickle_module=tensors_only, weights_only=False)
        state = ckpt["state_dict"]
    except Exception:
        raise Problem(f"{path} is not a readable Lightning checkpoint (it should hold a state_dict): fetch it again") from None
    names = [k for k in state if k.startswith("backbone.") and not k.endswith("inv_freq")]
    if isinstance(ckpt.get("ema"), dict):  # MDLM averages the parameters of backbone and noise, in order, and evaluates with that
        average = list(ckpt["ema"].get("shadow_params", ()))
        if [getattr(p, "shape", None) for p in average[: len(names)]] != [state[name].shape for name in names]:
            raise Problem(f"{path} has averaged weights that do not line up with its own: it is not one of MDLM's")
        state.update(zip(names, average))
    return state


def main(cfg):
    """Write the checkpoint as one of ours, of an MDLM after 0 steps of training."""
    if os.path.exists(cfg.out):
        raise Problem(f"{cfg.out} exists: name another --out, or delete it")
    torch.manual_seed(0)  # of the new sphere
    tok = tokenizer(cfg.tokenizer)
    V, model = tok.n_vocab, mdlm_to_dsl(read_mdlm(cfg.source), cfg.n_head, cfg.length, train_args([]).d_embed)
    if V != model.config.vocab_size:
        raise Problem(f"{cfg.source} predicts {model.config.vocab_size} tokens, --tokenizer {cfg.tokenizer} has {V}: name the one it has")
    shape = {name: getattr(model.config, name) for name in ("length", "n_layer", "n_head", "d_model")}
    framed = "--frame_eos" if EOS in tok.special_tokens_set else "--no-frame_eos"
    training = train_args(["--preset", "owt_mdlm", "--dataset", cfg.dataset, framed, *(f"--{n}={value}" for n, value in shape.items())])
    save_checkpoint(cfg.out, model, step=0, config=asdict(training), tokenizer=cfg.tokenizer, validation={}, **provenance())
    print(f"{cfg.source}: {sum(p.numel() for p in model.parameters()):,} parameters\n"
          f"saved {cfg.out}; sample from it with: python sampler.py --ckpt {cfg.out} --nucleus remdm")


if __name__ == "__main__":
    run(lambda: main(CFG))
