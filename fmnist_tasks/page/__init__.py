"""The Releases page, a FastAPI app: the champion, all releases, runs, and predictions for single images."""
