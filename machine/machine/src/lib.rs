//! From a spec to a running machine: address map, wiring, vCPU threads.
