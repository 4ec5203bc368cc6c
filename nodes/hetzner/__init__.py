"""Provider `hetzner`: servers of the Hetzner Cloud, by its own Python client, which nothing else imports."""
