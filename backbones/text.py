"""Prompts as a transformer takes them."""

import contextlib
import gc
import html

import ftfy
import torch
from tqdm import tqdm

from backbones import CheckpointError
from backbones.configs import read_config
from backbones.parts import load_part, load_weights, one_line

DECODER = ("decoder.", "lm_head.")  # weights of a whole T5 that are not used


def clean_prompt(text):
    """Text repair, html entities and white space, as the official sampler does."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class PromptEncoder:
    """The tokenizer and encoder of a checkpoint folder, in memory only while they work. encoder:
    the name of its class in transformers; masked: whether it is told which tokens are padding;
    parts: their folders; others: names that begin weights of theirs that are not used."""

    def __init__(
        self, folder, dtype, encoder="UMT5EncoderModel", masked=True,
        parts=("text_encoder", "tokenizer"), others=(),
    ):  # fmt: skip
        self.dtype, self.encoder, self.masked, self.others = dtype, encoder, masked, others
        self.folders = [folder / part for part in parts]

    def __call__(self, prompts, device, length):
        """Of each prompt in turn, padded to `length` tokens, its embeddings (1, 1, L, width) and
        their mask (1, L), on the CPU. Raises CheckpointError.

        One prompt a pass: in a batch its last bits would depend on the others.
        """
        import transformers  # slow, and often unneeded

        transformers.utils.logging.disable_progress_bar()  # one bar: that over the videos
        safe = {"trust_remote_code": False}  # else a checkpoint's own files may ask to be run
        folder, at = self.folders
        tokenizer = load_part(transformers.AutoTokenizer, at, **safe)
        check_tokenizer(at, tokenizer, read_config(folder / "config.json")["vocab_size"], length)
        safe["ignore_mismatched_sizes"] = True  # load_weights says which, in one line
        with quiet():
            cls = getattr(transformers, self.encoder)
            encoder = load_weights(cls, folder, self.dtype, self.others, **safe)
        encoder.eval().to(device)
        for prompt in tqdm(prompts, "prompts", unit="prompt", disable=None, leave=False):
            tokens = tokenize(tokenizer, prompt, length).to(device)
            mask = tokens.attention_mask if self.masked else None
            with torch.no_grad():
                out = encoder(tokens.input_ids, mask).last_hidden_state
            yield {"embeds": out[:, None].cpu(), "mask": tokens.attention_mask.cpu()}
            del out
        del encoder
        gc.collect()  # the model and its modules refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def quiet():
    """transformers would list the weights that are not used."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


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
