"""What others maintain: known vulnerabilities, ends of support, bills of materials, and images by digest."""
