"""Which of a predictor's own weights adapt."""

import argparse
import re

KINDS = {  # by their names
    "layernorm": r"norm\d?\.(weight|bias)$",
    "attn_proj": r"\.attn\.proj\.",
    "bias": r"\.bias$",
    "mlp_out": r"\.mlp\.fc[23]\.",  # as the study has it: of a gated MLP the factor too
    "last_layer": r"^predictor_blocks\.LAST\.|^predictor_norm\.",
}


def kinds(text):
    """'layernorm+bias', for argparse."""
    for kind in text.split("+"):
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(KINDS)}, or several as layernorm+bias; got {text[:60]}"
            )
    return text


def of_kinds(predictor, text):
    """{name: Parameter} of the kinds, in the predictor's order."""
    last = str(len(predictor.predictor_blocks) - 1)
    pattern = "|".join(KINDS[kind].replace("LAST", last) for kind in text.split("+"))
    return {name: p for name, p in predictor.named_parameters() if re.search(pattern, name)}
