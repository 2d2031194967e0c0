"""Which faults does a run survive? Every one of them is done to real runs."""
