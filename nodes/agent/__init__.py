"""The program on each node. It speaks HTTPS to the gateway and to presigned URLs, nothing else."""
