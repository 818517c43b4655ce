"""Third-party components: known vulnerabilities, end-of-support dates, bills of materials, and image digests."""
