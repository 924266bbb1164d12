"""What tests of whole runs share: a crash at a given step, and the bits of what is exported."""

from impasto.training.events import SilentEvents


class StopAt(SilentEvents):
    """Raises after a number of steps, as a crash would, without a word to the trainer."""

    def __init__(self, step):
        self.step = step

    def stepped(self, step):
        if step == self.step:
            raise ZeroDivisionError


def exported(run):
    return {
        str(file.relative_to(run.export)): file.read_bytes()
        for file in run.export.rglob("*")
        if file.is_file() and file.name != "impasto.json"  # has the date and the run's name
    }
