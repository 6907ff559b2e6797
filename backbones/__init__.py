"""One video model a file. `load(checkpoint)` picks the file by the class that the checkpoint names.

A backbone has `dit`, `depth`, `block_names`, `embedding_width`, `hidden_width`, `latent_channels`,
`native` (size, prompt length, guidance scale), `size_multiple`, `device`, `recompute(blocks)`,
`place(plan)`, `encode(frames)`, `decode(latents)`, `embed(prompts)`,
`velocity(...)`, its last layer alone (`before_head(...)`, `head(...)`), `generate(...)` and the
sites at which a method acts (`timestep_embedding`, `modulation`, `block_output`,
`predicted_velocity`). Velocities are canonical, noise - latents, whatever the sign of the network.
"""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint folder lacks a part, or names a model that no backbone is written for."""


def load(checkpoint, device="cpu", dtype=None, network_sign=None, place="none", float8=False):
    """Loads a checkpoint folder (diffusers layout, safetensors weights) as a backbone.

    dtype is that of the DiT and the text encoder; by default bfloat16 on a GPU, float32 on a CPU.
    network_sign overrides the sign that turns the network's output into a velocity: for parity with
    code that had it wrong, never for results. place says what is offloaded, see LongCat.place; with
    None all stays on the CPU until that is called. float8 stores the DiT's linear layers so. Raises
    CheckpointError.
    """
    from backbones.configs import read_config  # here: they import CheckpointError from this file
    from backbones.longcat import LongCat

    known = {"LongCatVideoTransformer3DModel": ("dit", LongCat)}
    folder = Path(checkpoint)
    for part, backbone in known.values():
        config = folder / part / "config.json"
        if config.is_file():
            name = read_config(config).get("_class_name")
            if not isinstance(name, str) or name not in known:
                raise CheckpointError(f"{config} names {name!r}; known are {', '.join(known)}")
            model = backbone.from_folder(folder, device, dtype, float8)
            model.network_sign = network_sign or model.network_sign
            if place:
                model.place(place)
            return model
    raise CheckpointError(f"{folder} holds no dit/config.json; expected the official folder layout")
