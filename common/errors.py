"""The errors that a run expects; anything else is a defect or a broken machine and ends the job."""


class UsageError(Exception):
    """A flag, manifest or checkpoint that cannot work: ends the program with exit code 2."""


class MisfitError(UsageError):
    """A flag that this checkpoint's model cannot follow, another one's may: a sweep skips the
    row."""


class VideoError(Exception):
    """One video cannot be used: it is recorded as skipped with this reason and the run goes on."""


class PreflightError(VideoError):
    """The model does not predict this video; `losses` says how badly."""

    def __init__(self, losses):
        self.losses = losses
        super().__init__(
            "preflight: the model's loss {loss} is not below {zero_loss}, that of predicting zero "
            "(negated prediction: {negated_loss})".format(**losses)
        )

    def __reduce__(self):  # to other processes
        return PreflightError, (self.losses,)


class StopRun(Exception):
    """The run as a whole makes no sense any more: ends the program with exit code 1."""
