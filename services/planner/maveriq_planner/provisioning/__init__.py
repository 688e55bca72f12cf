"""Which GPUs to rent for a workload: see `maveriq_planner.provision`, the entry, and docs/provisioning.md."""
