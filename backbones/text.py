"""Prompts as a transformer takes them."""

import gc
import html

import ftfy
import torch
from tqdm import tqdm

from backbones import CheckpointError
from backbones.configs import read_config
from backbones.parts import load_part, load_weights, one_line


def clean_prompt(text):
    """Text repair, html entities and white space, as the official sampler does."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class PromptEncoder:
    """The tokenizer and encoder of a checkpoint folder, in memory only while they work. encoder:
    the name of its class in transformers."""

    def __init__(self, folder, dtype, encoder="UMT5EncoderModel"):
        self.folder, self.dtype, self.encoder = folder, dtype, encoder

    def __call__(self, prompts, device, length):
        """Of each prompt in turn, padded to `length` tokens, its embeddings (1, 1, L, width) and
        their mask (1, L), on the CPU. Raises CheckpointError.

        One prompt a pass: in a batch its last bits would depend on the others.
        """
        import transformers  # slow, and often unneeded

        transformers.utils.logging.disable_progress_bar()  # one bar: that over the videos
        safe = {"trust_remote_code": False}  # else a checkpoint's own files may ask to be run
        tokenizer = load_part(transformers.AutoTokenizer, self.folder / "tokenizer", **safe)
        vocabulary = read_config(self.folder / "text_encoder" / "config.json")["vocab_size"]
        check_tokenizer(self.folder / "tokenizer", tokenizer, vocabulary, length)
        safe["ignore_mismatched_sizes"] = True  # load_weights says which, in one line
        cls = getattr(transformers, self.encoder)
        encoder = load_weights(cls, self.folder / "text_encoder", self.dtype, **safe)
        encoder.eval().to(device)
        for prompt in tqdm(prompts, "prompts", unit="prompt", disable=None, leave=False):
            tokens = tokenize(tokenizer, prompt, length).to(device)
            with torch.no_grad():
                out = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
            yield {"embeds": out[:, None].cpu(), "mask": tokens.attention_mask.cpu()}
            del out
        del encoder
        gc.collect()  # the model and its modules refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


def tokenize(tokenizer, prompt, length):
    return tokenizer(
        [clean_prompt(prompt)],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )


def check_tokenizer(folder, tokenizer, vocabulary, length):
    """Raises CheckpointError where prompts would not become what the encoder takes."""
    try:
        highest = max(tokenizer.get_vocab().values())
        tokens = tokenize(tokenizer, "a", length)
        ids, mask = tokens.input_ids, tokens.attention_mask
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be used: {one_line(repr(error))}") from error
    if not highest < vocabulary:
        raise CheckpointError(
            f"{folder} has the token {highest}; it must be less than {vocabulary}, the vocab_size "
            "of the text encoder"
        )
    if ids.shape != (1, length) or mask.shape != ids.shape or not mask.any():
        raise CheckpointError(f"{folder} makes {tuple(ids.shape)} tokens, not {(1, length)}")


def padded(text, batch):
    """(batch, L, width): zeros where the prompt has no token, which attention meets as they are."""
    embeds = text["embeds"].squeeze(1) * text["mask"][..., None].to(text["embeds"].dtype)
    return embeds.expand(batch, -1, -1)
