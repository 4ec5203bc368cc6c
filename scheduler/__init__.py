"""When it runs: jobs, queue, leases, retries, callbacks and their deliveries."""
