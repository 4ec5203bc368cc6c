"""What can run: manifests, functions, versions, artifacts, secrets."""
