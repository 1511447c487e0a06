"""The run: from a scenario to verdicts, one module a step. Each step's own knowledge lives in the package of its name."""
