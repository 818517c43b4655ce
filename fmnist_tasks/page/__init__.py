"""The registry page: what is in service, how it came about, and what it makes of an image; a FastAPI app."""
