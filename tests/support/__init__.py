"""What tests share: tiny runs, workers, injected faults, servers, a head of Ray."""
