"""Prompts as Open-Sora v2.0 takes them: T5's states of every token and CLIP's pooled ones, both
computed without an attention mask, so that the padding takes part."""

import gc

import torch
from tqdm import tqdm

from backbones.configs import read_config
from backbones.opensora2_configs import CLIP, CLIP_TOKENS, T5, check_clip
from backbones.parts import load_part, load_weights
from backbones.text import DECODER, check_tokenizer, quiet, tokenize

# weights of the parts of CLIP that are not used
VISION = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


class PromptEncoders:
    """The tokenizers and encoders of a checkpoint folder, in memory only while they work."""

    def __init__(self, folder, dtype, tokens):
        self.folder, self.dtype, self.tokens = folder, dtype, tokens

    def __call__(self, prompts, device):
        """Of each prompt {"embeds": (1, L, width), "pooled": (1, width)}, on the CPU. Raises
        CheckpointError."""
        from transformers import CLIPTextModel, T5EncoderModel, utils  # slow, and often unneeded

        utils.logging.disable_progress_bar()  # one bar: that over the prompts
        t5, clip = self.folder / T5, self.folder / CLIP
        words = read_config(t5 / "config.json")["vocab_size"], check_clip(clip / "config.json")
        states = self._outputs(T5EncoderModel, t5, self.tokens, words[0], DECODER, prompts, device)
        sizes = CLIP_TOKENS, words[1].get("vocab_size", 49408)
        pooled = self._outputs(CLIPTextModel, clip, *sizes, VISION, prompts, device)
        both = zip(states, pooled, strict=True)
        for t5_out, clip_out in tqdm(
            both, "prompts", len(prompts), unit="prompt", disable=None, leave=False
        ):
            yield {
                "embeds": t5_out.last_hidden_state.cpu(),
                "pooled": clip_out.pooler_output.cpu(),
            }

    def _outputs(self, cls, folder, length, vocabulary, others, prompts, device):
        """What an encoder gives for each prompt; it is gone after the last."""
        from transformers import AutoTokenizer

        safe = {"trust_remote_code": False}  # else a checkpoint's own files may ask to be run
        tokenizer = load_part(AutoTokenizer, folder, **safe)
        check_tokenizer(folder, tokenizer, vocabulary, length)
        safe["ignore_mismatched_sizes"] = True  # load_weights says which, in one line
        with quiet():
            encoder = load_weights(cls, folder, self.dtype, others, **safe).eval().to(device)
        for prompt in prompts:
            ids = tokenize(tokenizer, prompt, length).input_ids.to(device)
            with torch.no_grad():
                out = encoder(ids)  # no mask
            yield out
            del out
        del encoder
        gc.collect()  # the model and its modules refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
