"""What ends a training run early. Each message says what is to be done about it."""


class TrainingError(Exception):
    """The run cannot begin or go on; what it wrote so far is intact."""


class SettingError(TrainingError):
    """A setting that cannot be met; the message names it, its value and what was expected."""


class Interrupted(Exception):
    """A signal asked the run to stop, and the checkpoint at `path` is of this very moment."""

    def __init__(self, path: str, iteration: int) -> None:
        super().__init__(f"saved {path} after iteration {iteration}")
        self.path = path
