"""A simulated OpenAI-compatible provider, for the demo, for tests and for benchmarks."""

from holdfast.simulate.server import SimulatedProvider as SimulatedProvider
from holdfast.simulate.statistics import Statistics as Statistics
