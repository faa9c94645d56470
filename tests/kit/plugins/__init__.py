"""What pytest loads for every test: options and fixtures."""
