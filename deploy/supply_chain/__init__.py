"""Third-party components: known vulnerabilities, ends of support, bills of materials, and image digests."""
