"""fastnn: perceptrons and multilayer perceptrons at the speed of the machine."""

__version__ = "0.1.0"
