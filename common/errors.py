"""The errors that a run expects; anything else is a defect or a broken machine and ends the job."""


class UsageError(Exception):
    """A flag, manifest or checkpoint that cannot work: ends the program with exit code 2."""


class VideoError(Exception):
    """One video cannot be used: it is recorded as skipped with this reason and the run goes on."""


class PreflightError(VideoError):
    """The model does not predict this video; `losses` says how badly."""

    def __init__(self, losses):
        self.losses = losses
        super().__init__(
            f"preflight: the model's loss {losses['loss']:.4g} is not below "
            f"{losses['zero_loss']:.4g}, that of predicting zero "
            f"(negated prediction: {losses['negated_loss']:.4g})"
        )


class StopRun(Exception):
    """The run as a whole makes no sense any more: ends the program with exit code 1."""
