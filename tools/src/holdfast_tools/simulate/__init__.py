"""A simulated OpenAI-compatible provider, for the demo, for tests and for benchmarks."""

from holdfast_tools.simulate.server import SimulatedProvider as SimulatedProvider
from holdfast_tools.simulate.statistics import Statistics as Statistics
