"""LoRA: low-rank updates of the attention's projections, through peft.

    W x + alpha / rank * B A x,  A random from the video's own stream, B zero at start

With rank 1 at 13.6B 2,555,904 parameters, 5,000 times those of AdaSteer with one group.

    python lora_tta.py --rank 1 --steps 5
    python lora_tta.py --targets attn.qkv --blocks last:4 --save-adapter --out results/lora_qkv
"""

import runs  # first: it says how torch's threads wait

# isort: split
import contextlib

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

import common

PREFIX = "base_model.model."  # of the keys in a file that peft loads


class LoRA:
    """float32 matrices A (rank, in) and B (out, rank) beside each chosen linear layer."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=5e-4)
        group.add_argument("--rank", type=common.at_least(1, 4096), default=1, help="of an update")
        group.add_argument("--alpha", type=common.positive, default=2.0, help="scale: alpha / rank")
        group.add_argument(
            "--targets", nargs="+", metavar="LAYER",
            help="linear layers of a block; those of its attentions where not given",
        )  # fmt: skip
        group.add_argument("--ffn", action="store_true", help="also those of its feed-forward")
        group.add_argument(
            "--blocks", type=common.blocks, default="all", metavar="all|last:K|I,J",
            help="blocks that get updates",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")
        group.add_argument(
            "--warm-up", type=common.at_least(0), default=3, help="steps of rising learning rate"
        )

    @staticmethod
    def fits(args, model):
        common.chosen_blocks(args.blocks, model.depth)
        if args.rank > model.hidden_width:
            raise common.MisfitError(f"--rank must be in 1..{model.hidden_width}, got {args.rank}")

    def __init__(self, model, clip, args):
        self.model, self.dit, self.args = model, model.dit, args
        self.config = LoraConfig(
            r=args.rank, lora_alpha=args.alpha, bias="none", target_modules=places(model, args)
        )
        self.layers = self.new_layers()
        generator = common.start_stream(clip, args, "lora")
        for layer in self.layers.values():
            layer.lora_A.to(model.device).float(), layer.lora_B.to(model.device).float()
            a = layer.lora_A["default"].weight
            drawn = torch.empty(a.shape)  # as peft does, but the same on every device
            a.data.copy_(torch.nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator))

    def new_layers(self):
        """{name: peft's layer around the DiT's own}; the DiT keeps its own until attached()."""
        try:
            inject_adapter_in_model(self.config, self.dit)
        finally:
            modules = list(self.dit.named_modules())
            layers = {name: layer for name, layer in modules if isinstance(layer, LoraLayer)}
            for name, layer in layers.items():
                self.dit.set_submodule(name, layer.base_layer)
            vars(self.dit).pop("peft_config", None)
        return layers

    def named_parameters(self):
        return {
            f"{PREFIX}{name}.{part}.weight": getattr(layer, part)["default"].weight
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }

    def optimizer(self):
        optimizer = torch.optim.AdamW(
            self.named_parameters().values(), lr=self.args.lr, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=self.args.weight_decay,
        )  # fmt: skip
        return optimizer, common.warm_up(optimizer, self.args.warm_up)

    def loss(self, draw):
        return common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)

    @contextlib.contextmanager
    def attached(self):
        for name, layer in self.layers.items():
            self.dit.set_submodule(name, layer)
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                self.dit.set_submodule(name, layer.base_layer)

    def save(self, path):
        """Writes the folder `path` with what peft.PeftModel.from_pretrained reads."""
        path.mkdir(exist_ok=True)
        self.config.save_pretrained(path)
        tensors = {name: p.detach().cpu() for name, p in self.named_parameters().items()}
        save_file(tensors, path / "adapter_model.safetensors")


def places(model, args):
    """Paths of the layers that get updates. Raises UsageError."""
    known = [name for kind in model.linears.values() for name in kind]
    for target in args.targets or ():
        if target not in known:
            raise common.UsageError(f"--targets: {target} is not one of {' '.join(known)}")
    targets = args.targets or model.linears["attention"]
    targets = [*targets, *(model.linears["ffn"] if args.ffn else ())]
    names = [name for stack in model.stacks for name in stack]
    blocks = [names[i] for i in common.chosen_blocks(args.blocks, model.depth)]
    modules = dict(model.dit.named_modules())  # a layer may be in blocks of one stack alone
    paths = [f"{path}.{t}" for block in blocks for path in common.paths_of(block) for t in targets]
    if not (found := [path for path in paths if path in modules]):
        raise common.UsageError(f"--targets {args.targets}: in none of --blocks {args.blocks}")
    return found


def main():
    args = runs.parse_args(__doc__, LoRA)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = LoRA(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
