"""World models in a space of features: no sampler, no pixels, so no backbones."""

from backbones import CheckpointError
from predictors.loading import load_predictor
from predictors.vjepa2_ac import ActionConditionedPredictor

__all__ = ["ActionConditionedPredictor", "CheckpointError", "load_predictor"]
