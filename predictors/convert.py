"""An official `.pt` or a Lightning `.ckpt` of the predictor becomes a folder of config.json and
weights.safetensors.

    python -m predictors.convert vjepa2-ac-vitg.pt weights/vjepa2-ac
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from predictors.loading import CONFIG, WEIGHTS, CheckpointError, built, read_predictor


def convert(file, folder):
    """Raises CheckpointError; FileExistsError where the folder is there."""
    tensors, config, source = read_predictor(file)
    built(tensors, config, source)  # they fit together
    folder = Path(folder)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m predictors.convert FILE FOLDER, got {len(sys.argv) - 1} words")
    try:
        convert(*sys.argv[1:])
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
