"""Images and labels: where they come from, how they are checked, how they are kept and split."""
