"""The parts of a batch job: what its ranks prepare together, its plan, its report, its signals."""
