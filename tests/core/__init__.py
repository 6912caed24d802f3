"""The core case by case: no event loop, no socket, no sleep."""
