"""The pictures in docs/images: twelve weeks of the pipeline on the real images, then its pages in a browser."""
