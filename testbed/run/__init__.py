"""The run: from a scenario to verdicts, one module a step; what a step knows lives in the package of its name."""
