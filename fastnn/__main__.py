"""``python -m fastnn`` is the command ``fastnn``."""

from fastnn.cli import entry_point

if __name__ == "__main__":
    entry_point()
