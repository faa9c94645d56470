"""What the demo model learns from: exchanges and texts, made from seeds by one module for each subject."""
